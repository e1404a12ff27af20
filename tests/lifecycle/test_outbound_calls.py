"""What one outbound call computes, what is current meanwhile, and what is taken back where it ends badly."""

from __future__ import annotations

import asyncio
import contextvars
import copy

import httpx
import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, Sampler, SamplingResult
from opentelemetry.trace import NonRecordingSpan, NoOpTracerProvider, SpanContext, TraceFlags

from meshmw import MeshPropagator, __version__, wsgi
from meshmw import _transports as transports
from meshmw._otel import SPAN_KEY
from meshmw.httpx import AsyncTraceContextTransport, TraceContextTransport

URL = "http://items.local/items/1"


class Answers(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Answers at once, and keeps what it was asked; or raises."""

    def __init__(self, error=None, **extensions):
        self.error, self.extensions, self.asked = error, extensions, []

    def handle_request(self, request):
        self.asked.append(request)
        if self.error:
            raise self.error
        return httpx.Response(200, content=b"ok", extensions=self.extensions)

    async def handle_async_request(self, request):
        return self.handle_request(request)


def send(provider=None, context=None, answers=None, **headers):
    answers = answers or Answers()
    token = otel_context.attach(context or Context())
    try:
        transport = TraceContextTransport(answers, tracer_provider=provider or TracerProvider())
        transport.handle_request(httpx.Request("GET", URL, headers=headers))
    finally:
        otel_context.detach(token)
    return answers.asked[0].headers


def below(span):
    return trace.set_span_in_context(span, Context())


def remote(flags):
    return below(NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(flags))))


def recorded():
    return below(TracerProvider().get_tracer("service").start_span("GET"))


def ended():
    span = TracerProvider().get_tracer("service").start_span("GET")
    span.end()
    return below(span)


@pytest.mark.parametrize(
    ("context", "provider", "times"),
    [
        (recorded, TracerProvider, 1),
        (ended, TracerProvider, 1),
        (Context, TracerProvider, 1),
        (lambda: remote(1), TracerProvider, 1),
        (lambda: remote(0), TracerProvider, 0),
        (Context, lambda: TracerProvider(sampler=ALWAYS_OFF), 0),
        (recorded, NoOpTracerProvider, 0),
        (Context, NoOpTracerProvider, 0),
    ],
    ids=["recorded", "ended", "none", "sampled", "unsampled", "off", "recorded, no SDK", "no SDK"],
)
def test_what_a_span_says_of_a_call_is_computed_once_and_only_for_a_span_that_says_it(
    monkeypatch, context, provider, times
):
    asked, build = [], transports._attributes
    monkeypatch.setattr(transports, "_attributes", lambda request: asked.append(request) or build(request))
    send(provider(), context())
    assert len(asked) == times


class Curious(Sampler):
    """Keeps the class of what it is given."""

    def __init__(self):
        self.given = []

    def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, links=None):
        self.given.append(type(attributes))
        return SamplingResult(Decision.DROP)

    def get_description(self):
        return "curious"


def test_below_a_recorded_span_it_is_computed_at_once_and_else_when_somebody_looks():
    sampler = Curious()
    for context in (recorded(), ended(), Context(), remote(1)):
        send(TracerProvider(sampler=sampler), context)
    assert [kind.__name__ for kind in sampler.given] == ["dict", "LazyAttributes", "LazyAttributes", "LazyAttributes"]


@pytest.mark.parametrize("found", ["nonsense", trace.Span])
def test_a_call_goes_out_whatever_somebody_has_made_current_as_a_span(found):
    assert send(context=Context({SPAN_KEY: found}))["traceparent"].endswith(("-01", "-03"))


def test_what_our_client_says_of_another_call_is_not_sent_where_there_is_no_trace():
    sent = send(NoOpTracerProvider(), **{"x-meshmw-sent": "b7ad6b7169203331-01", "x-other": "1"})
    assert ("x-meshmw-sent" in sent, "x-other" in sent) == (False, True)


def test_a_protocol_version_that_is_no_ascii_does_not_keep_the_answer_back():
    assert send(answers=Answers(http_version=b"HTTP/\xff"))


class Scopes(SpanProcessor):
    """Keeps the scope of each span that ends."""

    def __init__(self):
        self.found = []

    def on_end(self, span):
        self.found.append((span.instrumentation_scope.name, span.instrumentation_scope.version))


@pytest.mark.parametrize("kind", [TraceContextTransport, AsyncTraceContextTransport])
def test_the_scope_of_a_span_is_this_package_in_its_version(kind):
    scopes, provider = Scopes(), TracerProvider()
    provider.add_span_processor(scopes)
    transport = kind(Answers(), tracer_provider=provider)
    if kind is TraceContextTransport:
        transport.handle_request(httpx.Request("GET", URL))
    else:
        asyncio.run(transport.handle_async_request(httpx.Request("GET", URL)))
    assert scopes.found == [("meshmw", __version__)]


class Unreachable(Exception):
    """Stands for what a transport or an application raises."""


class AtTheEnd(SpanProcessor):
    """Keeps which span is current when one ends."""

    def __init__(self):
        self.current, self.ended = [], []

    def on_end(self, span):
        self.current.append(trace.get_current_span())
        self.ended.append(span)


def fail_sync(provider):
    TraceContextTransport(Answers(Unreachable()), tracer_provider=provider).handle_request(httpx.Request("GET", URL))


def fail_async(provider):
    transport = AsyncTraceContextTransport(Answers(Unreachable()), tracer_provider=provider)
    asyncio.run(transport.handle_async_request(httpx.Request("GET", URL)))


def fail_wsgi(provider):
    def raises(environ, start_response):
        raise Unreachable

    app = wsgi.TraceContextMiddleware(raises, tracer_provider=provider)
    app({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, None)


@pytest.mark.parametrize("fail", [fail_sync, fail_async, fail_wsgi])
def test_when_a_span_ends_for_an_error_what_was_current_before_it_is_current_again(fail):
    processor, provider = AtTheEnd(), TracerProvider(sampler=ALWAYS_ON)
    provider.add_span_processor(processor)
    with pytest.raises(Unreachable):
        fail(provider)
    assert processor.current == [trace.INVALID_SPAN]
    (span,) = processor.ended
    assert span.attributes.get("meshmw.response.incomplete", False) is (fail is fail_wsgi)


@pytest.mark.parametrize("another", [contextvars.Context, contextvars.Context.copy], ids=["empty", "copied"])
def test_a_call_that_is_dropped_takes_nothing_back_where_it_was_not_begun(caplog, another):
    class Waits(Answers):
        async def handle_async_request(self, request):
            await asyncio.sleep(0)

    transport = AsyncTraceContextTransport(Waits(), tracer_provider=TracerProvider())
    call = transport.handle_async_request(httpx.Request("GET", URL))
    began = contextvars.copy_context()
    began.run(call.send, None)
    (another(began) if another is contextvars.Context.copy else another()).run(call.close)
    assert "detach" not in caplog.text


def test_a_deep_copy_of_a_transport_shares_what_is_the_processs_and_copies_the_transport():
    provider = TracerProvider()
    made = TraceContextTransport(Answers(), tracer_provider=provider, propagator=MeshPropagator())
    copied = copy.deepcopy(made)
    assert (copied._propagator, copied._tracer) == (made._propagator, made._tracer)
    assert copied._transport is not made._transport
    copied.handle_request(httpx.Request("GET", URL))
    assert (len(copied._transport.asked), len(made._transport.asked)) == (1, 0)
