"""A dead, slow or hostile collector is said once, and never heard of otherwise."""

from __future__ import annotations

import contextlib
import logging
import threading

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from meshmw._telemetry.batching import PromptBatchSpanProcessor
from meshmw._telemetry.collector import GuardedSpanExporter
from meshmw._telemetry.provider import build_provider
from meshmw.settings import Settings
from meshmw.testing import OtlpReceiver

SDK_LOG = logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter")
ENDPOINT = "http://user:secret@collector:4317"


class Scripted(SpanExporter):
    """Answers as told: a result, or an exception to raise; logs like the SDK's exporters."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.shutdowns = 0
        self.batches = []

    def export(self, spans):
        answer = self.answers.pop(0)
        self.batches.append(len(spans))
        if answer is not SpanExportResult.SUCCESS:
            SDK_LOG.error("Failed to export traces to the collector, attempt %s", len(self.batches))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def shutdown(self):
        self.shutdowns += 1
        raise OSError("cannot shut down")


OK, FAIL = SpanExportResult.SUCCESS, SpanExportResult.FAILURE


def said(caplog):
    return [(record.levelname, record.name) for record in caplog.records]


@pytest.fixture(autouse=True)
def _info(caplog):
    caplog.set_level(logging.INFO)


@pytest.mark.parametrize("failure", [FAIL, None, ValueError("bad\nanswer"), TypeError()])
def test_a_failure_is_said_once_and_never_raises(caplog, failure):
    exporter = GuardedSpanExporter(Scripted(failure, failure, failure), ENDPOINT, 60)
    for _ in range(3):
        assert exporter.export([]) is not OK
    assert said(caplog) == [("WARNING", "meshmw")]
    assert "requests are unaffected" in caplog.text
    assert not exporter.force_flush()


def test_the_warning_gives_the_reason_in_one_line(caplog):
    GuardedSpanExporter(Scripted(FAIL), "http://collector:4317", 60).export([])
    assert caplog.messages[0] == (
        "spans do not reach http://collector:4317 and are dropped until it answers; requests are unaffected "
        "(Failed to export traces to the collector, attempt 1); set MESHMW_ENDPOINT to the collector's address, or "
        "MESHMW_EXPORTER=none"
    )
    GuardedSpanExporter(Scripted(ValueError("x\ny" * 500)), "http://collector:4317", 60).export([])
    assert "\n" not in caplog.messages[1]
    assert len(caplog.messages[1]) < 500


def test_recovery_is_said_once(caplog):
    exporter = GuardedSpanExporter(Scripted(FAIL, FAIL, OK, OK), ENDPOINT, 60)
    for _ in range(4):
        exporter.export([])
    assert said(caplog) == [("WARNING", "meshmw"), ("INFO", "meshmw")]
    assert exporter.force_flush()


@pytest.mark.parametrize(("window", "expected"), [(60, 2), (0, 6)])
def test_a_collector_that_comes_and_goes_is_said_once_per_window(caplog, window, expected):
    exporter = GuardedSpanExporter(Scripted(*[FAIL, OK] * 3), ENDPOINT, window)
    for _ in range(6):
        exporter.export([])
    assert len(caplog.messages) == expected


def test_a_working_collector_is_never_heard_of(caplog):
    exporter = GuardedSpanExporter(Scripted(OK, OK), ENDPOINT, 60)
    assert exporter.export([]) is OK
    exporter.shutdown()
    assert caplog.messages == []


def test_the_applications_own_exporter_still_logs(caplog):
    GuardedSpanExporter(Scripted(FAIL), ENDPOINT, 60).export([])
    SDK_LOG.error("of another exporter")
    assert "of another exporter" in caplog.messages


class Waiting(Scripted):
    """Hangs in an export until it is shut down, having failed some attempts."""

    def __init__(self, attempts):
        super().__init__()
        self.attempts = attempts
        self.under_way, self.ended = threading.Event(), threading.Event()

    def export(self, spans):
        for attempt in range(self.attempts):
            SDK_LOG.warning("Transient error, attempt %s", attempt)
        self.under_way.set()
        self.ended.wait()
        return FAIL

    def shutdown(self):
        self.ended.set()


def in_a_thread(exporter):
    thread = threading.Thread(target=exporter.export, args=([],), daemon=True)
    thread.start()
    exporter._exporter.under_way.wait()
    return thread


def test_an_export_under_way_at_the_end_counts_as_failed(caplog):
    exporter = GuardedSpanExporter(Waiting(0), "http://c:1", 60)
    thread = in_a_thread(exporter)
    exporter.hurry()
    assert not exporter._exporter.ended.is_set()  # it may yet arrive
    exporter.shutdown()
    thread.join(60)
    assert said(caplog) == [("WARNING", "meshmw")]
    assert "(no answer in time)" in caplog.text


def test_the_end_does_not_wait_for_an_export_that_failed_before(caplog):
    exporter = GuardedSpanExporter(Waiting(1), "http://c:1", 60)
    thread = in_a_thread(exporter)
    exporter.hurry()
    thread.join(60)
    assert exporter.failing


class Retrying(Waiting):
    """Retries until it is shut down, as the SDK's exporters do for ten seconds."""

    def export(self, spans):
        while not self.ended.is_set() and self.attempts < 100:
            self.attempts += 1
            SDK_LOG.warning("Transient error, attempt %s", self.attempts)
        return FAIL


