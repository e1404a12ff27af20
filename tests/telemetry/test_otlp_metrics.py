"""Metrics to a collector over OTLP: where they go, and what a collector that does not take them can do."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as messages
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as services
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.trace import NoOpTracerProvider

from meshmw._telemetry.collector import GuardedMetricExporter
from meshmw._telemetry.export import CheckedMetricReader
from meshmw._telemetry.handle import Telemetry
from meshmw._telemetry.provider import build_meter_provider
from meshmw.errors import IncompatibleError
from meshmw.propagator import MeshPropagator
from meshmw.settings import Settings, metrics_endpoint, metrics_over_http
from tests.telemetry.test_worker import ENDS, wait_until

COUNT = """
    import os, signal
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # coverage would handle it before us
    telemetry = configure()
    metrics.get_meter("t").create_counter("orders").add(3)
"""


class Received(list):
    """The requests that came, by either protocol."""

    def take(self, request):
        for each in request.resource_metrics:
            service = {pair.key: pair.value.string_value for pair in each.resource.attributes}["service.name"]
            for metric in (metric for scope in each.scope_metrics for metric in scope.metrics):
                self += [(service, metric.name, point.as_int) for point in metric.sum.data_points]

    @property
    def orders(self):
        return sorted({each for each in self if each[1] == "orders"})


@pytest.fixture
def collector_grpc():
    received = Received()

    class Service(services.MetricsServiceServicer):
        def Export(self, request, context):
            received.take(request)
            return messages.ExportMetricsServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    services.add_MetricsServiceServicer_to_server(Service(), server)
    received.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield received
    server.stop(None).wait(10)


@pytest.fixture
def collector_http():
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            found = self.path == "/v1/metrics"
            if found:
                received.take(messages.ExportMetricsServiceRequest.FromString(body))
            self.send_response(200 if found else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        received.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield received
        server.shutdown()
        thread.join()


END = {
    "end of the program": "",
    "flush": "print(telemetry.force_flush())\nos._exit(0)",
    "shutdown": "telemetry.shutdown()\nos._exit(0)",
    "SIGTERM": "signal.raise_signal(signal.SIGTERM)",
}


@pytest.mark.parametrize("end", END)
def test_a_collector_gets_what_was_counted_by_the_end(collector_grpc, run_program, end):
    program = run_program(
        COUNT + f"    exec({END[end]!r})",
        MESHMW_METRICS="otlp",
        MESHMW_EXPORTER="none",
        MESHMW_ENDPOINT=collector_grpc.address,
        MESHMW_SERVICE_NAME="shop",
    )
    assert collector_grpc.orders == [("shop", "orders", 3)], program.stderr
    assert program.stdout == ("True\n" if end == "flush" else "")
    assert "WARNING" not in program.stderr
    assert "ERROR" not in program.stderr


@pytest.mark.parametrize("exporter", ["otlp", "otlp-http"])
def test_a_metric_that_cannot_be_encoded_takes_no_other_with_it(exporter, collector_grpc, collector_http, caplog):
    collector = collector_grpc if exporter == "otlp" else collector_http
    settings = Settings(metrics="otlp", exporter=exporter, endpoint=collector.address, service_name="shop")
    provider = build_meter_provider(settings)
    for scope, name, number in (("a", "first", 1), ("b", "vast", 2**64), ("c", "vaster", 2**65), ("c", "orders", 3)):
        provider.get_meter(scope).create_counter(name).add(number)
    for _ in range(2):
        assert provider.force_flush()
    provider.shutdown()
    assert sorted(set(collector)) == [("shop", "first", 1), ("shop", "orders", 3)]
    (line,) = caplog.messages
    assert line.startswith(
        "2 metrics cannot be encoded and are missing there, the first of which is 'vast'; others arrive (ValueError("
    )


def test_where_no_metric_can_be_encoded_they_are_said_not_to_arrive(collector_grpc, caplog):
    provider = build_meter_provider(Settings(metrics="otlp", endpoint=collector_grpc.address))
    provider.get_meter("t").create_counter("vast").add(2**64)
    with pytest.raises(Exception, match="force_flush"):
        provider.force_flush()
    provider.shutdown()
    assert collector_grpc == []
    (line,) = caplog.messages
    assert line.startswith(f"metrics do not reach {collector_grpc.address} and are missing there until it answers")


def test_it_goes_where_spans_go_over_http(collector_http, run_program):
    program = run_program(
        COUNT,
        OTEL_METRICS_EXPORTER="otlp",
        OTEL_TRACES_EXPORTER="none",
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector_http.address,
        OTEL_SERVICE_NAME="shop",
    )
    assert collector_http.orders == [("shop", "orders", 3)], program.stderr
    assert "WARNING" not in program.stderr


def test_a_collector_that_is_not_there_is_said_once_and_holds_up_no_end(run_program):
    program = run_program(
        COUNT + "    print(telemetry.force_flush(1))",
        MESHMW_METRICS="otlp",
        MESHMW_EXPORTER="none",
        MESHMW_ENDPOINT="127.0.0.1:9",
        OTEL_METRIC_EXPORT_INTERVAL="200",
        OTEL_EXPORTER_OTLP_METRICS_TIMEOUT="1",
    )
    assert program.returncode == 0
    assert program.stdout == "False\n"
    said = [line for line in program.stderr.splitlines() if not line.startswith("INFO")]
    assert len(said) == 1, program.stderr
    assert said[0].startswith(
        "WARNING meshmw metrics do not reach http://127.0.0.1:9 and are missing there until it answers; "
        "requests are unaffected ("
    )


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_missing_exporter_names_the_extra_and_sets_nothing(run_program, protocol):
    program = run_program(
        f"""
        import sys
        sys.modules["opentelemetry.exporter.otlp.proto.{protocol}.metric_exporter"] = None
        try:
            configure(Settings(metrics="otlp", exporter="{"otlp" if protocol == "grpc" else "otlp-http"}"))
        except ModuleNotFoundError as error:
            print(error, type(trace.get_tracer_provider()).__name__, type(metrics.get_meter_provider()).__name__)
        """
    )
    what = "gRPC" if protocol == "grpc" else "HTTP"
    assert program.stdout == (
        f"the OTLP exporter for {what} is not installed: run  pip install 'meshmw[otlp]'  or set MESHMW_METRICS=none "
        "ProxyTracerProvider _ProxyMeterProvider\n"
    )


def test_a_part_of_opentelemetry_that_raises_leaves_no_thread(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no such part")

    monkeypatch.setattr("opentelemetry.sdk.metrics._internal.SynchronousMeasurementConsumer", broken)
    before = set(threading.enumerate())
    with pytest.raises(IncompatibleError, match="RuntimeError: no such part"):
        build_meter_provider(Settings(metrics="otlp", endpoint="127.0.0.1:9"))
    assert {each for each in set(threading.enumerate()) - before if "Periodic" in each.name} == set()


def test_what_opentelemetry_instrument_has_set_up_is_left_alone_without_a_word(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setattr("opentelemetry.metrics.get_meter_provider", NoOpMeterProvider)
    assert build_meter_provider(Settings()) is None
    assert caplog.messages == []
    assert build_meter_provider(Settings(metrics="otlp", service_name="a")) is None
    monkeypatch.delenv("OTEL_METRICS_EXPORTER")
    assert build_meter_provider(Settings(metrics="otlp")) is None
    assert caplog.messages == ["a meter provider was there before configure(): metrics=otlp has no effect"]


OTLP, METRICS, TRACES = (f"OTEL_EXPORTER_OTLP_{each}" for each in ("ENDPOINT", "METRICS_ENDPOINT", "TRACES_ENDPOINT"))


@pytest.mark.parametrize(
    ("variables", "settings", "expected"),
    [
        ({}, {}, None),
        ({}, {"endpoint": "c:1"}, "http://c:1"),
        ({OTLP: "c:1"}, {}, "https://c:1"),
        ({OTLP: "c:1", "OTEL_EXPORTER_OTLP_INSECURE": "True"}, {}, "http://c:1"),
        ({OTLP: "c:1", "OTEL_EXPORTER_OTLP_METRICS_INSECURE": "false"}, {}, "https://c:1"),
        ({OTLP: "c:1", TRACES: "t:1"}, {}, "https://c:1"),
        ({TRACES: "t:1"}, {}, None),
        ({OTLP: "c:1", TRACES: "t:1"}, {"endpoint": "own:1"}, "http://own:1"),
        ({OTLP: "c:1", METRICS: "m:1"}, {"endpoint": "own:1"}, "https://m:1"),
        ({METRICS: "no url"}, {"endpoint": "own:1"}, "http://own:1"),
        ({OTLP: "c:1"}, {"exporter": "otlp-http"}, "http://c:1/v1/metrics"),
        ({OTLP: "http://c:1/base/"}, {"exporter": "otlp-http"}, "http://c:1/base/v1/metrics"),
        ({METRICS: "http://c:1/own"}, {"exporter": "otlp-http"}, "http://c:1/own"),
        ({}, {"exporter": "otlp-http", "endpoint": "c:1"}, "http://c:1/v1/metrics"),
        ({}, {"exporter": "otlp-http", "endpoint": "c:1/base/v1/traces?key=1"}, "http://c:1/base/v1/metrics?key=1"),
        ({"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/protobuf"}, {"endpoint": "c:4317"}, None),
        ({"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"}, {"exporter": "otlp-http", "endpoint": "c:4318"}, None),
    ],
)
def test_metrics_go_where_spans_go_unless_something_says_otherwise(monkeypatch, variables, settings, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    made = Settings(**settings)
    http = metrics_over_http(made.exporter)
    assert metrics_endpoint(made.exporter, made.endpoint, http=http) == expected


@pytest.mark.parametrize(
    ("own", "for_all", "exporter", "expected"),
    [
        ("", "", "otlp", False),
        ("", "", "otlp-http", True),
        ("", "http/protobuf", "otlp", False),
        ("", "http/protobuf", "none", True),
        ("", "", "none", False),
        ("grpc", "", "otlp-http", False),
        ("HTTP/protobuf", "grpc", "otlp", True),
    ],
)
def test_metrics_go_by_the_protocol_of_spans_unless_theirs_says_otherwise(
    monkeypatch, own, for_all, exporter, expected, caplog
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", own)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", for_all)
    assert metrics_over_http(exporter) is expected
    assert caplog.messages == []


def test_values_that_are_not_known_are_said(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/xml")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "no url")
    assert metrics_over_http("otlp") is False
    assert metrics_endpoint("otlp", None, http=False) is None
    assert [message.partition(";")[0] for message in caplog.messages] == [
        "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL holds 'http/xml', which is ignored",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT holds 'no url', which is ignored",
    ]


class Scripted:
    """Answers as told: a result, or an exception to raise; logs like the SDK's exporters."""

    _preferred_temporality = _preferred_aggregation = None

    def __init__(self, *answers):
        self.answers = list(answers)

    def export(self, metrics_data, timeout_millis=10_000, **options):
        answer = self.answers.pop(0)
        if answer is not MetricExportResult.SUCCESS:
            logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.metric_exporter")
            logger.error("Failed to export metrics batch")
        if isinstance(answer, Exception):
            raise answer
        return answer

    def shutdown(self, timeout_millis=30_000, **options):
        raise OSError("cannot shut down")


