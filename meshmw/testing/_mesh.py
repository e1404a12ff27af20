"""`EnvoyMesh`: a mesh of one's own services on loopback, each with a sidecar, an edge in front, a collector behind.

client -> edge -> sidecar -> service -> the same sidecar -> the next one's sidecar -> service
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from meshmw._notices import quoted
from meshmw._tools.verify.journey import Journey
from meshmw.errors import MeshError
from meshmw.testing._envoy import Envoy
from meshmw.testing._faults import Fault, FaultProxy
from meshmw.testing._linkerd_like import LinkerdLike
from meshmw.testing._otlp import OtlpReceiver
from meshmw.testing._processes import (
    Service,
    Sidecar,
    check_word,
    free_port,
    in_order,
    start_process,
    stop_processes,
)
from meshmw.testing._proxies import Direction, Listener, Proxy, Tracer
from meshmw.testing._requests import Answer, Follower, HeaderCase, HeaderLines, as_case, as_probe
from meshmw.testing._spans import ReceivedSpan, roots
from meshmw.wire.headers import PROPAGATION_HEADERS

RunningProxy: TypeAlias = Envoy | LinkerdLike

_CLIENT: Final = "client"
_STRIPPED: Final = tuple(sorted(PROPAGATION_HEADERS))
_POLL: Final = 0.01
# Seconds without a span after which no further one is to be expected.
_QUIET: Final = 0.15


@contextlib.contextmanager
def start_mesh(
    *services: Service, receiver: OtlpReceiver | None = None, sidecar: Sidecar = "otel", edge: Sidecar | None = "otel"
) -> Iterator[EnvoyMesh]:
    """Run services with a sidecar each, and stop everything whatever happens in the block.

    Args:
        services: What to run; requests enter at the first.
        receiver: The collector of them all; one of the mesh's own if None.
        sidecar: The style of each sidecar that the service itself does not choose: `none` (a real Envoy that does not
            trace), `otel`, `zipkin-b3`, `zipkin-b3-w3c` (a real Envoy with that tracer), `strip` (a real Envoy that
            removes the trace headers of what comes in), `linkerd-like` (a stand-in, see `LinkerdLike`).
        edge: The style of the proxy in front, which does there what it does in a sidecar; None for no proxy in front.

    Raises:
        MeshError: The services do not fit together, or one of them does not start.
        EnvoyError: As `Envoy.start` does.
        MissingExtraError: As `OtlpReceiver` does.
    """
    check_word(Sidecar, sidecar, "sidecar")
    if edge is not None:
        check_word(Sidecar, edge, "edge")
    in_order(services)
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meshmw-mesh-", ignore_cleanup_errors=True)))
        mesh = EnvoyMesh(services, receiver or stack.enter_context(OtlpReceiver()), logs)
        mesh._start(stack, sidecar, edge)
        yield mesh


class EnvoyMesh:
    """Sends requests into a running mesh, and returns their spans, logs and journeys.

    Attributes:
        receiver: The collector that services and sidecars report to.
        services: What it was made of, in the order given; the first one is what the edge leads to.
        edge: The proxy in front, or None.
        sidecars: Each service's sidecar, by the service's name.
    """

    def __init__(self, services: Sequence[Service], receiver: OtlpReceiver, logs: Path) -> None:
        self.receiver = receiver
        self.services = tuple(services)
        self.edge: RunningProxy | None = None
        self.sidecars: dict[str, RunningProxy] = {}
        self._grpc = FaultProxy(receiver.grpc_endpoint)
        self._http = FaultProxy(receiver.http_endpoint)
        self._logs = logs
        self._ports = {service.name: free_port() for service in services}
        self._journey: Callable[[float], Journey] | None = None

    @property
    def url(self) -> str:
        """Return the base URL that requests enter by."""
        return self.edge.url("edge") if self.edge is not None else self.sidecars[self.services[0].name].url("inbound")

    @property
    def access_logs(self) -> dict[str, Path]:
        """Return each proxy's access log by the proxy's name, callers before those whom they call."""
        callers_first = [self.sidecars[service.name] for service in reversed(in_order(self.services))]
        proxies = [*([] if self.edge is None else [self.edge]), *callers_first]
        return {running.proxy.name: running.access_log_path for running in proxies}

    def log(self, service: str) -> str:
        """Return what a service has written so far."""
        return (self._logs / service).read_text(encoding="utf-8", errors="replace")

    def wait_for_log(self, service: str, text: str, timeout: float = 30.0) -> str:
        """Wait until a service has written a text, and return all that it has written so far.

        Raises:
            AssertionError: It does not come. The message shows what did.
        """
        deadline = time.monotonic() + timeout
        while text not in (log := self.log(service)):
            if time.monotonic() > deadline:
                raise AssertionError(f"{service} did not write {text!r} in {timeout:g} seconds, but:\n{log[-2000:]}")
            time.sleep(_POLL)
        return log

    @contextlib.contextmanager
    def collector_outage(self, fault: Fault = "refuse") -> Iterator[None]:
        """Cut services and sidecars off from the receiver during the block, as `FaultProxy.outage` does.

        Sidecars of the style `linkerd-like` are not cut off: they hand their spans on without a network.

        Raises:
            MeshError: There is no such fault.
        """
        with self._grpc.outage(fault), self._http.outage(fault):
            yield

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
        case = as_case(headers)
        follower = Follower(self.access_logs, self.receiver)
        self.receiver.clear()
        began_ns = time.time_ns()
        answer = _exchange(self.url, method, path, case.lines, body)
        if case.trace_id and case.sampled:
            self.receiver.add([_client_span(method, case, began_ns)])
        named = (case.trace_id, case.parent_id) if case.trace_id else None
        probe = as_probe(method, self.url + path, case.lines, named)
        self._journey = partial(follower.journey, probe, answer.status, began_ns)
        return answer

    @property
    def was_asked(self) -> bool:
        """Says whether a request was sent."""
        return self._journey is not None

    def journey(self, timeout: float = 30.0) -> Journey:
        """Return what became of the last request: its headers hop by hop, its spans, and the verdict.

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
        wanted = frozenset(services) or frozenset(service.name for service in self.services)
        with contextlib.suppress(AssertionError):
            self.receiver.wait_for(lambda spans: _is_whole(spans, wanted), timeout)
        # A span that comes late would escape an assertion that there are no others.
        known = -1
        while known != len(found := self.receiver.spans):
            known = len(found)
            time.sleep(_QUIET)
        return found

    def _start(self, stack: contextlib.ExitStack, sidecar: Sidecar, edge: Sidecar | None) -> None:
        stack.enter_context(self._grpc)
        stack.enter_context(self._http)
        # Each sidecar needs the port of what lies behind it, so they start from the inside out.
        ordered = in_order(self.services)
        for service in ordered:
            style = service.sidecar or sidecar
            proxy = Proxy(f"{service.name}-sidecar", list(self._listeners(service, style)))
            self.sidecars[service.name] = self._start_proxy(stack, proxy, style)
        if edge is not None:
            proxy = Proxy("edge", [self._listener("edge", self._inbound(self.services[0].name), "unset", edge)])
            self.edge = self._start_proxy(stack, proxy, edge)
        served: dict[str, subprocess.Popen[bytes]] = {}
        stack.callback(lambda: stop_processes(served.values()))
        for service in ordered:
            served[service.name] = self._serve(service)
        self._wait_until_served(served)

    def _start_proxy(self, stack: contextlib.ExitStack, proxy: Proxy, style: Sidecar) -> RunningProxy:
        if style == "linkerd-like":
            return stack.enter_context(LinkerdLike(proxy, self.receiver.add, self._logs / f"{proxy.name}.log"))
        return stack.enter_context(Envoy(proxy, self._logs))

    def _listeners(self, service: Service, style: Sidecar) -> Iterator[Listener]:
        yield self._listener("inbound", f"127.0.0.1:{self._ports[service.name]}", "inbound", style)
        for name in service.calls:
            yield self._listener(name, self._inbound(name), "outbound", style)

    def _listener(self, name: str, upstream: str, direction: Direction, style: Sidecar) -> Listener:
        return Listener(
            name=name,
            upstream=upstream,
            direction=direction,
            tracer=self._tracer(style),
            # Linkerd's proxy writes no x-forwarded-for and no request id.
            edge=name == "edge" and style != "linkerd-like",
            early_remove_headers=_STRIPPED if style == "strip" and direction != "outbound" else (),
        )

    def _inbound(self, service: str) -> str:
        return f"127.0.0.1:{self.sidecars[service].port('inbound')}"

    def _tracer(self, style: Sidecar) -> Tracer | None:
        if style in ("none", "strip", "linkerd-like"):
            return None
        collector = self._http if style.startswith("zipkin") else self._grpc
        return Tracer(kind=style, collector=collector.endpoint)  # type: ignore[arg-type]  # the styles left are kinds of tracers

    def _serve(self, service: Service) -> subprocess.Popen[bytes]:
        places = {name: self.sidecars[service.name].url(name) for name in service.calls}
        places["port"] = str(self._ports[service.name])
        # What is set for the tests' own process must not decide for the service.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "MESHMW_"))}  # noqa: TID251
        environment = {
            **kept,
            "OTEL_EXPORTER_OTLP_ENDPOINT": self._grpc.endpoint,
            "OTEL_SERVICE_NAME": service.name,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "NO_PROXY": "127.0.0.1",
            **service.variables(places),
        }
        command = _absolute(service.arguments(places))
        return start_process(command, self._logs / service.name, environment=environment, cwd=service.directory)

    def _wait_until_served(self, served: Mapping[str, subprocess.Popen[bytes]], timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        for name, process in served.items():
            while not _accepts(self._ports[name]):
                if process.poll() is not None or time.monotonic() > deadline:
                    how = "ended" if process.poll() is not None else f"does not listen after {timeout:g} seconds"
                    raise MeshError(f"service {quoted(name)} {how}:\n{self.log(name)[-2000:]}")
                time.sleep(_POLL)


def _exchange(url: str, method: str, path: str, lines: Sequence[tuple[str, str]], body: bytes | None) -> Answer:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=30)
    with contextlib.closing(connection):
        connection.putrequest(method, path)
        for name, value in lines:
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        return Answer(response.status, tuple(response.getheaders()), response.read())


def _client_span(method: str, case: HeaderCase, began_ns: int) -> ReceivedSpan:
    return ReceivedSpan(
        service=_CLIENT,
        name=method,
        kind="CLIENT",
        trace_id=case.trace_id,
        span_id=case.parent_id,
        start_ns=began_ns,
        end_ns=time.time_ns(),
    )


def _is_whole(spans: Sequence[ReceivedSpan], services: frozenset[str]) -> bool:
    return services <= {span.service for span in spans} and not any(span.parent_id for span in roots(spans))


def _absolute(command: list[str]) -> list[str]:
    program = shutil.which(command[0])
    if program is None:
        raise MeshError(f"{quoted(command[0])} is not a program that can be run here")
    return [program, *command[1:]]


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
