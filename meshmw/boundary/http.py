"""HTTP requests, served and sent: their spans, their names, and whether a host or an outer middleware was there first.

Knows OpenTelemetry's spans and contexts. Must not know a framework or a client library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context, create_key
from opentelemetry.trace import Link, NoOpTracer, ProxyTracer, Span, SpanKind

from meshmw.boundary.adoption import CLAIM_KEY, is_of_this_request, of_host
from meshmw.boundary.durations import CLIENT, SERVER, Measurement, is_measured
from meshmw.boundary.http_operation import HttpOperation, MeasuredHttpOperation
from meshmw.boundary.operation import tracer as own_tracer
from meshmw.boundary.request import Request
from meshmw.propagation.extraction import READ_KEY, SPAN_KEY, Extraction
from meshmw.propagator import MeshPropagator
from meshmw.runtime import ServerSpans
from meshmw.semconv.attributes import AttributeValue, LazyAttributes
from meshmw.semconv.http import span_name
from meshmw.wire.traceparent import FLAG_SAMPLED

# The request that is served in a context, for a middleware further in, behind another protocol. The operation itself
# would lead back to the context: in a circle that only the garbage collector finds, for every request.
_REQUEST_KEY: Final = create_key("meshmw-request")
_LEAKED: Final = "- a span of something else was current here; it is no parent"
# On the link of a fresh root to the parent that its request named and that is not believed.
_REJECTED: Final = {"meshmw.link": "rejected_parent"}
# Whose spans take no attributes: those of an SDK that is disabled, and those where there is none.
_IDLE: Final = frozenset({NoOpTracer, ProxyTracer})


def begin_nested(request: Request, around: Context) -> HttpOperation | None:
    """Return an operation that adds nothing to the one that is under way for the same request, if there is one.

    A WSGI application that is mounted in an ASGI one is the case: the mark that the middleware leaves in its scope does
    not cross. The current span tells of nothing, it may be a leaked one; so the whole request must be the same.
    """
    outer = around.get(_REQUEST_KEY)
    if outer is None or not isinstance(outer, Request) or not outer.is_same(request):
        return None
    return HttpOperation(trace.get_current_span(around), around, request.method, owned=False)


def begin_server(
    request: Request,
    extraction: Extraction,
    around: Context,
    *,
    propagator: MeshPropagator,
    host_span: Span | None = None,
    spans: ServerSpans = "auto",
    beside_host: bool = False,
    tracer: trace.Tracer | None = None,
) -> HttpOperation:
    """Begin to serve a request.

    Args:
        request: What is asked.
        extraction: What its headers say.
        around: What is current.
        propagator: Read the headers; counts and warns of a current span that belongs to something else.
        host_span: A span that the host marked as this request's own.
        spans: `off` makes no span, while the trace goes on; `contrib` leaves it to an instrumentation further in.
        beside_host: Whether a host has opened a SERVER span for this request in a trace that is not believed.
        tracer: Makes the span; the global provider's by default.
    """
    # Where nothing is current, nobody's span can be.
    if around and not beside_host:
        ambient = trace.get_current_span(around)
        if is_of_this_request(ambient, extraction, around, host_span, propagator):
            tell(ambient, extraction)
            context = _serving(request, ambient, of_host(extraction, around))
            return HttpOperation(ambient, context, request.method, request, owned=False)
        if ambient.get_span_context().is_valid and around.get(READ_KEY) is not extraction:
            propagator.rejections.record("context", "leaked_span", _LEAKED)
    parent = extraction.into(around)
    if spans != "auto":
        return _without_span(request, parent, extraction, delegated=spans == "contrib")
    links = None if extraction.rejected is None else [Link(extraction.rejected, _REJECTED)]
    kind = SpanKind.INTERNAL if beside_host else SpanKind.SERVER
    tracer = tracer or own_tracer()
    remote = extraction.span_context
    # A span whose parent is sampled is likely to want them; to put the question off costs more than to answer it.
    is_likely = remote is not None and remote.trace_flags & FLAG_SAMPLED and type(tracer) not in _IDLE
    attributes = request.attributes() if is_likely else LazyAttributes(request.attributes)
    span = tracer.start_span(span_name(request.method), parent, kind, attributes, links)
    if extraction.refused:
        _tell_refusals(span, extraction)
    context = _serving(request, span, parent)
    if is_measured(SERVER) and not beside_host:
        measurement = Measurement(SERVER, attributes)
        return MeasuredHttpOperation(span, context, request.method, request, measurement=measurement)
    return HttpOperation(span, context, request.method, request)


def tell(span: Span, extraction: Extraction) -> None:
    """Note on a span that somebody else made what was refused of its request, and which parent is not believed."""
    if span.is_recording():
        _tell_refusals(span, extraction)
        if extraction.rejected is not None:
            span.add_link(extraction.rejected, _REJECTED)


def _tell_refusals(span: Span, extraction: Extraction) -> None:
    if span.is_recording():
        for header, reason in extraction.refused:
            span.add_event("meshmw.header.refused", {"meshmw.header": header, "meshmw.reason": reason})


def _without_span(request: Request, parent: Context, extraction: Extraction, *, delegated: bool) -> HttpOperation:
    span = trace.get_current_span(parent)
    context = _serving(request, span, parent)
    if delegated:
        # An instrumentation further in takes a current span for its own parent, and reads the headers itself.
        context = Context({key: value for key, value in context.items() if key != SPAN_KEY})
    delegate = extraction if delegated else None
    return HttpOperation(span, context, request.method, request, owned=False, delegated=delegate)


def _serving(request: Request, span: Span, around: Context) -> Context:
    """Return a context in which a request is served in a span, and which says both."""
    return Context({**around, SPAN_KEY: span, CLAIM_KEY: span, _REQUEST_KEY: request})


def begin_client(
    method: str, build: Callable[[], dict[str, AttributeValue]], tracer: trace.Tracer | None = None
) -> HttpOperation:
    """Begin an outbound request as a child of what is current.

    Args:
        method: Its method.
        build: Returns its attributes. It is called at most once: now where the parent is recorded, and else when
            somebody first looks at them.
        tracer: Makes the span; the global provider's by default.
    """
    around = otel_context.get_current()
    tracer = tracer or own_tracer()
    parent = around.get(SPAN_KEY)
    is_likely = isinstance(parent, Span) and parent.is_recording() and type(tracer) not in _IDLE
    attributes = build() if is_likely else LazyAttributes(build)
    span = tracer.start_span(span_name(method), around, SpanKind.CLIENT, attributes)
    context = Context({**around, SPAN_KEY: span})
    if is_measured(CLIENT):
        return MeasuredHttpOperation(span, context, method, measurement=Measurement(CLIENT, attributes))
    return HttpOperation(span, context, method)
