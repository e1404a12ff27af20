"""Lost spans are counted, by reason, and a Prometheus scrape shows them."""

from __future__ import annotations

import logging
import sys
import threading

import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanContext, TraceFlags

from meshmw._telemetry.batching import Batching, PromptBatchSpanProcessor, Tally
from meshmw._telemetry.collector import GuardedSpanExporter
from meshmw._telemetry.provider import build_meter_provider
from meshmw.settings import Settings


class Gate(SpanExporter):
    """Holds every export until it is opened, and then answers as told."""

    def __init__(self, answer=SpanExportResult.SUCCESS):
        self.answer, self.spans = answer, 0
        self.under_way, self.opened = threading.Event(), threading.Event()

    def export(self, spans):
        self.under_way.set()
        self.opened.wait(60)
        self.spans += len(spans)
        return self.answer

    def shutdown(self):
        self.opened.set()


@pytest.fixture
def pipeline():
    """Return a function that makes a tracer and its processor; they end with the test."""
    made = []

    def make(exporter, queue=8, batch=4):
        processor = PromptBatchSpanProcessor(
            GuardedSpanExporter(exporter, "http://c:1", 60), 60, Batching(queue, batch, 60_000)
        )
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(processor)
        made.append((exporter, provider))
        return provider.get_tracer("t"), processor

    yield make
    for exporter, provider in made:
        exporter.opened.set()
        provider.shutdown()


def end_spans(tracer, number):
    for each in range(number):
        tracer.start_span(str(each)).end()


def test_every_span_beyond_the_queue_is_counted_whatever_loggers_let_out(pipeline, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("opentelemetry.sdk"), "level", logging.CRITICAL)
    exporter = Gate()
    tracer, processor = pipeline(exporter)
    end_spans(tracer, 4)
    assert exporter.under_way.wait(60)  # the first four are on their way
    end_spans(tracer, 8 + 25)
    assert (processor.dropped_full, processor.queue_length, processor.queue_capacity) == (25, 8, 8)
    assert caplog.messages == [
        (
            "the queue of 8 spans is full and the oldest are dropped (1 so far); requests are unaffected: "
            "let more of them wait, as with MESHMW_BATCHING=high/20000, or record less by MESHMW_SAMPLING_RATIO"
        )
    ]


