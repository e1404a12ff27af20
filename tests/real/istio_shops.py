"""The services, the control plane and the proxies of the tests with Istio, and what the doctor says of them.

One control plane serves every shop. Each shop is a namespace with a Telemetry object of its own, and its proxies are
started for the test that needs them.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from meshmw._tools.doctor.judge_proxy import judge_both, judge_proxy
from meshmw._tools.doctor.manifest_rules import judge_manifests
from meshmw._tools.doctor.manifests import read_manifests
from meshmw._tools.doctor.process import ProcessFacts, look_at_process
from meshmw._tools.doctor.proxy import ask_proxy
from meshmw._tools.mesh_config import LOG_FIELDS
from meshmw.testing import OtlpReceiver, ReceivedSpan, free_port, start_process, stop_processes
from tests.programs import clean_environment, envoy_or_skip
from tests.real.install import real_server
from tests.real.istio import (
    Addresses,
    ControlPlane,
    Object,
    Pod,
    PodProxy,
    Ports,
    Shop,
    as_yaml,
    control_plane,
    made,
    pod_proxies,
    service_entry,
)

APPS = Path(__file__).parent / "apps"
JSON_FORMAT = json.dumps(dict(LOG_FIELDS))

ALL = {"randomSamplingPercentage": 100}
OTEL = {"providers": [{"name": "otel"}]}
ZIPKIN = {"providers": [{"name": "zipkin"}]}
BOTH = {"providers": [{"name": "zipkin-w3c"}]}
# The tracing rules of each shop's Telemetry; None for a shop without one.
TELEMETRY: dict[str, list[Object] | None] = {
    "otel": [OTEL | ALL],
    "otel-http": [{"providers": [{"name": "otel-http"}]} | ALL],
    "zipkin-w3c": [BOTH | ALL],
    "zipkin": [ZIPKIN | ALL],
    "bootstrap": None,
    "one-percent": [OTEL],
    "none": [OTEL | {"randomSamplingPercentage": 0}],
    "by-parent": [OTEL | {"useRequestIdForTraceSampling": False}],
    "silent": [OTEL | ALL | {"disableContextPropagation": True}],
    "misspelt": [{"providers": [{"name": "otle"}]} | ALL],
    "no-tracer": [{"providers": [{"name": "envoy"}]} | ALL],
    "rate-alone": [ALL],
    "unreported": [OTEL | {"disableSpanReporting": True}],
    "narrow-otel": [OTEL | ALL],
    "narrow-otel-http": [{"providers": [{"name": "otel-http"}]} | ALL],
    "narrow-zipkin-w3c": [BOTH | ALL],
    "removes": [OTEL | ALL],
    "removes-b3": [ZIPKIN | ALL],
}
CHANGES = {"remove": ["traceparent", "tracestate", "baggage"], "add": {"x-added": "istio"}}


def mesh_config(receiver: OtlpReceiver, **more: Any) -> Object:
    grpc, http = port_of(receiver.grpc_endpoint), port_of(receiver.http_endpoint)

    def provider(name: str, kind: str, port: int, **options: Any) -> Object:
        service = f"{'otel' if port == grpc else 'zipkin'}.istio-system.svc.cluster.local"
        return {"name": name, kind: {"service": service, "port": port, **options}}

    return {
        "enableAutoMtls": False,
        "extensionProviders": [
            provider("otel", "opentelemetry", grpc),
            provider("otel-http", "opentelemetry", http, http={"path": "/v1/traces", "timeout": "5s"}),
            provider("zipkin", "zipkin", http, traceContextOption="USE_B3"),
            provider("zipkin-w3c", "zipkin", http, traceContextOption="USE_B3_WITH_W3C_PROPAGATION"),
        ],
        "accessLogFile": "/dev/stdout",
        "accessLogEncoding": "JSON",
        "accessLogFormat": JSON_FORMAT,
        **more,
    }


@dataclass(frozen=True)
class Client:
    """What a request comes with: a trace of its own, so that late spans of an earlier test are of another one."""

    trace_id: str = field(default_factory=lambda: secrets.token_hex(16))
    span_id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-01"

    @property
    def headers(self) -> list[tuple[str, str]]:
        return [("traceparent", self.traceparent), ("tracestate", "vendor=1"), ("baggage", "user=alice")]

    def spans(self, receiver: OtlpReceiver, count: int) -> list[ReceivedSpan]:
        """Wait for so many spans of the trace, and return them."""

        def own(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
            return [span for span in spans if span.trace_id == self.trace_id]

        return own(receiver.wait_for(lambda spans: len(own(spans)) >= count))


@pytest.fixture
def client() -> Client:
    return Client()


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def common_objects(receiver: OtlpReceiver) -> list[Object]:
    """What is outside of the shops: no TLS, and the collector."""
    local = [{"address": "127.0.0.1"}]
    grpc = {"number": port_of(receiver.grpc_endpoint), "name": "grpc", "protocol": "GRPC"}
    http = {"number": port_of(receiver.http_endpoint), "name": "http", "protocol": "HTTP"}
    return [
        made("security.istio.io", "PeerAuthentication", "istio-system", "plain", mtls={"mode": "DISABLE"}),
        service_entry("istio-system", "otel", grpc, local),
        service_entry("istio-system", "zipkin", http, local),
    ]


def shop_objects(shop: Shop) -> list[Object]:
    weighted = [shop.destination("inventory", weight=50, headers={"request": CHANGES}) for _ in range(2)]
    rules = [{"route": weighted}] if shop.namespace.startswith("removes") else None
    return shop.objects(TELEMETRY[shop.namespace], rules)


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as running:
        yield running


@pytest.fixture(scope="module")
def applications(tmp_path_factory: pytest.TempPathFactory, receiver: OtlpReceiver) -> Iterator[Ports]:
    """Both services, which every shop's sidecars lead to."""
    directory = tmp_path_factory.mktemp("services")
    ports = Ports(*(free_port() for _ in range(5)))
    environment = clean_environment() | {"MESHMW_ENDPOINT": receiver.grpc_endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    uvicorn = [sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "istio_shop:app", "--port"]
    services = {"checkout": ports.checkout, "inventory": ports.inventory}
    processes = [
        start_process(
            [*uvicorn, str(port)],
            directory / f"{name}.log",
            environment=environment | {"MESHMW_SERVICE_NAME": name},
            cwd=APPS,
        )
        for name, port in services.items()
    ]
    try:
        for port in services.values():
            transport = httpx.HTTPTransport(retries=8)
            with httpx.Client(transport=transport, trust_env=False) as client:
                assert client.get(f"http://127.0.0.1:{port}/").status_code == 404
        yield ports
    finally:
        stop_processes(processes)


@pytest.fixture(scope="module")
def istio(request: pytest.FixtureRequest) -> Path:
    envoy_or_skip(request)
    return real_server(request.config, "istio")


@pytest.fixture(scope="module")
def shops(applications: Ports) -> dict[str, Shop]:
    addresses = Addresses()
    found = {name: Shop(name, *(addresses.new() for _ in range(3)), applications) for name in TELEMETRY}
    # The narrow ones' sidecars do not get the collector's cluster.
    narrow = {name: replace(shop, egress=["./*"]) for name, shop in found.items() if name.startswith("narrow")}
    return found | narrow


@pytest.fixture(scope="module")
def plane(
    istio: Path, shops: dict[str, Shop], receiver: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    config = [*common_objects(receiver), *(each for shop in shops.values() for each in shop_objects(shop))]
    directory = tmp_path_factory.mktemp("istiod")
    with control_plane(istio, directory, mesh=mesh_config(receiver), config=config) as running:
        yield running


Start = Callable[..., dict[str, PodProxy]]


@pytest.fixture
def start(plane: ControlPlane, tmp_path: Path, receiver: OtlpReceiver) -> Iterator[Start]:
    """Start the proxies of some pods for one test."""
    with ExitStack() as stack:

        def run(*pods: Pod, of: ControlPlane = plane) -> dict[str, PodProxy]:
            proxies = stack.enter_context(pod_proxies(pods, of, tmp_path))
            receiver.clear()
            return proxies

        yield run


@pytest.fixture(scope="module")
def facts() -> ProcessFacts:
    """What the doctor knows of this environment."""
    return look_at_process(connect=False)


def diagnosed(proxy: PodProxy, facts: ProcessFacts) -> set[str]:
    """What the doctor finds in a proxy, by code."""
    config = ask_proxy(proxy.admin_url)
    return {finding.code for finding in (*judge_proxy(config), *judge_both(facts, config))}


def judged(shop: Shop, receiver: OtlpReceiver, tmp_path: Path, **mesh: Any) -> set[str]:
    """What the doctor finds in the manifests of a shop, by code."""
    manifests = as_yaml([{"meshConfig": mesh_config(receiver, **mesh)}, *common_objects(receiver), *shop_objects(shop)])
    (tmp_path / "manifests.yaml").write_text(manifests)
    return {finding.code for finding in judge_manifests(read_manifests([tmp_path / "manifests.yaml"]))}


def chain(spans: list[ReceivedSpan], parent: str) -> list[tuple[str, str]]:
    """Service and kind of each span from the client's on, each below the one before."""
    by_parent = {span.parent_id: span for span in spans}
    found = []
    while parent in by_parent:
        span = by_parent.pop(parent)
        found.append((span.service.partition(".")[0], span.kind))
        parent = span.span_id
    return found


EVERY_HOP = [
    ("gateway", "SERVER"),
    ("gateway", "CLIENT"),
    ("checkout", "SERVER"),
    ("checkout", "SERVER"),
    ("checkout", "CLIENT"),
    ("checkout", "CLIENT"),
    ("inventory", "SERVER"),
    ("inventory", "SERVER"),
]
