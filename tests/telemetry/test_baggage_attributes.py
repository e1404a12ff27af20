"""Baggage becomes span attributes by key, short, and with few values each."""

from __future__ import annotations

import pytest
from opentelemetry import baggage
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from meshmw import Settings
from meshmw.telemetry.baggage_attributes import BaggageAttributes
from meshmw.telemetry.provider import build_provider


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def attributes():
    """Return a function that starts a span beside baggage and returns its attributes."""

    def start(processor, members, *, own=None, sampler=None):
        provider = TracerProvider(sampler, shutdown_on_exit=False)
        provider.add_span_processor(processor)
        context = None
        for key, value in members.items():
            context = baggage.set_baggage(key, value, context)
        span = provider.get_tracer("t").start_span("s", context, attributes=own)
        return dict(getattr(span, "attributes", None) or {})

    return start


def test_only_keys_that_were_asked_for_are_copied(attributes):
    members = {"tenant": "north", "region.zone": "a", "secret": "x"}
    found = attributes(BaggageAttributes(["tenant", "region.*"]), members)
    assert found == {"tenant": "north", "region.zone": "a"}


def test_what_the_span_says_itself_stays(attributes):
    found = attributes(BaggageAttributes(["*"]), {"url.path": "/forged", "a": "1"}, own={"url.path": "/real"})
    assert found == {"url.path": "/real", "a": "1"}


def test_a_long_value_is_cut_and_a_strange_one_is_text(attributes):
    assert attributes(BaggageAttributes(["k"], longest=4), {"k": "abcdef"}) == {"k": "abcd"}
    assert attributes(BaggageAttributes(["k"]), {"k": 7}) == {"k": "7"}


def test_a_key_with_too_many_values_overflows_until_the_window_ends_and_is_named_once(attributes, caplog):
    clock = Clock()
    processor = BaggageAttributes(["user", "tenant"], distinct=2, window=60, clock=clock)
    found = [attributes(processor, {"user": each, "tenant": "t"}) for each in "abcda"]
    assert [each["user"] for each in found] == ["a", "b", "_overflow", "_overflow", "a"]
    assert {each["tenant"] for each in found} == {"t"}
    assert caplog.messages == [
        "baggage key user has more than 2 values within 60 s; as a span attribute, further ones become _overflow"
    ]
    clock.now = 60
    assert attributes(processor, {"user": "z"}) == {"user": "z"}


def test_keys_without_end_take_bounded_memory(attributes):
    processor = BaggageAttributes(["k*"])
    found = attributes(processor, {f"k{number}": "v" for number in range(100)})
    assert len(found) == len(processor._seen) == 64


def test_a_span_that_is_not_recorded_costs_nothing(attributes):
    processor = BaggageAttributes(["k"])
    assert attributes(processor, {"k": "v"}, sampler=ALWAYS_OFF) == {}
    assert attributes(processor, {}) == {}
    assert processor._seen == {}


def test_the_setting_puts_it_into_the_provider():
    provider, _ = build_provider(Settings(exporter="none", baggage_attributes=["tenant"]))
    span = provider.get_tracer("t").start_span("s", baggage.set_baggage("tenant", "north"))
    assert span.attributes["tenant"] == "north"
    provider.shutdown()
