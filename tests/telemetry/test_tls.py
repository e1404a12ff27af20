"""Exporters before real collectors, with TLS and without, and what the log says where it fails."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from meshmw.__main__ import main
from meshmw._telemetry.provider import build_provider
from meshmw._telemetry.remedies import remedy_for
from meshmw._tools.doctor.process import look_at_process
from meshmw.settings import Settings, is_insecure
from meshmw.testing import OtlpReceiver
from tests.programs import clean_environment

ALL = "OTEL_EXPORTER_OTLP_"


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)
    monkeypatch.setenv(f"{ALL}TIMEOUT", "2")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Certificates that are their own authority, with their keys; one key has a passphrase, and one file holds both."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("server", "client"):
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
        command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        command += ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"]
        subprocess.run(command, check=True, capture_output=True)
    secret = ["openssl", "rsa", "-aes256", "-passout", "pass:x", "-in", folder / "client.key"]
    subprocess.run([*secret, "-out", folder / "secret.key"], check=True, capture_output=True)
    both = (folder / "client.pem").read_text() + (folder / "client.key").read_text()
    (folder / "both.pem").write_text(both)
    (folder / "junk.pem").write_text("junk")
    (folder / "empty.pem").write_text("")
    return folder


class Servicer(TraceServiceServicer):
    """Counts what arrives."""

    def __init__(self):
        self.arrived = 0

    def Export(self, request, context):
        self.arrived += 1
        return ExportTraceServiceResponse()


def start_grpc(address, *, credentials=None):
    server, servicer = grpc.server(ThreadPoolExecutor(2)), Servicer()
    add_TraceServiceServicer_to_server(servicer, server)
    if credentials is None:
        servicer.port = server.add_insecure_port(address)
    else:
        servicer.port = server.add_secure_port(address, credentials)
    server.start()
    servicer.stop = lambda: server.stop(grace=0).wait()
    return servicer


def credentials_of(keys, authority=None):
    pair = (keys / "server.key").read_bytes(), (keys / "server.pem").read_bytes()
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)


@pytest.fixture(scope="module")
def collectors(keys):
    """Collectors by what they speak: gRPC `plain`, `tls`, and `mutual`, which asks for the client's certificate."""
    found = {
        "plain": start_grpc("127.0.0.1:0"),
        "tls": start_grpc("127.0.0.1:0", credentials=credentials_of(keys)),
        "mutual": start_grpc("127.0.0.1:0", credentials=credentials_of(keys, (keys / "client.pem").read_bytes())),
    }
    yield found
    for each in found.values():
        each.stop()


class Answers(http.server.BaseHTTPRequestHandler):
    """Takes what comes."""

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args):
        """Say nothing."""


@contextlib.contextmanager
def https(keys, authority=None):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / "server.pem", keys / "server.key")
    if authority is not None:
        context.load_verify_locations(authority)
        context.verify_mode = ssl.CERT_REQUIRED
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def export(**settings):
    """Export a span as a service does, and say whether it arrived."""
    provider, processor = build_provider(Settings(**settings))
    provider.get_tracer("t").start_span("s").end()
    provider.force_flush()
    arrived = processor.collector.exports_done == 1
    processor.shutdown_seconds = 0
    provider.shutdown()
    return arrived


