"""The client of a test mesh: sends header lines exactly as they are written, and waits for the whole trace of it."""

from __future__ import annotations

import abc
import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from meshmw._tools.access_log.text_format import Line
from meshmw._tools.verify import follow
from meshmw._tools.verify.evidence import LocalBackend, LogTail, Watch
from meshmw._tools.verify.journey import Journey
from meshmw._tools.verify.probe import TRACESTATE, Probe, ProbeAnswer, Variant
from meshmw.errors import InvalidHeaderError, MeshError
from meshmw.testing._otlp import OtlpReceiver
from meshmw.testing._spans import ReceivedSpan, roots
from meshmw.wire.traceparent import TraceParent

# The journey of one request through a test mesh, as `meshmw verify` finds it for a real one.


_UNSAMPLED: Final = "-00"


class _NewLines(LogTail):
    """Is a log without the lines of earlier requests, which a proxy may write after those were answered."""

    def __init__(self, name: str, path: Path, began: str) -> None:
        super().__init__(name, path)
        self._began = began

    @property
    def lines(self) -> list[Line]:
        return [line for line in super().lines if line.get("start_time", self._began) >= self._began]


class Follower:
    """Follows one request that is about to be sent: the access logs are read from here on.

    Args:
        logs: Each proxy's access log by the proxy's name, in the order of the way.
        receiver: The collector.
    """

    def __init__(self, logs: Mapping[str, Path], receiver: OtlpReceiver) -> None:
        began = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._tails = [_NewLines(name, path, began) for name, path in logs.items()]
        self._receiver = receiver

    def journey(self, probe: Probe, status: int, began_ns: int, timeout: float) -> Journey:
        """Wait until logs and collector show the request, and return its journey with the verdict."""
        backend = LocalBackend("collector", lambda: self._receiver.spans, everything=True)
        # A mesh of one test has no other traffic, and writes its logs at once.
        watch = Watch(tails=self._tails, backends=[backend], timeout=timeout, settle=0.2, alone=True)
        return follow(probe, ProbeAnswer(status), watch, began_ns)


def as_probe(method: str, url: str, lines: Sequence[tuple[str, str]], named: tuple[str, str] | None) -> Probe:
    """Return a request as something that can be followed.

    Args:
        method: Its method.
        url: Where it went.
        lines: Its header lines.
        named: The trace and the span that its headers name; None where the first strict reader begins a fresh trace.
    """
    headers = {name.lower(): value for name, value in reversed(lines)}
    # The judge knows one tracestate, its own: another one is not looked for.
    if TRACESTATE not in headers.get("tracestate", TRACESTATE):
        headers.pop("tracestate")
    trace_id, parent_id = named or ("", "")
    return Probe(url, _variant(headers, named), trace_id, parent_id, headers, "-", "-", method)


def _variant(headers: Mapping[str, str], named: tuple[str, str] | None) -> Variant:
    if named is None:
        return "malformed"
    if "traceparent" not in headers:
        return "b3"
    return "unsampled" if headers["traceparent"].endswith(_UNSAMPLED) else "w3c"


# The header matrix: what arrives at a mesh in practice, and whether a trace goes on from it.
#
# Each case has ids of its own, so that a test sees at once whose trace it found.


_TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
_SPAN: Final = "00f067aa0ba902b7"
_B3_TRACE: Final = "80f198ee56343ba864fe8b2a57d3eff7"
_B3_SPAN: Final = "e457b5a2e4d86bd1"


@dataclass(frozen=True, slots=True)
class HeaderCase:
    """Is what one request brings.

    Attributes:
        name: The case's name, as `@pytest.mark.meshmw_headers` takes it.
        lines: The header lines, in order.
        trace_id: The trace that goes on where the format is read; empty where a fresh one has to begin.
        parent_id: The span that the header names; empty where a fresh trace has to begin.
        sampled: Whether the caller sampled the trace; None where it says nothing.
    """

    name: str
    lines: tuple[tuple[str, str], ...]
    trace_id: str = ""
    parent_id: str = ""
    sampled: bool | None = None

    def __str__(self) -> str:
        return self.name


