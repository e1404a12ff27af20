"""Whether the doctor merges Telemetry objects as Istio's control plane does, and finds the same percentage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from meshmw._tools.doctor.installation import VARIABLE
from meshmw._tools.doctor.manifests import Manifests, TracingRule, read_manifests
from meshmw._tools.doctor.telemetry import merged_rules, provider_of
from meshmw.testing import OtlpReceiver
from tests.real.istio import Addresses, ControlPlane, Object, Pod, Ports, Shop, as_yaml, control_plane, made
from tests.real.istio_shops import OTEL, ZIPKIN, Start, common_objects, mesh_config

CLIENT = {"match": {"mode": "CLIENT"}}
SERVER = {"match": {"mode": "SERVER"}}
BOTH = {"match": {"mode": "CLIENT_AND_SERVER"}}
ROOT = [CLIENT | OTEL | {"randomSamplingPercentage": 60}]
# The rules of each namespace; those of the root namespace hold in all of them.
NAMESPACES: dict[str, list[Object] | None] = {
    "plain": None,
    "both": [BOTH | OTEL],
    "parted": [SERVER | ZIPKIN | {"randomSamplingPercentage": 5}],
    "quiet": [CLIENT | {"disableSpanReporting": True}, SERVER | OTEL],
    "later": [OTEL, {"randomSamplingPercentage": 7}, SERVER | {"randomSamplingPercentage": 8}],
    "general": [SERVER | {"randomSamplingPercentage": 8}, OTEL | {"randomSamplingPercentage": 0}],
    "misspelt": [SERVER | {"providers": [{"name": "otle"}]}],
    "selected": [OTEL | {"randomSamplingPercentage": 9}],
}
PERCENT = 37
# It is for a workload of one namespace.
SELECTED = {"selector": {"matchLabels": {"app": "checkout"}}, "tracing": [SERVER | {"randomSamplingPercentage": 90}]}


@pytest.fixture(scope="module")
def shops(applications: Ports) -> dict[str, Shop]:
    addresses = Addresses()
    return {name: Shop(name, *(addresses.new() for _ in range(3)), applications) for name in NAMESPACES}


@pytest.fixture(scope="module")
def config(receiver: OtlpReceiver, shops: dict[str, Shop]) -> list[Object]:
    objects = [each for shop in shops.values() for each in shop.objects(NAMESPACES[shop.namespace])]
    objects.append(made("telemetry.istio.io", "Telemetry", "selected", "one", **SELECTED))
    return [
        *common_objects(receiver),
        made("telemetry.istio.io", "Telemetry", "istio-system", "mesh", tracing=ROOT),
        *objects,
    ]


@pytest.fixture(scope="module")
def plane(
    istio: Path, config: list[Object], receiver: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    directory = tmp_path_factory.mktemp("istiod")
    mesh = mesh_config(receiver)
    with control_plane(istio, directory, mesh=mesh, config=config, **{VARIABLE: str(PERCENT)}) as running:
        yield running


@pytest.fixture
def manifests(config: list[Object], receiver: OtlpReceiver, tmp_path: Path) -> Manifests:
    values = {"meshConfig": mesh_config(receiver), "pilot": {"traceSampling": PERCENT}}
    (tmp_path / "manifests.yaml").write_text(as_yaml([values, *config]))
    return read_manifests([tmp_path / "manifests.yaml"])


@pytest.mark.parametrize("name", NAMESPACES)
def test_each_direction_has_what_istiod_gives_it(
    start: Start, shops: dict[str, Shop], manifests: Manifests, name: str
) -> None:
    (proxy,) = start(Pod("checkout", name, shops[name].checkout)).values()
    managers = proxy.managers()
    for mode, direction in (("CLIENT", "OUTBOUND"), ("SERVER", "INBOUND")):
        assert told(manifests, name, mode) == seen(managers[direction].get("tracing")), mode


def told(manifests: Manifests, namespace: str, mode: str) -> tuple[str, float] | None:
    rules = [each.rule for each in merged_rules(manifests) if each.rule.mode in ("", mode)]

    def nearness(rule: TracingRule) -> tuple[bool, bool]:
        return rule.selects, rule.namespace == namespace

    rule = max((rule for rule in rules if rule.namespace in (namespace, "istio-system")), key=nearness)
    provider = provider_of(manifests, rule.provider)
    if provider is None or not rule.reports:
        return None
    assert rule.sampling is not None
    return provider.kind, rule.sampling


def seen(tracing: Object | None) -> tuple[str, float] | None:
    if tracing is None:
        return None
    return tracing["provider"]["name"].rpartition(".")[2], tracing["random_sampling"].get("value", 0)