@pytest.mark.parametrize(("failed_before", "attempts"), [(False, 2), (True, 1)])
def test_in_a_hurry_one_retry_is_allowed_and_none_where_the_collector_is_dead(failed_before, attempts):
    inner = Retrying(0)
    exporter = GuardedSpanExporter(inner, "http://c:1", 60)
    exporter.failing = failed_before
    exporter.hurry()
    exporter.export([])
    assert inner.attempts == attempts


class Panic(BaseException):
    """As what a Rust library panics with."""


class EndsBy(Scripted):
    def shutdown(self):
        raise self.answers[0]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, Panic])
def test_nothing_that_an_exporter_raises_at_its_end_passes_but_what_ends_the_process(error):
    exporter = GuardedSpanExporter(EndsBy(error), "http://c:1", 60)
    with contextlib.nullcontext() if error is Panic else pytest.raises(error):
        exporter.shutdown()


class Refused(Retrying):
    """Retries where nobody listens."""

    def export(self, spans):
        while not self.ended.is_set() and self.attempts < 100:
            self.attempts += 1
            SDK_LOG.warning("Transient error, attempt %s: Connection refused (111)", self.attempts)
        return FAIL


def hurried(exporter):
    exporter.hurry()


def about_to_end(exporter):
    exporter.is_last = True


@pytest.mark.parametrize("end", [hurried, about_to_end])
@pytest.mark.parametrize("endpoint", ["http://localhost:4317", "https://127.0.0.1:1/in", "http://[::1]:4318"])
def test_at_the_end_nothing_is_tried_again_where_this_machine_never_had_a_collector(end, endpoint):
    exporter = GuardedSpanExporter(Refused(0), endpoint, 60)
    end(exporter)
    assert exporter.export([]) is FAIL
    assert exporter._exporter.attempts == 1
    assert not exporter._exporter.ended.is_set()
    assert exporter.is_absent


def has_arrived(exporter):
    exporter._succeeded()


@pytest.mark.parametrize(
    ("endpoint", "before"), [("http://collector:4317", None), ("http://localhost:4317", has_arrived)]
)
def test_at_the_end_a_collector_elsewhere_or_that_was_there_is_tried_again(endpoint, before):
    exporter = GuardedSpanExporter(Refused(0), endpoint, 60)
    if before is not None:
        before(exporter)
    exporter.hurry()
    exporter.export([])
    assert exporter._exporter.attempts == 2
    assert not exporter.is_absent


@pytest.mark.parametrize(("has_been_there", "remedy"), [(False, True), (True, False)])
def test_what_to_set_is_said_where_no_export_has_arrived_yet(has_been_there, remedy, caplog):
    exporter = GuardedSpanExporter(Retrying(0), "http://c:1", 60)
    if has_been_there:
        has_arrived(exporter)
    exporter.hurry()
    exporter.export([])
    said = "; set MESHMW_ENDPOINT to the collector's address, or MESHMW_EXPORTER=none"
    assert caplog.text.rstrip().endswith(said) is remedy


def tracer_of(exporter, **limits):
    processor = PromptBatchSpanProcessor(exporter, 60)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return provider, processor


@pytest.mark.parametrize("failing", [False, True])
def test_the_end_waits_no_longer_than_asked_and_at_most_a_second_for_a_dead_collector(failing, monkeypatch):
    waited = []
    exporter = GuardedSpanExporter(Scripted(), "http://c:1", 60)
    _, processor = tracer_of(exporter)
    end = processor._worker.end
    monkeypatch.setattr(processor._worker, "end", lambda seconds: (waited.append(seconds), end(seconds)))
    exporter.failing = failing
    processor.shutdown()
    assert waited == [1 if failing else 5]


