"""Laws 4 and 6 for requests and aiohttp, beside contrib's instrumentation of them and of urllib3 below requests."""

import pytest
from opentelemetry import baggage, propagate, trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor

from meshmw import MeshPropagator
from tests.contracts.client.every_client import CLIENTS, Server

INSTRUMENTED = {
    "requests": ("requests", [RequestsInstrumentor]),
    "urllib3": ("requests", [URLLib3Instrumentor]),
    "requests and urllib3": ("requests", [URLLib3Instrumentor, RequestsInstrumentor]),
    "aiohttp": ("aiohttp", [AioHttpClientInstrumentor]),
}
PROPAGATED = {"traceparent", "tracestate", "baggage", "x-meshmw-sent"}


@pytest.fixture(params=INSTRUMENTED)
def client(request, address, monkeypatch):
    monkeypatch.setattr(propagate, "propagators", MeshPropagator())
    name, instrumentors = INSTRUMENTED[request.param]
    made = CLIENTS[name](address)
    # What makes a span further out than an adapter or a middleware can.
    made.is_wrapped = request.param != "urllib3"
    for each in instrumentors:
        each().instrument(tracer_provider=made.provider)
    yield made
    for each in reversed(instrumentors):
        each().uninstrument()


def within(client):
    context = trace.set_span_in_context(client.tracer.start_span("work"), Context())
    return baggage.set_baggage("shop", "north", context)


def parents():
    return [[value for name, value in lines if name == "traceparent"] for _, lines in Server.got]


def traceparent_of(span):
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags & 3:02x}"


def test_a_call_of_our_client_is_one_span_of_ours_for_each_hop(client):
    client.propagator = MeshPropagator(baggage_to=("127.0.0.1",))
    stranger = client.address.replace("127.0.0.1", "localhost")
    assert client.call(f"/to?{stranger}/items/7", within=within(client)) == (200, b"in stock")
    assert [span.instrumentation_scope.name for span in client.spans] == ["meshmw", "meshmw"]
    assert parents() == [[traceparent_of(span)] for span in client.spans]
    assert [dict(lines).get("baggage") for _, lines in Server.got] == ["shop=north", None]


def test_of_a_client_that_contrib_wraps_its_span_is_the_one_and_we_withhold_what_a_host_is_not_to_get(client):
    client.propagator = MeshPropagator(baggage_to=("nobody.example",))
    assert client.call(within=within(client), client=client.plain)[0] == 200
    assert (client.span.instrumentation_scope.name == "meshmw") is not client.is_wrapped
    assert parents() == [[traceparent_of(client.span)]]
    assert "baggage" not in client.sent


@pytest.mark.parametrize("which", ["ours", "plain"])
def test_nothing_goes_where_nothing_is_to_go(client, which):
    client.propagator = MeshPropagator(propagate_to=())
    client.call(within=within(client), client=getattr(client, which))
    assert len(client.spans) == 1
    assert PROPAGATED.isdisjoint(client.sent)
