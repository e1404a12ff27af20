"""Exporters, resource and provider, as the settings ask for them."""

from __future__ import annotations

import contextlib
import http.server
import ssl
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from requests import ReadTimeout, Session
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

from meshmw._telemetry.export import TreeSpanExporter, build_exporter, endpoint_of, shown_endpoint
from meshmw._telemetry.http_session import BoundedSession, _TimedAdapter, _TimedTlsPool, _use_timed_pools, bounded
from meshmw._telemetry.provider import _unusable, build_provider
from meshmw._telemetry.resource import build_resource
from meshmw.errors import SettingsError
from meshmw.settings import Settings
from tests.telemetry.test_otlp_variables import Making


@pytest.mark.parametrize(
    ("exporter", "endpoint", "expected"),
    [
        ("otlp", None, "http://localhost:4317"),
        ("otlp", "c:1", "http://c:1"),
        ("otlp-http", None, "http://localhost:4318/v1/traces"),
        ("otlp-http", "c:1", "http://c:1/v1/traces"),
        ("otlp-http", "https://c/in", "https://c/in"),
        ("otlp-http", "https://c/", "https://c/"),
        ("otlp-http", "https://c:1?key=k", "https://c:1/v1/traces?key=k"),
        ("console", "c:1", None),
        ("none", "c:1", None),
    ],
)
def test_the_address_that_spans_go_to(exporter, endpoint, expected):
    assert endpoint_of(Settings(exporter=exporter, endpoint=endpoint)) == expected


def test_a_key_in_the_address_is_not_shown():
    assert shown_endpoint(Settings(exporter="otlp-http", endpoint="https://c/in?key=secret")) == "https://c/in"


@pytest.mark.parametrize(
    ("exporter", "kind"), [("otlp", GrpcExporter), ("otlp-http", HttpExporter), ("console", TreeSpanExporter)]
)
def test_the_exporter_that_is_asked_for_is_built(exporter, kind):
    built = build_exporter(Settings(exporter=exporter))
    assert isinstance(built, kind)
    built.shutdown()


def test_grpc_connects_again_within_seconds_and_keeps_what_else_the_exporter_asks_of_it():
    """Read from its options: a collector would have to be away for minutes, as `tests.telemetry.outage` has it."""
    options = dict((exporter := build_exporter(Settings(endpoint="127.0.0.1:9")))._channel_options)
    exporter.shutdown()
    (plain := GrpcExporter(endpoint="127.0.0.1:9", insecure=True)).shutdown()
    assert options == dict(plain._channel_options) | {
        "grpc.max_reconnect_backoff_ms": 10_000,
        "grpc.min_reconnect_backoff_ms": 10_000,
    }


@pytest.mark.parametrize(("exporter", "room"), [("otlp", 2_000_000), ("otlp-http", 900_000)])
def test_a_batch_is_no_larger_than_what_stands_before_a_collector_takes(exporter, room):
    provider, processor = build_provider(Settings(exporter=exporter, endpoint="127.0.0.1:9"))
    assert processor.collector.batch().room == room
    processor.shutdown_seconds = 0
    provider.shutdown()


def test_an_address_of_grpcs_is_refused_where_spans_go_over_http():
    with pytest.raises(SettingsError, match="MESHMW_ENDPOINT holds 'unix:/run/s', an address of gRPC's"):
        build_exporter(Settings(exporter="otlp-http", endpoint="unix:/run/s"))


def test_none_builds_no_exporter():
    assert build_exporter(Settings(exporter="none")) is None
    assert build_provider(Settings(exporter="none"))[1] is None


@pytest.mark.parametrize(("endpoint", "insecure"), [("c:1", True), ("http://c:1", True), ("https://c:1", False)])
def test_the_scheme_alone_decides_whether_the_connection_is_secure(monkeypatch, endpoint, insecure):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", str(not insecure).lower())
    exporter = build_exporter(Settings(endpoint=endpoint))
    assert exporter._insecure is insecure
    exporter.shutdown()


