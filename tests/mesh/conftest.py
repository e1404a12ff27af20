"""A mesh of real Envoys around two real services, which are started once for all tests of this folder."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from meshmw.testing import Envoy, Listener, OtlpReceiver, Proxy, ReceivedSpan, Tracer, free_port, stop_processes

APPS = Path(__file__).parent / "apps"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"


@pytest.fixture(scope="session")
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as running:
        yield running


@dataclass(frozen=True)
class Services:
    """Two services that run with the same propagation formats."""

    checkout: int
    inventory: int
    log: Path

    def warnings(self) -> str:
        return self.log.read_text(errors="replace")


def _wait_until_listening(processes: Sequence[subprocess.Popen[bytes]], ports: Sequence[int], log: Path) -> None:
    deadline = time.monotonic() + 60
    for port in ports:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if any(process.poll() is not None for process in processes) or time.monotonic() > deadline:
                pytest.fail(f"a service did not start:\n{log.read_text()}")
            time.sleep(0.02)


@contextlib.contextmanager
def _running_services(
    directory: Path, receiver: OtlpReceiver, formats: str, settings: dict[str, str]
) -> Iterator[Services]:
    ports, log = (free_port(), free_port()), directory / "services.log"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "MESHMW_"))},
        "MESHMW_ENDPOINT": receiver.grpc_endpoint,
        "MESHMW_PROPAGATORS": formats,
        "MESHMW_WARN_WINDOW": "0.001",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        **settings,
    }
    uvicorn = [sys.executable, "-m", "uvicorn", "--app-dir", str(APPS), "checkout:app", "--port", str(ports[0])]
    waitress = [sys.executable, str(APPS / "inventory.py"), str(ports[1])]
    with log.open("wb") as output:
        processes = [
            subprocess.Popen(
                command, env={**environment, "MESHMW_SERVICE_NAME": name}, stdout=output, stderr=subprocess.STDOUT
            )
            for command, name in ((uvicorn, "checkout"), (waitress, "inventory"))
        ]
        try:
            _wait_until_listening(processes, ports, log)
            yield Services(*ports, log)
        finally:
            stop_processes(processes)


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory, receiver: OtlpReceiver) -> Iterator[Callable[..., Services]]:
    """Start the two services for a list of formats and further settings, once for each."""
    with contextlib.ExitStack() as stack:
        running: dict[str, Services] = {}

        def start(formats: str, **settings: str) -> Services:
            key = f"{formats} {settings}"
            if key not in running:
                directory = tmp_path_factory.mktemp("services")
                running[key] = stack.enter_context(_running_services(directory, receiver, formats, settings))
            return running[key]

        yield start


@dataclass
class Mesh:
    """Edge, two sidecars with two listeners each, and the services between them."""

    services: Services
    edge: Envoy
    a: Envoy
    b: Envoy
    receiver: OtlpReceiver

    def call(self, headers: Sequence[tuple[str, str]], start: str = "edge") -> dict[str, Any]:
        """Send one request with exactly these header lines, and return what the services saw."""
        port = self.edge.port() if start == "edge" else self.b.port("inbound")
        inventory = f"http://127.0.0.1:{self.a.port('outbound')}/api/stock"
        path = f"/api/checkout?inventory={inventory}" if start == "edge" else "/api/stock"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest("GET", path)
            for name, value in headers:
                connection.putheader(name, value)
            connection.endheaders()
            response = connection.getresponse()
            assert response.status == 200, response.read()
            found: dict[str, Any] = json.loads(response.read())
            return found

    def spans(self, count: int, trace_id: str | None = None) -> list[ReceivedSpan]:
        """Return the spans of one trace, or of all traces since the test began, once *count* have come."""

        def of_trace(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
            return [span for span in spans if trace_id in (None, span.trace_id)]

        return of_trace(self.receiver.wait_for(lambda spans: len(of_trace(spans)) >= count))


@pytest.fixture
def mesh(
    envoys: Callable[..., list[Envoy]], services: Callable[..., Services], receiver: OtlpReceiver
) -> Callable[..., Mesh]:
    """Build a mesh whose sidecars have a tracer of the given kind; `edge` and `a_out` may differ from the rest."""

    def build(
        kind: str = "none",
        *,
        formats: str = "tracecontext,baggage",
        a_out: str | None = None,
        edge: dict[str, Any] | None = None,
        edge_kind: str | None = None,
        sidecars_sample: float = 100.0,
        settings: dict[str, str] | None = None,
    ) -> Mesh:
        running = services(formats, **(settings or {}))

        def tracer(of_kind: str, percent: float = sidecars_sample) -> Tracer:
            zipkin_or_http = of_kind.startswith("zipkin") or of_kind == "otel-http"
            collector = receiver.http_endpoint if zipkin_or_http else receiver.grpc_endpoint
            return Tracer(kind=of_kind, collector=collector, random_sampling=percent)  # type: ignore[arg-type]

        def sidecar(name: str, app: int, out: str, out_kind: str) -> Proxy:
            inbound = Listener(name="inbound", upstream=f"127.0.0.1:{app}", direction="inbound", tracer=tracer(kind))
            outbound = Listener(name="outbound", upstream=out, direction="outbound", tracer=tracer(out_kind))
            return Proxy(name, [inbound, outbound])

        (b,) = envoys(sidecar("sidecar-b", running.inventory, f"127.0.0.1:{running.inventory}", kind))
        (a,) = envoys(sidecar("sidecar-a", running.checkout, f"127.0.0.1:{b.port('inbound')}", a_out or kind))
        gateway = Listener(
            name="edge",
            upstream=f"127.0.0.1:{a.port('inbound')}",
            edge=True,
            tracer=tracer(edge_kind or kind, 100.0),
            **(edge or {}),
        )
        (front,) = envoys(Proxy("edge", [gateway]))
        receiver.clear()
        return Mesh(running, front, a, b, receiver)

    return build
