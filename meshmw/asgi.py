"""ASGI middleware for any framework: FastAPI, Starlette, Quart, Litestar, Django, or a bare application.

Knows the ASGI protocol. Must not know the formats, nor how a span lives.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, Final, TypeAlias

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span

from meshmw import runtime
from meshmw.asgi_route import route_of
from meshmw.boundary.http import tell
from meshmw.boundary.http_operation import HttpOperation
from meshmw.boundary.request import Request
from meshmw.carriers import rewrite_asgi
from meshmw.contrib import under_contrib
from meshmw.policy.request_view import RequestView
from meshmw.policy.trust import Trust, TrustCallable
from meshmw.propagation.attachment import take_back
from meshmw.propagator import MeshPropagator
from meshmw.runtime import LOGGER, Runtime, ServerSpans
from meshmw.semconv import http as semconv
from meshmw.semconv.attributes import AttributeValue
from meshmw.serving import ServerOptions

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_REQUESTS: Final = frozenset({"http", "websocket"})
_OPERATION: Final = "meshmw.operation"
# Hosts open no span of their own for a scope that carries their mark.
_FASTAPI: Final = "fastapi.telemetry"
_STARLETTE: Final = "starlette.opentelemetry"
_NOBODY: Final = (None, None)
_HOSTS: Final = {_FASTAPI: None, _STARLETTE: True}
# A WebSocket that is closed before it was accepted is answered with 403 (ASGI, websocket.close).
_HANDSHAKE_STATUS: Final = {"websocket.accept": 101, "websocket.close": 403}
# The response with which a handshake is refused has the same messages, named with a prefix.
_STARTS: Final = frozenset({"http.response.start", "websocket.http.response.start", *_HANDSHAKE_STATUS})
_BODIES: Final = frozenset({"http.response.body", "http.response.zerocopysend", "websocket.http.response.body"})
# Nothing of the response comes after one of these.
_WHOLE: Final = frozenset({"http.response.pathsend", *_HANDSHAKE_STATUS})


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
        response = _Response(operation, scope, send)
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
        lines = settled.headers.from_asgi(scope["headers"])
        super().__init__(scope.get("method", "GET"), scope["path"], lines, scope)

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


class _Response:
    """Watches what the application sends, and ends the operation with the last byte.

    A framework that answers 5xx for an exception raises it afterwards, so such an operation waits for its return.
    """

    __slots__ = ("_complete", "_is_failure", "_operation", "_scope", "_send", "_started", "_trailers")

    def __init__(self, operation: HttpOperation, scope: Scope, send: Send) -> None:
        self._operation = operation
        self._scope = scope
        self._send = send
        self._started = False
        self._trailers = False
        self._is_failure = False
        self._complete = False

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message on, and read from it how far the response is."""
        kind: str = message["type"]
        if kind in _BODIES:
            is_last = not (self._trailers or message.get("more_body"))
        else:
            if kind in _STARTS and not self._started:
                self._start(kind, message)
            is_last = kind in _WHOLE or (kind == "http.response.trailers" and not message.get("more_trailers"))
        # What the server's own `send` returns is handed out as it is, but for the message that ends the operation.
        return self._send_last(message) if is_last else self._send(message)

    # Some ask whether they may await it before they call it: asgiref's WsgiToAsgi warns of any other function.
    if sys.version_info >= (3, 12):  # pragma: no cover - each version of Python takes one of the two
        inspect.markcoroutinefunction(send)
    else:  # pragma: no cover
        send._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]

    async def _send_last(self, message: Message) -> None:
        await self._send(message)
        self._complete = True
        if self._is_failure:
            self._operation.answered()
        else:
            self.end()

    def fail(self, error: BaseException) -> None:
        """Record an error; a server answers 500 for an application that raised before it had answered."""
        if not self._started and isinstance(error, Exception):
            self._operation.status(500, error_from=500)
        self._operation.fail(error)

    def end(self) -> None:
        """End the operation under the route that the framework left in the scope."""
        operation = self._operation
        if operation.is_over:
            return
        if operation.is_open:
            try:
                if route := route_of(self._scope):
                    operation.route(route)
            except Exception:
                # Whatever a framework or an application has left in the scope: the response is theirs, a name is not.
                LOGGER.debug("the route could not be read from the scope", exc_info=True)
        operation.finish(complete=self._complete)

    def _start(self, kind: str, message: Message) -> None:
        self._started = True
        self._trailers = message.get("trailers", False)
        status = message.get("status", _HANDSHAKE_STATUS.get(kind, 0))
        self._is_failure = status >= 500
        self._operation.status(status, error_from=500)


def _stand_hosts_down(scope: Scope) -> Iterable[str]:
    """Mark the scope, so that no host further in opens a second SERVER span; return the marks that are new."""
    new: Mapping[str, object] = _HOSTS
    if _FASTAPI in scope or _STARLETTE in scope:
        new = {mark: value for mark, value in _HOSTS.items() if mark not in scope}
    scope.update(new)
    return new
