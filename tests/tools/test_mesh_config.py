"""The configurations that are printed, checked by the programs that take them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from meshmw._tools.commands import LOG_FIELDS, TARGETS, MeshConfigError, MeshNames
from meshmw._tools.commands import render_config as mesh_config
from meshmw.errors import MissingExtraError
from tests.programs import envoy_or_skip, not_installed

SCHEMAS = json.loads((Path(__file__).parent / "schemas" / "istio.json").read_text())
KUBERNETES = "1.33"


def program(request: pytest.FixtureRequest, name: str) -> str:
    """The path of a program that Debian brings and PyPI does not."""
    found = shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if found is None:
        not_installed(request.config, f"{name} is not installed: run  apt-get install {name}")
    return found


def check(*command: object) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("sampling", [100.0, 0.5])
def test_envoy_takes_it(request, tmp_path, sampling):
    envoy = envoy_or_skip(request)
    path = tmp_path / "envoy.yaml"
    path.write_text(mesh_config("envoy", MeshNames(sampling=sampling, collector="127.0.0.1:4317")))
    check(envoy, "--mode", "validate", "-c", path)


def test_nginx_takes_it(request, tmp_path):
    nginx = program(request, "nginx")
    block = mesh_config("nginx")
    # The lines in comments are for locations that clear all headers; they are to be valid as well.
    for text in (block, block.replace("    # proxy_set_header", "    proxy_set_header")):
        path = tmp_path / "nginx.conf"
        path.write_text(f"pid {tmp_path}/nginx.pid; error_log stderr; events {{}}\nhttp {{\n{text}\n}}\n")
        check(nginx, "-t", "-q", "-p", tmp_path, "-c", path)


def test_haproxy_takes_it(request, tmp_path):
    haproxy = program(request, "haproxy")
    path = tmp_path / "haproxy.cfg"
    path.write_text(mesh_config("haproxy"))
    check(haproxy, "-c", "-f", path)


@pytest.mark.parametrize("target", ["k8s", "alb"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_kubernetes_takes_it(target):
    documents = list(yaml.safe_load_all(mesh_config(target)))
    assert len(documents) == {"k8s": 2, "alb": 1}[target]
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    broken = documents[0]
    broken["spec"]["nonsense"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def matches(value: object, shape: object) -> bool:
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(
            key in shape and matches(each, shape[key]) for key, each in value.items()
        )
    if isinstance(shape, list):
        return isinstance(value, list) and all(matches(each, shape[0]) for each in value)
    types = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "map": dict}
    return isinstance(value, types[str(shape)])


def test_istio_knows_every_field():
    documents = list(yaml.safe_load_all(mesh_config("istio", MeshNames(sampling=12.5))))
    assert [document["kind"] for document in documents] == ["IstioOperator", "Telemetry"]
    for document in documents:
        schema = SCHEMAS[document.pop("kind")]
        assert document.pop("apiVersion") == schema["apiVersion"]
        assert matches(document, schema["fields"]), document
    assert not matches({"spec": {"tracing": [{"sampling": 1}]}}, SCHEMAS["Telemetry"]["fields"])
    operator, telemetry = documents
    providers = {each["name"] for each in operator["spec"]["meshConfig"]["extensionProviders"]}
    used = telemetry["spec"]["tracing"][0]["providers"] + telemetry["spec"]["accessLogging"][0]["providers"]
    assert {each["name"] for each in used} == providers
    assert telemetry["spec"]["tracing"][0]["randomSamplingPercentage"] == 12.5


def test_linkerd_and_compose_are_what_they_say():
    tracing = yaml.safe_load(mesh_config("linkerd"))["proxy"]["tracing"]
    assert tracing["collector"] == {
        "endpoint": "otel-collector.observability.svc.cluster.local:4317",
        "meshIdentity": {"serviceAccountName": "otel-collector", "namespace": "observability"},
    }
    assert yaml.safe_load(mesh_config("linkerd", MeshNames(collector="c:1")))["proxy"]["tracing"]["collector"][
        "meshIdentity"
    ] == {"serviceAccountName": "c", "namespace": "shop"}
    services = yaml.safe_load(mesh_config("compose", MeshNames(service="web")))["services"]
    assert set(services) == {"web", "web-sidecar", "collector"}
    assert services["web-sidecar"]["network_mode"] == "service:web"


def test_what_envoy_logs_is_what_the_reader_knows():
    from meshmw._tools.access_log.json_lines import KEYS

    unread = {name for name, _ in LOG_FIELDS}.difference(*KEYS.values())
    assert unread == set()


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        ({"service": "a b"}, "service is 'a b'"),
        ({"service": "a.b"}, "service is"),
        ({"namespace": "x\ny"}, "namespace is"),
        ({"collector": "nowhere"}, "collector is 'nowhere': it takes host:port"),
        ({"collector": "a:99999"}, "collector is"),
        ({"upstream": "a b:1"}, "upstream is"),
        ({"upstream": "a:\u0661"}, "upstream is"),
        ({"app_port": 0}, "app_port is 0: it takes a port number"),
        ({"image": "a b"}, "image is"),
        ({"sampling": 101}, "sampling is 101"),
    ],
)
def test_nothing_is_rendered_that_could_mean_something_else(names, fault):
    with pytest.raises(MeshConfigError, match=fault):
        MeshNames(**names)


def test_there_are_no_other_targets():
    with pytest.raises(MeshConfigError, match=r"target takes istio, envoy, .* or k8s, not 'consul'"):
        mesh_config("consul")
    assert all(mesh_config(target).strip() for target in TARGETS)


def test_without_jinja_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"meshmw\[cli\]"):
        mesh_config("istio")