def test_what_threads_drop_at_the_same_time_is_all_counted():
    tally, interval = Tally(), sys.getswitchinterval()

    def drop():
        for _ in range(5_000):
            tally.add(1)

    threads = [threading.Thread(target=drop) for _ in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    finally:
        sys.setswitchinterval(interval)
    assert tally.total == 20_000


def test_where_the_collector_fails_no_other_remedy_is_named(pipeline, caplog):
    exporter = Gate()
    tracer, processor = pipeline(exporter)
    processor.collector.failing = True
    end_spans(tracer, 4)
    assert exporter.under_way.wait(60)
    end_spans(tracer, 9)
    assert caplog.messages[0].endswith("requests are unaffected: the collector does not take them")


class Odd(ReadableSpan):
    """Raises where it is looked at, as a span of another package's class may."""

    def __init__(self, error):
        super().__init__("odd", SpanContext(1, 2, False, TraceFlags(1)))
        self.error = error

    @property
    def name(self):
        raise self.error

    events = name


@pytest.mark.parametrize(("error", "lost"), [(ValueError("odd"), 1), (IndexError("odd"), 1), (SystemExit("odd"), 2)])
def test_what_raises_while_it_is_collected_is_counted(error, lost, pipeline, caplog):
    tracer, processor = pipeline(exporter := Gate())
    exporter.opened.set()
    end_spans(tracer, 1)
    processor.on_end(Odd(error))
    end_spans(tracer, 1)
    for _ in range(2):
        processor.force_flush()
    assert (processor.collector.spans_lost, processor.collector.exports_failed) == (lost, 1)
    assert (exporter.spans, processor.queue_length) == (3 - lost, 0)
    assert repr(error) in caplog.text


def test_nor_is_it_forgotten_where_nothing_is_collected():
    guarded = GuardedSpanExporter(Gate(), "http://c:1", 60)
    with pytest.raises(ValueError, match="odd"):
        guarded.export([Odd(ValueError("odd"))])
    assert guarded.spans_lost == 1


def test_an_export_that_fails_is_counted_with_its_spans(pipeline):
    exporter = Gate(SpanExportResult.FAILURE)
    tracer, processor = pipeline(exporter)
    exporter.opened.set()
    end_spans(tracer, 3)
    processor.force_flush()
    assert (processor.collector.exports_failed, processor.collector.spans_lost) == (1, 3)


def test_what_the_end_leaves_behind_is_counted(pipeline):
    exporter = Gate()
    exporter.shutdown = lambda: None  # hangs to the end
    tracer, processor = pipeline(exporter)
    end_spans(tracer, 4)
    assert exporter.under_way.wait(60)
    end_spans(tracer, 3)
    processor.shutdown_seconds = 0.01
    processor.shutdown()
    end_spans(tracer, 2)
    assert processor.dropped_ended == 3 + 2


class RecordOnly(Sampler):
    def should_sample(self, *args, **named):
        return SamplingResult(Decision.RECORD_ONLY)

    def get_description(self):
        return "record only"


def test_a_span_that_is_recorded_and_not_sampled_is_never_lost(pipeline):
    _, processor = pipeline(Gate())
    provider = TracerProvider(RecordOnly(), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    processor.shutdown()
    end_spans(provider.get_tracer("t"), 2)
    assert processor.dropped_ended == 0


SCRAPE = """
import prometheus_client
def scrape():
    lines = prometheus_client.generate_latest().decode().splitlines()
    return {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in lines if not line.startswith("#")}
def value(name, label=""):
    return [float(v) for k, v in scrape().items() if k.partition("{")[0] == name and label in k]
"""


class TestScrape:
    def test_a_prometheus_scrape_shows_drops_queue_and_failures_from_the_start(self, run_program):
        program = run_program(
            SCRAPE
            + """
telemetry = configure(Settings(service_name="s", endpoint="127.0.0.1:9", metrics="prometheus"))
assert value("otel_bsp_dropped_spans_total") == [0, 0, 0], scrape()
assert value("otel_bsp_export_failures_total") == [0]
for number in range(5):
    trace.get_tracer("t").start_span("s").end()
assert value("otel_bsp_queue_length") == [5], scrape()
assert value("otel_bsp_queue_capacity") == [2048]
assert value("target_info", 'service_name="s"') == [1]
telemetry.shutdown()
assert value("otel_bsp_dropped_spans_total", 'reason="export_failed"') == [5], scrape()
assert value("otel_bsp_export_failures_total") == [1]
print("shown")
""",
            OTEL_BSP_SCHEDULE_DELAY="600000",
        )
        assert program.stdout == "shown\n", program.stderr

    def test_a_meter_provider_that_was_there_shows_the_same_and_is_kept(self, run_program):
        program = run_program(
            SCRAPE
            + """
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
mine = MeterProvider([PrometheusMetricReader()])
metrics.set_meter_provider(mine)
with configure(Settings(metrics="prometheus", endpoint="127.0.0.1:9")):
    assert metrics.get_meter_provider() is mine
    print(value("otel_bsp_queue_capacity"))
"""
        )
        assert program.stdout == "[2048.0]\n", program.stderr
        assert "a meter provider was there before configure(): metrics=prometheus has no effect" in program.stderr

    def test_a_variable_that_opentelemetry_refuses_sets_nothing_and_a_second_call_can_do_it(self, run_program):
        program = run_program(
            SCRAPE
            + """
import os
for name, settings in {
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER": Settings(metrics="prometheus", exporter="otlp-http"),
}.items():
    os.environ[name] = "nonsense"
    try:
        configure(settings)
    except ValueError as error:
        print(*error.faults)
    assert type(trace.get_tracer_provider()).__name__ == "ProxyTracerProvider"
    assert type(metrics.get_meter_provider()).__name__ == "_ProxyMeterProvider"
    assert value("target_info") == []
    del os.environ[name]
configure(Settings(metrics="prometheus", exporter="none"))
print(value("otel_bsp_queue_length"))
"""
        )
        first, last = program.stdout.splitlines()
        assert first.startswith(
            "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER holds what OpenTelemetry refuses"
        ), program.stderr
        assert last == "[0.0]"

    def test_a_missing_exporter_names_the_extra_and_sets_nothing(self, run_program):
        program = run_program(
            """
            import sys
            sys.modules["opentelemetry.exporter.prometheus"] = None
            try:
                configure()
            except ModuleNotFoundError as error:
                print(error, type(trace.get_tracer_provider()).__name__)
            """,
            OTEL_METRICS_EXPORTER="console,prometheus",
        )
        assert program.stdout == (
            "the exporter for Prometheus is not installed: run  pip install 'meshmw[prometheus]'"
            "  or set MESHMW_METRICS=none ProxyTracerProvider\n"
        )


@pytest.mark.parametrize(
    ("settings", "variable", "warnings"),
    [
        ({}, "console", ["OTEL_METRICS_EXPORTER holds 'console', which is ignored"]),
        ({}, "none", []),
        ({}, " , ", []),
        ({"metrics": "none"}, "console", []),
        ({"metrics": "none"}, "otlp,console", []),
        ({}, "none,Console", ["OTEL_METRICS_EXPORTER holds 'console', which is ignored"]),
    ],
)
def test_another_metrics_exporter_is_not_left_out_without_a_word(settings, variable, warnings, monkeypatch, caplog):
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", variable)
    assert build_meter_provider(Settings(**settings)) is None
    assert [message.partition(";")[0] for message in caplog.messages] == warnings


def test_where_a_meter_provider_is_there_the_variable_was_for_that_one(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setattr("opentelemetry.metrics.get_meter_provider", NoOpMeterProvider)
    assert build_meter_provider(Settings()) is None
    assert caplog.messages == []
