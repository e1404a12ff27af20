"""Sidecars and gateways that Istio's control plane configures, between services of meshmw.

One control plane serves every shop. Each shop is a namespace with a Telemetry object of its own, and its proxies are
started for the test that needs them.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from meshmw.__main__ import main
from meshmw._tools.doctor.judge_proxy import judge_both, judge_proxy
from meshmw._tools.doctor.manifest_rules import judge_manifests
from meshmw._tools.doctor.manifests import read_manifests
from meshmw._tools.doctor.process import ProcessFacts, look_at_process
from meshmw._tools.doctor.proxy import ProxyConfig, ask_proxy, read_dump
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
    zipkin_bootstrap,
)

APPS = Path(__file__).parent / "apps"
TEXT_FORMAT = '[%START_TIME%] "%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL%" %RESPONSE_CODE% traceparent=%REQ(TRACEPARENT)%'
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


@pytest.mark.parametrize("name", ["otel", "otel-http", "zipkin-w3c"])
def test_one_request_is_one_trace(
    start: Start,
    shops: dict[str, Shop],
    receiver: OtlpReceiver,
    client: Client,
    facts: ProcessFacts,
    tmp_path: Path,
    name: str,
) -> None:
    proxies = start(*shops[name].pods())
    seen = shops[name].get(client.headers)
    spans = client.spans(receiver, len(EVERY_HOP))
    assert chain(spans, client.span_id) == EVERY_HOP
    assert len(spans) == len(EVERY_HOP)
    assert seen["inventory"]["tracestate"] == "vendor=1"
    for proxy in proxies.values():
        assert diagnosed(proxy, facts) == set()
    assert judged(shops[name], receiver, tmp_path) == set()


def test_a_request_without_a_trace_is_one_trace_too(
    start: Start, shops: dict[str, Shop], receiver: OtlpReceiver
) -> None:
    start(*shops["otel"].pods())
    seen = shops["otel"].get([])
    trace_id = seen["inventory"]["traceparent"].split("-")[1]
    spans = Client(trace_id).spans(receiver, len(EVERY_HOP))
    assert chain(spans, "") == EVERY_HOP


def test_zipkin_alone_speaks_b3_alone(
    start: Start, shops: dict[str, Shop], client: Client, receiver: OtlpReceiver, facts: ProcessFacts, tmp_path: Path
) -> None:
    proxies = start(*shops["zipkin"].pods())
    seen = shops["zipkin"].get(client.headers)
    assert seen["checkout"]["x-b3-traceid"] != client.trace_id
    assert seen["checkout"]["traceparent"] == client.traceparent
    assert diagnosed(proxies["checkout"], facts) == {"formats.differ"}
    assert judged(shops["zipkin"], receiver, tmp_path) == {"formats.differ"}


def test_the_tracer_of_the_bootstrap(
    start: Start, shops: dict[str, Shop], client: Client, receiver: OtlpReceiver, facts: ProcessFacts
) -> None:
    """The legacy way: no provider anywhere, `enableTracing`, and a tracer that the agent wrote."""
    shop = shops["bootstrap"]
    address = receiver.http_endpoint.removeprefix("http://")
    proxies = start(*shop.pods(bootstrap=zipkin_bootstrap(address)))
    seen = shop.get(client.headers)
    assert "provider" not in proxies["checkout"].managers()["INBOUND"]["tracing"]
    assert seen["checkout"]["x-b3-traceid"] != client.trace_id
    assert seen["checkout"]["traceparent"] == client.traceparent
    assert diagnosed(proxies["checkout"], facts) == {"formats.differ"}


def test_the_default_of_one_percent_clears_the_flag_which_meshmw_follows(
    start: Start,
    shops: dict[str, Shop],
    client: Client,
    receiver: OtlpReceiver,
    facts: ProcessFacts,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shop = shops["one-percent"]
    proxies = start(*shop.pods())
    assert proxies["checkout"].managers()["INBOUND"]["tracing"]["random_sampling"] == {"value": 1}
    seen = [shop.get(client.headers) for _ in range(6)]
    cleared = [each for each in seen if each["checkout"]["traceparent"].endswith("-00")]
    # Of six requests all keep their flag once in 10^12 times.
    assert cleared
    assert all(each["inventory"]["traceparent"].endswith("-00") for each in cleared)
    assert all(each["checkout"]["traceparent"].split("-")[1] == client.trace_id for each in seen)
    for proxy in proxies.values():
        assert diagnosed(proxy, facts) >= {"sampling.proxy-clears-the-flag"}
    assert judged(shop, receiver, tmp_path) == {"sampling.proxy-clears-the-flag"}


def test_a_rate_in_telemetry(start: Start, shops: dict[str, Shop], client: Client, facts: ProcessFacts) -> None:
    proxies = start(*shops["none"].pods())
    seen = shops["none"].get(client.headers)
    assert seen["checkout"]["traceparent"].endswith("-00")
    assert "sampling.proxy-clears-the-flag" in diagnosed(proxies["gateway"], facts)


def test_sampling_by_the_parent_keeps_the_flag_at_one_percent(
    start: Start, shops: dict[str, Shop], client: Client, receiver: OtlpReceiver, facts: ProcessFacts, tmp_path: Path
) -> None:
    shop = shops["by-parent"]
    proxies = start(*shop.pods())
    for _ in range(6):
        seen = shop.get(client.headers)
        assert seen["checkout"]["traceparent"].endswith("-01")
        assert seen["inventory"]["traceparent"].endswith("-01")
    for proxy in proxies.values():
        assert "sampling.proxy-clears-the-flag" not in diagnosed(proxy, facts)
    assert judged(shop, receiver, tmp_path) == set()


def test_proxies_that_send_no_headers_of_their_own(
    start: Start, shops: dict[str, Shop], client: Client, receiver: OtlpReceiver, facts: ProcessFacts, tmp_path: Path
) -> None:
    shop = shops["silent"]
    proxies = start(*shop.pods())
    seen = shop.get(client.headers)
    assert seen["checkout"]["traceparent"] == client.traceparent
    spans = client.spans(receiver, len(EVERY_HOP))
    assert sum(span.parent_id == client.span_id for span in spans) > 1
    assert "proxy.injects-nothing" in diagnosed(proxies["checkout"], facts)
    assert judged(shop, receiver, tmp_path) == {"proxy.injects-nothing"}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("misspelt", "telemetry.provider-missing"),
        ("no-tracer", "telemetry.provider-cannot-trace"),
        ("rate-alone", "telemetry.no-provider"),
    ],
)
def test_tracing_that_istiod_switches_off_in_silence(
    start: Start,
    shops: dict[str, Shop],
    receiver: OtlpReceiver,
    facts: ProcessFacts,
    tmp_path: Path,
    name: str,
    code: str,
) -> None:
    shop = shops[name]
    (proxy,) = start(Pod("checkout", name, shop.checkout)).values()
    assert "tracing" not in proxy.managers()["INBOUND"]
    assert diagnosed(proxy, facts) == {"proxy.no-tracing"}
    assert judged(shop, receiver, tmp_path) == {code}


def test_proxies_that_report_nothing_trace_nothing(
    start: Start,
    shops: dict[str, Shop],
    receiver: OtlpReceiver,
    client: Client,
    facts: ProcessFacts,
    tmp_path: Path,
) -> None:
    shop = shops["unreported"]
    proxies = start(*shop.pods())
    assert shop.get(client.headers)["checkout"]["traceparent"] == client.traceparent
    for proxy in proxies.values():
        assert "tracing" not in next(iter(proxy.managers().values()))
        assert diagnosed(proxy, facts) == {"proxy.no-tracing"}
    assert judged(shop, receiver, tmp_path) == set()


@pytest.mark.parametrize(
    ("name", "version", "refuses"),
    [
        ("otel", "1.32.0", False),
        ("otel-http", "1.32.0", False),
        ("zipkin-w3c", "1.32.0", True),
        ("zipkin-w3c", "1.28.0", True),
    ],
)
def test_a_collector_that_the_egress_leaves_out(
    start: Start,
    shops: dict[str, Shop],
    receiver: OtlpReceiver,
    facts: ProcessFacts,
    tmp_path: Path,
    name: str,
    version: str,
    refuses: bool,
) -> None:
    shop = shops[f"narrow-{name}"]
    (proxy,) = start(Pod("checkout", shop.namespace, shop.checkout, version=version)).values()
    config = ask_proxy(proxy.admin_url)
    assert bool(config.refused) == refuses
    assert judged(shop, receiver, tmp_path) == {"egress.collector-missing"}
    assert diagnosed(proxy, facts) - {"proxy.lacks"} == (
        {"proxy.refused-listener"} if refuses else {"exporter.proxy-no-cluster"}
    )


@pytest.mark.parametrize("name", ["removes", "removes-b3"])
def test_a_virtual_service_that_removes_and_adds_headers(
    start: Start,
    shops: dict[str, Shop],
    client: Client,
    receiver: OtlpReceiver,
    facts: ProcessFacts,
    tmp_path: Path,
    name: str,
) -> None:
    """By weight, so that Envoy is told to in each of several destinations."""
    shop = shops[name]
    proxies = start(*shop.pods())
    seen = shop.get(client.headers)["inventory"]
    assert seen["x-added"] == "istio"
    assert "baggage" not in seen
    # The OpenTelemetry tracer writes it again.
    assert ("traceparent" in seen) == (name == "removes")
    assert "headers.removed" in diagnosed(proxies["checkout"], facts)
    assert "headers.removed" in judged(shop, receiver, tmp_path)


@pytest.mark.parametrize(
    ("version", "service", "both", "silent"),
    [
        ("1.16.0", False, False, False),
        ("1.22.0", False, False, False),
        ("1.27.0", False, False, False),
        ("1.28.0", False, True, False),
        ("1.29.0", True, True, False),
        ("1.30.0", True, True, True),
        ("1.32.0", True, True, True),
    ],
)
def test_each_version_of_a_proxy_gets_what_it_knows(
    start: Start,
    shops: dict[str, Shop],
    facts: ProcessFacts,
    version: str,
    service: bool,
    both: bool,
    silent: bool,
) -> None:
    zipkin, quiet = shops["zipkin-w3c"], shops["silent"]
    proxies = start(
        Pod("checkout", "zipkin-w3c", zipkin.checkout, version=version),
        Pod("inventory", "silent", quiet.inventory, version=version),
    )
    tracer = proxies["checkout"].managers()["INBOUND"]["tracing"]["provider"]["typed_config"]
    assert ("collector_service" in tracer) == service
    assert (tracer.get("trace_context_option") == "USE_B3_WITH_W3C_PROPAGATION") == both
    lacks = set() if service and both and silent else {"proxy.lacks"}
    assert diagnosed(proxies["checkout"], facts) == lacks | (set() if both else {"formats.differ"})
    tracing = proxies["inventory"].managers()["INBOUND"]["tracing"]
    assert tracing.get("no_context_propagation", False) == silent
    assert ("proxy.injects-nothing" in diagnosed(proxies["inventory"], facts)) == silent


@pytest.fixture
def own_shop(
    istio: Path, applications: Ports, receiver: OtlpReceiver, tmp_path: Path
) -> Iterator[Callable[..., tuple[Shop, ControlPlane]]]:
    """A control plane of its own for one test, with another mesh configuration."""
    addresses = Addresses()
    with ExitStack() as stack:

        def run(name: str = "otel", **mesh: Any) -> tuple[Shop, ControlPlane]:
            shop = Shop(name, *(addresses.new() for _ in range(3)), applications)
            directory = tmp_path / "istiod"
            directory.mkdir()
            config = [*common_objects(receiver), *shop_objects(shop)]
            plane = control_plane(istio, directory, mesh=mesh_config(receiver, **mesh), config=config)
            return shop, stack.enter_context(plane)

        yield run


@pytest.mark.parametrize(
    ("name", "default", "code"),
    [
        ("bootstrap", "otel", "sampling.proxy-clears-the-flag"),
        ("bootstrap", "otle", "telemetry.provider-missing"),
        ("rate-alone", "otle", "telemetry.provider-missing"),
    ],
)
def test_the_default_provider_of_the_mesh_configuration(
    own_shop: Callable[..., tuple[Shop, ControlPlane]],
    start: Start,
    receiver: OtlpReceiver,
    facts: ProcessFacts,
    tmp_path: Path,
    name: str,
    default: str,
    code: str,
) -> None:
    """It traces without any Telemetry, or below one that names no provider."""
    mesh = {"defaultProviders": {"tracing": [default]}}
    shop, plane = own_shop(name, **mesh)
    (proxy,) = start(Pod("checkout", name, shop.checkout), of=plane).values()
    tracing = proxy.managers()["INBOUND"].get("tracing", {})
    assert ("provider" in tracing) == (default == "otel")
    assert diagnosed(proxy, facts) == {code if tracing else "proxy.no-tracing"}
    assert judged(shop, receiver, tmp_path, **mesh) == {code}


@pytest.mark.parametrize(
    ("encoding", "log_format", "codes"),
    [
        ("JSON", JSON_FORMAT, set()),
        ("TEXT", TEXT_FORMAT, set()),
        ("TEXT", "", {"access-log.not-logged"}),
        ("JSON", "", {"access-log.not-logged"}),
    ],
)
def test_the_access_log_of_the_mesh_configuration(
    own_shop: Callable[..., tuple[Shop, ControlPlane]],
    start: Start,
    client: Client,
    facts: ProcessFacts,
    capsys: pytest.CaptureFixture[str],
    encoding: str,
    log_format: str,
    codes: set[str],
) -> None:
    shop, plane = own_shop(accessLogEncoding=encoding, accessLogFormat=log_format)
    proxies = start(*shop.pods(), of=plane)
    for _ in range(3):
        shop.get(client.headers)
    for proxy, lines in zip(proxies.values(), (3, 6, 3), strict=True):
        wait_for_lines(proxy.access_log, lines)
    format_option = [f"--format={log_format}"] if encoding == "TEXT" and log_format else []
    logs = [f"{name}={proxy.access_log}" for name, proxy in proxies.items()]
    # A log that cannot show where a trace ends is a fault.
    assert main(["access-log", "--json", *format_option, *logs]) == (1 if codes else 0)
    found = json.loads(capsys.readouterr().out)
    assert {finding["code"] for finding in found["findings"]} == codes
    assert found["first_loss"] is None
    logged = {"access-log.not-logged"} & diagnosed(proxies["gateway"], facts)
    assert logged == codes


def wait_for_lines(path: Path, wanted: int) -> None:
    deadline = time.monotonic() + 30
    while len(path.read_bytes().splitlines()) < wanted:
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.02)


WAYPOINT_LABELS = {
    "gateway.networking.k8s.io/gateway-name": "waypoint",
    "gateway.istio.io/managed": "istio.io-mesh-controller",
}


def waypoint_objects() -> list[Object]:
    """A waypoint of one namespace, and a service that is reached through it."""
    gateway_name = {"gateway.networking.k8s.io/gateway-name": "waypoint"}
    gateway = made(
        "gateway.networking.k8s.io",
        "Gateway",
        "ambient",
        "waypoint",
        gatewayClassName="istio-waypoint",
        listeners=[{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
    )
    address = {"type": "Hostname", "value": "waypoint.ambient.svc.cluster.local"}
    service = made(
        "",
        "Service",
        "ambient",
        "waypoint",
        labels=WAYPOINT_LABELS,
        clusterIP="10.0.0.9",
        ports=[{"name": "mesh", "port": 15008, "appProtocol": "hbone"}],
        selector=gateway_name,
    )
    instance = made("networking.istio.io", "WorkloadEntry", "ambient", "waypoint", address="10.0.0.19")
    instance["spec"]["labels"] = gateway_name
    inventory = service_entry("ambient", "inventory", {"number": 80, "name": "http", "protocol": "HTTP"}, [])
    inventory["metadata"]["labels"] = {"istio.io/use-waypoint": "waypoint"}
    inventory["spec"] |= {"addresses": ["10.0.0.10"], "endpoints": [{"address": "10.0.0.20"}]}
    return [gateway | {"status": {"addresses": [address]}}, service, instance, inventory]


def test_the_configuration_of_a_waypoint_is_judged_as_a_dump(
    istio: Path, receiver: OtlpReceiver, facts: ProcessFacts, tmp_path: Path
) -> None:
    """A plain Envoy cannot run it: it has not all of its filters. So the control plane's own dump is read."""
    (tmp_path / "istiod").mkdir()
    telemetry = made("telemetry.istio.io", "Telemetry", "istio-system", "mesh", tracing=[OTEL])
    with ExitStack() as stack:
        plane = stack.enter_context(
            control_plane(
                istio,
                tmp_path / "istiod",
                mesh=mesh_config(receiver),
                config=[*common_objects(receiver), telemetry, *waypoint_objects()],
                objects=waypoint_objects(),
                PILOT_ENABLE_AMBIENT="true",
            )
        )
        pod = Pod("waypoint", "ambient", "10.0.0.19", "waypoint", asks_for_clusters=False, labels=WAYPOINT_LABELS)
        stack.callback(PodProxy(pod, plane, tmp_path).stop)
        (config,) = dumped(plane, pod, tmp_path / "waypoint.json")
    tracers = {(each.name, each.tracer, each.formats, each.random_sampling) for each in config.listeners}
    assert ("main_internal", "opentelemetry", ("w3c",), 1) in tracers
    assert {finding.code for finding in judge_proxy(config)} == {
        "sampling.proxy-clears-the-flag",
        "unjudged.clusters",
    }


def dumped(plane: ControlPlane, pod: Pod, file: Path) -> list[ProxyConfig]:
    """What the control plane says that a proxy has from it, as soon as it has asked."""
    deadline = time.monotonic() + 60
    url = f"http://{plane.debug}/debug/config_dump?proxyID={pod.name}.{pod.namespace}"
    while b"dynamicListeners" not in (answer := httpx.get(url, trust_env=False)).content:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.02)
    file.write_bytes(answer.content)
    return read_dump(file)