class TestWhetherTlsIsSpoken:
    @pytest.mark.parametrize(
        ("spoken", "address", "variables"),
        [
            ("tls", "127.0.0.1:{port}", {}),
            ("tls", "localhost:{port}", {"INSECURE": " "}),
            ("tls", "127.0.0.1:{port}", {"INSECURE": "yes"}),
            ("tls", "127.0.0.1:{port}", {"INSECURE": "false"}),
            ("tls", "127.0.0.1:{port}", {"INSECURE": "true", "TRACES_INSECURE": "false"}),
            ("tls", "https://127.0.0.1:{port}", {"INSECURE": "true"}),
            ("tls", "dns:///localhost:{port}", {}),
            ("tls", "ipv4:127.0.0.1:{port}", {}),
            ("plain", "127.0.0.1:{port}", {"INSECURE": "TRUE"}),
            ("plain", "127.0.0.1:{port}", {"INSECURE": "false", "TRACES_INSECURE": "true"}),
            ("plain", "127.0.0.1:{port}", {"INSECURE": "true", "TRACES_INSECURE": ""}),
            ("plain", "http://127.0.0.1:{port}", {"INSECURE": "false"}),
            ("plain", "HTTP://127.0.0.1:{port}", {}),
            ("plain", "dns:///localhost:{port}", {"INSECURE": "true"}),
        ],
    )
    @pytest.mark.parametrize("name", ["ENDPOINT", "TRACES_ENDPOINT"])
    def test_the_scheme_says_it_or_else_the_variable(
        self, monkeypatch, caplog, collectors, keys, name, spoken, address, variables
    ):
        monkeypatch.setenv(f"{ALL}CERTIFICATE", str(keys / "server.pem"))
        monkeypatch.setenv(f"{ALL}{name}", address.format(port=collectors[spoken].port))
        for part, value in variables.items():
            monkeypatch.setenv(f"{ALL}{part}", value)
        assert export()
        said = [f"{ALL}INSECURE holds 'yes', which counts as false; it takes true or false"]
        assert caplog.messages == (said if "yes" in variables.values() else [])

    @pytest.mark.parametrize("address", ["127.0.0.1:{port}", "http://127.0.0.1:{port}"])
    def test_our_own_setting_is_without_tls_where_it_has_no_scheme(self, monkeypatch, collectors, address):
        monkeypatch.setenv(f"{ALL}INSECURE", "false")
        assert export(endpoint=address.format(port=collectors["plain"].port))

    @pytest.mark.parametrize("form", ["unix:{path}", "unix://{path}"])
    def test_a_socket_of_this_machine(self, monkeypatch, caplog, tmp_path, keys, form):
        path = tmp_path / "s"
        collector = start_grpc(f"unix:{path}")
        monkeypatch.setenv(f"{ALL}ENDPOINT", form.format(path=path))
        assert not export()
        assert "; it does not speak TLS: set OTEL_EXPORTER_OTLP_INSECURE=true" in caplog.text
        monkeypatch.setenv(f"{ALL}INSECURE", "true")
        assert export()
        assert export(endpoint=form.format(path=path))
        collector.stop()

    def test_an_address_of_grpcs_is_none_of_http(self, monkeypatch, caplog):
        monkeypatch.setenv(f"{ALL}ENDPOINT", "unix:/run/otel.sock")
        assert Settings(exporter="otlp-http").endpoint is None
        (line,) = caplog.messages
        assert line.startswith(
            f"{ALL}ENDPOINT holds 'unix:/run/otel.sock', which is ignored; meshmw takes a URL such as"
        )

    @pytest.mark.parametrize("address", ["unix:4317", "dns:4317", "ftp://c", "unix:", "dns://user@c/d"])
    def test_what_is_no_address_of_grpcs(self, monkeypatch, address):
        monkeypatch.setenv(f"{ALL}ENDPOINT", address)
        assert Settings().endpoint in (None, f"https://{address}")

    def test_the_variables_say_nothing_where_nobody_asks(self, monkeypatch, caplog):
        monkeypatch.setenv(f"{ALL}INSECURE", "junk")
        assert not is_insecure("TRACES")
        assert caplog.messages == []