@pytest.mark.parametrize("exporter", ["otlp", "otlp-http"])
def test_a_span_that_cannot_be_encoded_takes_no_other_with_it(exporter, caplog):
    with OtlpReceiver() as receiver:
        endpoint = receiver.grpc_endpoint if exporter == "otlp" else receiver.http_endpoint
        provider, processor = build_provider(Settings(exporter=exporter, endpoint=endpoint))
        tracer = provider.get_tracer("t")
        for number in range(100):
            tracer.start_span(str(number), start_time=1.5 if number >= 50 else None).end()
        tracer.start_span("late").end()
        assert provider.force_flush()
        provider.shutdown()
        assert [span.name for span in receiver.spans] == [*map(str, range(50)), "late"]
    assert (processor.collector.spans_lost, processor.collector.failing) == (50, False)
    (line,) = caplog.messages
    assert line.startswith(
        "the span '50' cannot be encoded and is dropped; requests and other spans are unaffected ("
    ), line
    assert "integer" in line


@pytest.mark.parametrize("exporter", ["otlp", "otlp-http"])
def test_where_nothing_can_be_encoded_nothing_is_sent(exporter, caplog):
    with OtlpReceiver() as receiver:
        endpoint = receiver.grpc_endpoint if exporter == "otlp" else receiver.http_endpoint
        provider, processor = build_provider(Settings(exporter=exporter, endpoint=endpoint))
        provider.get_tracer("t").start_span("odd", start_time=1.5).end()
        assert provider.force_flush()
        provider.shutdown()
        assert receiver.spans == []
    guarded = processor.collector
    assert (guarded.spans_lost, guarded.exports_failed, guarded.exports_done, guarded.failing) == (1, 1, 0, False)
    assert [message.partition(" cannot")[0] for message in caplog.messages] == ["the span 'odd'"]


def test_where_an_exporter_of_the_users_own_cannot_encode_a_span_the_others_arrive_in_halves(caplog):
    class Encoding(SpanExporter):
        def __init__(self):
            self.arrived = []

        def export(self, spans):
            encode_spans(spans)
            self.arrived.append([span.name for span in spans])
            return SpanExportResult.SUCCESS

    exporter = Encoding()
    guarded = GuardedSpanExporter(exporter, "http://c:1", 60)
    provider, _ = tracer_of(guarded)
    for name in ("a", "b", "odd", "c"):
        provider.get_tracer("t").start_span(name, start_time=1.5 if name == "odd" else None).end()
    provider.force_flush()
    provider.shutdown()
    assert (exporter.arrived, guarded.spans_lost, guarded.failing) == ([["a", "b"], ["c"]], 1, False)
    (line,) = caplog.messages
    assert line.startswith("the span 'odd' cannot be encoded and is dropped"), line


@pytest.mark.parametrize("exporter", ["otlp", "otlp-http"])
def test_half_characters_of_a_stranger_are_escaped(exporter, caplog):
    def fails(tracer):
        with tracer.start_as_current_span("load \ud800") as span:
            span.add_event("read \udcff")
            raise ValueError("no product \ud800")

    with OtlpReceiver() as receiver:
        endpoint = receiver.grpc_endpoint if exporter == "otlp" else receiver.http_endpoint
        provider, _ = build_provider(Settings(exporter=exporter, endpoint=endpoint))
        with pytest.raises(ValueError, match="no product"):
            fails(provider.get_tracer("t"))
        assert provider.force_flush()
        provider.shutdown()
        (span,) = receiver.spans
    read, raised = span.events
    assert (span.name, read.name) == ("load \\ud800", "read \\udcff")
    assert raised.attributes["exception.message"] == "no product \\ud800"
    assert caplog.messages == []


def test_attributes_that_cannot_be_encoded_are_said_once_and_the_rest_arrives(caplog):
    with OtlpReceiver() as receiver:
        provider, processor = build_provider(Settings(exporter="otlp-http", endpoint=receiver.http_endpoint))
        for name in ("first", "second"):
            provider.get_tracer("t").start_span(name, attributes={"odd": "half a pair: \ud800", "good": name}).end()
        assert provider.force_flush()
        provider.shutdown()
        assert {span.name for span in receiver.spans} == {"first", "second"}
    assert [message for message in caplog.messages if "encode" in message] == [
        (
            "an attribute is left out of a span or resource (Failed to encode key odd: 'utf-8' codec can't encode "
            "character '\\\\ud800' in position 13: surrogates not allowed)"
        )
    ]
    assert processor.collector.exports_failed == 0
