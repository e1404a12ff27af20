"""ASGI middleware for any framework: FastAPI, Starlette, Quart, Litestar, Django, or a bare application.

Knows the ASGI protocol. Must not know the formats, nor how a span lives.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span

from meshmw import runtime
from meshmw.asgi_response import Message, Response, Scope, Send
from meshmw.boundary.http import tell
from meshmw.boundary.request import Request
from meshmw.carriers import rewrite_asgi
from meshmw.contrib import under_contrib
from meshmw.policy.request_view import RequestView
from meshmw.policy.trust import Trust, TrustCallable
from meshmw.propagation.attachment import take_back
from meshmw.propagator import MeshPropagator
from meshmw.runtime import Runtime, ServerSpans
from meshmw.semconv import http as semconv
from meshmw.semconv.attributes import AttributeValue
from meshmw.serving import ServerOptions

Receive: TypeAlias = Callable[[], Awaitable[Message]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_REQUESTS: Final = frozenset({"http", "websocket"})
_OPERATION: Final = "meshmw.operation"
# Hosts open no span of their own for a scope that carries their mark.
_FASTAPI: Final = "fastapi.telemetry"
_STARLETTE: Final = "starlette.opentelemetry"
_NOBODY: Final = (None, None)
# By whether FastAPI and whether Starlette has left one: those that are still missing.
_MISSING_MARKS: Final[Mapping[tuple[bool, bool], Mapping[str, object]]] = {
    (False, False): {_FASTAPI: None, _STARLETTE: True},
    (True, False): {_STARLETTE: True},
    (False, True): {_FASTAPI: None},
    (True, True): {},
}


class TraceContextMiddleware:
    """Continues the caller's trace in an ASGI application: extracts, validates, attaches, and opens the SERVER span.

    A malformed trace header is removed from the scope, and the request starts a new trace. A span that the host
    framework opened for the same request is adopted instead of doubled. HTTP requests and WebSocket handshakes are
    handled; everything else passes untouched. When the server shuts the application down, queued spans are exported.

    Args:
        app: The ASGI application to wrap.
        exclude: Path patterns of requests that get no span, as in `Settings.exclude`.
        trust: `continue`, `restart` or `ignore`, or a callable that gets a `RequestView` and returns one of them.
        server_spans: `auto`, `off`, or `contrib`: opentelemetry-instrumentation-asgi makes the SERVER span.
        propagator: Reads the headers.
        tracer_provider: Makes the spans.

    Each option that is left out is what `configure()` settled.
    """

    def __init__(
        self,
        app: App,
        *,
        exclude: Sequence[str] | None = None,
        trust: Trust | TrustCallable | None = None,
        server_spans: ServerSpans | None = None,
        propagator: MeshPropagator | None = None,
        tracer_provider: trace.TracerProvider | None = None,
    ) -> None:
        self.app = app
        self._options = ServerOptions(
            exclude=exclude,
            trust=trust,
            server_spans=server_spans,
            propagator=propagator,
            tracer_provider=tracer_provider,
            protocol="asgi",
        )
        self._tracer_provider = tracer_provider
        # What is missing is said here, where a program starts, and not by each request.
        self._contrib = under_contrib(self._told, tracer_provider) if server_spans == "contrib" else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] not in _REQUESTS or _OPERATION in scope:
            await self._pass(scope, receive, send)
            return
        settled = self._options.settled()
        operation = self._options.begin(_AsgiRequest(scope, settled), settled)
        app = self.app if operation.delegated is None else self._under_contrib()
        marks = _stand_hosts_down(scope)
        scope[_OPERATION] = operation
        response = Response(operation, scope, send)
        ended_by: type[BaseException] | None = None
        token = otel_context.attach(operation.context)
        try:
            await app(scope, receive, response.send)
        except BaseException as error:
            ended_by = type(error)
            response.fail(error)
            raise
        finally:
            take_back(token, operation.context, ended_by)
            if not operation.is_over:
                response.end()
            scope.pop(_OPERATION, None)
            for mark in marks:
                scope.pop(mark, None)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is no request of ours; after the lifespan, which the outermost sees, export what is queued."""
        if scope["type"] != "lifespan" or _OPERATION in scope:
            await self.app(scope, receive, send)
            return
        scope[_OPERATION] = None
        try:
            await self.app(scope, receive, send)
        finally:
            scope.pop(_OPERATION, None)
            # uvicorn now dies of the SIGTERM that stopped it, and no exit handler runs.
            runtime.flush()

    def _under_contrib(self) -> App:
        if self._contrib is None:
            self._contrib = under_contrib(self._told, self._tracer_provider)
        return self._contrib

    async def _told(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve inside contrib's span, and note on it what contrib does not know."""
        tell(trace.get_current_span(), scope[_OPERATION].delegated)
        await self.app(scope, receive, send)


class _AsgiRequest(Request):
    """Is a request in its scope."""

    __slots__ = ()

    protocol = "asgi"

    def __init__(self, scope: Scope, settled: Runtime) -> None:
        # What `Request` does, without the call: there is one for each request.
        self.method = scope.get("method", "GET")
        self.path = scope["path"]
        self.lines = settled.headers.from_asgi(scope["headers"])
        self.carrier = scope
        self.is_over = False

    def view(self) -> RequestView:
        return RequestView.from_asgi(self.carrier)

    def attributes(self) -> dict[str, AttributeValue]:
        scope, lines = self.carrier, self.lines
        client, port = (scope.get("client") or _NOBODY)[:2]
        return semconv.server_attributes(
            method=self.method,
            scheme=scope.get("scheme") or "http",
            path=self.path,
            query=scope.get("query_string", b"").decode("latin-1"),
            authority=lines["host"][0] if "host" in lines else _own_authority(scope.get("server")),
            protocol_version=scope.get("http_version"),
            client=client,
            client_port=port,
            user_agent=lines["user-agent"][0] if "user-agent" in lines else None,
        )

    def host_span(self, read_by_host: bool) -> Span | None:
        scope = self.carrier
        if scope.get(_STARLETTE):
            # Starlette leaves no span there, and its mark also where it opens none; then it does not read the headers.
            return trace.get_current_span() if read_by_host else None
        mark = scope.get(_FASTAPI)
        span = None if mark is None else getattr(mark, "span", None)
        return span if isinstance(span, Span) else None

    def rewrite(self, rewrites: dict[str, str | None]) -> None:
        super().rewrite(rewrites)
        self.carrier["headers"] = rewrite_asgi(self.carrier["headers"], rewrites)


def _own_authority(server: Sequence[Any] | None) -> str | None:
    return f"{server[0]}:{server[1]}" if server and server[1] else None


def _stand_hosts_down(scope: Scope) -> Iterable[str]:
    """Mark the scope, so that no host further in opens a second SERVER span; return the marks that are new."""
    missing = _MISSING_MARKS[_FASTAPI in scope, _STARLETTE in scope]
    scope.update(missing)
    return missing
