"""What the adapters of all servers share: their options, and how a request begins.

An adapter for another server takes `**options: Unpack[ServerOptions]`, keeps a `Serving` made of them, and asks it for
`effective()` and `begin()` with each request; for RPC, for `decide()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Final, Literal, NamedTuple, Protocol, Self, TypedDict, Unpack

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, TracerProvider, get_current_span

from meshmw import _runtime
from meshmw._context.carriers import Lines
from meshmw._lifecycle.decide import Decision, Notice, decide
from meshmw._lifecycle.http import HttpOperation, Request, begin_nested, begin_server
from meshmw._policy.patterns import PathPatterns
from meshmw._policy.trust import RequestView, TrustCallable, TrustPolicy
from meshmw._policy.words import ServerSpans, Trust, check_options, one_of
from meshmw._runtime import Runtime, checked_propagator, tracer_of
from meshmw.propagator import MeshPropagator

_LEAKED: Final = "- a span of something else was current here; it is no parent"
_HOST_TRUST: Final = (
    "- a host outside this middleware has trusted this caller otherwise: wrap the middleware around the host"
)
_GRPC_HOST_TRUST: Final = "- contrib's interceptor has trusted this caller otherwise: list this interceptor before it"


class ServerOptions(TypedDict, total=False):
    """Names the options that every server's adapter takes; each that is left out is what `configure()` decided.

    Attributes:
        exclude: Path patterns of requests that get no span, as in `Settings.exclude`.
        trust: `continue`, `restart` or `ignore`, or a callable that gets a `RequestView` and returns one of them.
        server_spans: Who makes the SERVER span: `auto`, `off`, or for ASGI `contrib`.
        propagator: Reads the headers.
        tracer_provider: Makes the spans.
    """

    exclude: Sequence[str] | None
    trust: Trust | TrustCallable | None
    server_spans: ServerSpans | None
    propagator: MeshPropagator | None
    tracer_provider: TracerProvider | None


class Asked(Protocol):
    """Shows a request or a call to whoever decides how it is served.

    Attributes:
        lines: Its header lines, by name in lower case.
        path: Its path.
    """

    lines: Lines
    path: str

    def view(self) -> RequestView:
        """Return what a trust decision looks at."""
        ...

    def marked_span(self, ambient: Span, read_by_host: bool) -> Span | None:
        """Return the span that the host marked as this request's own.

        Args:
            ambient: The span that is current as the request begins.
            read_by_host: Whether a host has read the header lines.
        """
        ...


class Serving:
    """Holds the options of one server adapter, over what `configure()` decided.

    Args:
        protocol: What the adapter speaks; contrib makes spans for ASGI alone.
        options: The adapter's.

    Attributes:
        tracer_provider: The one that the adapter was given.

    Raises:
        ValueError: An option holds a word or a pattern that is none.
        TypeError: An option is not known, or holds no propagator or tracer provider.
    """

    def __init__(self, protocol: Literal["asgi", "wsgi", "http", "grpc"], **options: Unpack[ServerOptions]) -> None:
        check_options(options, ServerOptions)
        exclude, trust = options.get("exclude"), options.get("trust")
        server_spans, tracer_provider = options.get("server_spans"), options.get("tracer_provider")
        self._protocol = protocol
        self._exclude = None if exclude is None else PathPatterns(exclude, "exclude")
        self._propagator = checked_propagator(options.get("propagator"))
        self._spans = None if server_spans is None else one_of(ServerSpans, server_spans, "server_spans")
        self._trust = trust
        self.tracer_provider: Final = tracer_provider
        self._tracer = None if tracer_provider is None else tracer_of(tracer_provider)
        if trust is not None:
            TrustPolicy(trust)  # misuse raises here, not at the first request
        self._effective: tuple[Runtime | None, Runtime] | None = None

    def __deepcopy__(self, memo: object) -> Self:
        # What it holds is the process's: its locks cannot be copied, and its counts are for all.
        return self

    def effective(self) -> Runtime:
        """Return what this request is served with: what `configure()` decided, and this adapter's options over it."""
        base = _runtime.installed() if self._propagator else _runtime.current()
        if self._effective is None or self._effective[0] is not base:
            self._effective = (base, self._over(base or Runtime()))
        return self._effective[1]

    def _over(self, base: Runtime) -> Runtime:
        propagator = self._propagator or base.propagator
        spans = self._spans or base.server_spans
        return Runtime(
            propagator=propagator,
            exclude=base.exclude if self._exclude is None else self._exclude,
            flush=base.flush,
            trust=self._trust_over(base, propagator),
            trusted_peers=base.trusted_peers,
            server_spans="auto" if spans == "contrib" and self._protocol != "asgi" else spans,
            messaging_parent=base.messaging_parent,
            tracer=self._tracer or base.tracer,
        )

    def _trust_over(self, base: Runtime, propagator: MeshPropagator) -> TrustPolicy:
        if self._trust is not None:
            return TrustPolicy(self._trust, base.trusted_peers, propagator.rejections)
        if self._propagator is not None and propagator.trust != "continue":
            return TrustPolicy(propagator.trust, base.trusted_peers, propagator.rejections)
        return base.trust

    def begin(self, request: Request, effective: Runtime) -> HttpOperation:
        """Begin to serve an HTTP request; in what the application sees of it, refused headers are rewritten.

        Args:
            request: What is asked.
            effective: What it is served with.
        """
        around = otel_context.get_current()
        if around and (nested := begin_nested(request, around)) is not None:
            return nested
        decision = self.decide(request, effective, around)
        rewrites = decision.extraction.rewrites
        if rewrites:
            request.rewrite(rewrites)
        operation = begin_server(request, decision, around, effective)
        if is_wanted and self._protocol == "asgi":
            note(operation.span.get_span_context(), request.method, request.path)
        return operation

    def decide(self, request: Asked, effective: Runtime, around: Context) -> Decision:
        """Read a request's headers, decide how it is served, and warn of what is odd about what was current.

        Args:
            request: What is asked.
            effective: What it is served with.
            around: What is current.
        """
        propagator, exclude = effective.propagator, effective.exclude
        read, host_read = propagator.read_once(request.lines)
        decision = decide(
            read,
            effective.trust.static or effective.trust.decide(request.view()),
            around,
            propagator,
            host_read,
            request.marked_span(get_current_span(around), host_read is not None) if around else None,
            effective.server_spans if exclude.are_none or not exclude.match(request.path) else "off",
        )
        if decision.notice is not None:
            propagator.rejections.record("context", decision.notice, self._consequence_of(decision.notice))
        return decision

    def _consequence_of(self, notice: Notice) -> str:
        if notice == "leaked_span":
            return _LEAKED
        return _GRPC_HOST_TRUST if self._protocol == "grpc" else _HOST_TRUST


class Served(NamedTuple):
    """Holds what a log line may say of a request.

    Attributes:
        span_context: The span that serves it.
        method: Its method.
        path: Its path, decoded.
    """

    span_context: SpanContext
    method: str
    path: str


# Which request a server task is serving, for servers that log it once its context is gone. Never reset: a server logs
# in the task that served, after the application has returned. Every request overwrites it.
_SERVED: Final[ContextVar[Served | None]] = ContextVar("meshmw-served", default=None)
# Whether anybody logs it: until then, nothing calls `note()`.
is_wanted = False


def want() -> None:
    """Have requests noted from now on."""
    global is_wanted
    is_wanted = True


def note(span_context: SpanContext, method: str, path: str) -> None:
    """Note which request this task serves."""
    _SERVED.set(Served(span_context, method, path))


def noted() -> Served | None:
    """Return the request that this task serves or served last; the caller checks that it is the one that is meant."""
    return _SERVED.get()
