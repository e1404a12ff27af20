"""Spans as our writer writes them are what the SDK's encoder makes of them.

`python -m tests.telemetry.test_otlp SECONDS` compares as many random batches as fit into the time.
"""

from __future__ import annotations

import enum
import logging
import math
import random
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from meshmw._otel import W3CTraceState
from meshmw._telemetry import otlp
from meshmw._telemetry.bounds import FAIR, BoundedSpan
from meshmw._telemetry.otlp import WrittenBatch, odd_span_bytes, request_bytes, span_bytes
from meshmw.wire import tracestate


class Number(int):
    """An integer of a class of its own, as numpy's are."""


class Word(str):
    __slots__ = ()


class Index:
    def __index__(self):
        return 7


class Choice(enum.IntEnum):
    ONE = 1


TEXTS = ["", "a", "GET", "x" * 64, "x" * 65, "y" * 127, "z" * 128, "é", "\U0001f600" * 40, "\x00", "w" * 2_100]
CHARACTERS = "abc/:.0189 \x00\x7f\x80éß\u07ff\u0800漢\uffff\U00010000\U0001f600"
ODD_TEXTS = ["\ud800", "half \udcff", Word("word")]
INTEGERS = [0, 1, -1, 127, 128, 200, 1023, 1024, 2**31, 2**32, 2**63 - 1, -(2**63)]
ODD_INTEGERS = [2**63, -(2**63) - 1, 2**64, 2**200, Number(7), Choice.ONE]
FLOATS = [0.0, -0.0, 1.0, -1.5, math.nan, math.inf, -math.inf, 5e-324, 1.7976931348623157e308]
KEYS = ["", "http.route", "url.path", "é", "k" * 64, "k" * 65, "k" * 2_000, *(f"key{number}" for number in range(200))]
ODD_KEYS = ["\ud800", Word("http.route")]
ODD_VALUES = [None, object(), b"", {}, [], (), {1: 2}, {"": None}, [None, 1], bytearray(b"a"), range(3), 1j, Index()]
TIMES = [None, 0, 1, 2**32, 1_700_000_000_000_000_000, 2**63, 2**64 - 1]
ODD_TIMES = [-1, 2**64, 1.5, 1.0, True, Number(3), "1", Index()]
COUNTS = [0, 1, 127, 128, 2**31, 2**32 - 1]
ODD_COUNTS = [-1, 2**32, True, 1.5]


