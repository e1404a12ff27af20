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
from meshmw.semconv.attributes import Attributes
from meshmw.semconv.http import span_name

_OPERATION_KEY: Final = create_key("meshmw-operation")
# On the link of a fresh root to the parent that its request named and that is not believed.
_REJECTED: Final = {"meshmw.link": "rejected_parent"}


class HttpOperation(Operation):
    """Is one request, from its first header to its last byte.

    Attributes:
        delegated: What the headers say, where an instrumentation further in is to make the span; else None.
        answered: Whether the last byte of the response went out.
    """

    __slots__ = ("_method", "_request", "answered", "delegated")

    def __init__(
        self, span: Span, context: Context, method: str, *, owned: bool, delegated: Extraction | None = None
    ) -> None:
        super().__init__(span, context, owned=owned)
        self.delegated = delegated
        self.answered = False
        self._method = method
        self._request: Request | None = None

    def identify(self, request: Request) -> None:
        """Let a middleware further in, behind another protocol, know that it serves this very request."""
        self._request = request
        self.context = Context({**self.context, _OPERATION_KEY: self})

    def serves(self, request: Request) -> bool:
        """Say whether this, still under way, is that very request in another protocol."""
        return not (self._ended or self.answered or self._request is None) and self._request.is_same(request)

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


def begin_nested(request: Request) -> HttpOperation | None:
    """Return an operation that adds nothing to the one that is under way for the same request, if there is one.

    A WSGI application that is mounted in an ASGI one is the case: the mark that the middleware leaves in its scope does
    not cross. The current span tells of nothing, it may be a leaked one; so the whole request must be the same.
    """
    around = otel_context.get_current()
    outer = around.get(_OPERATION_KEY)
    if not isinstance(outer, HttpOperation) or not outer.serves(request):
        return None
    return HttpOperation(trace.get_current_span(around), around, request.method, owned=False)


def begin_server(
    extraction: Extraction,
    *,
    method: str,
    attributes: Attributes,
    propagator: MeshPropagator,
    host_span: Span | None = None,
    spans: ServerSpans = "auto",
    beside_host: bool = False,
    tracer: trace.Tracer | None = None,
) -> HttpOperation:
    """Begin to serve a request.

    Args:
        extraction: What the request's headers say.
        method: The request's method.
        attributes: Of the span, if one is made.
        propagator: Read the headers; counts and warns of a current span that belongs to something else.
        host_span: A span that the host marked as this request's own.
        spans: `off` makes no span, while the trace goes on; `contrib` leaves it to an instrumentation further in.
        beside_host: Whether a host has opened a SERVER span for this request in a trace that is not believed.
        tracer: Makes the span; the global provider's by default.
    """
    around = otel_context.get_current()
    ambient = trace.get_current_span(around)
    if not beside_host and is_of_this_request(ambient, extraction, around, host_span, propagator):
        tell(ambient, extraction)
        return HttpOperation(ambient, adopted(ambient, extraction, around), method, owned=False)
    if not beside_host and ambient.get_span_context().is_valid and around.get(READ_KEY) is not extraction:
        propagator.rejections.record(
            "context", "leaked_span", "- a span of something else was current here; it is no parent"
        )
    parent = extraction.into(around)
    if spans != "auto":
        return _without_span(parent, extraction, method, delegated=spans == "contrib")
    links = [Link(extraction.rejected, _REJECTED)] if extraction.rejected is not None else None
    kind = SpanKind.INTERNAL if beside_host else SpanKind.SERVER
    span = (tracer or TRACER).start_span(span_name(method), parent, kind, attributes, links)
    _tell_refusals(span, extraction)
    return HttpOperation(span, Context({**parent, SPAN_KEY: span, CLAIM_KEY: span}), method, owned=True)


def tell(span: Span, extraction: Extraction) -> None:
    """Note on a span that somebody else made what was refused of its request, and which parent is not believed."""
    if span.is_recording():
        _tell_refusals(span, extraction)
        if extraction.rejected is not None:
            span.add_link(extraction.rejected, _REJECTED)


def _tell_refusals(span: Span, extraction: Extraction) -> None:
    if extraction.refused and span.is_recording():
        for header, reason in extraction.refused:
            span.add_event("meshmw.header.refused", {"meshmw.header": header, "meshmw.reason": reason})


def _without_span(parent: Context, extraction: Extraction, method: str, *, delegated: bool) -> HttpOperation:
    span = trace.get_current_span(parent)
    # An instrumentation further in takes a current span for its own parent, and reads the headers itself.
    values = {key: value for key, value in parent.items() if not delegated or key != SPAN_KEY}
    delegate = extraction if delegated else None
    return HttpOperation(span, Context({**values, CLAIM_KEY: span}), method, owned=False, delegated=delegate)


def begin_client(method: str, attributes: Attributes, tracer: trace.Tracer | None = None) -> HttpOperation:
    """Begin an outbound request as a child of what is current."""
    parent = otel_context.get_current()
    span = (tracer or TRACER).start_span(span_name(method), parent, SpanKind.CLIENT, attributes)
    return HttpOperation(span, Context({**parent, SPAN_KEY: span}), method, owned=True)
