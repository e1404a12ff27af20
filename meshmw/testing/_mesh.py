"""A mesh of one's own services on loopback: each with a sidecar beside it, an edge in front, a collector behind.

client -> edge -> sidecar -> service -> the same sidecar -> the next one's sidecar -> service
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from meshmw._tools.report import write_report
from meshmw.errors import MeshError
from meshmw.testing._envoy import Envoy
from meshmw.testing._mesh_client import MeshClient
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
from meshmw.testing._proxies import LinkerdLike, Listener, Proxy, Tracer

RunningSidecar: TypeAlias = Envoy | LinkerdLike

_TRACE_HEADERS = ("traceparent", "tracestate", "baggage", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled")
_POLL = 0.01


class EnvoyMesh(MeshClient):
    """Is a running mesh; ask it for requests, spans, sidecars and logs.

    Attributes:
        receiver: The collector that services and sidecars report to.
        services: What it was made of, in the order given; the first one is what the edge leads to.
        edge: The proxy in front, or None.
        sidecars: Each service's sidecar, by the service's name.
    """

    def __init__(self, services: Sequence[Service], receiver: OtlpReceiver, logs: Path) -> None:
        super().__init__(receiver, [service.name for service in services])
        self.services = tuple(services)
        self.edge: Envoy | None = None
        self.sidecars: dict[str, RunningSidecar] = {}
        self._logs = logs
        self._ports = {service.name: free_port() for service in services}

    @property
    def url(self) -> str:
        """The base URL that requests enter by."""
        return self.edge.url() if self.edge is not None else self.sidecars[self.services[0].name].url("inbound")

    @property
    def access_logs(self) -> dict[str, Path]:
        """Each proxy's access log by the proxy's name, callers before those whom they call."""
        callers_first = [self.sidecars[service.name] for service in reversed(in_order(self.services))]
        proxies = [*([] if self.edge is None else [self.edge]), *callers_first]
        return {running.proxy.name: running.access_log_path for running in proxies}

    def log(self, service: str) -> str:
        """Return what a service has written so far."""
        return (self._logs / service).read_text(encoding="utf-8", errors="replace")

    def _start(self, stack: contextlib.ExitStack, sidecar: Sidecar, edge: Sidecar | None) -> None:
        # Each sidecar needs the port of what lies behind it, so they start from the inside out.
        ordered = in_order(self.services)
        for service in ordered:
            style = service.sidecar or sidecar
            proxy = Proxy(f"{service.name}-sidecar", self._listeners(service, style))
            running = self._sidecar(proxy, style)
            self.sidecars[service.name] = running
            stack.enter_context(running)
        if edge is not None:
            inbound = f"127.0.0.1:{self.sidecars[self.services[0].name].port('inbound')}"
            listener = Listener(name="edge", upstream=inbound, edge=True, tracer=self._tracer(edge))
            self.edge = stack.enter_context(Envoy(Proxy("edge", [listener]), self._logs))
        served: dict[str, subprocess.Popen[bytes]] = {}
        stack.callback(lambda: stop_processes(served.values()))
        for service in ordered:
            served[service.name] = self._serve(service)
        self._wait_until_served(served)

    def _sidecar(self, proxy: Proxy, style: Sidecar) -> RunningSidecar:
        if style == "linkerd-like":
            return LinkerdLike(proxy, self.receiver.add, self._logs / f"{proxy.name}.log")
        return Envoy(proxy, self._logs)

    def _listeners(self, service: Service, style: Sidecar) -> Iterator[Listener]:
        own, tracer = f"127.0.0.1:{self._ports[service.name]}", self._tracer(style)
        removed = _TRACE_HEADERS if style == "strip" else ()
        yield Listener(name="inbound", upstream=own, direction="inbound", tracer=tracer, early_remove_headers=removed)
        for name in service.calls:
            upstream = f"127.0.0.1:{self.sidecars[name].port('inbound')}"
            yield Listener(name=name, upstream=upstream, direction="outbound", tracer=tracer)

    def _tracer(self, style: Sidecar) -> Tracer | None:
        if style in ("none", "strip", "linkerd-like"):
            return None
        collector = self.receiver.http_endpoint if style.startswith("zipkin") else self.receiver.grpc_endpoint
        return Tracer(kind=style, collector=collector)  # type: ignore[arg-type]  # the styles left are kinds of tracers

    def _serve(self, service: Service) -> subprocess.Popen[bytes]:
        places = {name: self.sidecars[service.name].url(name) for name in service.calls}
        places["port"] = str(self._ports[service.name])
        # What is set for the tests' own process must not decide here.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "MESHMW_"))}  # noqa: TID251
        environment = {
            **kept,
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.receiver.grpc_endpoint,
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
                    raise MeshError(f"service {name!r} {how}:\n{self.log(name)[-2000:]}")
                time.sleep(_POLL)


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
            removes the trace headers of what comes in), `linkerd-like` (a stand-in, see `linkerd_like`).
        edge: The style of the Envoy in front; None for no Envoy in front.

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


def _absolute(command: list[str]) -> list[str]:
    program = shutil.which(command[0])
    if program is None:
        raise MeshError(f"{command[0]!r} is not a program that can be run here")
    return [program, *command[1:]]


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


# HTML reports of what tests sent into their meshes, a file for each mesh of each test.


_UNFIT_FOR_A_FILE_NAME = re.compile(r"[^A-Za-z0-9.]+")
# Most file systems take 255 bytes.
_LENGTH = 150


def write_reports(meshes: Sequence[EnvoyMesh], folder: Path, test: str) -> Iterator[Path]:
    """Write a report of the last request of each mesh that had one; yield where.

    Args:
        meshes: The meshes of one test, still running.
        folder: Where the reports go; made if it is not there.
        test: The test's name.
    """
    name = _UNFIT_FOR_A_FILE_NAME.sub("-", test).strip("-")[-_LENGTH:]
    for number, mesh in enumerate((mesh for mesh in meshes if mesh.was_asked), 1):
        path = folder / (f"{name}.html" if number == 1 else f"{name}-{number}.html")
        write_report(mesh.journey(timeout=3.0), path)
        yield path
