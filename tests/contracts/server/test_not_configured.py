"""Hosts whose own telemetry reads headers with OpenTelemetry's propagators, as where `configure()` was never called."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry import propagate
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import get_current
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE_ID}-{PARENT_ID}-01"


@pytest.fixture
def lax_host(new_host):
    host = new_host()
    propagate.set_global_textmap(CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()]))
    return host


def test_a_valid_caller_is_the_parent_of_the_one_server_span(lax_host):
    lax_host.get(headers=[("traceparent", VALID), ("baggage", "k=v;p=1")])
    assert lax_host.server_span.parent.span_id == int(PARENT_ID, 16)
    assert lax_host.seen.outbound["baggage"] == "k=v;p=1"
    assert lax_host.refusals == {}


def test_a_request_that_is_being_served_lends_its_span_to_no_other(lax_host):
    def next_request():
        lax_host.during = None
        context = get_current()
        with ThreadPoolExecutor(1) as other:
            other.submit(lambda: lax_host.get(ambient=context)).result()

    lax_host.during = next_request
    lax_host.get()
    first, second = lax_host.server_spans
    assert first.context.trace_id != second.context.trace_id


def test_a_request_without_headers_has_one_server_span(lax_host):
    lax_host.get()
    assert lax_host.server_span.parent is None


@pytest.mark.parametrize("text", ["", "junk", VALID.upper(), "ff" + VALID[2:], f"00-{'0' * 32}-{PARENT_ID}-01"])
def test_a_malformed_caller_is_refused_and_has_one_server_span(lax_host, text):
    lax_host.get(headers=[("traceparent", text), ("tracestate", "a=1")])
    assert lax_host.server_span.parent is None
    assert lax_host.seen.headers.keys().isdisjoint({"traceparent", "tracestate"})
    assert list(lax_host.refusals.values()) == [1]


def test_baggage_that_the_host_dropped_is_there_again(lax_host):
    lax_host.get(headers=[("traceparent", VALID), ("baggage", "a=1"), ("baggage", "b=2")])
    assert lax_host.seen.baggage == {"a": "1", "b": "2"}
