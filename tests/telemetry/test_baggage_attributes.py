"""Baggage becomes span attributes by key, short, and with few values each."""

from __future__ import annotations

import pytest
from opentelemetry import baggage
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from meshmw import Settings
from meshmw._telemetry.provider import build_provider
from meshmw._telemetry.span import BaggageAttributes
from meshmw.errors import SettingsError


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


def test_keys_without_end_take_bounded_memory_and_no_room_from_a_key_that_was_asked_for(attributes, caplog):
    clock = Clock()
    processor = BaggageAttributes(["tenant", "k*"], window=60, clock=clock)
    for _ in range(2):
        found = attributes(processor, {f"k{number}": "v" for number in range(100)} | {"tenant": "t"})
        assert len(found) == 64 + 1
        assert found["tenant"] == "t"
    assert caplog.messages == [
        "the patterns of baggage_attributes fit more than 64 keys within 60 s; further ones become no attribute"
    ]
    clock.now = 60
    assert attributes(processor, {"k99": "v"}) == {"k99": "v"}
    assert len(processor._windows) == 1


def test_threads_that_meet_at_the_end_of_a_window_share_the_next(attributes):
    """One thread has seen that there is no window yet, and waits while another fills it."""
    processor = BaggageAttributes(["k"], distinct=1, window=60)
    others = []

    class Meeting(dict):
        def get(self, number):
            found = super().get(number)
            if not others:
                others.append(True)
                others.append(attributes(processor, {"k": "theirs"}))
            return found

    processor._windows = Meeting()
    assert attributes(processor, {"k": "mine"}) == {"k": "_overflow"}
    assert others[1] == {"k": "theirs"}


def test_a_span_that_is_not_recorded_costs_nothing(attributes):
    processor = BaggageAttributes(["k"])
    assert attributes(processor, {"k": "v"}, sampler=ALWAYS_OFF) == {}
    assert attributes(processor, {}) == {}
    assert processor._windows == {}


def test_the_setting_puts_it_into_the_provider():
    provider, _ = build_provider(Settings(exporter="none", baggage_attributes=["tenant"]))
    span = provider.get_tracer("t").start_span("s", baggage.set_baggage("tenant", "north"))
    assert span.attributes["tenant"] == "north"
    provider.shutdown()


@pytest.mark.parametrize("keys", [["!secret"], ["!secret", "!a.*"]])
def test_keys_to_leave_out_alone_do_not_ask_for_all_others(keys, monkeypatch):
    """Members become attributes where somebody asks for them, and only there."""
    with pytest.raises(ValueError, match="none asks for a key"):
        BaggageAttributes(keys)
    with pytest.raises(SettingsError, match=r"argument baggage_attributes holds .*leaves keys out"):
        Settings(baggage_attributes=keys)
    monkeypatch.setenv("MESHMW_BAGGAGE_ATTRIBUTES", ",".join(keys))
    with pytest.raises(SettingsError, match=r"MESHMW_BAGGAGE_ATTRIBUTES holds .*leaves keys out"):
        Settings()


def test_beside_those_asked_for_keys_are_left_out(attributes):
    processor = BaggageAttributes(["a.*", "!a.secret"])
    assert attributes(processor, {"a.b": "1", "a.secret": "2", "!a.secret": "3"}) == {"a.b": "1"}
    assert processor._exact == frozenset()
