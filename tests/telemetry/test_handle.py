"""The handle: it ends what it owns, within the time, and never raises."""

from __future__ import annotations

import threading

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshmw._telemetry import handle
from meshmw._telemetry.collector import GuardedSpanExporter
from meshmw._telemetry.handle import Telemetry
from meshmw.propagator import MeshPropagator
from meshmw.settings import Settings


class Processor(SpanProcessor):
    """Answers a flush as told, and counts its ends."""

    def __init__(self, flush=lambda: True):
        self.flush = flush
        self.ends = 0

    def force_flush(self, timeout_millis=30_000):
        return self.flush()

    def shutdown(self):
        self.ends += 1
        raise OSError("cannot end")


def telemetry_of(processor, *, owned=True):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return Telemetry(Settings(), MeshPropagator(), provider, owned=owned, processor=processor)


def fail():
    raise OSError("cannot flush")


@pytest.mark.parametrize(("flush", "expected"), [(lambda: True, True), (lambda: False, False), (fail, False)])
def test_a_flush_says_whether_it_was_done_and_never_raises(flush, expected):
    assert telemetry_of(Processor(flush)).force_flush() is expected


def test_a_flush_waits_no_longer_than_asked():
    never = threading.Event()
    assert telemetry_of(Processor(never.wait)).force_flush(timeout_seconds=0.01) is False
    never.set()


def test_a_flush_says_that_the_collector_is_dead():
    exporter = GuardedSpanExporter(InMemorySpanExporter(), "http://c:1", 60)
    telemetry = telemetry_of(SimpleSpanProcessor(exporter))
    assert telemetry.force_flush()
    exporter.failing = True
    assert not telemetry.force_flush()


def test_a_flush_while_no_thread_can_start_is_not_done(monkeypatch):
    def cannot(thread):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    telemetry = telemetry_of(Processor())
    monkeypatch.setattr(threading.Thread, "start", cannot)
    assert telemetry.force_flush() is False


def test_a_provider_that_holds_nothing_back_is_flushed():
    telemetry = Telemetry(Settings(), MeshPropagator(), trace.NoOpTracerProvider(), owned=False)
    assert telemetry.force_flush()
    telemetry.shutdown()


def test_the_end_comes_once_and_never_raises():
    processor = Processor()
    with telemetry_of(processor) as telemetry:
        assert processor.ends == 0
    telemetry.shutdown()
    assert processor.ends == 1
    assert telemetry.force_flush() is False


def test_a_provider_of_another_owner_is_not_ended():
    processor = Processor()
    telemetry_of(processor, owned=False).shutdown()
    assert processor.ends == 0


def test_the_end_of_a_process_waits_once_for_a_collector_that_does_not_answer(monkeypatch):
    """A server asks at the end of the lifespan, and again when it dies of the signal."""
    monkeypatch.setattr(handle, "_BEFORE_END_SECONDS", 0.01)
    never, asked = threading.Event(), []
    processor = Processor(lambda: asked.append(None) or never.wait())
    processor.span_exporter = exporter = GuardedSpanExporter(InMemorySpanExporter(), "http://c:1", 60)
    telemetry = telemetry_of(processor)
    telemetry.flush_before_end()
    telemetry.flush_before_end()
    assert len(asked) == 1
    # It has answered meanwhile.
    exporter.export([])
    telemetry.flush_before_end()
    assert len(asked) == 2
    never.set()
