"""The real OpenTelemetry Collector: what its log shows of a request, and that it may fail in every way.

Between services and Collector stands toxiproxy, or the fault proxy of `meshmw.testing` that each mesh has.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from meshmw import MeshPropagator
from meshmw.asgi import TraceContextMiddleware
from meshmw.testing import Service as MeshService
from meshmw.testing import assert_child_of, assert_one_trace, find_span, roots, start_mesh
from tests.programs import envoy_or_skip
from tests.real.collector import SECONDS, Collector, Toward, Toxiproxy
from tests.real.install import real_server
from tests.telemetry.test_collector_trouble import QUEUE, Service

APPS = Path(__file__).parents[1] / "testing" / "services"
MESH = Path(__file__).parents[2] / "sample_apps" / "mesh"
QUICK = {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
SHOP = MeshService("shop", "shop:app", calls=["stock"], directory=APPS, environment=QUICK)
STOCK = MeshService("stock", "stock:app", interface="wsgi", directory=APPS, environment=QUICK)
EXPORTERS = pytest.mark.parametrize("exporter", ["otlp", "otlp-http"])


@pytest.fixture(scope="module")
def program(request: pytest.FixtureRequest) -> Path:
    return real_server(request.config, "jaeger") / "collector"


@pytest.fixture
def collector(program: Path, tmp_path: Path) -> Iterator[Collector]:
    with Collector(program, tmp_path) as running:
        yield running


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Shop]]:
    """Return a function that makes an application which exports to a place; short times, so that faults show soon."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    made = []

    def make(exporter: str, endpoint: str) -> Shop:
        made.append(Shop(exporter, endpoint))
        return made[-1]

    yield make
    for each in made:
        each.service.handle.shutdown(0.1)


class Shop:
    """An application behind the middleware, in this process, with what exports its spans."""

    def __init__(self, exporter: str, endpoint: str) -> None:
        self.service = Service(exporter, endpoint)
        app = Starlette(routes=[Route("/{name}", lambda request: PlainTextResponse("here"))])
        self._app = TraceContextMiddleware(app, tracer_provider=self.service.provider, propagator=MeshPropagator())

    @property
    def lost(self) -> int:
        return self.service.processor.collector.spans_lost

    def ask_until(self, done: Callable[[], object], path: str) -> None:
        """Send requests, each of which must be answered as always, until something is so."""
        asyncio.run(self._ask_until(done, path))

    async def _ask_until(self, done: Callable[[], object], path: str) -> None:
        deadline = time.monotonic() + SECONDS
        transport = httpx.ASGITransport(self._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            while not done():
                assert time.monotonic() < deadline
                answer = await client.get(f"/{path}")
                assert (answer.status_code, answer.text) == (200, "here")
                assert self.service.processor.queue_length <= QUEUE
                await asyncio.sleep(0.02)


def shown(collector: Collector, path: str) -> Callable[[], bool]:
    """Whether the log has a span of a request for that path."""
    return lambda: f"-> url.path: Str(/{path})" in collector.log


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if "spans do not reach" in line]


def test_the_log_shows_one_request_as_one_trace(collector, request):
    envoy_or_skip(request)
    with Toward(collector) as receiver, start_mesh(SHOP, STOCK, receiver=receiver) as mesh:
        assert mesh.get("/").json()["item"] == "teapot"
        everyone = {"edge", "shop-sidecar", "shop", "stock-sidecar", "stock"}
        whole = collector.wait_for(
            lambda spans: everyone <= {span.service for span in spans} and len(roots(spans)) == 1
        )
    assert_one_trace(whole)
    server = find_span(whole, service="stock", kind="SERVER")
    client = find_span(whole, service="shop", kind="CLIENT")
    assert_child_of(server, find_span(whole, service="stock-sidecar"))
    assert_child_of(
        find_span(whole, service="shop", kind="SERVER"), find_span(whole, name="ingress", service="shop-sidecar")
    )
    assert server.scope.startswith("meshmw")
    assert client.scope.startswith("meshmw")
    (root,) = roots(whole)
    assert (root.service, root.parent_id) == ("edge", "")
    # As the exporter writes them, for whoever reads such a log.
    assert f"    Trace ID       : {root.trace_id}\n    Parent ID      : {server.parent_id}\n" in collector.log
    assert f"    ID             : {server.span_id}\n" in collector.log
    assert "    Kind           : Server\n" in collector.log
    assert "     -> service.name: Str(stock)\n" in collector.log


