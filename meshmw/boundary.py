"""The life of one operation at a boundary: begin, current while user code runs, end once.

Every adapter goes through here. Knows OpenTelemetry's spans and contexts. Must not know a protocol or framework.
"""

from __future__ import annotations

import contextlib
from typing import Final, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context, create_key
from opentelemetry.trace import Link, Span, SpanKind, StatusCode

from meshmw.propagation.extraction import READ_KEY, SPAN_KEY, Extraction
from meshmw.propagation.getters import are_same
from meshmw.propagation.reading import Lines
from meshmw.propagator import MeshPropagator
from meshmw.runtime import ServerSpans, is_global
from meshmw.semconv import Attributes, error_type, span_name
from meshmw.version import __version__

_TRACER: Final = trace.get_tracer("meshmw", __version__)
# Marks a context in which a request has claimed its SERVER span: whoever finds that span later has a leaked one.
_CLAIM_KEY: Final = create_key("meshmw-claim")
_OPERATION_KEY: Final = create_key("meshmw-operation")
# On the link of a fresh root to the parent that its request named and that is not believed.
_REJECTED: Final = {"meshmw.link": "rejected_parent"}


class Current:
    """Makes a context current for the length of a block.

    Args:
        context: The context to attach.
    """

    __slots__ = ("_context", "_token")

    def __init__(self, context: Context) -> None:
        self._context = context

    def __enter__(self) -> None:
        self._token = otel_context.attach(self._context)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A coroutine that nobody finished is closed by the garbage collector, wherever that happens to run. There is
        # nothing of ours to take back there, and a detach would log an error.
        if kind is not GeneratorExit or otel_context.get_current() is self._context:
            otel_context.detach(self._token)


class Request(NamedTuple):
    """Tells one request from others.

    Attributes:
        method: Its method.
        path: Its path, whole.
        lines: Its header lines as the application sees them, by name in lower case.
        protocol: Between server and application: `asgi` or `wsgi`.
    """

    method: str
    path: str
    lines: Lines
    protocol: str

    def is_same(self, other: Request) -> bool:
        """Say whether this is the other request in another protocol.

        Within one protocol the mark in the scope or environ tells, and a request that looks alike is another one.
        """
        if self.protocol == other.protocol or (self.method, self.path) != (other.method, other.path):
            return False
        return all(are_same(self.lines.get(name), other.lines.get(name)) for name in {*self.lines, *other.lines})


class Operation:
    """Is one request, from its first header to its last byte.

    Attributes:
        context: What is current while user code runs.
        span: The operation's span; not recording where there is no SDK, no sampling or no span wanted.
        delegated: What the headers say, where an instrumentation further in is to make the span; else None.
        answered: Whether the last byte of the response went out.
    """

    __slots__ = ("_ended", "_method", "_owned", "_request", "answered", "context", "delegated", "span")

    def __init__(
        self, span: Span, context: Context, method: str, *, owned: bool, delegated: Extraction | None = None
    ) -> None:
        self.span = span
        self.context = context
        self.delegated = delegated
        self._method = method
        self._owned = owned
        self._ended = False
        self._request: Request | None = None
        self.answered = False

    def current(self) -> Current:
        """Return a block that makes the context current; it must not contain a `yield` to another frame."""
        return Current(self.context)

    def identify(self, request: Request) -> None:
        """Let a middleware further in, behind another protocol, know that it serves this very request."""
        self._request = request
        self.context = Context({**self.context, _OPERATION_KEY: self})

    @property
    def is_open(self) -> bool:
        """Say whether there is a span of our own to which something can still be added."""
        return self._owned and not self._ended and self.span.is_recording()

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

    def fail(self, error: BaseException) -> None:
        """Record what user code or the network raised. Cancellation and the end of the process are no errors."""
        if not self._owned or self._ended or not isinstance(error, Exception):
            return
        # It asks the application's exception for its text, and that may raise.
        with contextlib.suppress(Exception):
            self.span.record_exception(error)
        self.span.set_attribute("error.type", error_type(error))
        self.span.set_status(StatusCode.ERROR, type(error).__name__)

    def end(self, *, complete: bool = True) -> None:
        """End the span, once; *complete* says whether the whole response went out."""
        if self._ended:
            return
        self._ended = True
        if not self._owned:
            return
        if not complete:
            self.span.set_attribute("meshmw.response.incomplete", True)
        self.span.end()


