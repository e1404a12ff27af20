"""NGINX and HAProxy, real ones, ending TLS in front of a mesh with the sample's own configuration."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from meshmw.testing import EnvoyMesh, ReceivedSpan, Service, free_port, start_process, stop_processes
from tests.programs import not_installed

SAMPLES = Path(__file__).parents[2] / "sample_apps" / "mesh"
SERVICES = Path(__file__).parents[1] / "testing" / "services"
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SENT = [("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"), ("tracestate", "a=1"), ("baggage", "k=1"), ("baggage", "l=2")]


@dataclass(frozen=True)
class Terminator:
    """Runs a program that ends TLS, with its part of the sample and the line that would take the header away."""

    package: str
    config: Path
    command: tuple[str, ...]
    check: tuple[str, ...]
    certificate: tuple[str, ...]
    before: str
    removes: str


NGINX = Terminator(
    "nginx",
    SAMPLES / "nginx" / "nginx.conf",
    ("-p", ".", "-c", "nginx.conf", "-g", "daemon off;"),
    ("-t", "-p", ".", "-c", "nginx.conf"),
    ("tls.crt", "tls.key"),
    "      proxy_set_header Host $host;",
    '      proxy_set_header traceparent "";',
)
HAPROXY = Terminator(
    "haproxy",
    SAMPLES / "haproxy" / "haproxy.cfg",
    ("-db", "-f", "haproxy.cfg"),
    ("-c", "-f", "haproxy.cfg"),
    ("tls.pem",),
    "  option forwardfor",
    "  http-request del-header traceparent",
)


@pytest.fixture(params=[NGINX, HAPROXY], ids=["nginx", "haproxy"])
def terminator(request: pytest.FixtureRequest) -> Terminator:
    found: Terminator = request.param
    # Debian keeps both where only root's PATH looks.
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    program = shutil.which(found.package, path=path)
    if program is None:
        not_installed(request.config, f"{found.package} is not installed: run  apt-get install {found.package}")
    return Terminator(program, *(getattr(found, name) for name in list(found.__dataclass_fields__)[1:]))


@pytest.fixture
def terminate(terminator: Terminator, tmp_path: Path, certificate: Path) -> Iterator[Callable[..., tuple[int, Path]]]:
    """Start it in front of a port; return its own port and the folder with its log."""
    with contextlib.ExitStack() as stack:

        def start(upstream: int, *, removing: bool = False) -> tuple[int, Path]:
            port = free_port()
            text = terminator.config.read_text().replace("8443", str(port)).replace("8080", str(upstream))
            assert terminator.before in text
            if removing:
                text = text.replace(terminator.before, f"{terminator.before}\n{terminator.removes}")
            for name in terminator.certificate:
                shutil.copy(certificate / name, tmp_path)
            (tmp_path / terminator.config.name).write_text(text)
            checked = subprocess.run(
                [terminator.package, *terminator.check], cwd=tmp_path, capture_output=True, text=True
            )
            assert checked.returncode == 0, checked.stderr
            process = start_process([terminator.package, *terminator.command], tmp_path / "output", cwd=tmp_path)
            stack.callback(stop_processes, [process])
            _wait_for(port, process, tmp_path / "output")
            return port, tmp_path

        yield start


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate and its key, apart and in one file."""
    folder = tmp_path_factory.mktemp("tls")
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    files = ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
    subprocess.run([*make, *files], check=True, capture_output=True)
    (folder / "tls.pem").write_text((folder / "tls.crt").read_text() + (folder / "tls.key").read_text())
    return folder


def _wait_for(port: int, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.02)


def get(port: int, sent: Iterable[tuple[str, str]] = SENT) -> tuple[int, bytes]:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
    with contextlib.closing(connection):
        connection.putrequest("GET", "/")
        for name, value in sent:
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.read()


ECHO = Service("echo", command=[sys.executable, str(SERVICES / "echo.py"), "{port}"])


def edges_of(mesh: EnvoyMesh, requests: int) -> list[ReceivedSpan]:
    """Wait for both proxies' spans of so many requests, and return the edge's."""

    def spans_of(service: str, spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
        return [span for span in spans if span.service == service]

    names = ("edge", "echo-sidecar")
    spans = mesh.receiver.wait_for(
        lambda spans: all(len(spans_of(name, spans)) >= requests for name in names), timeout=60
    )
    return spans_of("edge", spans)


def test_with_the_sample_configuration_the_trace_goes_on(envoy_mesh, terminate):
    mesh = envoy_mesh(ECHO)
    port, _ = terminate(int(mesh.url.rpartition(":")[2]))
    status, body = get(port)
    assert status == 200
    (edge,) = edges_of(mesh, 1)
    assert (edge.trace_id, edge.parent_id) == (TRACE_ID, PARENT_ID)
    arrived = body.decode().lower().splitlines()
    assert {"tracestate: a=1", "baggage: k=1", "baggage: l=2"} <= set(arrived)


def test_with_the_header_cleared_the_trace_is_another_and_the_logs_say_where(envoy_mesh, terminate, tmp_path):
    mesh = envoy_mesh(ECHO)
    port, folder = terminate(int(mesh.url.rpartition(":")[2]), removing=True)
    for _ in range(3):
        assert get(port)[0] == 200
    assert get(port, [])[0] == 200
    edges = edges_of(mesh, 4)
    assert {(span.trace_id != TRACE_ID, span.parent_id) for span in edges} == {(True, "")}
    mesh.edge.access_log(at_least=8)
    report = _first_loss(folder, mesh.edge.access_log_path, requests=4)
    assert report["first_loss"]["sender"] == "terminator"
    assert report["first_loss"]["receiver"].startswith("edge")
    # A header that is not there is not taken for one that is empty.
    total = report["hops"][0]["total"]
    assert (total["valid"], total["missing"], total["empty"]) == (3, 1, 0)


def _first_loss(folder: Path, edge: Path, requests: int) -> dict[str, Any]:
    """Return what `meshmw access-log` says, once the terminator has written all its lines."""
    log = next(path for path in (folder / "access.log", folder / "output") if path.exists())
    deadline = time.monotonic() + 60
    while len(lines := [line for line in log.read_text().splitlines() if line.startswith("{")]) < requests:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    (folder / "lines.log").write_text("\n".join(lines) + "\n")
    command = [
        sys.executable,
        "-m",
        "meshmw",
        "access-log",
        f"terminator={folder / 'lines.log'}",
        f"edge={edge}",
    ]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
