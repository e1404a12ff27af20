"""The options of a server's adapter over the process's settings, and how it begins a request.

Both middleware take the same options and begin a request in the same way; only where things stand differs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Final, Literal, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import SpanContext

from meshmw import _runtime
from meshmw._lifecycle.http import HttpOperation, Request, begin_nested, begin_server
from meshmw._policy.patterns import PathPatterns
from meshmw._policy.trust import Trust, TrustCallable, TrustPolicy
from meshmw._policy.words import one_of
from meshmw._runtime import Runtime, ServerSpans
from meshmw._version import __version__
from meshmw.propagator import MeshPropagator

# Which request a server task is serving, for servers that log it once its context is gone.


class Served(NamedTuple):
    """Is what a log line may tell of a request.

    Attributes:
        span_context: The span that serves it.
        method: Its method.
        path: Its path, decoded.
    """

    span_context: SpanContext
    method: str
    path: str


# Never reset: a server logs in the task that served, after the application has returned. Every request overwrites it.
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
    """Return the request that this task serves or served last; whoever asks must see whether it is the one he means."""
    return _SERVED.get()


_WRAP: Final = "- a host outside this middleware has trusted this caller otherwise: wrap the middleware around the host"


class ServerOptions:
    """Holds the options of one middleware; each that is None is the settings' own, looked up per request.

    Args:
        exclude: Path patterns of requests that get no span.
        trust: How far callers are believed; a word, or a callable that gets a `RequestView`.
        server_spans: Who makes the SERVER span.
        propagator: Reads the headers.
        tracer_provider: Makes the spans.
        protocol: What the middleware speaks; contrib makes spans for ASGI alone.
    """

    def __init__(
        self,
        *,
        exclude: Sequence[str] | None,
        trust: Trust | TrustCallable | None,
        server_spans: ServerSpans | None,
        propagator: MeshPropagator | None,
        tracer_provider: trace.TracerProvider | None,
        protocol: Literal["asgi", "wsgi", "grpc"],
    ) -> None:
        self._protocol = protocol
        self._exclude = None if exclude is None else PathPatterns(exclude)
        self._propagator = propagator
        self._spans = None if server_spans is None else one_of(ServerSpans, server_spans, "server_spans")
        self._trust = trust
        self._tracer = None if tracer_provider is None else tracer_provider.get_tracer("meshmw", __version__)
        if trust is not None:
            TrustPolicy(trust)  # misuse raises here, not at the first request
        self._effective: tuple[Runtime | None, Runtime] | None = None

    def effective(self) -> Runtime:
        """Return what this request is served with: the process's settings, and this middleware's options over them."""
        base = _runtime.installed() if self._propagator else _runtime.current()
        if self._effective is None or self._effective[0] is not base:
            self._effective = (base, self._over(base or Runtime()))
        return self._effective[1]

    def _over(self, base: Runtime) -> Runtime:
        propagator = self._propagator or base.propagator
        spans = self._spans or base.server_spans
        return dataclasses.replace(
            base,
            propagator=propagator,
            exclude=base.exclude if self._exclude is None else self._exclude,
            trust=self._trust_over(base, propagator),
            server_spans="auto" if spans == "contrib" and self._protocol != "asgi" else spans,
        )

    def _trust_over(self, base: Runtime, propagator: MeshPropagator) -> TrustPolicy:
        if self._trust is not None:
            return TrustPolicy(self._trust, base.trusted_peers, propagator.rejections)
        if self._propagator is not None and propagator.trust != "continue":
            return TrustPolicy(propagator.trust, base.trusted_peers, propagator.rejections)
        return base.trust

    def begin(self, request: Request, effective: Runtime) -> HttpOperation:
        """Begin to serve a request; in what the application sees of it, refused headers are rewritten.

        Args:
            request: What is asked.
            settled: What it is served with.
        """
        around = otel_context.get_current()
        if around and (nested := begin_nested(request, around)) is not None:
            return nested
        propagator, exclude = effective.propagator, effective.exclude
        extraction, host_read = propagator.read_once(request.lines)
        trust = effective.trust.static or effective.trust.decide(request.view())
        if trust != "continue":
            extraction = extraction.trusted(trust)
        host_disagrees = False
        if host_read is not None and host_read is not extraction:
            host_disagrees = host_read != extraction
            extraction = extraction if host_disagrees else host_read
        if host_disagrees and (host_disagrees := trace.get_current_span().get_span_context().is_valid):
            propagator.rejections.record("context", "host_trust", _WRAP)
        if extraction.rewrites:
            request.rewrite(extraction.rewrites)
        operation = begin_server(
            request,
            extraction,
            around,
            propagator=propagator,
            # Where nothing is current, no host has opened a span.
            host_span=request.host_span(host_read is not None) if around else None,
            spans=effective.server_spans if exclude.are_none or not exclude.match(request.path) else "off",
            host_disagrees=host_disagrees,
            tracer=self._tracer,
        )
        if is_wanted and self._protocol == "asgi":
            note(operation.span.get_span_context(), request.method, request.path)
        return operation