class TestFiles:
    @pytest.mark.parametrize("exporter", ["otlp", "otlp-http"])
    @pytest.mark.parametrize(
        ("files", "line"),
        [
            (
                {"CERTIFICATE": "absent.pem"},
                "CERTIFICATE holds '{}/absent.pem', which is ignored: there is no such file; so",
            ),
            ({"CERTIFICATE": "junk.pem"}, "the file holds no certificate in PEM; so the authorities of the system are"),
            ({"CERTIFICATE": "empty.pem"}, "CERTIFICATE holds '{}/empty.pem', which is ignored"),
            ({"CERTIFICATE": ""}, "CERTIFICATE holds '{}/', which is ignored: it is no file"),
            ({"TRACES_CERTIFICATE": "absent.pem"}, "TRACES_CERTIFICATE holds "),
            ({"CLIENT_KEY": "client.key"}, "CLIENT_KEY is ignored, because no variable names a certificate beside it"),
            (
                {"CLIENT_CERTIFICATE": "client.pem"},
                "CLIENT_CERTIFICATE: the files hold no certificate in PEM with its key",
            ),
            (
                {"CLIENT_CERTIFICATE": "client.pem", "CLIENT_KEY": "server.key"},
                "CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY",
            ),
            (
                {"CLIENT_CERTIFICATE": "client.pem", "CLIENT_KEY": "secret.key"},
                "or the key has a passphrase; so this client",
            ),
            (
                {"CLIENT_CERTIFICATE": "absent.pem"},
                "CLIENT_CERTIFICATE holds '{}/absent.pem', which is ignored: there is no",
            ),
            (
                {"CLIENT_CERTIFICATE": "client.pem", "CLIENT_KEY": "absent"},
                "CLIENT_KEY holds '{}/absent', which is ignored",
            ),
        ],
    )
    def test_one_of_no_use_is_ignored_and_said(self, monkeypatch, caplog, keys, exporter, files, line):
        for name, value in files.items():
            monkeypatch.setenv(f"{ALL}{name}", f"{keys}/{value}")
        export(exporter=exporter, endpoint="https://127.0.0.1:9")
        assert line.format(keys) in caplog.messages[0].replace("\\\\", "\\")
        assert "Traceback" not in caplog.text

    def test_where_the_one_for_all_signals_counts_instead_that_is_said(self, monkeypatch, caplog, keys):
        monkeypatch.setenv(f"{ALL}TRACES_CERTIFICATE", f"{keys}/absent.pem")
        monkeypatch.setenv(f"{ALL}CERTIFICATE", f"{keys}/server.pem")
        export(endpoint="https://127.0.0.1:9")
        assert caplog.messages[0].endswith(f"no such file; so those of {ALL}CERTIFICATE are trusted")

    def test_one_that_may_not_be_read(self, monkeypatch, caplog, keys):
        def refuse(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("pathlib.Path.open", refuse)
        monkeypatch.setenv(f"{ALL}CERTIFICATE", str(keys / "server.pem"))
        export(endpoint="https://127.0.0.1:9")
        assert "which is ignored: Permission denied; so" in caplog.messages[0]

    @pytest.mark.parametrize("files", [{"CERTIFICATE": "client.pem", "KEY": "client.key"}, {"CERTIFICATE": "both.pem"}])
    @pytest.mark.parametrize("authority", ["CERTIFICATE", "TRACES_CERTIFICATE"])
    def test_a_client_shows_its_certificate(self, monkeypatch, caplog, collectors, keys, files, authority):
        monkeypatch.setenv(f"{ALL}{authority}", str(keys / "server.pem"))
        for name, value in files.items():
            monkeypatch.setenv(f"{ALL}CLIENT_{name}", str(keys / value))
        assert export(endpoint=f"https://localhost:{collectors['mutual'].port}")
        # What requests would rather believe.
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(keys / "client.pem"))
        with https(keys, keys / "client.pem") as port:
            assert export(exporter="otlp-http", endpoint=f"https://localhost:{port}")
        assert caplog.messages == []


class TestWhatHelps:
    """The collector answers, and not as it was asked: the line says which word to write."""

    def line(self, caplog, **settings):
        assert not export(**settings)
        (line,) = caplog.messages
        assert "requests are unaffected (" in line
        return line

    def test_tls_to_a_collector_without(self, monkeypatch, caplog, collectors):
        port = collectors["plain"].port
        monkeypatch.setenv(f"{ALL}ENDPOINT", f"127.0.0.1:{port}")
        assert self.line(caplog).endswith(
            f"; it does not speak TLS: write http://127.0.0.1:{port}, or set OTEL_EXPORTER_OTLP_INSECURE=true for an "
            "address without a scheme"
        )

    def test_no_tls_to_a_collector_with(self, caplog, collectors):
        port = collectors["tls"].port
        line = self.line(caplog, endpoint=f"127.0.0.1:{port}")
        assert line.endswith(f"; where it speaks TLS: write https://127.0.0.1:{port}")

    def test_an_authority_that_is_not_known(self, caplog, collectors):
        line = self.line(caplog, endpoint=f"https://127.0.0.1:{collectors['tls'].port}")
        assert "; its certificate is not trusted: name the file of its authority in OTEL_EXPORTER_OTLP_CERT" in line

    def test_a_client_without_the_certificate_that_is_asked_for(self, monkeypatch, caplog, collectors, keys):
        monkeypatch.setenv(f"{ALL}CERTIFICATE", str(keys / "server.pem"))
        line = self.line(caplog, endpoint=f"https://127.0.0.1:{collectors['mutual'].port}")
        assert "; " in line
        assert "OTEL_EXPORTER_OTLP_" in line.rpartition(";")[2]

    def test_http_with_tls_to_a_collector_without(self, caplog):
        with OtlpReceiver() as receiver:
            port = urlsplit(receiver.http_endpoint).port
            line = self.line(caplog, exporter="otlp-http", endpoint=f"https://127.0.0.1:{port}")
        assert f"; it does not speak TLS: write http://127.0.0.1:{port}, or" in line

    def test_http_without_tls_to_a_collector_with(self, caplog, keys):
        with https(keys) as port:
            line = self.line(caplog, exporter="otlp-http", endpoint=f"http://127.0.0.1:{port}")
        assert line.endswith(f"; where it speaks TLS: write https://127.0.0.1:{port}")

    def test_http_with_an_authority_that_is_not_known(self, caplog, keys):
        with https(keys) as port:
            line = self.line(caplog, exporter="otlp-http", endpoint=f"https://127.0.0.1:{port}")
        assert "; its certificate is not trusted" in line

    def test_the_other_protocols_port(self, caplog, collectors):
        with OtlpReceiver() as receiver:
            line = self.line(caplog, endpoint=receiver.http_endpoint)
        assert "; it speaks HTTP/1, and not gRPC: set MESHMW_EXPORTER=otlp-http" in line
        caplog.clear()
        port = collectors["plain"].port
        line = self.line(caplog, exporter="otlp-http", endpoint=f"http://127.0.0.1:{port}")
        assert "; it speaks gRPC, and not HTTP/1: set MESHMW_EXPORTER=otlp," in line

    @pytest.mark.parametrize("endpoint", ["http://c:1", "https://c:1", "unix:/run/s", "standard output"])
    def test_nothing_where_the_words_do_not_say_it(self, endpoint):
        assert remedy_for(endpoint, "failed to connect to all addresses: Connection refused") == ""

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_a_connection_that_closes_is_no_sign_of_tls_where_exports_have_arrived(self, scheme):
        assert "TLS" in remedy_for(f"{scheme}://c:1", "Stream removed (Socket closed)")
        assert remedy_for(f"{scheme}://c:1", "Stream removed (Socket closed)", has_arrived=True) == ""
        assert "certificate" in remedy_for("https://c:1", "CERTIFICATE_VERIFY_FAILED", has_arrived=True)


