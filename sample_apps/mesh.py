"""The mesh: a collector, an edge Envoy, one Envoy sidecar for each service, and the services themselves.

client -> edge -> checkout's sidecar -> FastAPI -> the same sidecar -> inventory's sidecar -> Flask
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from meshmw.testing import Envoy, Listener, OtlpReceiver, Proxy, Tracer, start_process, stop_processes
from sample_apps import NotReadyError

HERE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mesh:
    receiver: OtlpReceiver
    edge: Envoy
    checkout_sidecar: Envoy
    inventory_sidecar: Envoy

    @property
    def url(self) -> str:
        return f"{self.edge.url()}/api/checkout"


@contextlib.contextmanager
def start_mesh(*, bare: bool, port: int, say: Callable[[str], None]) -> Iterator[Mesh]:
    """Start everything and stop it whatever happens in the block.

    Args:
        bare: Run the services that do not use meshmw.
        port: The edge's port, or 0 for any free one.
        say: Is told of each step.
    """
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sample-apps-", ignore_cleanup_errors=True)))
        receiver = stack.enter_context(OtlpReceiver())
        # Each proxy needs the port of what lies behind it, so they start from the inside out.
        services = Services(receiver.grpc_endpoint, "_bare" if bare else "", logs)
        stack.callback(services.stop)
        say("starting inventory-service (Flask) and its Envoy sidecar")
        inventory_port = services.start_inventory()
        tracer = Tracer(collector=receiver.grpc_endpoint)
        inventory = stack.enter_context(Envoy(sidecar("inventory-sidecar", tracer, inbound=inventory_port)))
        say("starting checkout-service (FastAPI) and its Envoy sidecar")
        checkout_port = free_port()
        beside_checkout = sidecar("checkout-sidecar", tracer, inbound=checkout_port, outbound=inventory.port("inbound"))
        checkout = stack.enter_context(Envoy(beside_checkout))
        services.start_checkout(checkout_port, inventory_url=checkout.url("outbound"))
        say("starting the edge Envoy")
        edge_listener = Listener(
            name="edge", upstream=f"127.0.0.1:{checkout.port('inbound')}", port=port, tracer=tracer, edge=True
        )
        edge = stack.enter_context(Envoy(Proxy("edge", [edge_listener])))
        say("waiting for the services")
        services.wait()
        yield Mesh(receiver, edge, checkout, inventory)


def sidecar(name: str, tracer: Tracer, *, inbound: int, outbound: int | None = None) -> Proxy:
    """Describe a sidecar: a listener for what comes in, and one for the service's own calls if it makes any."""
    listeners = [Listener(name="inbound", upstream=f"127.0.0.1:{inbound}", direction="inbound", tracer=tracer)]
    if outbound is not None:
        upstream = f"127.0.0.1:{outbound}"
        listeners.append(Listener(name="outbound", upstream=upstream, direction="outbound", tracer=tracer))
    return Proxy(name, listeners)


class Services:
    """The two services as processes of their own, each with its output in a file."""

    def __init__(self, endpoint: str, flavour: str, logs: Path) -> None:
        self.flavour = flavour
        self.logs = logs
        self.running: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
        # Whatever is set for the reader's own services must not decide here.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "MESHMW_"))}
        self.environment = inherited | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "NO_PROXY": "127.0.0.1",
        }

    def start_inventory(self) -> int:
        port = free_port()
        self._start("inventory", port, {}, "waitress", f"--listen=127.0.0.1:{port}")
        return port

    def start_checkout(self, port: int, inventory_url: str) -> None:
        address = ("--host=127.0.0.1", f"--port={port}", "--log-level=warning")
        self._start("checkout", port, {"INVENTORY_URL": inventory_url}, "uvicorn", *address)

    def _start(self, name: str, port: int, settings: dict[str, str], server: str, *options: str) -> None:
        command = [sys.executable, "-m", server, *options, f"sample_apps.{name}{self.flavour}:app"]
        environment = self.environment | settings
        process = start_process(command, self.logs / name, environment=environment, cwd=HERE)
        self.running[name] = (process, port)

    def wait(self, timeout: float = 30.0) -> None:
        """Wait until both accept connections."""
        deadline = time.monotonic() + timeout
        for name, (process, port) in self.running.items():
            while not accepts(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    lines = (self.logs / name).read_text(errors="replace").splitlines()
                    raise NotReadyError(f"{name}-service did not start: {lines[-1] if lines else 'it said nothing'}")
                time.sleep(0.01)

    def stop(self) -> None:
        stop_processes(process for process, _ in self.running.values())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