@pytest.mark.parametrize("file", ["compose/collector.yaml", "kubernetes/observability.yaml"])
def test_it_takes_its_configurations_in_the_sample_mesh(program, tmp_path, file):
    documents = list(yaml.safe_load_all((MESH / file).read_text()))
    (config,) = [yaml.safe_load(each["data"]["config.yaml"]) for each in documents if "data" in each] or documents
    # This build is without the extension that probes ask.
    config.pop("extensions", None)
    config["service"].pop("extensions", None)
    own = tmp_path / "collector.yaml"
    own.write_text(yaml.safe_dump(config))
    command = [str(program), "validate", "--config", str(own)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    config["exporters"]["otlp"]["end_point"] = "nowhere"
    own.write_text(yaml.safe_dump(config))
    assert subprocess.run(command, capture_output=True, timeout=SECONDS, check=False).returncode == 1


TOXICS = {
    "cut": lambda proxy: proxy.cut(),
    "hold": lambda proxy: proxy.poison("timeout", timeout=0),
    "reset": lambda proxy: proxy.poison("reset_peer", timeout=0),
    "too slow": lambda proxy: proxy.poison("latency", latency=5_000),
    "cut short": lambda proxy: proxy.poison("limit_data", stream="upstream", bytes=40),
}


@EXPORTERS
@pytest.mark.parametrize("toxic", TOXICS)
def test_requests_go_on_and_spans_are_counted_as_lost_until_the_way_is_free(
    toxic, exporter, collector, shop, request, tmp_path, caplog
):
    toxiproxy = real_server(request.config, "toxiproxy") / "server"
    upstream = collector.grpc_endpoint if exporter == "otlp" else collector.http_endpoint
    with Toxiproxy(toxiproxy, tmp_path, upstream) as proxy:
        told = shop(exporter, proxy.endpoint)
        told.ask_until(shown(collector, "before"), "before")
        assert told.lost == 0
        TOXICS[toxic](proxy)
        told.ask_until(lambda: told.lost and warnings(caplog), "within")
        (warning,) = warnings(caplog)
        assert "requests are unaffected (" in warning
        assert "TLS" not in warning
        proxy.heal()
        told.ask_until(shown(collector, "after"), "after")
        told.ask_until(lambda: not told.service.processor.collector.failing, "well")


@EXPORTERS
def test_a_collector_without_memory_refuses_and_one_with_memory_takes_spans_again(
    exporter, program, shop, tmp_path, caplog
):
    # Less than it needs to be there at all.
    with Collector(program, tmp_path, limit_mib=2) as collector:
        told = shop(exporter, collector.grpc_endpoint if exporter == "otlp" else collector.http_endpoint)
        told.ask_until(lambda: told.lost and warnings(caplog), "refused")
        (warning,) = warnings(caplog)
        assert ("data refused due to high memory usage" if exporter == "otlp" else "Service Unavailable") in warning
        # What came before it first looked at its memory was taken.
        lost = told.lost
        told.ask_until(lambda: told.lost > lost, "kept-out")
        assert not shown(collector, "kept-out")()
        collector.stop()
        collector.limit_mib = 512
        collector.start()
        told.ask_until(shown(collector, "taken"), "taken")
        told.ask_until(lambda: not told.service.processor.collector.failing, "well")


@EXPORTERS
def test_a_collector_that_is_killed_and_started_again(exporter, collector, shop, caplog):
    told = shop(exporter, collector.grpc_endpoint if exporter == "otlp" else collector.http_endpoint)
    told.ask_until(shown(collector, "before"), "before")
    collector.kill()
    told.ask_until(lambda: told.lost and warnings(caplog), "within")
    assert "TLS" not in caplog.text
    collector.start()
    told.ask_until(shown(collector, "after"), "after")


def test_an_outage_of_a_mesh_may_be_one_of_a_real_collector(collector, request):
    envoy_or_skip(request)
    with Toward(collector) as receiver, start_mesh(SHOP, STOCK, receiver=receiver) as mesh:
        with mesh.collector_outage("unavailable"):
            assert mesh.get("/").status == 200
            mesh.wait_for_log("shop", "data refused due to high memory usage", timeout=SECONDS)
        deadline = time.monotonic() + SECONDS
        while not {"edge", "shop", "stock"} <= {span.service for span in collector.spans}:
            assert time.monotonic() < deadline
            assert mesh.get("/").status == 200
            time.sleep(0.2)
