"""The configurations that are printed, checked by the programs that take them."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shlex
import shutil
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from meshmw._tools.mesh_config import LOG_FIELDS, TARGETS, MeshConfigError, MeshNames
from meshmw._tools.mesh_config import render_config as mesh_config
from meshmw.errors import MissingExtraError
from meshmw.testing import free_port, start_process, stop_processes
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


class Behind(BaseHTTPRequestHandler):
    """Answers with its server's name and the traceparent that came."""

    def do_GET(self):
        body = f"{self.server.name} {self.headers['traceparent']}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def behind():
    """Start what lies behind a proxy, by name; return its port."""
    with contextlib.ExitStack() as stack:

        def start(name):
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", free_port()), Behind))
            server.name = name
            threading.Thread(target=server.serve_forever, args=(0.01,)).start()
            stack.callback(server.shutdown)
            return server.server_port

        yield start


@contextlib.contextmanager
def running(command, port, log):
    process = start_process(command, log, cwd=log.parent)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield
    finally:
        stop_processes([process])


def moved(text, ports):
    """A configuration with its ports on free ones: the same port on the same one, so that a loop stays a loop."""
    return re.sub(rf"\b({'|'.join(map(str, ports))})\b", lambda found: str(ports[int(found[0])]), text)


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def get(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", "/", headers={"traceparent": TRACEPARENT})
        return connection.getresponse().read().decode()


def test_nginx_as_printed_leads_to_what_lies_behind_it(request, tmp_path, behind):
    nginx = program(request, "nginx")
    listens = free_port()
    block = moved(mesh_config("nginx"), {8080: listens, 15006: behind("sidecar")})
    path = tmp_path / "nginx.conf"
    path.write_text(f"pid nginx.pid; error_log stderr; daemon off; events {{}}\nhttp {{\n{block}\n}}\n")
    with running([nginx, "-p", str(tmp_path), "-c", str(path)], listens, tmp_path / "output"):
        assert get(listens) == f"sidecar {TRACEPARENT}"


def test_haproxy_as_printed_leads_to_what_lies_behind_it(request, tmp_path, behind):
    haproxy = program(request, "haproxy")
    listens = free_port()
    path = tmp_path / "haproxy.cfg"
    path.write_text(moved(mesh_config("haproxy"), {8080: listens, 15006: behind("sidecar")}))
    with running([haproxy, "-db", "-f", str(path)], listens, tmp_path / "output"):
        assert get(listens) == f"sidecar {TRACEPARENT}"


def test_envoy_as_printed_leads_to_the_application_and_from_it_to_another(request, tmp_path, behind):
    envoy = envoy_or_skip(request)
    inbound, outbound = free_port(), free_port()
    ports = {15000: 0, 15006: inbound, 15001: outbound, 8000: behind("application"), 8001: behind("another")}
    path = tmp_path / "envoy.yaml"
    path.write_text(moved(mesh_config("envoy", MeshNames(collector="127.0.0.1:4317")), ports))
    command = [str(envoy), "--disable-hot-restart", "--concurrency", "1", "-c", str(path)]
    with running(command, inbound, tmp_path / "output"):
        for port, name in ((inbound, "application"), (outbound, "another")):
            who, traceparent = get(port).split()
            assert who == name
            assert traceparent.split("-")[1] == TRACEPARENT.split("-")[1]


def test_the_composition_and_the_sidecar_that_it_names_fit_together():
    text = mesh_config("compose", MeshNames(service="web", app_port=5000))
    (command,) = re.findall(r"^#   meshmw mesh-config (.*)$", text, re.MULTILINE)
    target, *options = shlex.split(command)
    values = dict(zip(options[::2], options[1::2], strict=True))
    names = MeshNames(
        service=values["--service"],
        collector=values["--collector"],
        app_port=int(values["--app-port"]),
        upstream=values["--upstream"],
    )
    sidecar = yaml.safe_load(mesh_config(target, names))["static_resources"]
    composed = yaml.safe_load(text)["services"]
    listeners = {each["name"]: each["address"]["socket_address"]["port_value"] for each in sidecar["listeners"]}
    assert composed["web"]["ports"] == [f"8080:{listeners['inbound']}"]
    assert composed["web"]["environment"]["UPSTREAM_URL"] == f"http://127.0.0.1:{listeners['outbound']}"
    leads = {each["name"]: each["load_assignment"]["endpoints"][0]["lb_endpoints"][0] for each in sidecar["clusters"]}
    address = {name: tuple(end["endpoint"]["address"]["socket_address"].values()) for name, end in leads.items()}
    assert address == {
        "application": ("127.0.0.1", 5000),
        "upstream": ("inventory", 8000),
        "collector": ("collector", 4317),
    }
    assert "collector" in composed


# Names and spellings of the machine itself.
HERE = (
    *("0.0.0.0", "0", "2130706433", "127.1", "0x7f.1", "0x7f000001", "0177.0.0.1", "127.0.0.53"),
    *("localhost.", "localhost.localdomain", "shop.localhost", "ip6-localhost"),
)


@pytest.mark.parametrize(
    ("target", "names", "fault"),
    [
        ("nginx", {"upstream": "127.0.0.1:8080"}, "listen_port and upstream would both have port 8080"),
        ("haproxy", {"listen_port": 15006}, "listen_port and upstream would both have port 15006"),
        ("envoy", {"app_port": 15006}, "inbound listener and app_port would both have port 15006"),
        ("envoy", {"upstream": "localhost:15001"}, "outbound listener and upstream would both have port 15001"),
        ("envoy", {"upstream": "127.0.0.1:8000"}, "app_port and upstream would both have port 8000"),
        ("envoy", {"collector": "127.0.0.1:8001"}, "upstream and collector would both have port 8001"),
        ("compose", {"app_port": 15000}, "administration and app_port would both have port 15000"),
        ("compose", {"listen_port": 16686}, "listen_port and Jaeger's page would both have port 16686"),
        ("k8s", {"app_port": 4143}, "app_port and the proxy of a mesh would both have port 4143"),
        *(
            (target, {"upstream": f"{host}:{port}"}, f"{listener} and upstream would both have port {port}")
            for target, listener, port in (("nginx", "listen_port", 8080), ("envoy", "outbound listener", 15001))
            for host in HERE
        ),
        ("envoy", {"collector": "0.0.0.0:15001"}, "outbound listener and collector would both have port 15001"),
        ("envoy", {"upstream": "checkout:15001"}, "outbound listener and upstream would both have port 15001"),
        ("nginx", {"listen_port": 15001}, "listen_port and the sidecar's outbound listener would both have port 15001"),
        ("haproxy", {"listen_port": 8000}, "listen_port and app_port would both have port 8000"),
        ("nginx", {"listen_port": 15000, "upstream": "localhost:15006"}, "administration would both have port 15000"),
        *(
            (target, {"collector": f"{host}:4317"}, f"collector is '{host}:4317': {target} finds it by the name")
            for target in ("istio", "linkerd")
            for host in ("10.0.0.5", "localhost", "167772165")
        ),
        ("compose", {"service": "collector"}, "service is 'collector': the composition has a collector of its own"),
        ("compose", {"service": "inventory"}, "upstream is 'inventory:8000': the composition has that service"),
        ("compose", {"upstream": "checkout-sidecar:15006"}, "upstream is 'checkout-sidecar:15006'"),
        ("compose", {"upstream": "collector.:4317"}, "upstream is 'collector.:4317': the composition has that service"),
    ],
)
def test_what_would_share_a_port_is_refused(target, names, fault):
    with pytest.raises(MeshConfigError, match=fault):
        mesh_config(target, MeshNames(**names))


def test_the_same_port_of_another_machine_is_no_fault():
    assert "http://mesh:8080;" in mesh_config("nginx", MeshNames(upstream="mesh:8080"))
    assert "http://inventory:15006;" in mesh_config("nginx", MeshNames(upstream="inventory:15006", listen_port=15006))
    assert mesh_config("compose", MeshNames(collector="127.0.0.1:8000")), "which a composition has of its own"
    assert "http://checkout:8080;" in mesh_config("nginx", MeshNames(upstream="checkout:8080"))
    assert "listen 8000;" in mesh_config("nginx", MeshNames(upstream="10.0.0.7:8080", listen_port=8000))
    assert "http://mesh.:8080;" in mesh_config("nginx", MeshNames(upstream="mesh.:8080"))


def texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for pair in value.items() for each in pair for text in texts(each)]
    if isinstance(value, list):
        return [text for each in value for text in texts(each)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("name", ["null", "no", "y", "true", "123", "1e3", "0x1f", "2020-01-01", "010", "shop", "n0"])
@pytest.mark.parametrize("target", [target for target in TARGETS if target not in ("nginx", "haproxy")])
def test_a_name_that_yaml_would_read_as_something_else_stays_a_name(target, name):
    usual = MeshNames(service="abc", namespace="abc", image="abc", host="abc", collector="abc:30", upstream="abc.x:30")
    names = MeshNames(
        service=name, namespace=name, image=name, host=name, collector=f"{name}:30", upstream=f"{name}.x:30"
    )
    if target == "envoy":
        names = MeshNames(service=name, collector=f"{name}:30", upstream=f"{name}.x:30")
    if target in ("istio", "linkerd"):
        names, usual = (MeshNames(namespace=each, collector=f"{each}.x:30") for each in (name, "abc"))
    documents = list(yaml.safe_load_all(mesh_config(target, names)))
    wanted = list(yaml.safe_load_all(mesh_config(target, usual)))
    assert sorted(each.replace("abc", name) for each in texts(wanted)) == sorted(texts(documents))


@pytest.mark.parametrize("sampling", [0.00001, 1e-9, 12.5, 100.0, 0.0])
def test_a_small_rate_stays_a_number(sampling):
    telemetry = list(yaml.safe_load_all(mesh_config("istio", MeshNames(sampling=sampling))))[1]
    assert telemetry["spec"]["tracing"][0]["randomSamplingPercentage"] == sampling


def test_the_load_balancer_has_a_host_and_a_certificate():
    arn = "arn:aws:acm:eu-central-1:123456789012:certificate/12345678-1234-1234-1234-123456789012"
    for certificate in (arn, ""):
        ingress = yaml.safe_load(mesh_config("alb", MeshNames(host="shop.test", certificate=certificate)))
        assert [rule["host"] for rule in ingress["spec"]["rules"]] == ["shop.test"]
        annotations = ingress["metadata"]["annotations"]
        assert annotations.get("alb.ingress.kubernetes.io/certificate-arn", "") == certificate
        assert json.loads(annotations["alb.ingress.kubernetes.io/listen-ports"]) == [{"HTTPS": 443}]


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
        ({"service": "a" * 64}, "service is"),
        ({"upstream": "a..b:1"}, "upstream is"),
        ({"upstream": f"{'a' * 64}.b:1"}, "upstream is"),
        ({"host": ".".join(["abcdefghi"] * 26)}, "host is"),
        ({"namespace": "x\ny"}, "namespace is"),
        ({"collector": "nowhere"}, "collector is 'nowhere': it takes host:port"),
        ({"collector": "a:99999"}, "collector is"),
        ({"upstream": "a b:1"}, "upstream is"),
        ({"upstream": "a:\u0661"}, "upstream is"),
        ({"app_port": 0}, "app_port is 0: it takes a port number"),
        ({"image": "a b"}, "image is"),
        ({"image": "a:"}, "image is 'a:'"),
        ({"upstream": "[::1]:8080"}, "upstream is"),
        ({"upstream": "a..:1"}, "upstream is"),
        ({"sampling": 101}, "sampling is 101"),
        ({"host": "a b"}, "host is 'a b'"),
        ({"certificate": "arn:aws:s3:::bucket"}, "certificate is .*: it takes an ARN of AWS"),
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
