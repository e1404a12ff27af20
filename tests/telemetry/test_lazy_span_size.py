"""How large a lazy span is, told at little cost: never less than it holds, where it counts as ordinary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags, TraceState, set_span_in_context

from meshmw._lazy_span import LazyTracer
from meshmw._telemetry.bounds import FAIR_BYTES
from meshmw._telemetry.span import ordinary_size, plain_size

TRACER = LazyTracer(TracerProvider(resource=Resource({}), shutdown_on_exit=False).get_tracer("t"))
TEXTS = st.text(max_size=400) | st.sampled_from(["a" * 900, "\U0001f600" * 300, "é" * 700, "a" * 700 + "\U0001f600"])
VALUES = TEXTS | st.integers() | st.floats() | st.booleans() | st.just(2**4000)


@given(st.dictionaries(st.text(min_size=1, max_size=60), VALUES, max_size=30), TEXTS, TEXTS)
def test_a_span_that_counts_as_ordinary_holds_no_more_than_an_ordinary_one(attributes, name, description):
    span = TRACER.start_span(name, attributes=attributes)
    span.set_status(StatusCode.ERROR, description)
    span.end()
    size = ordinary_size(span)
    assert size is None or plain_size(span) <= FAIR_BYTES


def test_on_its_way_it_is_no_longer_than_its_size_says():
    span = TRACER.start_span(
        "GET /items", attributes={"url.path": "/items", "server.port": 80} | dict.fromkeys("abcdef", "x")
    )
    span.end()
    assert (ordinary_size(span) or 0) >= len(encode_spans([span]).SerializeToString())


def test_a_text_that_is_there_often_counts_each_time():
    text = "x" * 300
    span = TRACER.start_span("name", attributes={f"k{number}": text for number in range(3)})
    span.end()
    assert (ordinary_size(span) or 0) >= len(encode_spans([span]).SerializeToString())


def changed(change):
    span = TRACER.start_span("name")
    change(span)
    return span


@pytest.mark.parametrize(
    "change",
    [
        lambda span: span.set_attribute("long", "x" * FAIR_BYTES),
        lambda span: span.set_attribute("list", [1]),
        lambda span: span.add_event("event"),
        lambda span: span.add_link(SpanContext(1, 2, False)),
        lambda span: span.update_name(7),
        lambda span: span.update_name("x" * FAIR_BYTES),
    ],
)
def test_any_other_span_is_looked_at_closely(change):
    span = changed(change)
    span.end()
    assert ordinary_size(span) is None


def test_a_long_trace_state_is_looked_at_closely():
    state = TraceState([(f"k{number}", "v") for number in range(9)])
    remote = SpanContext(1, 2, True, TraceFlags(1), state)
    span = TRACER.start_span("name", set_span_in_context(NonRecordingSpan(remote)))
    assert ordinary_size(span) is None


def test_a_span_of_the_sdks_is_looked_at_closely():
    assert ordinary_size(TRACER.tracer.start_span("name")) is None
