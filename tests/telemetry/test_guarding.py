"""A span processor or sampler of somebody else may raise whatever it likes: the request goes on."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, set_span_in_context

from meshmw import Settings
from meshmw._telemetry.provider import build_provider
from meshmw._telemetry.span import GuardedSpanProcessors, RemoteParentSampler
from tests.telemetry.raising import Raising


@pytest.fixture
def provider():
    provider, _ = build_provider(Settings(exporter="none"))
    yield provider
    provider.shutdown()


def test_each_of_two_processors_that_raise_is_named_once(provider, caplog):
    class RaisingToo(Raising):
        pass

    for each in (Raising(), RaisingToo()):
        provider.add_span_processor(each)
    for _ in range(2):
        provider.get_tracer("t").start_span("served").end()
    named = [message.split()[3].rpartition(".")[2] for message in caplog.messages]
    assert named == ["Raising", "RaisingToo"]


def test_a_span_lives_and_reaches_the_processors_behind_one_that_raises(provider, caplog):
    exporter = InMemorySpanExporter()
    provider.add_span_processor(Raising())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("t").start_as_current_span("served"):
        pass
    assert [span.name for span in exporter.get_finished_spans()] == ["served"]
    assert [message for message in caplog.messages if "raised" in message] == [
        "the span processor Raising raised; requests and other processors are unaffected"
    ]
    assert provider.force_flush() is False
    provider.shutdown()
    assert exporter._stopped


def test_each_is_flushed_within_the_time_that_is_left():
    class Slow(SpanProcessor):
        asked = None

        def force_flush(self, timeout_millis=30_000):
            self.asked = timeout_millis
            return True

    first, second = Slow(), Slow()
    processors = GuardedSpanProcessors(60)
    processors.add_span_processor(first)
    processors.add_span_processor(second)
    assert processors.force_flush(10_000) is True
    assert 0 < second.asked <= first.asked <= 10_000
    second.asked = None
    assert processors.force_flush(0) is False
    assert second.asked is None


class RaisingSampler(Sampler):
    def should_sample(self, *args, **named):
        raise ZeroDivisionError

    def get_description(self):
        return "raising"


class EmptySampler(RaisingSampler):
    def should_sample(self, *args, **named):
        return None


@pytest.mark.parametrize("sampler", [RaisingSampler, EmptySampler])
def test_a_sampler_that_fails_records_nothing_keeps_the_trace_state_and_is_said_once(sampler, provider, caplog):
    provider.sampler = RemoteParentSampler(sampler())
    state = TraceState([("a", "b")])
    parent = SpanContext(1, 2, True, TraceFlags(1), state)
    tracer = provider.get_tracer("t")
    for _ in range(2):
        span = tracer.start_span("s", set_span_in_context(NonRecordingSpan(parent)))
        assert (span.is_recording(), span.get_span_context().trace_state) == (False, state)
    assert caplog.messages == [f"the sampler {sampler.__qualname__} raised; spans are not recorded"]
