"""Spans as our writer writes them are what the SDK's encoder makes of them.

`python -m tests.telemetry.test_otlp SECONDS` compares as many random batches as fit into the time.
"""

from __future__ import annotations

import enum
import http
import logging
import math
import random
import sys
import time
import tracemalloc
from types import MappingProxyType

import pytest
import wrapt
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from meshmw import _otel_exporters
from meshmw._otel import W3CTraceState
from meshmw._otel_exporters import room_of, write_by
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


class Sly:
    """Makes of itself what it is not, wherever a class may."""

    def __eq__(self, other):
        return True

    def __hash__(self):
        return hash("http.route")

    def __len__(self):
        return 3

    def __str__(self):
        return "sly"

    def __repr__(self):
        return "sly"

    def encode(self):
        return b"sly"


class SlyText(Sly, str):
    __slots__ = ()


class SlyBytes(Sly, bytes):
    __slots__ = ()


class SlyNumber(Sly, int):
    def __index__(self):
        return 5

    __int__ = __index__

    def __ge__(self, other):
        return False

    __le__ = __lt__ = __gt__ = __ge__


class SlyFloat(Sly, float):
    def __float__(self):
        return 5.0


class Masked(BoundedAttributes):
    """Shows nobody a password."""

    def __getitem__(self, key):
        return "***" if key == "password" else super().__getitem__(key)


class MaskedDict(dict):
    def items(self):
        return [(key, "***" if key == "password" else value) for key, value in super().items()]


# Of a class that a plain one is the base of.
SUBCLASSED = [Word("word"), Number(7), Number(-7), Choice.ONE, http.HTTPStatus.OK, SlyText("text"), SlyBytes(b"bytes")]
SUBCLASSED += [SlyNumber(7), SlyNumber(-1), SlyFloat(1.5), SlyText(""), SlyBytes(b"")]
NONES = [None, [None], (1, None, "a"), {"a": None}]
TEXTS = ["", "a", "GET", "x" * 64, "x" * 65, "y" * 127, "z" * 128, "é", "\U0001f600" * 40, "\x00", "w" * 2_100]
CHARACTERS = "abc/:.0189 \x00\x7f\x80éß\u07ff\u0800漢\uffff\U00010000\U0001f600"
ODD_TEXTS = ["\ud800", "half \udcff"]
INTEGERS = [0, 1, -1, 127, 128, 200, 1023, 1024, 2**31, 2**32, 2**63 - 1, -(2**63)]
ODD_INTEGERS = [2**63, -(2**63) - 1, 2**64, 2**200, Number(2**63)]
FLOATS = [0.0, -0.0, 1.0, -1.5, math.nan, math.inf, -math.inf, 5e-324, 1.7976931348623157e308]
KEYS = ["", "http.route", "url.path", "é", "k" * 64, "k" * 65, "k" * 2_000, *(f"key{number}" for number in range(200))]
ODD_KEYS = ["\ud800", Word("http.route"), SlyText("http.route"), SlyText("a")]
ODD_VALUES = [None, object(), b"", {}, [], (), {1: 2}, {"": None}, [None, 1], bytearray(b"a"), range(3), 1j, Index()]
ODD_VALUES += [*SUBCLASSED, *NONES]
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
            return self.pick([*ODD_TEXTS, Word("word"), SlyText("a")])
        if self.chance() < 0.7:
            return self.pick(TEXTS)
        return "".join(self.source.choices(CHARACTERS, k=self.number(200)))

    def integer(self):
        if self.is_odd():
            return self.pick([*ODD_INTEGERS, *SUBCLASSED])
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
        masked = Masked()
        masked._dict.update(plain, password="secret")
        usual = plain, plain, bounded, bounded, None
        return self.pick([*usual, masked, MaskedDict(masked._dict), MappingProxyType(plain), MappingProxyType(masked)])

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


@settings(max_examples=400, deadline=None)
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


def sdk_has_none():
    """Older encoders of the SDK leave out an attribute that holds None."""
    [span] = encode_spans([span_with(None)]).resource_spans[0].scope_spans[0].spans
    return len(span.attributes) == 1


def class_of(value):
    return type(value).__name__


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", [*TEXTS, *INTEGERS, *FLOATS, b"", b"\x00\xff", [], {}, [1, "a", [b"c"]], nested(16)])
def test_what_is_plain_is_written_here(value):
    span = span_with(value)
    assert span_bytes(span, pytest.fail) == odd_span_bytes(span)


@pytest.mark.parametrize("value", SUBCLASSED, ids=class_of)
def test_a_value_of_a_subclass_is_written_here_as_what_it_is_in_truth(value):
    for each in (value, [value, value], {"a": value}):
        span = span_with(each)
        assert span_bytes(span, pytest.fail) == odd_span_bytes(span)


