"""What the page of the manifests says to apply: every name that means something elsewhere is found there."""

from __future__ import annotations

import copy
import re
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import meshmw

ROOT = Path(__file__).parents[2]
MESH = ROOT / "sample_apps" / "mesh"
KUBERNETES = MESH / "kubernetes"
PAGE = (MESH / "README.md").read_text()
DOCKERFILE = (MESH / "compose/Dockerfile").read_text()
MESHES = ("Istio", "Linkerd")
# The installation makes these, and not what is applied.
INSTALLED = {"istio-system"}


def files(mesh, verb):
    """The files that the mesh's part of the page applies or deletes, in its order."""
    (part,) = re.findall(rf"^## {mesh}\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
    lines = re.findall(rf"^\$ kubectl {verb}( .*)$", part, re.MULTILINE)
    return [name for line in lines for name in re.findall(r"-f (\S+)", line)]


def load(name):
    return [each for each in yaml.safe_load_all((KUBERNETES / name).read_text()) if each]


def applied(mesh):
    return [each for name in files(mesh, "apply") if name != "-" for each in load(name)]


def of_kind(found, kind):
    """The objects of one kind by namespace and name."""
    chosen = [each for each in found if each["kind"] == kind]
    return {(each["metadata"].get("namespace"), each["metadata"]["name"]): each for each in chosen}


def pods(found):
    for (namespace, name), each in of_kind(found, "Deployment").items():
        yield namespace, name, each["spec"]["template"]


def containers():
    for name in ("services.yaml", "observability.yaml"):
        for namespace, deployment, pod in pods(load(name)):
            for container in pod["spec"]["containers"]:
                yield pytest.param(pod["spec"], container, id=f"{namespace}-{deployment}-{container['name']}")


@pytest.fixture(params=MESHES)
def mesh(request):
    return request.param


def test_what_is_applied_is_undone_in_the_opposite_order(mesh):
    names = [name for name in files(mesh, "apply") if name != "-"]
    undone = files(mesh, "delete")
    assert sorted(undone) == sorted(names)
    # A namespace that goes first takes its objects with it, and the command then fails for each of them.
    assert undone[-1] == names[0] == f"{mesh.lower()}/namespace.yaml"
    for name in names:
        assert all(each["kind"] != "IstioOperator" for each in load(name)), f"{name} is for istioctl"


def test_every_namespace_is_there_before_it_is_used(mesh):
    there = set(INSTALLED)
    for each in applied(mesh):
        if each["kind"] == "Namespace":
            there.add(each["metadata"]["name"])
        else:
            assert each["metadata"]["namespace"] in there, f"{each['kind']} {each['metadata']['name']}"


def test_every_service_leads_to_one_deployment_and_each_of_its_ports_to_a_named_one(mesh):
    found = applied(mesh)
    for (namespace, name), service in of_kind(found, "Service").items():
        wanted = service["spec"]["selector"].items()
        (spec,) = [
            pod["spec"]
            for where, _, pod in pods(found)
            if where == namespace and wanted <= pod["metadata"]["labels"].items()
        ]
        named = {port["name"] for container in spec["containers"] for port in container["ports"]}
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in named, f"{name}: {port}"
            # Istio takes the protocol from the port's appProtocol, or from what its name begins with.
            protocol = port["name"].partition("-")[0]
            assert protocol in ("http", "grpc"), f"{name}: {port}"
            assert port.get("appProtocol", protocol) == protocol, f"{name}: {port}"
    for _, name, pod in pods(found):
        deployment = next(each for each in found if each["kind"] == "Deployment" and each["metadata"]["name"] == name)
        assert deployment["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


def ports_of(found, host, namespace):
    """The ports by name of the Service that a host name means to a pod of a namespace."""
    name, _, rest = host.removesuffix(".svc.cluster.local").partition(".")
    service = of_kind(found, "Service")[rest or namespace, name]
    return {port["port"]: port["name"] for port in service["spec"]["ports"]}


def test_every_address_that_a_pod_is_given_is_a_port_of_a_service(mesh):
    found = applied(mesh)
    addresses = [
        (namespace, variable["value"])
        for namespace, _, pod in pods(found)
        for container in pod["spec"]["containers"]
        for variable in container.get("env", ())
        if variable["name"].endswith(("_URL", "_TARGET", "_ENDPOINT"))
    ]
    assert len(addresses) == 5
    for namespace, address in addresses:
        host, _, port = re.sub(r"^http://", "", address).partition(":")
        assert int(port or 80) in ports_of(found, host, namespace), address


def collectors():
    (config,) = of_kind(load("observability.yaml"), "ConfigMap").values()
    yield pytest.param(yaml.safe_load(config["data"]["config.yaml"]), id="kubernetes")
    yield pytest.param(yaml.safe_load((MESH / "compose/collector.yaml").read_text()), id="compose")


@pytest.mark.parametrize("config", list(collectors()))
def test_the_collectors_pipelines_are_made_of_what_is_configured(config):
    for kind in ("receivers", "processors", "exporters"):
        used = {name for pipeline in config["service"]["pipelines"].values() for name in pipeline[kind]}
        assert used == config[kind].keys(), kind
    assert set(config["service"].get("extensions", ())) == config.get("extensions", {}).keys()
    pipeline = config["service"]["pipelines"]["traces"]
    # The one that refuses comes first, or the batch has taken what is then refused.
    assert pipeline["processors"] == ["memory_limiter", "batch"]


def test_the_collector_listens_where_its_service_leads_and_sends_to_jaeger():
    found = load("observability.yaml")
    (config,) = (yaml.safe_load(each["data"]["config.yaml"]) for each in of_kind(found, "ConfigMap").values())
    (pod,) = (pod for _, name, pod in pods(found) if name == "otel-collector")
    (container,) = pod["spec"]["containers"]
    listens = {port["name"]: port["containerPort"] for port in container["ports"]}
    protocols = config["receivers"]["otlp"]["protocols"]
    endpoints = [protocols["grpc"], protocols["http"], config["extensions"]["health_check"]]
    assert [each["endpoint"] for each in endpoints] == [f"0.0.0.0:{port}" for port in listens.values()]
    assert list(listens) == ["grpc-otlp", "http-otlp", "health"]
    host, _, port = config["exporters"]["otlp"]["endpoint"].partition(":")
    assert ports_of(found, host, "observability")[int(port)] == "grpc-otlp"
    (mount,), (volume,) = container["volumeMounts"], pod["spec"]["volumes"]
    assert (mount["name"], volume["configMap"]["name"]) == (volume["name"], "otel-collector")
    assert container["args"] == [f"--config={mount['mountPath']}/config.yaml"]
    limit = int(container["resources"]["limits"]["memory"].removesuffix("Mi"))
    assert config["processors"]["memory_limiter"]["limit_mib"] < limit


def test_istios_proxies_send_their_spans_to_the_collectors_grpc_port():
    (operator,) = load("istio/operator.yaml")
    providers = {each["name"]: each for each in operator["spec"]["meshConfig"]["extensionProviders"]}
    (telemetry,) = of_kind(applied("Istio"), "Telemetry").values()
    (rule,) = telemetry["spec"]["tracing"]
    provider = providers[rule["providers"][0]["name"]]["opentelemetry"]
    assert ports_of(applied("Istio"), provider["service"], "")[provider["port"]] == "grpc-otlp"
    assert rule["randomSamplingPercentage"] == 100
    # Or the proxies would make a trace of each export of the services.
    for namespace, _, pod in pods(applied("Istio")):
        if namespace == "shop":
            excluded = pod["metadata"]["annotations"]["traffic.sidecar.istio.io/excludeOutboundPorts"]
            assert excluded == str(provider["port"])


def test_istios_way_in_leads_to_checkout():
    found = applied("Istio")
    (gateway,), (route,) = of_kind(found, "Gateway"), of_kind(found, "VirtualService").values()
    assert (route["metadata"]["namespace"], *route["spec"]["gateways"]) == gateway
    (rule,) = route["spec"]["http"]
    destination = rule["route"][0]["destination"]
    assert ports_of(found, destination["host"], "")[destination["port"]["number"]] == "http"
    assert "curl localhost:8080/api/checkout".partition("8080")[2].startswith(rule["match"][0]["uri"]["prefix"])


def test_linkerds_proxies_send_their_spans_to_a_collector_that_is_meshed():
    found = applied("Linkerd")
    (values,) = load("linkerd/values.yaml")
    collector = values["proxy"]["tracing"]["collector"]
    host, _, port = collector["endpoint"].partition(":")
    assert ports_of(found, host, "")[int(port)] == "grpc-otlp"
    identity = collector["meshIdentity"]
    assert (identity["namespace"], identity["serviceAccountName"]) in of_kind(found, "ServiceAccount")
    (spec,) = (pod["spec"] for _, name, pod in pods(found) if name == "otel-collector")
    assert spec["serviceAccountName"] == identity["serviceAccountName"]
    for name in ("shop", identity["namespace"]):
        assert of_kind(found, "Namespace")[None, name]["metadata"]["annotations"] == {"linkerd.io/inject": "enabled"}


VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def violations(pod):
    """Yield what Pod Security's `restricted` refuses of a pod: https://kubernetes.io/docs/concepts/security/pod-security-standards/"""
    whole = pod.get("securityContext", {})
    yield from (name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name))
    yield from (f"volume {each['name']}" for each in pod.get("volumes", ()) if not VOLUMES & each.keys())
    for container in [*pod["containers"], *pod.get("initContainers", ())]:
        own = container.get("securityContext", {})
        both = whole | own
        capabilities = own.get("capabilities", {})
        rules = {
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "privileged": not own.get("privileged"),
            "procMount": own.get("procMount", "Default") == "Default",
            "hostPort": not any("hostPort" in port for port in container.get("ports", ())),
            "drop": "ALL" in capabilities.get("drop", ()),
            "add": set(capabilities.get("add", ())) <= {"NET_BIND_SERVICE"},
            "runAsNonRoot": both.get("runAsNonRoot") is True,
            "runAsUser": both.get("runAsUser") != 0,
            "seccompProfile": both.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
        }
        yield from (name for name, is_kept in rules.items() if not is_kept)


@pytest.mark.parametrize(("pod", "container"), list(containers()))
def test_every_pod_is_restricted_and_needs_no_disk(pod, container):
    assert list(violations(pod)) == []
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    # Whether the image's user is root, Kubernetes does not see where it is a name.
    assert pod["securityContext"]["runAsUser"] > 0


@pytest.mark.parametrize(
    ("where", "what", "refused"),
    [
        ((), {"hostNetwork": True}, "hostNetwork"),
        ((), {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "volume v"),
        ((), {"securityContext": {"runAsNonRoot": True}}, "seccompProfile"),
        (("securityContext",), {"runAsNonRoot": False}, "runAsNonRoot"),
        (("containers", 0, "securityContext"), {"runAsNonRoot": False}, "runAsNonRoot"),
        (("containers", 0, "securityContext"), {"runAsUser": 0}, "runAsUser"),
        (("containers", 0, "securityContext"), {"allowPrivilegeEscalation": None}, "allowPrivilegeEscalation"),
        (("containers", 0, "securityContext"), {"privileged": True}, "privileged"),
        (("containers", 0, "securityContext"), {"capabilities": {}}, "drop"),
        (("containers", 0, "securityContext", "capabilities"), {"add": ["NET_ADMIN"]}, "add"),
        (("containers", 0), {"ports": [{"containerPort": 1, "hostPort": 1}]}, "hostPort"),
    ],
)
def test_the_rules_of_restricted_refuse(where, what, refused):
    pod = copy.deepcopy(next(pods(load("services.yaml")))[2]["spec"])
    node = pod
    for step in where:
        node = node[step]
    node.update(what)
    assert list(violations(pod)) == [refused]


@pytest.mark.parametrize(("pod", "container"), list(containers()))
def test_every_container_says_when_it_is_ready_and_what_it_takes(pod, container):
    named = {port["name"] for port in container["ports"]}
    for name in ("readinessProbe", "livenessProbe"):
        (way,) = {"tcpSocket", "httpGet"} & container[name].keys()
        assert container[name][way]["port"] in named
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    assert "memory" in container["resources"]["limits"]


def test_every_image_has_a_version_and_its_line_on_the_page():
    composed = yaml.safe_load((MESH / "compose/compose.yaml").read_text())["services"].values()
    images = {container.values[1]["image"] for container in containers()}
    images |= {each["image"] for each in composed if "image" in each}
    for image in images:
        assert re.search(r":v?\d", image), image
        assert f"`{image}`" in PAGE, image
    assert re.search(r"^FROM python:3\.\d+\.\d+-", DOCKERFILE, re.MULTILINE)
    built = next(pods(load("services.yaml")))[2]["spec"]["containers"][0]["image"]
    (command,) = re.findall(r"^\$ docker build .*$", PAGE, re.MULTILINE)
    assert command == f"$ docker build -t {built} -f sample_apps/mesh/compose/Dockerfile ."
    (user,) = re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE)
    assert user.isdigit(), "runAsNonRoot needs a number"
    # The tests may run beside an installed package, without its source.
    package = {"meshmw": Path(meshmw.__file__).parent}
    for names in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE):
        assert all(package.get(each, ROOT / each).exists() for each in names.split())