class Maker:
    """Makes spans of all sorts by a source of random numbers; a few of what they hold is odd."""

    def __init__(self, source):
        self.pick, self.number, self.chance = source.choice, source.randrange, source.random
        self.source = source
        self.oddness = self.pick([0, 0, 0.003])
        self.resources = [Resource({}), Resource({"service.name": "a"}, "https://schema"), *self.twins()]
        self.scopes = [None, InstrumentationScope("a"), InstrumentationScope("a"), InstrumentationScope("")]
        self.scopes += [InstrumentationScope(self.text(), self.pick([None, "", "1"]), self.pick([None, "", "s"]))]
        self.scopes += [InstrumentationScope("s", "1", "https://scope", self.attributes()) for _ in range(2)]
        self.scopes += [InstrumentationScope("t", attributes={"k": each}) for each in (1, True, 1.0)]

    def twins(self):
        attributes = {key: value for key, value in self.attributes().items() if isinstance(value, str | int | float)}
        return [Resource(attributes), Resource(attributes), Resource({"k": self.pick([1, True, 1.0, "1"])})]

    def is_odd(self):
        return self.chance() < self.oddness

    def text(self):
        if self.is_odd():
            return self.pick(ODD_TEXTS)
        if self.chance() < 0.7:
            return self.pick(TEXTS)
        return "".join(self.source.choices(CHARACTERS, k=self.number(200)))

    def integer(self):
        if self.is_odd():
            return self.pick(ODD_INTEGERS)
        return self.pick(INTEGERS) if self.chance() < 0.7 else self.number(-(2**63), 2**63)

    def value(self, depth=0):
        if self.is_odd():
            return self.pick(ODD_VALUES)
        kind = self.number(10 if depth < 4 else 6)
        if kind < 2:
            return self.text()
        if kind < 4:
            return self.integer()
        if kind == 4:
            return self.pick([True, False])
        if kind == 5:
            return self.pick(FLOATS) if self.chance() < 0.7 else self.chance() * 1e9
        if kind == 6:
            return self.source.randbytes(self.number(200))
        if kind == 7:
            return {self.key(): self.value(depth + 1) for _ in range(self.number(4))}
        return self.pick([list, tuple])([self.value(depth + 1) for _ in range(self.number(5))])

    def key(self):
        return self.pick(ODD_KEYS) if self.is_odd() else self.pick(KEYS)

    def attributes(self):
        return {self.key(): self.value() for _ in range(self.pick([0, 1, 3, 7]))}

    def held(self):
        """Return attributes in a mapping of any kind that spans have."""
        plain = self.attributes()
        bounded = BoundedAttributes()
        # What the SDK cleans is held as it comes too: each of its releases cleans something else.
        bounded._dict.update(plain)
        bounded.dropped = self.count()
        return self.pick([plain, plain, bounded, bounded, None])

    def count(self):
        return self.pick(ODD_COUNTS) if self.is_odd() else self.pick(COUNTS) if self.chance() < 0.1 else 0

    def time(self):
        return self.pick(ODD_TIMES) if self.is_odd() else self.pick(TIMES)

    def listed(self, items):
        held = BoundedList.from_seq(None, items)
        held.dropped = self.count()
        return self.pick([held, held, items, tuple(items)])

    def context(self):
        state = TraceState([(f"k{number}", "v" * number) for number in range(1, self.number(1, 5))])
        return SpanContext(
            self.pick([self.number(1, 2**128), 1, 0 if self.is_odd() else 2**128 - 1]),
            self.pick([self.number(1, 2**64), 1, 2**64 if self.is_odd() else 2**64 - 1]),
            self.pick([True, False]),
            TraceFlags(self.pick([0, 1, 2, 3, 255])),
            self.pick([state, None]),
        )

    def status(self):
        code = self.pick(list(StatusCode))
        status = Status(code)
        status._description = self.pick([None, "", self.text()])
        return None if self.is_odd() else status

    def span(self):
        events = [Event(self.text(), self.held(), self.time()) for _ in range(self.pick([0, 0, 0, 1, 3]))]
        links = [Link(self.context(), self.held()) for _ in range(self.pick([0, 0, 0, 1, 3]))]
        for event in events:
            event._timestamp = self.time()
        return ReadableSpan(
            self.pick([None, 5, b"bytes"]) if self.is_odd() else self.text(),
            None if self.is_odd() else self.context(),
            self.pick([None, self.context()]),
            self.pick(self.resources),
            self.held(),
            self.listed(events),
            self.listed(links),
            1 if self.is_odd() else self.pick(list(SpanKind)),
            status=self.status(),
            start_time=self.time(),
            end_time=self.time(),
            instrumentation_scope=self.pick(self.scopes),
        )

    def spans(self):
        return [self.span() for _ in range(self.number(1, 12))]


def outcome(write, spans):
    """Return the bytes, or of what class the error is."""
    try:
        return write(spans)
    except Exception as error:
        return type(error)


def by_sdk(spans):
    return encode_spans(spans).SerializePartialToString()


def difference(spans):
    """Return how what we write differs from what the SDK writes, or None."""
    ours, theirs = outcome(request_bytes, spans), outcome(by_sdk, spans)
    return None if ours == theirs else (ours, theirs)


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@settings(max_examples=400)
@given(st.randoms(use_true_random=False))
def test_what_we_write_is_what_the_sdk_writes(source):
    spans = Maker(source).spans()
    assert difference(spans) is None
    # What the SDK can say of it in one message, a collector reads.
    if isinstance(written := outcome(request_bytes, spans), bytes):
        assert ExportTraceServiceRequest.FromString(written).SerializeToString(deterministic=True) == written


def span_with(value, **options):
    attributes = BoundedAttributes()
    attributes._dict["key"] = value
    return ReadableSpan(
        "s", SpanContext(1, 2, False), attributes=attributes, resource=Resource({}), start_time=1, end_time=2, **options
    )


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", [*TEXTS, *INTEGERS, *FLOATS, b"", b"\x00\xff", [], {}, [1, "a", [b"c"]], nested(16)])
def test_what_is_plain_is_written_here(value):
    span = span_with(value)
    assert span_bytes(span, pytest.fail) == odd_span_bytes(span)


@pytest.mark.parametrize("value", [*ODD_TEXTS, *ODD_INTEGERS, None, [None], {1: 2}, bytearray(b"a"), nested(18)])
def test_what_is_odd_is_left_to_the_sdk(value):
    assert span_bytes(span_with(value), lambda span: b"odd") == b"odd"
    assert difference([span_with(value)]) is None