_W3C: Final = ("traceparent", f"00-{_TRACE}-{_SPAN}-01")
_B3: Final = ("b3", f"{_B3_TRACE}-{_B3_SPAN}-1")

HEADER_MATRIX: Final = (
    HeaderCase("none", ()),
    HeaderCase("w3c", (_W3C, ("tracestate", "vendor=1"), ("baggage", "tenant=acme")), _TRACE, _SPAN, True),
    HeaderCase("w3c-unsampled", (("traceparent", f"00-{_TRACE}-{_SPAN}-00"),), _TRACE, _SPAN, False),
    HeaderCase("b3", (_B3,), _B3_TRACE, _B3_SPAN, True),
    HeaderCase(
        "b3multi",
        (("x-b3-traceid", _B3_TRACE), ("x-b3-spanid", _B3_SPAN), ("x-b3-sampled", "1")),
        _B3_TRACE,
        _B3_SPAN,
        True,
    ),
    HeaderCase("both", (_W3C, _B3), _TRACE, _SPAN, True),
    HeaderCase("empty", (("traceparent", ""),)),
    HeaderCase("zero-trace-id", (("traceparent", f"00-{'0' * 32}-{_SPAN}-01"),)),
    HeaderCase("not-hex", (("traceparent", f"00-{'x' * 32}-{_SPAN}-01"),)),
    HeaderCase("too-long", (("traceparent", f"00-{_TRACE}-{_SPAN}-01-more"),)),
    HeaderCase("version-ff", (("traceparent", f"ff-{_TRACE}-{_SPAN}-01"),)),
    HeaderCase("twice", (_W3C, ("traceparent", f"00-{_B3_TRACE}-{_B3_SPAN}-01"))),
)


def header_cases(names: Iterable[str] = ()) -> list[HeaderCase]:
    """Return the cases of these names, in their order, or all.

    Raises:
        ValueError: There is no case of one of the names.
    """
    by_name = {case.name: case for case in HEADER_MATRIX}
    wanted = list(names) or list(by_name)
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        raise ValueError(f"there is no header case {unknown[0]!r}: choose of {', '.join(by_name)}")
    return [by_name[name] for name in wanted]


HeaderLines = Iterable[tuple[str, str]] | Mapping[str, str] | HeaderCase
CLIENT = "client"
_QUIET = 0.15


@dataclass(frozen=True, slots=True)
class Answer:
    """Is a response, read to its end.

    Attributes:
        status: The status code.
        headers: The header lines, in order.
        body: The body's bytes.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return what the body holds.

        Raises:
            ValueError: It is no JSON.
        """
        return json.loads(self.body)