def test_a_credential_provider_keeps_its_own_session(monkeypatch):
    monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER", "absent")
    with pytest.raises(SettingsError, match="absent"):
        build_provider(Settings(exporter="otlp-http"))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
    ],
)
def test_a_variable_that_opentelemetry_refuses_is_ignored_and_said(monkeypatch, caplog, variable, value):
    monkeypatch.setenv(variable, value)
    provider, processor = build_provider(Settings())
    (line,) = caplog.messages
    assert line.startswith(f"{variable} holds '{value}', which is ignored; it takes ")
    processor.shutdown_seconds = 0
    provider.shutdown()


def test_the_resource_holds_the_service_and_the_standard_attributes(monkeypatch):
    monkeypatch.setenv(
        "OTEL_RESOURCE_ATTRIBUTES", "service.name=other,service.version=2,deployment.environment.name=test"
    )
    attributes = build_resource(Settings(service_name="checkout")).attributes
    assert attributes["service.name"] == "checkout"
    assert attributes["service.version"] == "2"
    assert attributes["deployment.environment.name"] == "test"


def test_a_service_without_a_name_gets_the_sdks_default():
    attributes = build_resource(Settings()).attributes
    assert attributes["service.name"].startswith("unknown_service")
    assert "service.version" not in attributes


