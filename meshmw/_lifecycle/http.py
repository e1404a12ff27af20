"""HTTP requests, served and sent: their spans, their names and their single end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, ClassVar, Final, Literal

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context, create_key
from opentelemetry.trace import NoOpTracer, ProxyTracer, Span, SpanKind, StatusCode

from meshmw._context.carriers import Lines, are_same
from meshmw._context.current import Current
from meshmw._context.extraction import Extraction
from meshmw._lifecycle.decide import CLAIM_KEY, Decision, claimed, context_below
from meshmw._lifecycle.http_conventions import (
    CLIENT,
    CLIENT_IS_MEASURED,
    SERVER,
    SERVER_IS_MEASURED,
    Measurement,
    span_name,
)
from meshmw._lifecycle.operation import (
    Attributes,
    AttributeValue,
    LazyAttributes,
    Operation,
    StandDown,
    is_suppressed,
    record_refusals,
)
from meshmw._otel import FLAGS_ITEM, SPAN_KEY, SUPPRESS_HTTP_KEY, PassingTracer, is_asked_by_server
from meshmw._policy.outbound import Pair
from meshmw._policy.trust import RequestView
from meshmw._runtime import Runtime
from meshmw.wire.traceparent import FLAG_SAMPLED

# The request that is served in a context, for a middleware further in, behind another protocol. The operation itself
# would lead back to the context: in a circle that only the garbage collector finds, for every request.
_REQUEST_KEY: Final = create_key("meshmw-request")
# Where a scope or an environ holds the operation that serves its request.
OPERATION: Final = "meshmw.operation"
# The spans of ddtrace say their kind by a word.
_CLIENTS: Final = SpanKind.CLIENT, "client"
# Whose spans take no attributes: those of an SDK that is disabled, and those where there is none.
_IDLE: Final = frozenset({NoOpTracer, PassingTracer, ProxyTracer})


class Request(ABC):
    """Shows what is asked; each adapter reads the rest of it where its protocol keeps that, and only when asked.

    Args:
        method: Its method.
        path: Its path, whole.
        lines: Its header lines as the application sees them, by name in lower case.
        carrier: The scope or environ that it came in; held until the request is over and no longer, for contexts that
            outlive the request hold this object.

    Attributes:
        is_over: Whether its last byte was answered, or its operation has ended otherwise.
    """

    __slots__ = ("carrier", "is_over", "lines", "method", "path")

    protocol: ClassVar[Literal["asgi", "wsgi", "http"]]

    def __init__(self, method: str, path: str, lines: Lines, carrier: MutableMapping[str, Any]) -> None:
        self.method = method
        self.path = path
        self.lines = lines
        self.carrier = carrier
        self.is_over = False

    @abstractmethod
    def view(self) -> RequestView:
        """Return what a trust decision looks at."""

    @abstractmethod
    def attributes(self) -> dict[str, AttributeValue]:
        """Return what a span says of the request as it arrives."""

    def marked_span(self, ambient: Span, read_by_host: bool) -> Span | None:
        """Return the span that the host marked as this request's own; none here.

        Args:
            ambient: The span that is current as the request begins.
            read_by_host: Whether a host has read the header lines.
        """
        return None

    def rewrite(self, rewrites: dict[str, str | None]) -> None:
        """Replace or remove the named headers in what the application sees."""
        kept = {name: found for name, found in self.lines.items() if name not in rewrites}
        self.lines = kept | {name: [text] for name, text in rewrites.items() if text is not None}

    def close(self) -> None:
        """Let go of what the request came in."""
        self.is_over = True
        self.carrier = {}

    def join(self, outer: Request) -> None:  # noqa: B027  # a scope and an environ show it already
        """Show the application what the same request further out shows it, where that is served without a span."""

    def is_same(self, other: Request) -> bool:
        """Say whether this, still under way, is the other request in another protocol.

        Within one protocol the mark in the scope or environ tells, and a request that looks alike is another one.
        """
        if self.is_over or self.protocol == other.protocol:
            return False
        if (self.method, self.path) != (other.method, other.path):
            return False
        return all(are_same(self.lines.get(name), other.lines.get(name)) for name in {*self.lines, *other.lines})


class HttpOperation(Operation):
    """Holds one request, from its first header to its last byte.

    Args:
        span: Its span.
        context: What is current while user code runs.
        method: Its method.
        request: What is served, or None for what is sent.
        owned: Whether the span is ours to add to and to end.
        delegated: What the headers say, where an instrumentation further in is to make the span; else None.
    """

    # The first is there once the application has chosen a route: to say so of each request would cost each request.
    __slots__ = ("_is_chosen", "_method", "delegated", "request")

    def __init__(
        self,
        span: Span,
        context: Context,
        method: str,
        request: Request | None = None,
        *,
        owned: bool = True,
        delegated: Extraction | None = None,
    ) -> None:
        super().__init__(span, context, owned=owned)
        self.delegated = delegated
        self.request = request
        self._method = method

    def answered(self) -> None:
        """Note that the last byte went out: nobody further in serves this request from here on."""
        if self.request is not None:
            self.request.is_over = True

    def route(self, route: str) -> None:
        """Name the span after the route template that the framework matched, unless the application has chosen one."""
        if not hasattr(self, "_is_chosen"):
            self._name(route)

    def choose_route(self, route: str) -> None:
        """Name the span after the route template that the application itself says; a host's span too."""
        self._is_chosen = True
        self._name(route, is_chosen=True)

    def _name(self, route: str, is_chosen: bool = False) -> None:
        if self.is_open or (is_chosen and not self.is_over):
            self.span.update_name(span_name(self._method, route))
            self.span.set_attribute("http.route", route)

    def status(self, code: int, error_from: int) -> None:
        """Record the response's status code; from *error_from* on it makes the span an error."""
        if not self._owned:
            return
        # What was raised says more than the answer to it.
        if code >= error_from and self._failed_with is None:
            self.span.set_attribute("error.type", str(code))
            self.span.set_status(StatusCode.ERROR)
        self.span.set_attribute("http.response.status_code", code)

    def break_off(self) -> None:
        """End the span, once, as that of a response that did not go out whole; do nothing where it has ended."""
        if self.is_open:
            self.span.set_attribute("meshmw.response.incomplete", True)
        self.end()

    def sending(self) -> Current:
        """Return a block in which a transport further in sends the request, and telemetry of clients stands back."""
        return Sending(self)

    def end(self) -> None:
        """End the span, once, and let go of the request."""
        if self.is_over:
            return
        self.is_over = True
        self._failed_with = None
        if self._owned:
            self.span.end()
        if self.request is not None:
            self.request.close()


