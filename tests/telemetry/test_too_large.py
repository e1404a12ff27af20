"""A collector that refuses an export for its size gets it in smaller ones; the log says what is lost and why."""

from __future__ import annotations

import http.server
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTracePartialSuccess
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest as Request
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse as Response
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from requests import Session

from meshmw._telemetry.collector import GuardedMetricExporter, GuardedSpanExporter
from meshmw._telemetry.export import otlp_reader
from meshmw._telemetry.provider import build_provider
from meshmw.settings import Settings
from meshmw.testing._otlp import spans_from_otlp
from tests.telemetry.test_collector import SDK_LOG
from tests.telemetry.test_otlp_variables import Making

LIMIT = 20_000


class Collector(TraceServiceServicer):
    def __init__(self):
        self.arrived, self.requests = [], 0

    def Export(self, request, context):
        self.arrived += [span.name for span in spans_from_otlp(request)]
        return Response()


@contextmanager
def over_grpc(collector):
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", LIMIT)])
    add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop(None)


@contextmanager
def over_http(collector):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            if len(body) <= LIMIT:
                collector.Export(Request.FromString(body), None)
            self.send_response(200 if len(body) <= LIMIT else 413)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("exporter", "serve"), [("otlp", over_grpc), ("otlp-http", over_http)])
def test_what_is_too_large_goes_in_halves_and_one_span_that_is_too_large_alone_is_dropped(
    exporter, serve, caplog, monkeypatch
):
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "100000")
    collector = Collector()
    with serve(collector) as endpoint:
        provider, processor = build_provider(Settings(exporter=exporter, endpoint=endpoint))
        tracer = provider.get_tracer("t")
        for number in range(40):
            size = 30_000 if number == 17 else 1_000
            tracer.start_span(str(number), attributes={"body": "b" * size}).end()
        assert provider.force_flush()
        guarded = processor.collector
        assert collector.arrived == [str(number) for number in range(40) if number != 17]
        assert (guarded.spans_lost, guarded.exports_failed, guarded.failing) == (1, 1, False)
        provider.shutdown()
    halves, dropped = caplog.messages
    assert halves.startswith(f"the collector at {endpoint}")
    assert "refused a batch of 40 spans as too large, which is sent in halves; requests are unaffected (" in halves
    assert "refused a span as too large, which is dropped; requests are unaffected (" in dropped
    assert "answer" not in caplog.text


class Scripted(SpanExporter):
    """Says what it is told for a number of spans, in the words of the SDK's exporter."""

    def __init__(self, says):
        self.says, self.batches = says, []

    def export(self, spans):
        self.batches.append(len(spans))
        said = self.says(len(spans))
        for each in said:
            SDK_LOG.error("%s", each)
        return SpanExportResult.FAILURE if said else SpanExportResult.SUCCESS


REFUSED = "Failed to export traces to c:1, error code: StatusCode.RESOURCE_EXHAUSTED, error details: none"


def exported(says, number):
    inner = Scripted(says)
    guarded = GuardedSpanExporter(inner, "http://c:1", 60)
    result = guarded.export([Span()] * number)
    assert (result is SpanExportResult.SUCCESS) is (guarded.spans_lost == 0)
    return inner.batches, guarded


class Span:
    events = ()


def test_a_collector_that_refuses_whatever_comes_is_not_asked_for_every_span():
    batches, guarded = exported(lambda number: [REFUSED], 512)
    assert len(batches) < 40
    assert guarded.spans_lost == 512


UNAVAILABLE, EXHAUSTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED


class Refuses(TraceServiceServicer):
    """Answers with one error after the other, each with a time to wait where it has one, and then takes all."""

    def __init__(self, *errors):
        self.errors, self.batches = list(errors), []

    def Export(self, request, context):
        self.batches.append(len(spans_from_otlp(request)))
        if not self.errors:
            return Response()
        code, seconds = self.errors.pop(0)
        if seconds is not None:
            waits = RetryInfo(retry_delay=Duration(nanos=int(seconds % 1 * 1e9), seconds=int(seconds)))
            context.set_trailing_metadata((("google.rpc.retryinfo-bin", waits.SerializeToString()),))
        return context.abort(code, "refused")