class TestDoctor:
    """`meshmw doctor` looks at the same collectors."""

    def facts(self, monkeypatch, address, **variables):
        monkeypatch.setenv(f"{ALL}ENDPOINT", address)
        for name, value in variables.items():
            monkeypatch.setenv(f"{ALL}{name}", value)
        return look_at_process()

    @pytest.mark.parametrize(
        ("spoken", "address", "insecure", "fault"),
        [
            ("tls", "127.0.0.1:{}", "", ""),
            ("tls", "dns:///localhost:{}", "", ""),
            ("plain", "127.0.0.1:{}", "true", ""),
            ("plain", "127.0.0.1:{}", "", "it does not speak TLS: write http://127.0.0.1:{}, or set OTEL_"),
            ("plain", "dns:///127.0.0.1:{}", "", "it does not speak TLS: set OTEL_EXPORTER_OTLP_INSECURE=true"),
        ],
    )
    def test_tls(self, monkeypatch, collectors, spoken, address, insecure, fault):
        port = collectors[spoken].port
        found = self.facts(monkeypatch, address.format(port), INSECURE=insecure, TIMEOUT="4000")
        assert found.collector.endswith(f":{port}")
        assert found.collector_tls is (insecure == "")
        assert found.export_seconds == 4
        assert found.collector_fault[:50] == fault.format(port)[:50]

    def test_a_socket_of_this_machine(self, monkeypatch, tmp_path):
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            found = self.facts(monkeypatch, f"unix://{path}", INSECURE="true")
        assert (found.collector, found.collector_fault) == (str(path), "")
        path.unlink()
        assert look_at_process().collector_fault == "No such file or directory"
        monkeypatch.delattr(socket, "AF_UNIX")
        assert look_at_process().collector_fault == "this Python has no Unix sockets"

    def test_it_prints_both(self, monkeypatch, capsys):
        monkeypatch.setenv(f"{ALL}ENDPOINT", "https://127.0.0.1:9")
        main(["doctor"])
        assert "with TLS, for 2 seconds at most" in capsys.readouterr().out


@contextlib.contextmanager
def listening(*, accepts):
    """A socket that accepts and never answers; or one that accepts nobody, and whose backlog is full."""
    with socket.socket() as listener, contextlib.ExitStack() as held:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        if accepts:
            listener.listen(64)
            done = threading.Event()
            thread = threading.Thread(target=lambda: held.enter_context(listener.accept()[0]) and done.wait())
            thread.start()
        else:
            for _ in range(4):
                filler = held.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(address)
        yield address[1]
        if accepts:
            done.set()
            with contextlib.suppress(OSError), socket.create_connection(address, 1):
                pass
            thread.join()


@pytest.mark.parametrize("accepts", [True, False])
@pytest.mark.parametrize("exporter", ["otlp", "otlp-http"])
def test_a_collector_that_swallows_packets_is_noticed(monkeypatch, caplog, exporter, accepts):
    monkeypatch.setenv(f"{ALL}TIMEOUT", "1000")
    with listening(accepts=accepts) as port:
        assert not export(exporter=exporter, endpoint=f"127.0.0.1:{port}")
    (line,) = caplog.messages
    assert line.startswith(f"spans do not reach http://127.0.0.1:{port}")
    assert any(word in line.lower() for word in ("deadline", "timed out"))