class MeasuredHttpOperation(HttpOperation):
    """Holds a request of ours whose duration somebody wants to know, also where its span is not recorded.

    Args:
        span: Its span.
        context: What is current while user code runs.
        method: Its method.
        request: What is served, or None for what is sent.
        measurement: Times it.
    """

    __slots__ = ("_measurement",)

    def __init__(
        self, span: Span, context: Context, method: str, request: Request | None, measurement: Measurement
    ) -> None:
        super().__init__(span, context, method, request)
        self._measurement = measurement

    @property
    def is_open(self) -> bool:
        """Say whether something can still be added, to the span or to what is measured."""
        return not self.is_over

    def _name(self, route: str, is_chosen: bool = False) -> None:
        # It is a label too.
        if not self.is_over:
            self._measurement.labels["http.route"] = route
        super()._name(route, is_chosen)

    def status(self, code: int, error_from: int) -> None:
        """Record the response's status code."""
        self._measurement.status(code, error_from)
        super().status(code, error_from)

    def fail(self, error: BaseException) -> None:
        """Record what user code or the network raised."""
        self._measurement.fail(error)
        super().fail(error)

    def end(self) -> None:
        """End the span, once, and record how long it took."""
        if not self.is_over:
            self._measurement.record(self.context)
        super().end()