def test_an_exporter_that_fails_is_said_once_and_once_that_it_works_again(caplog):
    caplog.set_level(logging.INFO)
    good, bad = MetricExportResult.SUCCESS, MetricExportResult.FAILURE
    exporter = GuardedMetricExporter(Scripted(good, bad, ValueError("odd"), good, good), "http://c:1", 60)
    assert [exporter.export(MetricsData([])) for _ in range(5)] == [good, bad, bad, good, good]
    failed, again = caplog.messages
    assert failed == (
        "metrics do not reach http://c:1 and are missing there until it answers; requests are unaffected "
        "(Failed to export metrics batch)"
    )
    assert again == "metrics reach http://c:1 again"
    exporter.shutdown()  # never raises


def test_a_flush_that_does_not_arrive_is_no_flush():
    answers = Scripted(MetricExportResult.SUCCESS, MetricExportResult.FAILURE)
    reader = CheckedMetricReader(GuardedMetricExporter(answers, "http://c:1", 60), export_interval_millis=float("inf"))
    reader._set_collect_callback(lambda *_, **__: [])
    assert reader.force_flush() is True
    with pytest.raises(ConnectionError):
        reader.force_flush()


class Meters:
    """Notes how long it was given to end, in milliseconds."""

    def __init__(self, flushed=True):
        self.flushed, self.ended = flushed, []

    def force_flush(self, timeout_millis):
        return self.flushed

    def shutdown(self, timeout_millis):
        self.ended.append(timeout_millis)
        raise OSError("cannot end")