class MeshClient(abc.ABC):
    """Sends requests into a mesh and collects what became of them.

    Args:
        receiver: The collector of the mesh.
        expected: The names of the services that a whole trace has spans of.
    """

    def __init__(self, receiver: OtlpReceiver, expected: Sequence[str]) -> None:
        self.receiver = receiver
        self._expected = frozenset(expected)
        self._journey: Callable[[float], Journey] | None = None

    @property
    @abc.abstractmethod
    def url(self) -> str:
        """The base URL that requests enter by."""

    @property
    @abc.abstractmethod
    def access_logs(self) -> dict[str, Path]:
        """Each proxy's access log by the proxy's name, in the order of the way."""

    def get(self, path: str = "/", headers: HeaderLines = ()) -> Answer:
        """Send one GET, as `request` does."""
        return self.request("GET", path, headers)

    def request(self, method: str, path: str, headers: HeaderLines = (), body: bytes | None = None) -> Answer:
        """Send one request with exactly these header lines, repeated and malformed ones too.

        What the receiver held before is forgotten. The sampled span that the headers name is added to it, as one of
        the service `client`, so that a trace that goes on has its root.

        Args:
            method: The method.
            path: The path and query.
            headers: Name and value of each line, in order; or a case of the header matrix.
            body: The body's bytes.
        """
        lines = _lines(headers)
        follower = Follower(self.access_logs, self.receiver)
        self.receiver.clear()
        place = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=30)
        started = time.time_ns()
        with contextlib.closing(connection):
            connection.putrequest(method, path)
            for name, value in lines:
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            answer = Answer(response.status, tuple(response.getheaders()), response.read())
        self.receiver.add(_own_span(method, headers, started))
        probe = as_probe(method, self.url + path, lines, _named(headers))
        self._journey = partial(follower.journey, probe, answer.status, started)
        return answer

    @property
    def was_asked(self) -> bool:
        """Says whether a request was sent."""
        return self._journey is not None

    def journey(self, timeout: float = 30.0) -> Journey:
        """Return what became of the last request: its headers hop by hop, its spans, and the verdict.

        `meshmw._tools.report.write_report` makes a page of it.

        Args:
            timeout: Seconds to wait for what is not there yet.

        Raises:
            MeshError: No request was sent.
        """
        if self._journey is None:
            raise MeshError("no request was sent into this mesh")
        return self._journey(timeout)

    def spans(self, *services: str, timeout: float = 30.0) -> list[ReceivedSpan]:
        """Wait for the whole trace, and return every span since the last request, whole or not.

        A trace is whole when each service has a span in it and no span's parent is missing. What is not whole after
        *timeout* seconds is returned as it is: the assertion that follows shows the tree.

        Args:
            services: The services to wait for; all of the mesh if none is named.
            timeout: Seconds to wait.
        """
        wanted = frozenset(services) or self._expected
        with contextlib.suppress(AssertionError):
            self.receiver.wait_for(lambda spans: _is_whole(spans, wanted), timeout)
        # One that comes late would be missed by an assertion that there is nothing else.
        known = -1
        while known != len(found := self.receiver.spans):
            known = len(found)
            time.sleep(_QUIET)
        return found


def _is_whole(spans: Sequence[ReceivedSpan], services: frozenset[str]) -> bool:
    return services <= {span.service for span in spans} and not any(span.parent_id for span in roots(spans))


def _lines(headers: HeaderLines) -> list[tuple[str, str]]:
    if isinstance(headers, HeaderCase):
        return list(headers.lines)
    return list(headers.items() if isinstance(headers, Mapping) else headers)


def _own_span(method: str, headers: HeaderLines, started: int) -> list[ReceivedSpan]:
    """Return the span that the headers name, where they say that it was recorded."""
    found, sampled = _named(headers), _is_sampled(headers)
    if found is None or not sampled:
        return []
    trace_id, span_id = found
    return [
        ReceivedSpan(
            service=CLIENT,
            name=method,
            kind="CLIENT",
            trace_id=trace_id,
            span_id=span_id,
            start_ns=started,
            end_ns=time.time_ns(),
        )
    ]


def _parent(headers: HeaderLines) -> TraceParent | None:
    values = [value for name, value in _lines(headers) if name.lower() == "traceparent"]
    try:
        return TraceParent.parse(values[0]) if len(values) == 1 else None
    except InvalidHeaderError:
        return None


def _named(headers: HeaderLines) -> tuple[str, str] | None:
    if isinstance(headers, HeaderCase):
        return (headers.trace_id, headers.parent_id) if headers.trace_id else None
    parent = _parent(headers)
    return None if parent is None else (f"{parent.trace_id:032x}", f"{parent.parent_id:016x}")


def _is_sampled(headers: HeaderLines) -> bool:
    if isinstance(headers, HeaderCase):
        return bool(headers.sampled)
    parent = _parent(headers)
    return parent is not None and parent.sampled
