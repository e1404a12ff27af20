"""The manifests for other meshes, as far as they can be checked without a cluster and a container engine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from meshmw.testing import find_envoy

MESH = Path(__file__).parents[2] / "sample_apps" / "mesh"
COMPOSE = MESH / "compose"
COMPOSED = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
ENVOYS = sorted(COMPOSE.glob("envoy/*.yaml"))


@pytest.mark.usefixtures("envoys")
@pytest.mark.parametrize("config", ENVOYS, ids=lambda path: path.stem)
def test_envoy_takes_its_configuration(config):
    command = [str(find_envoy()), "--mode", "validate", "--disable-hot-restart", "-c", str(config)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def addresses(node):
    """Yield each `address, port` of a configuration."""
    if isinstance(node, dict):
        if "port_value" in node:
            yield node["address"], node["port_value"]
        for value in node.values():
            yield from addresses(value)
    if isinstance(node, list):
        for value in node:
            yield from addresses(value)


def test_everything_that_the_composition_names_is_there():
    for name, service in COMPOSED.items():
        for mounted in service.get("volumes", ()):
            assert (COMPOSE / mounted.split(":")[0]).is_file(), mounted
        for needed in service.get("depends_on", ()):
            assert needed in COMPOSED
        shared = service.get("network_mode", "")
        assert not shared or shared.removeprefix("service:") in COMPOSED, name
        if "build" in service:
            context = COMPOSE / service["build"]["context"]
            assert (context / service["build"]["dockerfile"]).is_file()
        image = service.get("image", "built:here")
        assert re.search(r":[v0-9].*|:here", image), f"{image} has no version"


@pytest.mark.parametrize("config", ENVOYS, ids=lambda path: path.stem)
def test_each_sidecar_finds_its_neighbours(config):
    parsed = yaml.safe_load(config.read_text())
    listening = {
        name: {port for _, port in addresses(yaml.safe_load((COMPOSE / f"envoy/{name}.yaml").read_text()))}
        for name in ("checkout", "inventory", "pricing")
    }
    for host, port in addresses(parsed["static_resources"]["clusters"]):
        if host in listening:
            assert port in listening[host]
        elif host == "127.0.0.1":
            service = COMPOSED[config.stem]
            words = [*service["command"], *service["environment"].values()]
            assert any(str(port) in word for word in words), f"nothing of {config.stem} listens on {port}"
        else:
            assert host in COMPOSED


def test_the_service_calls_through_its_own_sidecar():
    environment = COMPOSED["checkout"]["environment"]
    listeners = yaml.safe_load((COMPOSE / "envoy/checkout.yaml").read_text())["static_resources"]["listeners"]
    outbound, rpc = (f"127.0.0.1:{next(addresses(listener))[1]}" for listener in listeners[1:])
    assert (environment["INVENTORY_URL"], environment["PRICING_TARGET"]) == (f"http://{outbound}", rpc)
    assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4317"


def test_every_service_of_the_sample_is_there_with_the_variables_that_it_reads():
    deployed = {}
    for found in yaml.safe_load_all((MESH / "kubernetes/services.yaml").read_text()):
        if found["kind"] == "Deployment":
            (container,) = found["spec"]["template"]["spec"]["containers"]
            deployed[found["metadata"]["name"]] = {each["name"] for each in container["env"]}
    for name in ("checkout", "inventory", "pricing"):
        source = (MESH.parent / f"{name}.py").read_text()
        # The fields of its pydantic settings; what has a sidecar of Envoy's beside it keeps to the loopback.
        reads = {field.upper() for field in re.findall(r"^    (\w+_(?:url|target|host|port)):", source, re.MULTILINE)}
        assert reads <= deployed[name], f"{name} in Kubernetes"
        assert reads - {"PRICING_HOST"} <= COMPOSED[name]["environment"].keys(), f"{name} in Compose"


def test_in_kubernetes_each_service_that_is_called_is_one_and_says_its_protocol():
    found = list(yaml.safe_load_all((MESH / "kubernetes/services.yaml").read_text()))
    services = {each["metadata"]["name"]: each["spec"]["ports"][0] for each in found if each["kind"] == "Service"}
    deployments = {each["metadata"]["name"]: each for each in found if each["kind"] == "Deployment"}
    assert services.keys() == deployments.keys()
    for name, deployment in deployments.items():
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        (port,) = container["ports"]
        assert services[name]["targetPort"] == port["name"] == ("grpc" if name == "pricing" else "http")
        words = [*container["command"], *(each.get("value", "") for each in container["env"])]
        assert any(str(port["containerPort"]) in word for word in words)
    environment = {
        each["name"]: each.get("value")
        for each in deployments["checkout"]["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    assert environment["INVENTORY_URL"] == "http://inventory"
    assert environment["PRICING_TARGET"] == f"pricing:{services['pricing']['port']}"


def objects():
    for path in sorted((MESH / "kubernetes").rglob("*.yaml")):
        for number, found in enumerate(yaml.safe_load_all(path.read_text())):
            if "apiVersion" in found and "istio" not in found["apiVersion"]:
                yield pytest.param(found, id=f"{path.parent.name}-{path.stem}-{number}")


@pytest.mark.parametrize("found", list(objects()))
def test_kubernetes_takes_its_objects(found):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubernetes_validate.validate(found, "1.31", strict=True)


def test_istio_names_one_provider_that_is_there():
    operator = yaml.safe_load((MESH / "kubernetes/istio/operator.yaml").read_text())["spec"]["meshConfig"]
    telemetry = yaml.safe_load((MESH / "kubernetes/istio/telemetry.yaml").read_text())
    providers = {provider["name"] for provider in operator["extensionProviders"]}
    assert telemetry["apiVersion"] == "telemetry.istio.io/v1"
    used = [rule["providers"][0]["name"] for kind in ("tracing", "accessLogging") for rule in telemetry["spec"][kind]]
    assert set(used) == providers
    assert operator["enableTracing"] is True


def test_the_pods_say_what_the_detector_reads():
    from meshmw._telemetry import resource as kubernetes  # noqa: F401 - the names below are what it reads

    for found in yaml.safe_load_all((MESH / "kubernetes/services.yaml").read_text()):
        if found["kind"] == "Deployment":
            (container,) = found["spec"]["template"]["spec"]["containers"]
            given = {variable["name"] for variable in container["env"]}
            assert {"K8S_POD_NAME", "K8S_NAMESPACE", "K8S_NODE_NAME", "OTEL_EXPORTER_OTLP_ENDPOINT"} <= given
            assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/etc/podinfo"}
