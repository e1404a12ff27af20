"""No span is large, whatever a stranger or the application puts into it."""

from __future__ import annotations

from sys import getsizeof

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags, TraceState

from meshmw._telemetry.bounds import FAIR, FAIR_BYTES, BoundedSpan
from meshmw._telemetry.provider import build_provider
from meshmw.settings import Settings
from tests.benchmarks.attack import ATTACKS, EVERY, LARGE, arrived, attacked, silent

LONG = "x" * 100_000
WIDE = "\U0001f600" * 100_000
STATE = TraceState([(f"k{number}", "v" * 256) for number in range(32)])
CONTEXT = SpanContext(1, 2, True, TraceFlags(1), STATE)
TEXT, SPAN, NAME = 16_384, 131_072, 1_024


@pytest.fixture
def ended():
    """Return a function that makes a span with the provider of `configure()`, and returns it as processors see it."""
    made = []

    def end(fill=None, **options):
        provider, _ = build_provider(Settings(exporter="none"))
        exporter = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        made.append(provider)
        span = provider.get_tracer("t").start_span(options.pop("name", "name"), **options)
        if fill is not None:
            fill(span)
        span.end()
        (found,) = exporter.get_finished_spans()
        return found

    yield end
    for each in made:
        each.shutdown()


def said(value):
    """Yield all that a value says."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from (key, *said(each))
    elif isinstance(value, tuple):
        for each in value:
            yield from said(each)
    else:
        yield value


def all_said(span):
    yield from (span.name, span.status.description or "", span.context.trace_state.to_header())
    for each in (span, *span.events, *span.links):
        yield from said(dict(each.attributes))
    yield from (event.name for event in span.events)
    yield from (link.context.trace_state.to_header() for link in span.links)


def fails(span):
    span.record_exception(ValueError(LONG))
    span.set_status(StatusCode.ERROR, LONG)


FILLS = {
    "text": lambda span: span.set_attribute("key", LONG),
    "wide text": lambda span: [span.set_attribute(f"key{number}", WIDE) for number in range(8)],
    "bytes": lambda span: span.set_attribute("key", LONG.encode()),
    "texts": lambda span: span.set_attribute("key", [LONG] * 1_000),
    "short texts": lambda span: span.set_attribute("key", ["short"] * 100_000),
    "numbers": lambda span: span.set_attribute("key", list(range(100_000))),
    "mapping": lambda span: span.set_attribute("key", {f"{number}{LONG}": LONG for number in range(100)}),
    "key": lambda span: span.set_attribute(LONG, 1),
    "many": lambda span: span.set_attributes({f"key{number}": LONG for number in range(128)}),
    "name": lambda span: span.update_name(LONG),
    "status": lambda span: span.set_status(StatusCode.ERROR, LONG),
    "exception": fails,
    "event": lambda span: span.add_event(LONG, {LONG: LONG}),
    "events": lambda span: [span.add_event(LONG, {"key": LONG}) for _ in range(128)],
    "links": lambda span: [span.add_link(CONTEXT, {LONG: LONG}) for _ in range(128)],
}


@pytest.mark.parametrize("fill", FILLS)
def test_no_span_is_large(fill, ended):
    span = ended(FILLS[fill])
    found = list(all_said(span))
    assert max(len(each) for each in found if isinstance(each, str | bytes)) <= TEXT
    assert sum(map(getsizeof, found)) <= SPAN + 10 * NAME
    assert span.size <= SPAN + NAME
    smaller = BoundedSpan(span, FAIR)
    assert sum(map(getsizeof, all_said(smaller))) <= FAIR_BYTES + NAME
    assert smaller.size <= FAIR_BYTES + NAME


def test_what_is_not_large_is_all_there(ended):
    def fill(span):
        span.set_attributes(
            {"nested": {"a": (1, 2.5, True, "b", b"c", None)}, "texts": ["a", "b"], "long": LONG[:9_000]}
        )
        span.add_event("event", {"of": "event"}, 3)
        span.add_link(CONTEXT, {"of": "link"})
        span.set_status(StatusCode.ERROR, "failed")

    parent = trace.set_span_in_context(NonRecordingSpan(CONTEXT))
    span = ended(fill, context=parent, kind=trace.SpanKind.SERVER, start_time=1)
    assert dict(span.attributes) == {
        "nested": {"a": (1, 2.5, True, "b", b"c", None)},
        "texts": ("a", "b"),
        "long": LONG[:9_000],
    }
    (event,), (link,) = span.events, span.links
    assert (event.name, dict(event.attributes), event.timestamp) == ("event", {"of": "event"}, 3)
    assert (link.context, dict(link.attributes)) == (CONTEXT, {"of": "link"})
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "failed")
    assert (span.parent, span.context.trace_id, span.context.trace_state) == (CONTEXT, 1, STATE)
    assert (span.kind, span.start_time, span.instrumentation_scope.name) == (trace.SpanKind.SERVER, 1, "t")
    assert span.end_time
    assert span.resource.attributes
    assert (span.dropped_attributes, span.dropped_events, span.dropped_links) == (0, 0, 0)


def test_what_is_dropped_is_counted(ended):
    def fill(span):
        span.set_attributes({f"key{number}": LONG for number in range(130)})
        for _ in range(130):
            span.add_event("event", {"text": LONG, "more": LONG})
            span.add_link(SpanContext(1, 2, True))

    span = ended(fill)
    assert span.dropped_attributes + len(span.attributes) == 130
    assert span.dropped_events + len(span.events) == 130
    assert span.dropped_links + len(span.links) == 130
    assert 7 < len(span.attributes) < 30


def test_a_simple_span_is_not_even_copied(ended):
    assert not isinstance(ended(lambda span: span.set_attribute("key", "value")), BoundedSpan)


def test_the_sdk_says_once_in_a_window_that_it_cuts(ended, caplog):
    def fill(span):
        for _ in range(100):
            span.add_event("event", {"key": LONG})

    ended(fill)
    assert caplog.messages == ["String attribute value exceeds max length of 16384, truncating."]


def test_deep_mappings_end_somewhere(ended):
    deep = {"leaf": 1}
    for _ in range(50):
        deep = {"deeper": deep}
    found, depth = ended(lambda span: span.set_attribute("deep", deep)).attributes["deep"], 0
    while found is not None:
        found, depth = found["deeper"], depth + 1
    assert depth == 8


def test_what_cannot_be_copied_passes_as_it_is(ended):
    class Odd(str):
        __slots__ = ()

        def __getitem__(self, _):
            raise RuntimeError("no")

    odd = Odd(LONG)
    assert ended(lambda span: span.set_attribute("key", odd)).attributes["key"] is odd


class TestVariables:
    @pytest.mark.parametrize(
        ("variables", "of_span", "of_event"),
        [
            ({}, TEXT, TEXT),
            ({"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": ""}, TEXT, TEXT),
            ({"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "50000"}, 50_000, 50_000),
            ({"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "2147483647"}, 100_000, 100_000),
            ({"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "20"}, 20, 20),
            ({"OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "20"}, 20, TEXT),
            ({"OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "50000"}, 50_000, TEXT),
            (
                {"OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "30", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "40"},
                30,
                40,
            ),
        ],
    )
    def test_what_they_say_of_length_wins(self, variables, of_span, of_event, ended, monkeypatch):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

        def fill(span):
            span.set_attribute("key", LONG)
            span.add_event("event", {"key": LONG})
            span.add_link(CONTEXT, {"key": LONG})

        span = ended(fill)
        lengths = [len(each.attributes["key"]) for each in (span, *span.events, *span.links)]
        assert lengths == [of_span, of_event, of_event]

    def test_what_they_say_of_values_cuts_no_key_and_no_name(self, ended, monkeypatch):
        monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "10")
        keys = [f"http.request.header.{number}" for number in range(120)]
        state = TraceState([("vendor", "v" * 200)])
        context = trace.set_span_in_context(NonRecordingSpan(SpanContext(1, 2, True, TraceFlags(1), state)))
        span = ended(name="a name of more than ten", attributes=dict.fromkeys(keys, LONG), context=context)
        assert (span.name, [*span.attributes]) == ("a name of more than ten", keys)
        assert {*span.attributes.values()} == {LONG[:10]}
        assert span.context.trace_state == state

    def test_what_they_say_of_numbers_wins(self, ended, monkeypatch):
        monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "500")
        monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "300")

        def fill(span):
            span.set_attributes({f"key{number}": "value" for number in range(600)})
            for _ in range(400):
                span.add_event("e")

        span = ended(fill)
        assert (len(span.attributes), span.dropped_attributes) == (500, 100)
        assert span.dropped_events + len(span.events) == 400


SMALL = len(range(0, LARGE, EVERY))


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_attack_takes_memory_or_another_spans_place(attack, otlp_receiver):
    measured, log = attacked(attack, otlp_receiver.grpc_endpoint)
    assert arrived(otlp_receiver) == SMALL
    assert measured["grown"] < 50
    # Of the SDK, that it cuts texts; of ours, that large spans have filled their room.
    assert log.count("WARNING") <= 2
    assert "collector" not in log


@pytest.mark.parametrize("attack", ["exception", "events", "bytes"])
def test_nor_where_the_collector_is_silent(attack):
    with silent() as address:
        measured, _ = attacked(attack, address, patience=0.1)
    assert measured["grown"] < 50
