"""`LinkerdLike`: a stand-in for Linkerd's proxy, by the rules that its source states. No wheel carries Linkerd itself.

The rules (linkerd2-proxy, `trace-context/src/propagation/w3c.rs` and `service.rs`): a request without a trace header
passes as it is, for Linkerd never starts a trace. A traceparent of version 00 is continued with a new span id, and B3
beside it goes stale. Any other version is not seen. Without traceparent, B3 is continued. Tracestate and baggage are
never touched. Spans are reported for sampled requests alone.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, NamedTuple

from meshmw._notices import quoted
from meshmw.testing._otlp import Handler, Server
from meshmw.testing._proxies import Listener, Proxy, split_address
from meshmw.testing._spans import ReceivedSpan

# Linkerd checks neither length nor case beyond this, and pads short ids with zeros.
_W3C: Final = re.compile(r"00-([0-9a-fA-F]{1,32})-([0-9a-fA-F]{1,16})-([0-9a-fA-F]{2})")
_HOP_BY_HOP: Final = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "proxy-connection"}
_LOGGED: Final = ("traceparent", "tracestate", "baggage", "b3")

Headers = list[tuple[str, str]]


class LinkerdLike:
    """Runs a sidecar that does to trace headers what Linkerd's proxy does; a context manager.

    Args:
        proxy: Its listeners, with a name, an upstream and a direction each.
        report: Takes the spans that it makes.
        log: The file that gets its access log, one JSON object a line.

    Attributes:
        access_log_path: The file with the access log.

    Raises:
        ValueError: A listener asks for more, such as a tracer or headers to remove, which would silently not be done.
    """

    def __init__(self, proxy: Proxy, report: Callable[[list[ReceivedSpan]], None], log: Path) -> None:
        for listener in proxy.listeners:
            _check(listener)
        self.proxy = proxy
        self._report = report
        self._running = contextlib.ExitStack()
        self._ports: dict[str, int] = {}
        self._lines: list[dict[str, Any]] = []
        self._writing = threading.Lock()
        self.access_log_path = log

    def __enter__(self) -> LinkerdLike:
        for listener in self.proxy.listeners:
            hop = _Hop(self.proxy.name, listener, self._report, self._write)
            handler = type("Handler", (_Handler,), {"hop": hop})
            server = self._running.enter_context(Server(("127.0.0.1", 0), handler))
            self._ports[listener.name] = server.server_port
            threading.Thread(target=server.serve_forever, args=(0.01,), name=self.proxy.name, daemon=True).start()
            self._running.callback(server.shutdown)
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def port(self, listener: str) -> int:
        """Return the port of a listener, by name."""
        return self._ports[listener]

    def url(self, listener: str) -> str:
        """Return the base URL of a listener."""
        return f"http://127.0.0.1:{self.port(listener)}"

    def _write(self, line: dict[str, Any]) -> None:
        # One thread at a time, so that the file and the list hold the same lines in the same order.
        with self._writing:
            with self.access_log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._lines.append(line)

    def access_log(self, at_least: int = 0, timeout: float = 30.0) -> list[dict[str, Any]]:
        """Return its log as `Envoy.access_log` does; Linkerd itself cannot log these headers.

        Args:
            at_least: How many lines to wait for; the last of a request is written after the client has its response.
            timeout: Seconds to wait.

        Raises:
            AssertionError: Fewer lines are there by then.
        """
        deadline = time.monotonic() + timeout
        while len(self._lines) < at_least:
            if time.monotonic() > deadline:
                raise AssertionError(f"{quoted(self.proxy.name)} logged {len(self._lines)} lines, not {at_least}")
            time.sleep(0.01)
        return list(self._lines)


def _check(listener: Listener) -> None:
    done = Listener(name=listener.name, upstream=listener.upstream, direction=listener.direction)
    for each in fields(Listener):
        if getattr(listener, each.name) != getattr(done, each.name):
            raise ValueError(f"the stand-in for Linkerd cannot do {each.name} of listener {quoted(listener.name)}")


class Continued(NamedTuple):
    """Says how a trace goes on.

    Attributes:
        trace_id: 32 hex digits.
        parent_id: The caller's span, 16 hex digits.
        span_id: The proxy's own span, 16 hex digits.
        sampled: Whether it is reported.
        headers: What goes on instead of the headers that came.
    """

    trace_id: str
    parent_id: str
    span_id: str
    sampled: bool
    headers: Headers


def continue_trace(headers: Headers) -> Continued | None:
    """Return how a request's trace goes on, or None where the headers go on as they are."""
    found = {name.lower(): value for name, value in reversed(headers)}
    span_id = secrets.token_hex(8)
    w3c = _W3C.fullmatch(found.get("traceparent", ""))
    if w3c is not None:
        trace_id, parent_id, flags = w3c[1].rjust(32, "0"), w3c[2].rjust(16, "0"), w3c[3]
        written = {"traceparent": f"00-{trace_id}-{span_id}-{flags}"}
        sampled = bool(int(flags, 16) & 1)
    elif found.get("x-b3-traceid") and found.get("x-b3-spanid"):
        trace_id, parent_id = found["x-b3-traceid"].rjust(32, "0"), found["x-b3-spanid"]
        written = {"x-b3-spanid": span_id, "x-b3-parentspanid": parent_id}
        sampled = found.get("x-b3-sampled") == "1"
    else:
        return None
    kept = [(name, value) for name, value in headers if name.lower() not in written]
    return Continued(trace_id, parent_id, span_id, sampled, kept + list(written.items()))


@dataclass(frozen=True, slots=True)
class _Hop:
    service: str
    listener: Listener
    report: Callable[[list[ReceivedSpan]], None]
    log: Callable[[dict[str, Any]], None]


class _Handler(Handler):
    hop: _Hop

    def _forward(self) -> None:
        started = time.time_ns()
        came = [(name, value) for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP]
        trace = continue_trace(came)
        sent = came if trace is None else trace.headers
        self._log("DownstreamStart", came)
        body = self.read_body()
        with self._answer(sent, body) as (status, headers, answer):
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
        self._log("DownstreamEnd", sent)
        if trace is not None and trace.sampled:
            self.hop.report([self._span(trace, started)])

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _forward  # noqa: N815 - http.server's

    @contextlib.contextmanager
    def _answer(self, headers: Headers, body: bytes) -> Iterator[tuple[int, Headers, bytes]]:
        connection = http.client.HTTPConnection(*split_address(self.hop.listener.upstream), timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value)
            if body and not any(name.lower() == "content-length" for name, _ in headers):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            skipped = {*_HOP_BY_HOP, "content-length"}
            kept = [(name, value) for name, value in response.getheaders() if name.lower() not in skipped]
            yield response.status, kept, response.read()

    def _span(self, trace: Continued, started: int) -> ReceivedSpan:
        side = "outbound" if self.hop.listener.direction == "outbound" else "inbound"
        return ReceivedSpan(
            service=self.hop.service,
            name=f"linkerd-like {side}",
            kind="SERVER" if side == "inbound" else "CLIENT",
            trace_id=trace.trace_id,
            span_id=trace.span_id,
            parent_id=trace.parent_id,
            start_ns=started,
            end_ns=time.time_ns(),
            scope="linkerd-like",
        )

    def _log(self, kind: str, headers: Headers) -> None:
        found = {name.lower(): value for name, value in reversed(headers)}
        logged = {name: found.get(name) for name in _LOGGED}
        self.hop.log({"type": kind, "listener": self.hop.listener.name, "path": self.path, **logged})