def begin_nested(request: Request) -> Operation | None:
    """Return an operation that adds nothing to the one that is under way for the same request, if there is one.

    A WSGI application that is mounted in an ASGI one is the case: the mark that the middleware leaves in its scope does
    not cross. The current span tells of nothing, it may be a leaked one; so the whole request must be the same.
    """
    around = otel_context.get_current()
    outer = around.get(_OPERATION_KEY)
    if not isinstance(outer, Operation) or outer._ended or outer.answered or outer._request is None:
        return None
    if not outer._request.is_same(request):
        return None
    return Operation(trace.get_current_span(around), around, request.method, owned=False)


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
) -> Operation:
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
    if not beside_host and _is_of_this_request(ambient, extraction, around, host_span, propagator):
        tell(ambient, extraction)
        return Operation(ambient, _adopted(ambient, extraction, around), method, owned=False)
    if not beside_host and ambient.get_span_context().is_valid and around.get(READ_KEY) is not extraction:
        propagator.rejections.record(
            "context", "leaked_span", "- a span of something else was current here; it is no parent"
        )
    parent = extraction.into(around)
    if spans != "auto":
        return _without_span(parent, extraction, method, delegated=spans == "contrib")
    links = [Link(extraction.rejected, _REJECTED)] if extraction.rejected is not None else None
    kind = SpanKind.INTERNAL if beside_host else SpanKind.SERVER
    span = (tracer or _TRACER).start_span(span_name(method), parent, kind, attributes, links)
    _tell_refusals(span, extraction)
    return Operation(span, Context({**parent, SPAN_KEY: span, _CLAIM_KEY: span}), method, owned=True)


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


def _without_span(parent: Context, extraction: Extraction, method: str, *, delegated: bool) -> Operation:
    span = trace.get_current_span(parent)
    # An instrumentation further in takes a current span for its own parent, and reads the headers itself.
    values = {key: value for key, value in parent.items() if not delegated or key != SPAN_KEY}
    delegate = extraction if delegated else None
    return Operation(span, Context({**values, _CLAIM_KEY: span}), method, owned=False, delegated=delegate)


def begin_client(method: str, attributes: Attributes, tracer: trace.Tracer | None = None) -> Operation:
    """Begin an outbound request as a child of what is current."""
    parent = otel_context.get_current()
    span = (tracer or _TRACER).start_span(span_name(method), parent, SpanKind.CLIENT, attributes)
    return Operation(span, Context({**parent, SPAN_KEY: span}), method, owned=True)


def _is_of_this_request(
    ambient: Span, extraction: Extraction, context: Context, host_span: Span | None, propagator: MeshPropagator
) -> bool:
    """Say whether a host opened the current span for this very request (law 3).

    The host shows it by its mark, or by having made current what our propagator read from this request's headers.
    One that reads with another propagator shows it by the span's parent.
    """
    found, remote = ambient.get_span_context(), extraction.span_context
    if not found.is_valid or found.is_remote or context.get(_CLAIM_KEY) is ambient:
        return False
    is_server = getattr(ambient, "kind", SpanKind.SERVER) is SpanKind.SERVER
    if context.get(READ_KEY) is extraction and (is_server or host_span is not None or extraction.says_something):
        return True
    if ambient is host_span:
        return remote is None or found.trace_id == remote.trace_id
    if not ambient.is_recording() or not is_server:
        return False
    parent = getattr(ambient, "parent", None)
    if parent is None or remote is None:
        return parent is remote and not is_global(propagator)
    return bool(parent.trace_id == remote.trace_id and parent.span_id == remote.span_id)


def _adopted(span: Span, extraction: Extraction, context: Context) -> Context:
    """Return the host's context, with what hosts leave out and without what they left in of an earlier request."""
    own = context if context.get(READ_KEY) is extraction else extraction.into(context)
    return Context({**own, SPAN_KEY: span, _CLAIM_KEY: span})