def brought(requirement, seen):
    """Add the names of the distributions that a requirement brings, as far as they are installed here."""
    name = canonicalize_name(requirement.name)
    if (name, *sorted(requirement.extras)) in seen:
        return
    seen[name, *sorted(requirement.extras)] = name
    try:
        needed = [Requirement(each) for each in requires(name) or ()]
    except PackageNotFoundError:
        return
    for each in needed:
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in (requirement.extras or {""})):
            brought(each, seen)


def test_the_image_has_what_the_services_import():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (line,) = re.findall(r"^RUN pip install --no-cache-dir (.*)$", DOCKERFILE, re.MULTILINE)
    words = [word.strip("'") for word in line.split()]
    extras = re.fullmatch(r"\.\[(.*)\]", words.pop(0))[1].split(",")
    optional = [each for extra in extras for each in project["optional-dependencies"][extra]]
    seen = {}
    for each in [*project["dependencies"], *optional, *words]:
        brought(Requirement(each), seen)
    modules = set()
    for name in ("checkout", "inventory", "pricing", "orders"):
        source = (ROOT / f"sample_apps/{name}.py").read_text()
        modules |= set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
    commands = {each.values[1]["command"][0] for each in containers() if "command" in each.values[1]} - {"python"}
    modules |= {command.partition("-")[0] for command in commands}
    homes = packages_distributions()
    for module in sorted(modules - {"meshmw", "sample_apps"}):
        distributions = {canonicalize_name(each) for each in homes.get(module, ())}
        assert not distributions or distributions & set(seen.values()), f"{module} is not in the image"
