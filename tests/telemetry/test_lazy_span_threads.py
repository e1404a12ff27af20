"""Threads that meet at one lazy span: what each of them has set is there, or it was told that the span had ended."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshmw._lazy_span import LazySpan, LazyTracer

ROUNDS = 300


@pytest.fixture(autouse=True)
def quick_switches():
    """Have threads take turns as often as Python can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("opentelemetry").setLevel(logging.NOTSET)
    sys.setswitchinterval(before)


def started(exporter: InMemorySpanExporter, **limits: Any) -> Any:
    """Return a lazy span with some attributes."""
    provider = TracerProvider(span_limits=SpanLimits(**limits), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    span = LazyTracer(provider.get_tracer("threads")).start_span("name", attributes={"first": 1})
    assert isinstance(span, LazySpan)
    return span


def together(*calls: Callable[[], object]) -> None:
    """Make calls in threads that begin at once, and raise what one of them raises."""
    failures: list[BaseException] = []
    ready = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        ready.wait(30)
        try:
            call()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures, failures


@pytest.mark.parametrize("look", ["attributes", "_attributes", "events", "to_json", "_readable_span"])
def test_an_attribute_that_is_set_while_the_span_ends_harms_neither(look):
    for _ in range(ROUNDS):
        exporter = InMemorySpanExporter()
        span = started(exporter)

        def read(span: Any = span) -> None:
            found = getattr(span, look)
            found = found() if callable(found) else found
            dict(found) if look == "attributes" else found

        def write(span: Any = span) -> None:
            for number in range(5):
                span.set_attribute(f"k{number}", number)
            span.add_event("late")
            span.set_attributes({"many": [1]})

        together(write, span.end, read)
        (ended,) = exporter.get_finished_spans()
        assert ended is span
        assert dict(ended.attributes)["first"] == 1
        assert ended.attributes == dict(ended._attributes)


@pytest.mark.parametrize("limits", [{}, {"max_span_attributes": 40}])
def test_what_threads_set_while_others_look_is_there(limits):
    for _ in range(ROUNDS // 4):
        exporter = InMemorySpanExporter()
        span = started(exporter, **limits)

        def write(name: str, span: Any = span) -> Callable[[], None]:
            def sets() -> None:
                for number in range(8):
                    span.set_attribute(f"{name}{number}", number if number % 3 else [number])
                    span.add_event(f"{name}{number}")

            return sets

        together(write("a"), write("b"), lambda span=span: [len(span.attributes) + len(span.events) for _ in range(8)])
        span.end()
        assert set(span.attributes) == {"first", *(f"{name}{number}" for name in "ab" for number in range(8))}
        assert {each.name for each in span.events} == {f"{name}{number}" for name in "ab" for number in range(8)}
        assert (span.dropped_attributes, span.dropped_events) == (0, 0)


def test_a_span_ends_once_however_many_end_it():
    for _ in range(ROUNDS):
        exporter = InMemorySpanExporter()
        span = started(exporter)
        together(span.end, span.end, span.end)
        assert len(exporter.get_finished_spans()) == 1


def test_what_a_signal_raises_leaves_no_lock_held():
    """As Celery's time limit and gunicorn's abort do: between any two steps of the span."""
    if sys.gettrace() is not None:
        pytest.skip("a tracer runs between the lock and the block that releases it, and signals arrive there")
    span = started(InMemorySpanExporter())

    def limit(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, limit)
    try:
        for number in range(300):
            with contextlib.suppress(TimeoutError):
                signal.setitimer(signal.ITIMER_REAL, 0.0005)
                # Longer than that; the interpreter swallows what is raised while it calls a tracer or collects garbage.
                for _ in range(20_000):
                    span.set_attribute("done", number)
            assert not span._lock.locked()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
