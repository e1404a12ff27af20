"""A collector that refuses an export for its size gets it in smaller ones, and the log says what is wrong."""

from __future__ import annotations

import http.server
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest as Request
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse as Response
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from meshmw._telemetry.collector import GuardedMetricExporter, GuardedSpanExporter
from meshmw._telemetry.provider import build_provider
from meshmw.settings import Settings
from meshmw.testing._otlp import spans_from_otlp
from tests.telemetry.test_collector import SDK_LOG

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
WAITS = "Transient error StatusCode.RESOURCE_EXHAUSTED encountered while exporting traces to c:1, retrying in 30.00s."


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


def test_a_collector_that_says_how_long_to_wait_is_not_asked_sooner(caplog):
    batches, guarded = exported(lambda number: [WAITS, REFUSED], 512)
    assert (batches, guarded.spans_lost, guarded.failing) == ([512], 512, True)
    assert "spans do not reach http://c:1" in caplog.text


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
