"""ASGI middleware for any framework: FastAPI, Starlette, Quart, Litestar, Django, or a bare application."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, Final, TypeAlias

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span

from meshmw import _runtime
from meshmw._context.carriers import rewrite_asgi
from meshmw._context.current import detach
from meshmw._context.read import BaggageLimit
from meshmw._lifecycle import http_conventions as semconv
from meshmw._lifecycle.conventions import AttributeValue
from meshmw._lifecycle.http import HttpOperation, Request
from meshmw._lifecycle.operation import record_refusals
from meshmw._lifecycle.serving import ServerOptions
from meshmw._notices import DEFAULT_WARN_WINDOW, LOGGER
from meshmw._policy.trust import RequestView, Trust, TrustCallable
from meshmw._runtime import Runtime, ServerSpans
from meshmw.errors import MissingExtraError
from meshmw.propagator import MeshPropagator
from meshmw.wire.baggage import MAX_BYTES, MAX_MEMBERS

# Which route an ASGI framework has matched, as it left it in the scope.


Scope: TypeAlias = MutableMapping[str, Any]


def route_of(scope: Scope) -> str | None:
    """Return the route template that Starlette, FastAPI or Litestar matched, with prefixes of routers and mounts."""
    route = scope.get("route")
    if route is None:
        found = scope.get("path_template")
        return _mounted_at(scope, found) + found if isinstance(found, str) and found else None
    if hasattr(route, "routes"):
        # A mount, in which nothing more was matched: where it is mounted is in the root path.
        return _mounted_at(scope, "") or None
    template = getattr(_effective(scope, route), "path_format", None) or getattr(route, "path", None)
    return _mounted_at(scope, template) + template or "/" if isinstance(template, str) else None


def _effective(scope: Scope, route: object) -> object:
    """Return what FastAPI made of a route that came with an included router, whose prefix the route does not know."""
    found = scope.get("fastapi")
    context = found.get("effective_route_context") if isinstance(found, dict) else None
    return context if getattr(context, "original_route", None) is route else route


def _mounted_at(scope: Scope, template: str) -> str:
    """Return the root path, in which parameters of mounts have their names again."""
    root = str(scope.get("root_path", "")).rstrip("/")
    names = {
        str(value): f"{{{name}}}"
        for name, value in scope.get("path_params", {}).items()
        if f"{{{name}}}" not in template
    }
    shown = (names.get(segment, segment) for segment in root.split("/"))
    return "/".join(shown)


# The response of an ASGI application, as its messages tell it: its status, its route, and the operation's end.


Message: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

# A WebSocket that is closed before it was accepted is answered with 403 (ASGI, websocket.close).
_HANDSHAKE_STATUS: Final = {"websocket.accept": 101, "websocket.close": 403}
# The response with which a handshake is refused has the same messages, named with a prefix.
_STARTS: Final = frozenset({"http.response.start", "websocket.http.response.start", *_HANDSHAKE_STATUS})
_BODIES: Final = frozenset({"http.response.body", "http.response.zerocopysend", "websocket.http.response.body"})
# Nothing of the response comes after one of these.
_WHOLE: Final = frozenset({"http.response.pathsend", *_HANDSHAKE_STATUS})


class Response:
    """Watches what the application sends, and ends the operation with the last byte.

    A framework that answers 5xx for an exception raises it afterwards, so such an operation waits for its return.

    Args:
        operation: The request's.
        scope: Where the framework leaves the route.
        send: The server's own.
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
    else:  # pragma: no cover - so it is asked on Python 3.11, which has no function to say it
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
        if self._complete:
            operation.end()
        else:
            operation.break_off()

    def _start(self, kind: str, message: Message) -> None:
        self._started = True
        self._trailers = message.get("trailers", False)
        status = message["status"] if "status" in message else _HANDSHAKE_STATUS.get(kind, 0)
        self._is_failure = status >= 500
        self._operation.status(status, error_from=500)


# opentelemetry-instrumentation-asgi, where that is to make the SERVER span below our extraction.


def require_contrib() -> Any:
    """Return contrib's ASGI middleware class.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    except ModuleNotFoundError as missing:
        raise MissingExtraError("opentelemetry-instrumentation-asgi", "contrib") from missing
    return OpenTelemetryMiddleware


def under_contrib(
    app: Callable[..., Awaitable[None]], tracer_provider: trace.TracerProvider | None
) -> Callable[..., Awaitable[None]]:
    """Return an ASGI application inside contrib's middleware."""
    wrapped: Callable[..., Awaitable[None]] = require_contrib()(app, tracer_provider=tracer_provider)
    return wrapped


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
        effective = self._options.effective()
        operation = self._options.begin(_AsgiRequest(scope, effective), effective)
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
            detach(token, operation.context, ended_by)
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
            _runtime.flush()

    def _under_contrib(self) -> App:
        if self._contrib is None:
            self._contrib = under_contrib(self._told, self._tracer_provider)
        return self._contrib

    async def _told(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve inside contrib's span, and note on it what contrib does not know."""
        record_refusals(trace.get_current_span(), scope[_OPERATION].delegated)
        await self.app(scope, receive, send)


class _AsgiRequest(Request):
    """Is a request in its scope."""

    __slots__ = ()

    protocol = "asgi"

    def __init__(self, scope: Scope, effective: Runtime) -> None:
        # What `Request` does, without the call: there is one for each request.
        self.method = scope.get("method", "GET")
        self.path = scope["path"]
        self.lines = effective.headers.from_asgi(scope["headers"])
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


AsgiApp: TypeAlias = Callable[[Scope, Any, Any], Awaitable[None]]


class BaggageSizeFilter:
    """Keeps the baggage that an ASGI application receives within limits. HTTP requests and WebSockets are handled.

    A header within the limits stays as it is. Of any other the members are kept from the left, whole and byte for
    byte, in one line; malformed ones are left out. Each reason is counted, and warned of once per window.

    Args:
        app: The ASGI application to wrap.
        max_members: Members kept at most, all header lines together.
        max_bytes: Bytes kept at most, all header lines together, commas included.
        warn_window: Seconds between two warnings of the same reason.

    Raises:
        ValueError: A limit is negative.
    """

    def __init__(
        self,
        app: AsgiApp,
        *,
        max_members: int = MAX_MEMBERS,
        max_bytes: int = MAX_BYTES,
        warn_window: float = DEFAULT_WARN_WINDOW,
    ) -> None:
        self.app = app
        self._limit = BaggageLimit(max_members, max_bytes, warn_window)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Serve one connection."""
        if scope["type"] in ("http", "websocket"):
            lines = [value.decode("latin-1") for name, value in scope["headers"] if name == b"baggage"]
            if lines and (rewrites := self._limit.rewrites(lines)):
                scope["headers"] = rewrite_asgi(scope["headers"], rewrites)
        await self.app(scope, receive, send)
