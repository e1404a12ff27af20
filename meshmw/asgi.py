"""ASGI middleware for any framework: FastAPI, Starlette, Quart, Litestar, Django, or a bare application.

    app.add_middleware(meshmw.asgi.TraceContextMiddleware)

The route that names a span is read from the scope, where Starlette, FastAPI and Litestar leave it (`_frameworks`).
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, Final, TypeAlias, Unpack

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span

from meshmw import _runtime
from meshmw._context.current import detach
from meshmw._context.read_baggage import BaggageLimit
from meshmw._foreign import is_of_datadog
from meshmw._frameworks import exception_answered, listen, may_be_of, route_of, routed_within
from meshmw._lifecycle.http import OPERATION, HttpOperation, Request
from meshmw._lifecycle.http_conventions import authority_of, is_short, server_attributes
from meshmw._lifecycle.operation import AttributeValue, record_refusals
from meshmw._lifecycle.serving import ServerOptions, Serving
from meshmw._notices import DEFAULT_WARN_WINDOW, LOGGER
from meshmw._policy.trust import RequestView
from meshmw.errors import extra_named
from meshmw.wire.baggage import MAX_BYTES, MAX_MEMBERS

__all__ = ["BaggageSizeFilter", "ServerOptions", "TraceContextMiddleware"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

_REQUESTS: Final = frozenset({"http", "websocket"})
# Hosts open no span of their own for a scope that carries their mark.
_FASTAPI: Final = "fastapi.telemetry"
_STARLETTE: Final = "starlette.opentelemetry"
# Each mark is read in a module of its own.
_READS_STARLETTES: Final = "starlette.middleware.opentelemetry"
_READS_FASTAPIS: Final = "fastapi.telemetry"
_NOBODY: Final = (None, None)

# A WebSocket that is closed before it was accepted is answered with 403 (ASGI, websocket.close).
_HANDSHAKE_STATUS: Final = {"websocket.accept": 101, "websocket.close": 403}
# The response with which a handshake is refused has the same messages, named with a prefix.
# With these a WebSocket is closed for an exception: RFC 6455's own, and Litestar's, which are a status plus 4000.
_FAILURES: Final = frozenset({1011, *range(4500, 4600)})
_STARTS: Final = frozenset({"http.response.start", "websocket.http.response.start", *_HANDSHAKE_STATUS})
_BODIES: Final = frozenset({"http.response.body", "http.response.zerocopysend", "websocket.http.response.body"})
# Nothing of the response comes after one of these.
_WHOLE: Final = frozenset({"http.response.pathsend", *_HANDSHAKE_STATUS})


def __dir__() -> list[str]:
    return sorted(__all__)


class TraceContextMiddleware:
    """Continues the caller's trace in an ASGI application: extracts, validates, attaches, and opens the SERVER span.

    A malformed trace header is removed from the scope, and the request starts a new trace. A span that the host
    framework opened for the same request is adopted instead of doubled. HTTP requests and WebSocket handshakes are
    handled; everything else passes untouched. When the server shuts the application down, queued spans are exported.

    Args:
        app: The ASGI application to wrap.
        options: Each one that you leave out is what `configure()` decided.

            - `exclude`: path patterns of requests that get no span, as in `Settings.exclude`;
            - `trust`: `continue`, `restart` or `ignore`, or a callable that takes a `RequestView` and returns one;
            - `server_spans`: `auto`, `off`, or `contrib`: opentelemetry-instrumentation-asgi makes the SERVER span;
            - `propagator`: reads the headers;
            - `tracer_provider`: makes the spans.

    Raises:
        ValueError: An option holds a word or a pattern that is none.
        TypeError: An option is not known, or holds no propagator or tracer provider.
        MissingExtraError: `server_spans` is `contrib`, and that package is not installed.
    """

    def __init__(self, app: App, **options: Unpack[ServerOptions]) -> None:
        self.app = app
        self._serving = Serving("asgi", **options)
        listen()
        # What is missing is said here, where a program starts, and not by each request.
        self._contrib: App | None = None
        if options.get("server_spans") == "contrib":
            self._app_under_contrib()

    @property
    def app(self) -> App:
        """The ASGI application inside; another may be put in its place."""
        return self._app

    @app.setter
    def app(self, app: App) -> None:
        self._app, self._routed = app, routed_within(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] not in _REQUESTS or OPERATION in scope:
            await self._pass(scope, receive, send)
            return
        effective = self._serving.effective()
        lines = _header_lines(scope["headers"], effective.header_names.asgi)
        request = _AsgiRequest(scope.get("method", "GET"), scope["path"], lines, scope)
        operation = self._serving.begin(request, effective)
        app = self._app if operation.delegated is None else self._app_under_contrib()
        marks = _stand_hosts_down(scope)
        scope[OPERATION] = operation
        # Where nobody records anything of it, a host neither, there is nothing to watch for.
        is_recorded = operation.is_open or operation.span.is_recording()
        response = _Response(self._routed, operation, scope, send) if is_recorded else None
        ended_by: type[BaseException] | None = None
        token = otel_context.attach(operation.context)
        try:
            await app(scope, receive, send if response is None else response.send)
        except BaseException as error:
            ended_by = type(error)
            if response is not None:
                response.fail(error)
            raise
        finally:
            detach(token, operation.context, ended_by)
            if not operation.is_over:
                (operation if response is None else response).end()
            scope.pop(OPERATION, None)
            for mark in marks:
                scope.pop(mark, None)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is no request of ours; after the lifespan, which the outermost sees, export what is queued."""
        if scope["type"] != "lifespan" or OPERATION in scope:
            await self._app(scope, receive, send)
            return
        scope[OPERATION] = None
        try:
            await self._app(scope, receive, send)
        finally:
            scope.pop(OPERATION, None)
            # uvicorn now dies of the SIGTERM that stopped it, and no exit handler runs.
            _runtime.flush()

    def _app_under_contrib(self) -> App:
        if self._contrib is None:
            self._contrib = require_contrib()(self._served_by_contrib, tracer_provider=self._serving.tracer_provider)
        return self._contrib

    async def _served_by_contrib(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve inside contrib's span, and note on it what contrib does not know."""
        record_refusals(trace.get_current_span(), scope[OPERATION].delegated)
        await self._app(scope, receive, send)


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
        ValueError: A limit is no whole number, or one below 0.
    """

    def __init__(
        self,
        app: App,
        *,
        max_members: int = MAX_MEMBERS,
        max_bytes: int = MAX_BYTES,
        warn_window: float = DEFAULT_WARN_WINDOW,
    ) -> None:
        self.app = app
        self._limit = BaggageLimit(max_members, max_bytes, warn_window)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] in ("http", "websocket"):
            lines = [value.decode("latin-1") for name, value in scope["headers"] if name == b"baggage"]
            if lines and (rewrites := self._limit.rewrites(lines)):
                scope["headers"] = _rewritten(scope["headers"], rewrites)
        await self.app(scope, receive, send)


class _AsgiRequest(Request):
    """Reads a request where its scope keeps it."""

    __slots__ = ()

    protocol = "asgi"

    def view(self) -> RequestView:
        return RequestView.from_asgi(self.carrier)

    def attributes(self) -> dict[str, AttributeValue]:
        scope, lines = self.carrier, self.lines
        client, port = (scope.get("client") or _NOBODY)[:2]
        return server_attributes(
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

    def marked_span(self, ambient: Span, read_by_host: bool) -> Span | None:
        scope = self.carrier
        if is_of_datadog(ambient, scope):
            return ambient
        if scope.get(_STARLETTE):
            # Starlette leaves no span there, and its mark also where it opens none; then it does not read the headers.
            return ambient if read_by_host else None
        mark = scope.get(_FASTAPI)
        span = None if mark is None else getattr(mark, "span", None)
        return span if isinstance(span, Span) else None

    def rewrite(self, rewrites: dict[str, str | None]) -> None:
        super().rewrite(rewrites)
        self.carrier["headers"] = _rewritten(self.carrier["headers"], rewrites)


def _header_lines(headers: Headers, wanted: Mapping[bytes, str]) -> dict[str, list[str]]:
    """Return the wanted lines of a scope, in order, by name in lower case; ASGI servers hand out latin-1."""
    lines: dict[str, list[str]] = {}
    for name, value in headers:
        if name in wanted:
            lines.setdefault(wanted[name], []).append(value.decode("latin-1"))
    return lines


def _rewritten(headers: Headers, rewrites: Mapping[str, str | None]) -> list[tuple[bytes, bytes]]:
    """Return headers with every line of the named ones replaced by one line, or by none."""
    names = {name.encode("ascii") for name in rewrites}
    kept = [(name, value) for name, value in headers if name not in names]
    return kept + [
        (name.encode("ascii"), text.encode("latin-1")) for name, text in rewrites.items() if text is not None
    ]


def _own_authority(server: Sequence[Any] | None) -> str | None:
    return authority_of(server[0], server[1]) if server and server[1] else None


def _stand_hosts_down(scope: Scope) -> Iterable[str]:
    """Mark the scope, so that no host further in opens a second SERVER span; return the marks that are new."""
    new: tuple[str, ...] = ()
    if _READS_STARLETTES in sys.modules and _STARLETTE not in scope:
        scope[_STARLETTE], new = True, (_STARLETTE,)
    if _READS_FASTAPIS in sys.modules and _FASTAPI not in scope:
        scope[_FASTAPI], new = None, (*new, _FASTAPI)
    return new


class _Response:
    """Watches what the application sends, and ends the operation with the last byte.

    A framework that answers 5xx for an exception raises it afterwards, so such an operation waits for its return.

    Args:
        routed: The application that is asked for the route where the scope does not tell it.
        operation: The request's.
        scope: Where the framework leaves the route.
        send: The server's own.
    """

    __slots__ = ("_begun", "_is_whole", "_operation", "_routed", "_scope", "_send", "_sent", "_status", "_trailers")

    _begun: Message

    def __init__(self, routed: object, operation: HttpOperation, scope: Scope, send: Send) -> None:
        self._routed = routed
        self._operation = operation
        self._scope = scope
        self._send = send
        self._status = 0
        self._trailers = False
        self._sent = 0
        # None while the last message is with the server.
        self._is_whole: bool | None = False

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message on, and read from it how far the response is."""
        kind: str = message["type"]
        if kind in _BODIES:
            is_last = not (self._trailers or message.get("more_body"))
            if not is_last:
                self._sent += len(message.get("body") or b"")
        else:
            if kind in _STARTS and not self._status:
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
        # A server that has it all may report that the client has gone before its `send` returns. A framework that hears
        # of it cancels what it no longer needs, and returns; where the cancellation comes from outside, it raises.
        self._is_whole = None
        try:
            await self._send(message)
        except Exception:
            self._is_whole = False
            raise
        self._is_whole = True
        if self._status >= 500:
            self._operation.answered()
        else:
            self.end()

    def fail(self, error: BaseException) -> None:
        """Record an error; a server answers 500 for an application that raised before it had answered."""
        self._is_whole = bool(self._is_whole)
        if isinstance(error, Exception):
            if may_be_of(error, self._send):
                # The server has refused the last of it, so what was promised does not matter.
                self._begun = {}
            if not self._status:
                self._operation.status(500, error_from=500)
        self._operation.fail(error)

    def end(self) -> None:
        """End the operation under the route that the framework left in the scope."""
        operation = self._operation
        if operation.is_open:
            try:
                if route := route_of(self._scope, self._routed, self._status == 404):
                    operation.route(route)
            except Exception:
                # Whatever a framework or an application has left in the scope: the response is theirs, a name is not.
                LOGGER.debug("the route could not be read from the scope", exc_info=True)
        if self._is_whole is False:
            self._break_off()
        else:
            operation.end()

    def _start(self, kind: str, message: Message) -> None:
        self._begun = message
        self._trailers = message.get("trailers", False)
        self._status = status = message["status"] if "status" in message else _HANDSHAKE_STATUS.get(kind, 0)
        try:
            self._operation.status(status, error_from=500)
            if status >= 403 and (status >= 500 or message.get("code") in _FAILURES):
                error = exception_answered(_CALLS_THE_APPLICATION)
                if error is not None:
                    self._operation.fail(error)
        except TypeError:
            # It is no number. The server says so, or takes it for one.
            self._status = 0

    def _break_off(self) -> None:
        """End the operation of a response whose last message never went out."""
        if self._status and not self._sent and _sends_late(self._send):
            self._operation.status(500, error_from=500)
        if self._has_all():
            self._operation.end()
        else:
            self._operation.break_off()

    def _has_all(self) -> bool:
        """Say whether the client has all that was promised, though the application would have sent more messages."""
        if not self._status or self._trailers:
            return False
        headers: Headers = self._begun.get("headers", ())
        try:
            found = [bytes(value) for name, value in headers if bytes(name).lower() == b"content-length"]
        except TypeError:
            # ASGI asks for bytes, and h11 takes text for them too.
            return False
        lengths = [value.decode("latin-1") for value in found]
        return is_short(str(self._scope.get("method")), self._status, lengths, self._sent) is False


def _sends_late(send: Send) -> bool:
    """Say whether a server sends the head with the body, as ASGI asks, and answers 500 where there is none."""
    # uvicorn and hypercorn send it at once. granian's `send` is a method of an object of its own.
    return type(getattr(send, "__self__", None)).__module__.startswith("granian.")


_CALLS_THE_APPLICATION: Final = frozenset({TraceContextMiddleware.__call__.__code__})


def require_contrib() -> Any:
    """Return the ASGI middleware class of opentelemetry-instrumentation-asgi.

    Raises:
        MissingExtraError: It is not installed.
    """
    with extra_named("opentelemetry.instrumentation.asgi", "opentelemetry-instrumentation-asgi", "contrib"):
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    return OpenTelemetryMiddleware
