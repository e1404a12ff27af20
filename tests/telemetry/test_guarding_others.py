"""What a span processor that raises, or takes its time, leaves to those behind it; and how often it is said."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import SpanProcessor

from meshmw._telemetry.span import GuardedSpanProcessors
from tests.telemetry.raising import Raising


class Behind(SpanProcessor):
    def __init__(self):
        self.told = []

    def on_start(self, span, parent_context=None):
        self.told.append("on_start")

    def _on_ending(self, span):
        self.told.append("on_ending")

    def on_end(self, span):
        self.told.append("on_end")

    def shutdown(self):
        self.told.append("shutdown")

    def force_flush(self, timeout_millis=30_000):
        self.told.append("force_flush")
        return True


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


CALLS = {
    "on_start": lambda processors: processors.on_start(object()),
    "on_ending": lambda processors: processors._on_ending(object()),
    "on_end": lambda processors: processors.on_end(object()),
    "force_flush": lambda processors: processors.force_flush(),
    "shutdown": lambda processors: processors.shutdown(),
}


@pytest.mark.parametrize("call", CALLS)
def test_those_behind_one_that_raises_are_told_all_the_same(call, caplog):
    processors, behind = GuardedSpanProcessors(60), Behind()
    processors.add_span_processor(Raising())
    processors.add_span_processor(behind)
    CALLS[call](processors)
    assert behind.told == [call]
    (said,) = caplog.records
    assert str(said.exc_info[1]) == call


def test_each_is_flushed_within_what_those_before_it_left(clock):
    class Slow(SpanProcessor):
        def __init__(self, seconds):
            self.seconds, self.asked = seconds, None

        def force_flush(self, timeout_millis=30_000):
            self.asked = timeout_millis
            clock.now += self.seconds
            return True

    slow = [Slow(4), Slow(6), Slow(1)]
    processors = GuardedSpanProcessors(60, clock)
    for each in slow:
        processors.add_span_processor(each)
    assert processors.force_flush(10_000) is False
    assert [each.asked for each in slow] == [10_000, 6_000, None]


def test_one_that_goes_on_raising_is_said_again_after_the_window(clock, caplog):
    processors = GuardedSpanProcessors(60, clock)
    processors.add_span_processor(Raising())
    said = []
    for clock.now in (1000.0, 1059.9, 1060.0, 1119.9, 1120.0):
        processors.on_end(object())
        said.append(len(caplog.records))
    assert said == [1, 1, 2, 2, 3]