@pytest.mark.parametrize(
    ("settings", "variables", "expected"),
    [
        ({}, {}, "ParentBased{root:AlwaysOnSampler"),
        ({}, {"OTEL_TRACES_SAMPLER": "always_off"}, "AlwaysOffSampler"),
        ({"sampling_ratio": 0.25}, {"OTEL_TRACES_SAMPLER": "always_off"}, "ParentBased{root:TraceIdRatioBased{0.25}"),
        ({"sampling_ratio": 0}, {}, "ParentBased{root:TraceIdRatioBased{0.0}"),
    ],
)
def test_the_ratio_beats_the_standard_sampler(monkeypatch, settings, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    provider, _ = build_provider(Settings(exporter="none", **settings))
    assert provider.sampler.get_description().startswith(expected)


def test_an_error_of_the_sdk_that_names_a_variable_is_blamed_on_it(monkeypatch):
    """None of the SDK's that we know is left that it would raise of; a new one may be."""
    monkeypatch.setenv("OTEL_SPAN_LINK_COUNT_LIMIT", "x")
    error = _unusable(ValueError("OTEL_SPAN_LINK_COUNT_LIMIT must be a number"))
    assert isinstance(error, SettingsError)
    assert "OTEL_SPAN_LINK_COUNT_LIMIT holds what OpenTelemetry refuses" in str(error)


def test_the_console_shows_each_span_at_once(capsys):
    provider, processor = build_provider(Settings(exporter="console"))
    assert isinstance(processor, SimpleSpanProcessor)
    provider.get_tracer("t").start_span("seen").end()
    assert "  seen " in capsys.readouterr().out
    provider.shutdown()


DROPS = 2_000


class Answers(http.server.BaseHTTPRequestHandler):
    """Gives a short answer, or one without an end."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.server.connections.add(self.client_address)
        self.server.authorization = self.headers["authorization"]
        self.send_response(200)
        if self.path == "/headers":
            self.drop(self.wfile.flush)
            return
        if self.path == "/short":
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"ok")
            return
        if self.path == "/drops":
            self.send_header("content-length", "60000")
        if self.path == "/digits":
            self.send_header("content-length", "9" * 5_000)
        self.end_headers()
        self.close_connection = True
        try:
            if self.path == "/drops":
                self.drop(lambda: None)
            for _ in range(4_096):  # 256 MiB: more than any buffer on the way holds
                self.wfile.write(b"x" * 65_536)
        except OSError:
            self.server.hung_up.set()

    def drop(self, flush):
        """Write a byte at a time."""
        self.flush_headers()
        with contextlib.suppress(OSError):
            for _ in range(DROPS):
                self.wfile.write(b"x")
                flush()
                self.server.drops += 1
                time.sleep(0.01)
            return
        self.server.hung_up.set()

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def collector():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.connections, server.hung_up, server.drops = set(), threading.Event(), 0
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


SESSIONS = pytest.mark.parametrize("make", [lambda url: BoundedSession(), lambda url: bounded(Session(), url)])


@SESSIONS
@pytest.mark.parametrize(("answer", "seconds"), [("endless", 9), ("digits", 9), ("drops", 0.05), ("drops", -1)])
def test_an_answer_without_an_end_is_not_read(answer, seconds, make, collector, monkeypatch):
    monkeypatch.setattr("meshmw._telemetry.http_session._LONGEST_SECONDS", seconds)
    url = f"http://127.0.0.1:{collector.server_port}/{answer}"
    with make(url) as session:
        response = session.request("POST", url, data=b"x")
    assert response.status_code == 200
    assert collector.hung_up.wait(30)
    assert collector.drops < DROPS


class ProxiedAnswers(Answers):
    """As a proxy it is asked for whole addresses."""

    def parse_request(self):
        parsed = super().parse_request()
        self.path = self.path.removeprefix("http://collector.test")
        return parsed


@SESSIONS
@pytest.mark.parametrize("proxy", [False, True])
def test_nor_are_headers_without_an_end(proxy, make, collector, monkeypatch):
    collector.RequestHandlerClass = ProxiedAnswers
    address = url = f"http://127.0.0.1:{collector.server_port}"
    if proxy:
        monkeypatch.setenv("http_proxy", address)
        monkeypatch.delenv("no_proxy", raising=False)
        url = "http://collector.test"
    with make(f"{url}/headers") as session, pytest.raises(ReadTimeout):
        session.request("POST", f"{url}/headers", data=b"x", timeout=0.2)
    assert collector.hung_up.wait(30)
    assert 0 < collector.drops < DROPS


class OtherPool(HTTPConnectionPool):
    """Stands for one of a SOCKS proxy's: these take arguments that urllib3's own refuse."""


def test_a_proxy_manager_with_pools_of_its_own_keeps_them():
    manager = SimpleNamespace(pool_classes_by_scheme={"http": OtherPool, "https": HTTPSConnectionPool})
    _use_timed_pools(manager)
    assert manager.pool_classes_by_scheme == {"http": OtherPool, "https": _TimedTlsPool}


def test_an_export_ends_in_time_whatever_comes_in_drops(collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "300")
    endpoint = f"http://127.0.0.1:{collector.server_port}/headers"
    provider, processor = build_provider(Settings(exporter="otlp-http", endpoint=endpoint))
    provider.get_tracer("t").start_span("lost").end()
    provider.force_flush()
    assert collector.hung_up.wait(30)
    assert processor.collector.spans_lost == 1
    provider.shutdown()


def test_connecting_and_waiting_for_an_answer_have_one_time_together():
    class Noting(HTTPAdapter):
        def send(self, request, **options):
            self.options = options
            raise ConnectionError

    class Both(_TimedAdapter, Noting):
        pass

    with Session() as session:
        session.mount("http://", adapter := Both())
        with pytest.raises(ConnectionError):
            session.request("POST", "http://127.0.0.1:9", timeout=3)
        assert adapter.options["timeout"].total == 3
        with pytest.raises(ConnectionError):
            session.request("POST", "http://127.0.0.1:9", timeout=(1, 2))
        assert adapter.options["timeout"] == (1, 2)


def test_a_credential_provider_keeps_its_adapters_and_what_they_are_told():
    class Signing(HTTPAdapter):
        pass

    session = Session()
    session.mount("https://", signing := Signing())
    session.mount("http://", plain := HTTPAdapter(max_retries=3))
    session.mount("http://tls", told := HTTPAdapter())
    told.init_poolmanager(1, 1, ssl_context=ssl.create_default_context())
    for url in ("https://c", "http://C:4318/v1/traces", "http://tls:1/"):
        bounded(session, url)
    assert (session.get_adapter("https://c"), session.get_adapter("http://tls:1/")) == (signing, told)
    timed = session.get_adapter("http://c:4318/v1/traces")
    assert (type(timed), timed.max_retries.total) == (_TimedAdapter, 3)
    # Such as for a token, whose answer is the provider's to read.
    assert session.get_adapter("http://c:4318/token") is plain


class WithHook(Session):
    """A session of a credential provider's, which looks at each response."""

    def __init__(self):
        super().__init__()
        self.hooks = {"response": lambda response, **_: response}


class WithHooks(Session):
    def __init__(self):
        super().__init__()
        self.hooks["response"].append(lambda response, **_: response)


@pytest.mark.parametrize("status", [301, 302, 303, 304, 307, 308])
@pytest.mark.parametrize("session", [None, Session(), WithHook(), WithHooks()])
def test_a_redirect_is_a_failure_and_carries_no_key_elsewhere(status, session, monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=k3y")
    if session is not None:
        monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER", "mine")
        monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: (Making(session),))
    paths = []

    class Redirects(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            paths.append(self.path)
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("location", "https://user:pw@elsewhere.example/v1/traces?key=s3cret")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirects) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        provider, processor = build_provider(Settings(exporter="otlp-http", endpoint=endpoint))
        provider.get_tracer("t").start_span("seen").end()
        provider.force_flush()
        provider.shutdown()
        server.shutdown()
    assert (processor.collector.spans_lost, paths) == (1, ["/v1/traces"])
    (line,) = caplog.messages
    said = f"it answers {status} and redirects to https://elsewhere.example/v1/traces?..., which is not followed"
    assert said in line


def test_a_short_answer_keeps_the_connection(collector):
    with BoundedSession() as session:
        for _ in range(3):
            session.request("POST", f"http://127.0.0.1:{collector.server_port}/short", data=b"x")
    assert len(collector.connections) == 1


@pytest.mark.parametrize(
    ("headers", "expected"),
    [("authorization=Bearer%20k3y", "Bearer k3y"), ("x-api-key=k3y", "Basic bmFtZTpwdw==")],
)
def test_a_netrc_file_replaces_no_credentials_of_the_variables(headers, expected, collector, monkeypatch, tmp_path):
    (netrc := tmp_path / "netrc").write_text("default login name password pw\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", headers)
    endpoint = f"http://127.0.0.1:{collector.server_port}/short"
    provider, _ = build_provider(Settings(exporter="otlp-http", endpoint=endpoint))
    provider.get_tracer("t").start_span("seen").end()
    assert provider.force_flush()
    provider.shutdown()
    assert collector.authorization == expected


def test_a_forked_process_opens_connections_of_its_own(collector):
    url = f"http://127.0.0.1:{collector.server_port}/short"
    with BoundedSession() as session:
        session.request("POST", url, data=b"x")
        session._process = -1  # as a forked process finds it
        for _ in range(2):
            session.request("POST", url, data=b"x")
    assert len(collector.connections) == 2


@pytest.mark.parametrize(
    ("exporter", "endpoint", "said"),
    [
        (
            "otlp",
            "collector",
            "'http://collector', which has no port: write http://collector:4317, where collectors listen",
        ),
        ("otlp-http", "http://c/in", "'http://c/in', which has no port: write http://c:4318, where collectors listen"),
        (
            "otlp",
            "c:4318",
            "holds port 4318, which is that of exporter=otlp-http: set MESHMW_EXPORTER=otlp-http, or write port 4317",
        ),
        (
            "otlp-http",
            "https://c:4317",
            "holds port 4317, which is that of exporter=otlp: set MESHMW_EXPORTER=otlp, or write port 4318",
        ),
        ("otlp", "https://otlp.vendor.example", None),
        ("otlp", "unix:/run/otel.sock", None),
        ("otlp", "c:4317", None),
        ("otlp-http", "c:4318", None),
        ("otlp-http", "c:14317", None),
    ],
)
def test_a_port_that_no_collector_listens_at_is_said(exporter, endpoint, said, caplog):
    build_exporter(Settings(exporter=exporter, endpoint=endpoint)).shutdown()
    assert [record.getMessage().endswith(said) for record in caplog.records] == ([True] if said else [])


@pytest.mark.parametrize("is_patched", [True, False])
def test_what_grpc_does_under_gevent_is_said(is_patched, monkeypatch, caplog):
    """The module stands for gevent's, which cannot be taken back once it has patched a process."""
    monkeypatch.setitem(sys.modules, "gevent.monkey", SimpleNamespace(is_module_patched=lambda name: is_patched))
    build_exporter(Settings(endpoint="127.0.0.1:9")).shutdown()
    assert ("Set MESHMW_EXPORTER=otlp-http" in caplog.text) is is_patched