@pytest.mark.parametrize("flushed", [True, False])
def test_the_handle_flushes_and_ends_metrics_within_its_time(flushed):
    meters = Meters(flushed)
    telemetry = Telemetry(Settings(), MeshPropagator(), NoOpTracerProvider(), owned=False, meter_provider=meters)
    assert telemetry.exports
    assert telemetry.force_flush() is flushed
    telemetry.shutdown(3)
    telemetry.shutdown(3)
    (millis,) = meters.ended
    assert 0 < millis <= 3000
    assert telemetry.force_flush() is False


def test_a_time_that_is_over_still_ends_metrics():
    meters = Meters()
    Telemetry(Settings(), MeshPropagator(), NoOpTracerProvider(), owned=False, meter_provider=meters).shutdown(0)
    assert meters.ended == [100]


def test_the_sdks_own_exit_handler_which_waits_for_half_a_minute_is_not_there():
    provider = build_meter_provider(Settings(metrics="otlp", endpoint="127.0.0.1:9"))
    assert provider._atexit_handler is None
    provider.shutdown(timeout_millis=1)


class Metrics(MetricExporter):
    """Raises what it is told, once, and counts later exports."""

    def __init__(self, error):
        super().__init__()
        self.error, self.exports = error, 0

    def export(self, metrics_data, timeout_millis=10_000, **options):
        error, self.error = self.error, None
        if error is not None:
            raise error
        self.exports += 1
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis=10_000):
        return True

    def shutdown(self, timeout_millis=30_000, **options):
        pass