class NestedHttpOperation(HttpOperation):
    """Holds a request that another protocol further out serves already; what frameworks match names that one's span.

    Args:
        outer: The operation of that request.
        around: What is current.
        method: The request's method.
    """

    __slots__ = ("_outer",)

    def __init__(self, outer: HttpOperation, around: Context, method: str) -> None:
        super().__init__(trace.get_current_span(around), around, method, owned=False)
        self._outer = outer

    @property
    def is_open(self) -> bool:
        """Say whether something can still be added to the span further out."""
        return self._outer.is_open

    def route(self, route: str) -> None:
        """Name the span further out."""
        self._outer.route(route)


class SuppressedHttpOperation(HttpOperation):
    """Holds an outbound request that gets no span, because instrumentation is suppressed where it is sent.

    Its context is what goes out: nothing. What is current stays so, with what suppresses.

    Args:
        method: Its method.
    """

    __slots__ = ()

    def __init__(self, method: str) -> None:
        super().__init__(trace.INVALID_SPAN, Context(), method, owned=False)

    def current(self) -> Current:
        """Return a block in which what is current stays so."""
        return Current(otel_context.get_current())

    sending = current


def current_operation(context: Context | None = None) -> HttpOperation | None:
    """Return the operation of the request that is served here: of several protocols within one another, the outermost.

    None where no middleware of ours began it, and once it is over.

    Args:
        context: Where the request is served; what is current, if None.
    """
    request = (otel_context.get_current() if context is None else context).get(_REQUEST_KEY)
    found = request.carrier.get(OPERATION) if isinstance(request, Request) else None
    return found if isinstance(found, HttpOperation) else None


def begin_nested(request: Request, around: Context) -> HttpOperation | None:
    """Return an operation that adds a route at most to the one that is under way for the same request, if there is one.

    A WSGI application that is mounted in an ASGI one is the case: the mark that the middleware leaves in its scope does
    not cross. The current span proves nothing, it may be a leaked one; so the whole request must be the same.
    """
    outer = current_operation(around)
    if outer is None or outer.request is None or not outer.request.is_same(request):
        return None
    request.join(outer.request)
    return NestedHttpOperation(outer, around, request.method)


def begin_server(request: Request, decision: Decision, around: Context, effective: Runtime) -> HttpOperation:
    """Begin to serve a request.

    Args:
        request: What is asked.
        decision: Whose its span is, and what is trusted of its headers.
        around: What is current.
        effective: Makes the span.
    """
    extraction, tracer = decision.extraction, effective.tracer
    if decision.whose != "ours":
        return _begin_without_span(request, decision, around)
    entries, remote = extraction.entries_over(around), extraction.span_context
    is_sampled = remote is not None and remote[FLAGS_ITEM] & FLAG_SAMPLED
    # What B3 headers say may weigh more than the parent does.
    plain = remote if extraction.b3 is None and extraction.rejected is None else None
    span = None if plain is None or is_sampled else effective.dropped(plain)
    attributes: Attributes | None = None
    if span is None:
        # A span whose parent is sampled is likely to want them; to put the question off costs more than to answer it.
        is_likely = is_sampled and type(tracer) not in _IDLE
        attributes = request.attributes() if is_likely else LazyAttributes(request.attributes)
        name, below = span_name(request.method), Context(entries)
        if plain is not None and is_likely:
            span = effective.recorded(plain, name, below, decision.kind, attributes)
        if span is None:
            span = tracer.start_span(name, below, decision.kind, attributes, decision.links)
    if extraction.refused:
        record_refusals(span, extraction, link=False)
    entries |= {SPAN_KEY: span, CLAIM_KEY: span, _REQUEST_KEY: request}
    context = Context(entries)
    if SERVER_IS_MEASURED() and decision.kind is SpanKind.SERVER:
        measurement = Measurement(SERVER, attributes or LazyAttributes(request.attributes))
        return MeasuredHttpOperation(span, context, request.method, request, measurement)
    return HttpOperation(span, context, request.method, request)


