"""What Istio's control plane gives to proxies of each version, by default, to their access logs, and to a waypoint."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from meshmw.__main__ import main
from meshmw._tools.doctor.judge_proxy import judge_proxy
from meshmw._tools.doctor.process import ProcessFacts
from meshmw._tools.doctor.proxy import ProxyConfig, read_dump
from meshmw.testing import OtlpReceiver
from tests.real.istio import (
    Addresses,
    ControlPlane,
    Object,
    Pod,
    PodProxy,
    Ports,
    Shop,
    control_plane,
    made,
    service_entry,
)
from tests.real.istio_shops import (
    JSON_FORMAT,
    OTEL,
    Client,
    Start,
    common_objects,
    diagnosed,
    judged,
    mesh_config,
    shop_objects,
)

TEXT_FORMAT = '[%START_TIME%] "%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL%" %RESPONSE_CODE% traceparent=%REQ(TRACEPARENT)%'


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