def read_by(exporter, millis):
    reader = CheckedMetricReader(GuardedMetricExporter(exporter, "http://c:1", 60), 60, export_interval_millis=millis)
    provider = MeterProvider([reader], shutdown_on_exit=False)
    provider.get_meter("t").create_counter("c").add(1)
    return provider


@pytest.mark.parametrize("error", ENDS, ids=repr)
def test_what_a_metric_exporter_raises_ends_one_export_and_no_more(error, caplog):
    exporter = Metrics(error)
    provider = read_by(exporter, 5)
    wait_until(lambda: exporter.exports > 1)
    provider.shutdown()
    assert repr(error) in caplog.text


def test_what_a_callback_raises_neither(caplog):
    asked = []

    def observe(_):
        asked.append(None)
        raise SystemExit(3)

    exporter = Metrics(None)
    provider = read_by(exporter, 5)
    provider.get_meter("t").create_observable_gauge("g", [observe])
    wait_until(lambda: len(asked) > 2)
    provider.shutdown()
    # The SDK's thread may tick before the provider has taken the reader, and then says so.
    ours = [record.getMessage() for record in caplog.records if record.name == "meshmw"]
    assert ours == ["metrics are missing of one export, which SystemExit(3) ended"]


def test_what_interrupts_a_flush_of_metrics_is_the_callers():
    provider = read_by(Metrics(KeyboardInterrupt()), 3_600_000)
    with pytest.raises(KeyboardInterrupt):
        provider.force_flush()
    provider.shutdown()


def test_metrics_of_a_child_do_not_wait_for_a_thread_of_its_parents(monkeypatch):
    hooks = []
    monkeypatch.setattr(os, "register_at_fork", lambda after_in_child, **_: hooks.append(after_in_child), raising=False)
    exporter = Metrics(None)
    provider = read_by(exporter, 3_600_000)
    (reader,) = provider._metric_readers
    reader._export_lock.acquire()
    for hook in hooks:
        hook()
    assert provider.force_flush()
    assert exporter.exports == 1
    provider.shutdown()


def test_where_no_process_forks_metrics_are_sent(monkeypatch):
    monkeypatch.delattr(os, "register_at_fork")
    provider = read_by(exporter := Metrics(None), 3_600_000)
    provider.shutdown()
    assert exporter.exports == 1