def _begin_without_span(request: Request, decision: Decision, around: Context) -> HttpOperation:
    below = context_below(decision, around)
    span = decision.host_span or trace.get_current_span(below)
    context = Context({**claimed(below, span), _REQUEST_KEY: request})
    delegated = None
    if decision.whose == "host":
        record_refusals(span, decision.extraction)
    elif decision.whose == "contrib":
        # An instrumentation further in takes a current span for its own parent, and reads the headers itself.
        context = Context({key: value for key, value in context.items() if key != SPAN_KEY})
        delegated = decision.extraction
    return HttpOperation(span, context, request.method, request, owned=False, delegated=delegated)


def begin_client(
    method: str, build: Callable[[], dict[str, AttributeValue]], tracer: trace.Tracer, lines: Iterable[Pair] = ()
) -> HttpOperation:
    """Begin an outbound request as a child of what is current.

    Where instrumentation is suppressed there is no span. Where a client further out, such as contrib's, has opened one
    for this request, that is adopted.

    Args:
        method: Its method.
        build: Returns its attributes; it is called at most once, and late where the parent is not recorded.
        tracer: Makes the span.
        lines: The request's header lines.
    """
    around = otel_context.get_current()
    if is_suppressed(around, http=True):
        return SuppressedHttpOperation(method)
    parent = around.get(SPAN_KEY)
    is_likely = False
    if isinstance(parent, Span) and parent.is_recording():
        if _is_of_this_call(parent, lines):
            return HttpOperation(parent, around, method, owned=False)
        is_likely = type(tracer) not in _IDLE
    attributes = build() if is_likely else LazyAttributes(build)
    span = tracer.start_span(span_name(method), around, SpanKind.CLIENT, attributes)
    context = Context({**around, SPAN_KEY: span})
    if CLIENT_IS_MEASURED():
        return MeasuredHttpOperation(span, context, method, None, Measurement(CLIENT, attributes))
    return HttpOperation(span, context, method)


def _is_of_this_call(span: Span, lines: Iterable[Pair]) -> bool:
    """Say whether the current span is that of a client further out, which has written it on this very request.

    Any format holds the span's id. Without it the request is another one, sent by the outer call's own server.
    """
    if getattr(span, "kind", None) not in _CLIENTS:
        return False
    span_id = b"%016x" % span.get_span_context().span_id
    return any(span_id in value for _, value in lines)


class Sending(Current):
    """Makes an operation's context current while a transport further in sends, and telemetry of clients stands back.

    Args:
        operation: The request's.
    """

    __slots__ = ("_stand_down",)

    def __init__(self, operation: HttpOperation) -> None:
        self._stand_down = _WhileSending(operation.context.get(CLAIM_KEY))
        super().__init__(Context({**operation.context, SUPPRESS_HTTP_KEY: self._stand_down}))

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        self._stand_down.is_over = True
        super().__exit__(kind, *raised)


class _WhileSending(StandDown):
    """Counts as true for whichever client's instrumentation asks while the request is sent.

    Where the application is called within this process it counts no more: neither for its server's instrumentation nor
    for the calls that it makes. Tasks and threads that copy the context and outlive the call are not meant either.

    Args:
        claim: The span that is claimed for what is served where the request is sent.
    """

    __slots__ = ("_claim", "is_over")

    def __init__(self, claim: object) -> None:
        self._claim = claim
        self.is_over = False

    def __bool__(self) -> bool:
        if not self.is_over:
            self.is_over = is_asked_by_server()
        return not self.is_over and otel_context.get_current().get(CLAIM_KEY) is self._claim
