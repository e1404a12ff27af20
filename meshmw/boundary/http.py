"""HTTP requests, served and sent: their spans, their names, and whether a host or an outer middleware was there first.

Knows OpenTelemetry's spans and contexts. Must not know a framework or a client library.
"""

from __future__ import annotations

from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context, create_key
from opentelemetry.trace import Link, Span, SpanKind, StatusCode

from meshmw.boundary.adoption import CLAIM_KEY, adopted, is_of_this_request
from meshmw.boundary.operation import TRACER, Operation
from meshmw.boundary.request import Request
from meshmw.propagation.extraction import READ_KEY, SPAN_KEY, Extraction
from meshmw.propagator import MeshPropagator
from meshmw.runtime import ServerSpans
from meshmw.semconv.attributes import Attributes, LazyAttributes
from meshmw.semconv.http import span_name

# The request that is served in a context, for a middleware further in, behind another protocol. The operation would lead
# back to the context: in a circle that only the garbage collector finds, for every request.
_REQUEST_KEY: Final = create_key("meshmw-request")
_LEAKED: Final = "- a span of something else was current here; it is no parent"
# On the link of a fresh root to the parent that its request named and that is not believed.
_REJECTED: Final = {"meshmw.link": "rejected_parent"}


class HttpOperation(Operation):
    """Is one request, from its first header to its last byte.

    Attributes:
        delegated: What the headers say, where an instrumentation further in is to make the span; else None.
    """

    __slots__ = ("_method", "_request", "delegated")

    def __init__(
        self, span: Span, context: Context, method: str, *, owned: bool, delegated: Extraction | None = None
    ) -> None:
        super().__init__(span, context, owned=owned)
        self.delegated = delegated
        self._method = method
        self._request: Request | None = None

    @classmethod
    def serving(
        cls,
        request: Request,
        span: Span,
        values: dict[str, object],
        *,
        owned: bool,
        delegated: Extraction | None = None,
    ) -> HttpOperation:
        """Return the operation that serves a request, in a context of the values that names both."""
        values[CLAIM_KEY] = span
        values[_REQUEST_KEY] = request
        operation = cls(span, Context(values), request.method, owned=owned, delegated=delegated)
        operation._request = request
        return operation

    def answered(self) -> None:
        """Note that the last byte went out: nobody further in serves this request from here on."""
        if self._request is not None:
            self._request.is_over = True

    def route(self, route: str | None) -> None:
        """Name the span after the route template that the framework matched."""
        if route and self.is_open:
            self.span.update_name(span_name(self._method, route))
            self.span.set_attribute("http.route", route)

    def status(self, code: int, error_from: int) -> None:
        """Record the response's status code; from *error_from* on it makes the span an error."""
        if not self._owned:
            return
        self.span.set_attribute("http.response.status_code", code)
        if code >= error_from:
            self.span.set_attribute("error.type", str(code))
            self.span.set_status(StatusCode.ERROR)

    def finish(self, *, complete: bool) -> None:
        """End the span, once; *complete* says whether the whole response went out."""
        if not complete and self.is_open:
            self.span.set_attribute("meshmw.response.incomplete", True)
        self.end()

    def end(self) -> None:
        """End the span, once, and let go of the request."""
        super().end()
        if self._request is not None:
            self._request.close()


def begin_nested(request: Request) -> HttpOperation | None:
    """Return an operation that adds nothing to the one that is under way for the same request, if there is one.

    A WSGI application that is mounted in an ASGI one is the case: the mark that the middleware leaves in its scope does
    not cross. The current span tells of nothing, it may be a leaked one; so the whole request must be the same.
    """
    around = otel_context.get_current()
    outer = around.get(_REQUEST_KEY)
    if not isinstance(outer, Request) or not outer.is_same(request):
        return None
    return HttpOperation(trace.get_current_span(around), around, request.method, owned=False)


def begin_server(
    request: Request,
    extraction: Extraction,
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
        propagator: Read the headers; counts and warns of a current span that belongs to something else.
        host_span: A span that the host marked as this request's own.
        spans: `off` makes no span, while the trace goes on; `contrib` leaves it to an instrumentation further in.
        beside_host: Whether a host has opened a SERVER span for this request in a trace that is not believed.
        tracer: Makes the span; the global provider's by default.
    """
    around = otel_context.get_current()
    # Where nothing is current, nobody's span can be.
    if around and not beside_host:
        ambient = trace.get_current_span(around)
        if is_of_this_request(ambient, extraction, around, host_span, propagator):
            tell(ambient, extraction)
            return HttpOperation.serving(request, ambient, dict(adopted(ambient, extraction, around)), owned=False)
        if ambient.get_span_context().is_valid and around.get(READ_KEY) is not extraction:
            propagator.rejections.record("context", "leaked_span", _LEAKED)
    parent = extraction.into(around)
    if spans != "auto":
        return _without_span(request, parent, extraction, delegated=spans == "contrib")
    links = None if extraction.rejected is None else [Link(extraction.rejected, _REJECTED)]
    kind = SpanKind.INTERNAL if beside_host else SpanKind.SERVER
    attributes = LazyAttributes(request.attributes)
    span = (tracer or TRACER).start_span(span_name(request.method), parent, kind, attributes, links)
    if extraction.refused:
        _tell_refusals(span, extraction)
    return HttpOperation.serving(request, span, {**parent, SPAN_KEY: span}, owned=True)


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
    # An instrumentation further in takes a current span for its own parent, and reads the headers itself.
    values = {key: value for key, value in parent.items() if not delegated or key != SPAN_KEY}
    return HttpOperation.serving(request, span, values, owned=False, delegated=extraction if delegated else None)


def begin_client(method: str, attributes: Attributes, tracer: trace.Tracer | None = None) -> HttpOperation:
    """Begin an outbound request as a child of what is current."""
    parent = otel_context.get_current()
    span = (tracer or TRACER).start_span(span_name(method), parent, SpanKind.CLIENT, attributes)
    return HttpOperation(span, Context({**parent, SPAN_KEY: span}), method, owned=True)