@pytest.mark.parametrize("several", [(1, 1.0, True), (True, 1, 1.0), (0.0, -0.0, False, 0), ("1", 1), (-0.0, 0, 0.0)])
def test_what_is_remembered_of_a_key_is_not_what_equals_it(several):
    assert difference([span_with(each) for each in several * 2]) is None


@pytest.mark.parametrize("dropped", [*COUNTS, *ODD_COUNTS])
def test_a_count_is_what_the_sdk_takes_for_one(dropped):
    events = BoundedList.from_seq(None, [])
    events.dropped = dropped
    spans = [span_with(1, events=events)]
    assert difference(spans) is None
    assert (span_bytes(spans[0], lambda span: b"odd") == b"odd") is any(dropped is odd for odd in ODD_COUNTS)


def test_a_tracestate_of_ours_is_written_as_the_sdk_does():
    state = W3CTraceState(tracestate.TraceState.parse("1a=b,c=d"))
    context = SpanContext(1, 2, True, TraceFlags(3), state)
    spans = [ReadableSpan("s", context, context, Resource({}), start_time=1, end_time=2)]
    assert difference(spans) is None
    assert b"1a=b,c=d" in request_bytes(spans)


def test_a_span_within_bounds_is_plain():
    span = BoundedSpan(span_with({"deep": ["text"] * 1_000}, events=[Event("e", {"k": "v" * 9_000}, 1)]), FAIR)
    assert span_bytes(span, pytest.fail) == odd_span_bytes(span)


@pytest.mark.parametrize("length", [1, 64, 65, 16_000])
def test_what_is_remembered_is_bounded(length):
    for number in range(1_000):
        for value in (number, str(number).zfill(length)):
            assert difference([span_with(value)]) is None
    for number in range(300):
        span = ReadableSpan("s", SpanContext(1, 2, False), attributes={f"{number}": 1}, resource=Resource({}))
        assert difference([span]) is None
    for number in range(100):
        scope = InstrumentationScope(f"s{number}")
        assert difference([span_with(1, instrumentation_scope=scope)]) is None
    assert len(otlp._known) <= otlp._MOST_KEYS
    assert max(map(len, otlp._known.values())) <= otlp._MOST_VALUES
    remembered = [str(value) for pairs in otlp._known.values() for value in pairs]
    assert max(map(len, [*otlp._known, *remembered])) <= otlp._LONGEST_VALUE
    assert len(otlp._heads_known) <= otlp._MOST_HEADS


def test_equal_resources_and_scopes_are_one_group_in_the_order_of_their_spans():
    def span(name, number):
        twin = Resource({"service.name": "a"}), InstrumentationScope("s", "1")
        return ReadableSpan(name, SpanContext(1, number, False), resource=twin[0], instrumentation_scope=twin[1])

    spans = [span(name, number) for number, name in enumerate("abc", 1)]
    (resource,) = ExportTraceServiceRequest.FromString(request_bytes(spans)).resource_spans
    (scope,) = resource.scope_spans
    assert [each.name for each in scope.spans] == ["a", "b", "c"]


def test_a_batch_has_as_much_room_as_a_collector():
    batch = WrittenBatch(lambda span: b"", 900_000)
    batch.add(span_with(None))
    assert (batch, batch.written) == ([], [])
    while batch.room > 0:
        batch.add(span_with("x" * 100_000))
    assert 900_000 <= len(request_bytes(batch)) < 1 << 20
    assert request_bytes(batch) == by_sdk(batch)
    assert (batch[0], batch[:3].written, batch[3:].written) == (next(iter(batch)), batch.written[:3], batch.written[3:])
    assert request_bytes(batch[:3]) == by_sdk(batch[:3])


def compare_for(seconds, seed):
    logging.disable()
    spans = refused = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        seed += 1
        maker = Maker(random.Random(seed))
        for _ in range(20):
            batch = maker.spans()
            spans += len(batch)
            ours, theirs = outcome(request_bytes, batch), outcome(by_sdk, batch)
            refused += isinstance(theirs, type)
            assert ours == theirs, seed
    print(f"{spans} spans are equal byte by byte, of {refused} batches both say the same error; seeds up to {seed}")


if __name__ == "__main__":
    compare_for(float(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 0)