@pytest.mark.parametrize("value", NONES)
def test_none_is_written_here_where_the_sdk_has_a_form_for_it(value):
    span, has_none = span_with(value), sdk_has_none()
    assert (span_bytes(span, lambda span: b"odd") != b"odd") is has_none
    assert difference([span]) is None
    assert _otel_exporters.encodes_none() is has_none
    assert not _otel_exporters.encodes_none("of nobody")


@pytest.mark.parametrize(
    "text", [Word("http.route"), SlyText("http.route"), SlyText("a"), SlyText("text")], ids=class_of
)
def test_a_name_or_key_of_a_subclass_is_written_here_and_not_taken_for_another(text):
    spans = []
    for each in ("http.route", text, "http.route"):
        attributes = BoundedAttributes()
        attributes._dict[each] = "value"
        context = SpanContext(1, 2, False)
        spans.append(
            ReadableSpan(each, context, attributes=attributes, resource=Resource({}), start_time=1, end_time=2)
        )
    assert difference(spans) is None
    assert b"odd" not in [span_bytes(span, lambda span: b"odd") for span in spans]


class Counted(Resource):
    """Counts who encodes or compares it."""

    def __init__(self):
        super().__init__({"k": "v"})
        self.uses = 0

    @property
    def attributes(self):
        self.uses += 1
        return super().attributes

    def __hash__(self):
        self.uses += 1
        return super().__hash__()

    __eq__ = Resource.__eq__


def test_an_odd_span_takes_no_look_at_its_resource():
    resource = Counted()
    span = ReadableSpan("s", SpanContext(1, 2, False), attributes={"k": "\ud800", "l": 1}, resource=resource)
    odd_span_bytes(span)
    assert resource.uses == 0
    whole = _otel_exporters.encode_span(lambda spans: encode_spans(spans), span)
    assert resource.uses > 0
    assert whole == _otel_exporters.encode_span(encode_spans, span)


def test_a_resource_is_looked_at_once_and_a_scope_remembered():
    resource, scopes = Counted(), [InstrumentationScope(f"scope {number}") for number in range(500)]
    spans = [span_with(1, instrumentation_scope=scope) for scope in scopes]
    for span in spans:
        span._resource = resource
    first = request_bytes(spans)
    once, resource.uses = resource.uses, 0
    assert request_bytes(spans) == first == by_sdk(spans)
    assert once < 10
    assert all((otlp._scope_head, id(scope)) in otlp._heads_known for scope in scopes)


@pytest.mark.parametrize("kind", [Masked, MaskedDict])
@pytest.mark.parametrize("place", ["span", "event", "link", "proxy"])
def test_a_mapping_with_rules_of_its_own_is_asked(kind, place):
    if kind is Masked:
        held = Masked()
        held._dict.update(password="secret", other="shown")
    else:
        held = MaskedDict(password="secret", other="shown")
    context = SpanContext(1, 2, False)
    events = [Event("e", held, 1)] if place == "event" else ()
    links = [Link(context, held)] if place == "link" else ()
    shown = {"span": held, "proxy": MappingProxyType(held)}.get(place)
    span = ReadableSpan("s", context, attributes=shown, events=events, links=links, resource=Resource({}))
    span._start_time = span._end_time = 1
    written = request_bytes([span])
    assert written == by_sdk([span])
    assert b"***" in written
    assert b"shown" in written
    assert b"secret" not in written


def test_no_long_name_or_scope_is_remembered():
    resource = Resource({})
    tracemalloc.start()
    for number in range(100):
        scope = InstrumentationScope("s", attributes={"k": f"{number}" * 50_000})
        name = f"{number}" * 50_000
        span = ReadableSpan(name, SpanContext(1, 2, False), resource=resource, instrumentation_scope=scope)
        request_bytes([span])
    del span, scope, name
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1_000_000


def test_an_exporter_whose_function_others_have_wrapped_goes_on_as_it_is():
    class Exporter(OTLPSpanExporter):
        export = OTLPSpanExporter.export

    calls = []

    def wrapper(wrapped, instance, args, kwargs):
        calls.append(args)

    write_by(plain := Exporter(), pytest.fail, 9)
    assert room_of(plain)
    Exporter.export = wrapt.FunctionWrapper(Exporter.export, wrapper)
    write_by(wrapped := Exporter(), pytest.fail, 9)
    assert not room_of(wrapped)
    wrapped.export([])
    assert calls == [([],)]


@pytest.mark.parametrize("value", [*ODD_TEXTS, *ODD_INTEGERS, object(), {1: 2}, bytearray(b"a"), nested(18)])
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
        attributes = {f"{number}": 1, f"{number}".zfill(100): 1}
        context = SpanContext(1, 2, False)
        span = ReadableSpan("s", context, None, Resource({}), attributes, start_time=1, end_time=2)
        assert difference([span]) is None
    for number in range(1_100):
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
    batch.add(span_with(object()))
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