@pytest.mark.parametrize("is_logged", [True, False])
@pytest.mark.parametrize(
    ("errors", "batches", "lost"),
    [
        ([(EXHAUSTED, None)], [4, 2, 2], 0),
        ([(EXHAUSTED, 1)], [4, 4], 0),
        ([(EXHAUSTED, 0.01), (EXHAUSTED, 0.01)], [4, 4, 4], 0),
        ([(EXHAUSTED, 3_600)], [4], 4),
        ([(UNAVAILABLE, 0.01), (EXHAUSTED, None)], [4, 4, 2, 2], 0),
        ([(EXHAUSTED, 0.01), (EXHAUSTED, None)], [4, 4, 2, 2], 0),
    ],
)
def test_a_refusal_for_size_is_told_from_one_that_asks_to_wait(errors, batches, lost, is_logged, caplog, monkeypatch):
    monkeypatch.setattr(SDK_LOG, "disabled", not is_logged)
    collector = Refuses(*errors)
    with over_grpc(collector) as endpoint:
        provider, processor = build_provider(Settings(endpoint=endpoint))
        for name in "abcd":
            provider.get_tracer("t").start_span(name).end()
        provider.force_flush()
        provider.shutdown()
    assert (collector.batches, processor.collector.spans_lost) == (batches, lost)
    is_halved = "(StatusCode.RESOURCE_EXHAUSTED, refused)" in caplog.text
    assert (is_halved, processor.collector.failing) == (batches[-1] == 2, lost > 0)


def test_a_collector_that_ceases_to_answer_between_two_halves_loses_the_rest():
    answers = iter([[REFUSED], [], ["no answer"]])
    batches, guarded = exported(lambda number: next(answers), 8)
    assert (batches, guarded.spans_lost, guarded.exports_done, guarded.failing) == ([8, 4, 4], 4, 1, True)


def test_metrics_that_are_too_large_are_said_to_be(caplog):
    class Metrics(MetricExporter):
        def export(self, metrics_data, timeout_millis=10_000, **options):
            SDK_LOG.error("%s", REFUSED)
            return MetricExportResult.FAILURE

        def force_flush(self, timeout_millis=10_000):
            return True

        def shutdown(self, timeout_millis=30_000, **options):
            pass

    guarded = GuardedMetricExporter(Metrics(), "http://c:1", 60)
    assert guarded.export(None) is MetricExportResult.FAILURE
    assert not guarded.failing
    said = "the collector at http://c:1 refused metrics as too large, which are missing there; requests are unaffected"
    assert caplog.messages == [f"{said} ({REFUSED})"]


class TakesInPart(TraceServiceServicer, MetricsServiceServicer):
    """Rejects some of what it takes, as a collector with a quota does."""

    def __init__(self, rejected):
        self.rejected = rejected

    def answer(self, path):
        if "metrics" in path:
            said = ExportMetricsPartialSuccess(rejected_data_points=self.rejected, error_message="quota of today")
            return ExportMetricsServiceResponse(partial_success=said)
        return Response(partial_success=ExportTracePartialSuccess(rejected_spans=self.rejected, error_message="quota"))

    def Export(self, request, context):
        return self.answer(type(request).__name__.lower())


@contextmanager
def in_part_over_grpc(rejected):
    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(TakesInPart(rejected), server)
    add_MetricsServiceServicer_to_server(TakesInPart(rejected), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop(None)


@contextmanager
def in_part_over_http(rejected):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            body = TakesInPart(rejected).answer(self.path).SerializeToString()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_a_collector_rejects_is_counted_where_the_session_is_a_credential_providers(monkeypatch):
    monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER", "mine")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: (Making(Session()),))
    with in_part_over_http(2) as endpoint:
        provider, processor = build_provider(Settings(exporter="otlp-http", endpoint=endpoint))
        for name in "abc":
            provider.get_tracer("t").start_span(name).end()
        assert provider.force_flush()
        provider.shutdown()
    assert (processor.collector.spans_lost, processor.collector.exports_failed) == (2, 0)


@pytest.mark.parametrize(("rejected", "lost"), [(2, 2), (2**40, 3), (-1, 0)])
@pytest.mark.parametrize(("exporter", "serve"), [("otlp", in_part_over_grpc), ("otlp-http", in_part_over_http)])
def test_what_a_collector_rejects_of_what_it_takes_is_counted_and_said(exporter, serve, rejected, lost, caplog):
    with serve(rejected) as endpoint:
        settings = Settings(exporter=exporter, endpoint=endpoint)
        provider, processor = build_provider(settings)
        for name in "abc":
            provider.get_tracer("t").start_span(name).end()
        assert provider.force_flush()
        provider.shutdown()
        meters = MeterProvider([otlp_reader(settings)])
        meters.get_meter("m").create_counter("c").add(1)
        assert meters.force_flush()
        meters.shutdown()
    assert (processor.collector.spans_lost, processor.collector.exports_failed) == (lost, 0)
    spans, metrics = caplog.messages
    count = max(rejected, 0)
    assert f"rejects {count} spans of an export that it takes; requests are unaffected (quota)" in spans
    assert f"rejects {count} data points of an export that it takes; requests are unaffected (quota of" in metrics
