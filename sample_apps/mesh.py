"""The mesh: a collector, an edge Envoy, one Envoy sidecar for each service, and the services themselves.

client -> edge -> checkout's sidecar -> FastAPI -> the same sidecar -> inventory's sidecar -> Flask
FastAPI -> the same sidecar -> pricing's sidecar -> the gRPC server
FastAPI -> each broker that there is -> the worker -> the worker's sidecar -> inventory's sidecar -> Flask
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from meshmw.testing import Envoy, Listener, OtlpReceiver, Proxy, Tracer, free_port, start_process, stop_processes
from sample_apps import NotReadyError
from sample_apps.brokers import start_brokers
from sample_apps.ports import accepts

HERE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mesh:
    receiver: OtlpReceiver
    edge: Envoy
    checkout_sidecar: Envoy
    inventory_sidecar: Envoy
    pricing_sidecar: Envoy | None
    worker_sidecar: Envoy | None
    brokers: tuple[str, ...]

    @property
    def url(self) -> str:
        return f"{self.edge.url()}/api/checkout"

    @property
    def envoys(self) -> list[Envoy]:
        """All proxies, in the order of the way."""
        ways = (self.edge, self.checkout_sidecar, self.pricing_sidecar, self.worker_sidecar, self.inventory_sidecar)
        return [envoy for envoy in ways if envoy is not None]


@contextlib.contextmanager
def start_mesh(
    *, flavour: str, port: int, say: Callable[[str], None], collector: OtlpReceiver | None = None
) -> Iterator[Mesh]:
    """Start everything and stop it whatever happens in the block.

    Args:
        flavour: Which services run: empty for those that use meshmw, `_contrib`, or `_bare` for those that use neither.
        port: The edge's port, or 0 for any free one.
        say: Is told of each step.
        collector: What takes the spans; a plain receiver if None.
    """
    bare = flavour == "_bare"
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sample-apps-", ignore_cleanup_errors=True)))
        receiver = stack.enter_context(collector or OtlpReceiver())
        # Each proxy needs the port of what lies behind it, so they start from the inside out.
        brokers = {} if bare else start_brokers(stack, logs, say)
        services = Services(receiver.grpc_endpoint, flavour, logs, brokers)
        stack.callback(services.stop)
        say("starting inventory-service (Flask) and its Envoy sidecar")
        inventory_port = services.start_inventory()
        tracer = Tracer(collector=receiver.grpc_endpoint)
        inventory = stack.enter_context(Envoy(sidecar("inventory-sidecar", tracer, inbound=inventory_port)))
        pricing = None
        if not bare:
            say("starting pricing-service (gRPC) and its Envoy sidecar")
            behind = services.start_pricing()
            pricing = stack.enter_context(Envoy(sidecar("pricing-sidecar", tracer, inbound=behind, http2=True)))
        say("starting checkout-service (FastAPI) and its Envoy sidecar")
        checkout_port = free_port()
        beside_checkout = sidecar(
            "checkout-sidecar",
            tracer,
            inbound=checkout_port,
            outbound=inventory.port("inbound"),
            rpc=pricing and pricing.port("inbound"),
        )
        checkout = stack.enter_context(Envoy(beside_checkout))
        pricing_target = f"127.0.0.1:{checkout.port('rpc')}" if pricing else ""
        services.start_checkout(checkout_port, inventory_url=checkout.url("outbound"), pricing_target=pricing_target)
        worker = None
        if brokers:
            say("starting order-worker and its Envoy sidecar")
            worker = stack.enter_context(Envoy(sidecar("worker-sidecar", tracer, outbound=inventory.port("inbound"))))
            services.start_worker(inventory_url=worker.url("outbound"))
        say("starting the edge Envoy")
        edge_listener = Listener(
            name="edge", upstream=f"127.0.0.1:{checkout.port('inbound')}", port=port, tracer=tracer, edge=True
        )
        edge = stack.enter_context(Envoy(Proxy("edge", [edge_listener])))
        say("waiting for the services")
        services.wait()
        yield Mesh(receiver, edge, checkout, inventory, pricing, worker, tuple(brokers))


def sidecar(
    name: str,
    tracer: Tracer,
    *,
    inbound: int | None = None,
    outbound: int | None = None,
    rpc: int | None = None,
    http2: bool = False,
) -> Proxy:
    """Describe a sidecar: a listener for what comes in, and one each for the service's own requests and gRPC calls."""
    listeners = []
    if inbound is not None:
        upstream = f"127.0.0.1:{inbound}"
        listeners.append(Listener(name="inbound", upstream=upstream, direction="inbound", tracer=tracer, http2=http2))
    if outbound is not None:
        upstream = f"127.0.0.1:{outbound}"
        listeners.append(Listener(name="outbound", upstream=upstream, direction="outbound", tracer=tracer))
    if rpc is not None:
        upstream = f"127.0.0.1:{rpc}"
        listeners.append(Listener(name="rpc", upstream=upstream, direction="outbound", tracer=tracer, http2=True))
    return Proxy(name, listeners)


class Services:
    """The services as processes of their own, each with its output in a file."""

    def __init__(self, endpoint: str, flavour: str, logs: Path, brokers: Mapping[str, str]) -> None:
        self.flavour = flavour
        self.logs = logs
        self.running: dict[str, tuple[subprocess.Popen[bytes], int | None]] = {}
        # Whatever is set for the reader's own services must not decide here.
        foreign = ("OTEL_", "MESHMW_", "KAFKA_", "RABBITMQ_")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        self.environment = {
            **inherited,
            **brokers,
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "NO_PROXY": "127.0.0.1",
        }

    def start_inventory(self) -> int:
        port = free_port()
        server = ("waitress", f"--listen=127.0.0.1:{port}", f"sample_apps.inventory{self.flavour}:app")
        self._start("inventory-service", port, {}, *server)
        return port

    def start_pricing(self) -> int:
        port = free_port()
        self._start("pricing-service", port, {"PRICING_PORT": str(port)}, f"sample_apps.pricing{self.flavour}")
        return port

    def start_checkout(self, port: int, inventory_url: str, pricing_target: str) -> None:
        address = ("--host=127.0.0.1", f"--port={port}", "--log-level=warning")
        server = ("uvicorn", *address, f"sample_apps.checkout{self.flavour}:app")
        settings = {"INVENTORY_URL": inventory_url, "PRICING_TARGET": pricing_target}
        self._start("checkout-service", port, settings, *server)

    def start_worker(self, inventory_url: str) -> None:
        self._start("order-worker", None, {"INVENTORY_URL": inventory_url}, f"sample_apps.worker{self.flavour}")

    def _start(self, name: str, port: int | None, settings: dict[str, str], *module: str) -> None:
        environment = self.environment | settings
        command = [sys.executable, "-m", *module]
        process = start_process(command, self.logs / name, environment=environment, cwd=HERE)
        self.running[name] = (process, port)

    def wait(self, timeout: float = 60.0) -> None:
        """Wait until those that serve accept connections, and see that the others run."""
        deadline = time.monotonic() + timeout
        for name, (process, port) in self.running.items():
            while process.poll() is not None or (port is not None and not accepts(port)):
                if process.poll() is not None or time.monotonic() > deadline:
                    lines = (self.logs / name).read_text(errors="replace").splitlines()
                    raise NotReadyError(f"{name} did not start: {lines[-1] if lines else 'it said nothing'}")
                time.sleep(0.01)

    def stop(self) -> None:
        stop_processes(process for process, _ in self.running.values())
