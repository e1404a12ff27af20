"""WSGI middleware for any framework: Flask, Django, Bottle, or a bare application (PEP 3333).

    app.wsgi_app = meshmw.wsgi.TraceContextMiddleware(app.wsgi_app)

A body that is made step by step runs in the request's context too, and nothing stays current between two steps.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sized
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar, Unpack

from opentelemetry import context as otel_context

from meshmw._context.carriers import wsgi_key
from meshmw._context.current import StepContext, detach
from meshmw._context.read_baggage import BaggageLimit
from meshmw._lifecycle.http import OPERATION, HttpOperation, Request
from meshmw._lifecycle.http_conventions import protocol_version, server_attributes
from meshmw._lifecycle.operation import AttributeValue
from meshmw._lifecycle.serving import ServerOptions, Serving
from meshmw._notices import DEFAULT_WARN_WINDOW
from meshmw._policy.trust import RequestView
from meshmw.streams import closed_on_drop
from meshmw.wire.baggage import MAX_BYTES, MAX_MEMBERS

__all__ = ["BaggageSizeFilter", "ServerOptions", "TraceContextMiddleware"]

P = ParamSpec("P")
R = TypeVar("R")
Environ: TypeAlias = dict[str, Any]
StartResponse: TypeAlias = Callable[..., Callable[[bytes], object]]
App: TypeAlias = Callable[[Environ, StartResponse], Iterable[bytes]]

# Whose steps are no work of the application's, and need not be in the request's context.
_PLAIN: Final = frozenset({list, tuple})


def __dir__() -> list[str]:
    return sorted(__all__)


class TraceContextMiddleware:
    """Continues the caller's trace in a WSGI application: extracts, validates, attaches, and opens the SERVER span.

    A malformed trace header is removed from the environ, and the request starts a new trace. The context is current
    while the application or its body runs, and never between two steps of it. The span ends with the last byte, or
    when the server closes the body.

    Args:
        app: The WSGI application to wrap.
        options: Each one that you leave out is what `configure()` decided.

            - `exclude`: path patterns of requests that get no span, as in `Settings.exclude`;
            - `trust`: `continue`, `restart` or `ignore`, or a callable that takes a `RequestView` and returns one;
            - `server_spans`: `auto` or `off`; `contrib` is `auto` here, because contrib's mode is for ASGI alone;
            - `propagator`: reads the headers;
            - `tracer_provider`: makes the spans.

    Raises:
        ValueError: An option holds a word or a pattern that is none.
        TypeError: An option is not known, or holds no propagator or tracer provider.
    """

    def __init__(self, app: App, **options: Unpack[ServerOptions]) -> None:
        self.app = app
        self._serving = Serving("wsgi", **options)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        if OPERATION in environ:
            return self.app(environ, start_response)
        effective = self._serving.effective()
        lines = _header_lines(environ, effective.header_names.wsgi)
        request = _WsgiRequest(environ["REQUEST_METHOD"], _path(environ), lines, environ)
        operation = self._serving.begin(request, effective)
        environ[OPERATION] = operation

        response = _Response(operation, environ["REQUEST_METHOD"], start_response)
        ended_by: type[BaseException] | None = None
        token = otel_context.attach(operation.context)
        try:
            body = self.app(environ, response.start)
        except BaseException as error:
            ended_by = type(error)
            response.fail(error)
            raise
        finally:
            detach(token, operation.context, ended_by)
            if ended_by is not None:
                response.end()
        return _watched(body, response, environ.get("wsgi.file_wrapper"))


class BaggageSizeFilter:
    """Keeps the baggage that a WSGI application receives within limits, as `meshmw.asgi.BaggageSizeFilter` does.

    Args:
        app: The WSGI application to wrap.
        max_members: Members kept at most.
        max_bytes: Bytes kept at most, commas included.
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

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        line = environ.get("HTTP_BAGGAGE")
        if line is not None and (rewrites := self._limit.rewrites([line])):
            _rewrite(environ, rewrites)
        return self.app(environ, start_response)


class _WsgiRequest(Request):
    """Reads a request where its environ keeps it."""

    __slots__ = ()

    protocol = "wsgi"

    def view(self) -> RequestView:
        return RequestView.from_wsgi(self.carrier)

    def attributes(self) -> dict[str, AttributeValue]:
        environ, lines = self.carrier, self.lines
        client, port = environ.get("REMOTE_ADDR"), str(environ.get("REMOTE_PORT", ""))
        return server_attributes(
            method=self.method,
            scheme=environ.get("wsgi.url_scheme", "http"),
            path=self.path,
            query=environ.get("QUERY_STRING", ""),
            authority=lines["host"][0] if "host" in lines else _own_authority(environ),
            protocol_version=protocol_version(environ.get("SERVER_PROTOCOL", "")),
            client=client,
            client_port=int(port) if port.isdecimal() else None,
            user_agent=lines["user-agent"][0] if "user-agent" in lines else None,
        )

    def rewrite(self, rewrites: dict[str, str | None]) -> None:
        super().rewrite(rewrites)
        _rewrite(self.carrier, rewrites)


def _header_lines(environ: Environ, wanted: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the wanted lines of an environ by name in lower case; servers have joined repeated ones with a comma."""
    return {name: [environ[key]] for key, name in wanted.items() if key in environ}


def _path(environ: Environ) -> str:
    """Return the path that was asked for; PEP 3333 hands out its bytes as latin-1."""
    text = str(environ.get("SCRIPT_NAME", "")) + str(environ.get("PATH_INFO", ""))
    if text.isascii():
        return text or "/"
    return text.encode("latin-1", "replace").decode("utf-8", "replace")


def _own_authority(environ: Mapping[str, Any]) -> str:
    return f"{environ.get('SERVER_NAME', '')}:{environ.get('SERVER_PORT', '')}"


def _rewrite(environ: MutableMapping[str, Any], rewrites: Mapping[str, str | None]) -> None:
    """Replace or remove the named headers in an environ."""
    for name, text in rewrites.items():
        if text is None:
            environ.pop(wsgi_key(name), None)
        else:
            environ[wsgi_key(name)] = text


class _Response:
    """Follows what the client gets: the status that goes out with the first byte, and whether all of it went out.

    Args:
        operation: The request's.
        method: Its method.
        start_response: The server's own.
    """

    __slots__ = ("_headers", "_method", "_start_response", "_status", "is_whole", "operation", "sent")

    def __init__(self, operation: HttpOperation, method: str, start_response: StartResponse) -> None:
        self.operation = operation
        self.sent = 0
        self.is_whole = False
        self._method = method
        self._start_response = start_response
        self._status = 0
        self._headers: Iterable[tuple[str, str]] = ()

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        """Hand the status on; a second one, with *exc_info*, counts where the first has not gone out."""
        # The server refuses it by raising, and then the client keeps the status that it has.
        if exc_info is None:
            write = self._start_response(status, headers)
        else:
            write = self._start_response(status, headers, exc_info)
        self._status = int(status[:3]) if status[:3].isdecimal() else 0
        self._headers = headers

        def counting(data: bytes) -> object:
            self.sent += len(data)
            return write(data)

        return counting

    def fail(self, error: BaseException) -> None:
        """Record an error; a server answers 500 for an application that raised before a byte went out."""
        if not self.sent and isinstance(error, Exception):
            self._status = 500
        self._tell_status()
        self.operation.fail(error)

    def end(self) -> None:
        """End the operation, once, as incomplete where not all went out."""
        if self.operation.is_over:
            return
        self._tell_status()
        if self.is_whole or self._has_no_more():
            self.operation.end()
        else:
            self.operation.break_off()

    def _tell_status(self) -> None:
        if self._status:
            self.operation.status(self._status, error_from=500)

    def _has_no_more(self) -> bool:
        """Say whether the server may leave the body there: it has as much as was promised, or none is to be sent."""
        if not self._status:
            return False
        # RFC 9110, section 6.4.1: what has no content.
        if self._method == "HEAD" or self._status in (204, 304):
            return True
        lengths = [value for name, value in self._headers if name.lower() == "content-length"]
        return len(lengths) == 1 and lengths[0].strip().isdecimal() and self.sent >= int(lengths[0])


def _watched(body: Iterable[bytes], response: _Response, file_wrapper: object) -> Iterable[bytes]:
    """Return a body for the server that ends the operation when it is over.

    Args:
        body: What the application returned.
        response: The request's; the context is current during each step of the body and at no other time.
        file_wrapper: The server's own, as it stands in the environ; a plain file in it is left to the server to send.
    """
    if _is_plain_file(body, file_wrapper) and _ends_when_closed(body, response):
        return body
    return _SizedBody(body, response) if isinstance(body, Sized) else _Body(body, response)


class _Body:
    """Takes each chunk of a response in the request's context; what the application makes current stays with it.

    An object rather than a generator: a server may close a body that it never began to read.
    """

    __slots__ = ("_body", "_kept", "_next", "_response", "_run")

    def __init__(self, body: Iterable[bytes], response: _Response) -> None:
        self._body: Iterable[bytes] = body
        self._response = response
        self._run = _directly if type(body) in _PLAIN else StepContext(response.operation.context).run
        self._next: Callable[[], bytes] | None = None
        self._kept: object = None

    def __iter__(self) -> _Body:
        return self

    def __next__(self) -> bytes:
        response = self._response
        try:
            step = self._next
            if step is None:
                step = self._next = self._begin()
            chunk: bytes = self._run(step)
            response.sent += len(chunk) if chunk else 0
            return chunk
        except StopIteration:
            response.is_whole = True
            response.end()
            raise
        except BaseException as error:
            response.fail(error)
            response.end()
            raise

    def close(self) -> None:
        """Close the application's body, and end the operation if its last byte never went out."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                self._run(close)
        except BaseException as error:
            self._response.fail(error)
            raise
        finally:
            self._kept = None
            self._response.end()

    def _begin(self) -> Callable[[], bytes]:
        steps = self._run(iter, self._body)
        # What a generator has made current would be detached into the request's context, in the server's thread.
        self._kept = closed_on_drop(steps, self._run)
        return steps.__next__


class _SizedBody(_Body):
    """Has a length, by which a server may set Content-Length itself."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]  # made for sized bodies alone


def _directly(step: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    return step(*args, **kwargs)


def _is_plain_file(body: Any, file_wrapper: object) -> bool:
    """Say whether *body* is the server's own object around a file of the operating system.

    To read any other file-like object may be work of the application, which belongs into the request's context.
    """
    if not isinstance(file_wrapper, type) or type(body) is not file_wrapper:
        return False
    # As gunicorn and wsgiref name it; as waitress does.
    file = getattr(body, "filelike", None) or getattr(body, "file", None)
    return isinstance(getattr(file, "raw", file), io.FileIO)


def _ends_when_closed(body: Any, response: _Response) -> bool:
    """Let the server's object end the operation when it is closed; say whether it can be made to.

    Only an object of the server's own class is sent by sendfile, so none of ours can stand around it. Whether the
    last byte went out is not to be seen from there.
    """
    step = StepContext(response.operation.context)
    close = getattr(body, "close", None)

    def close_and_end() -> None:
        try:
            if close is not None:
                step.run(close)
        except BaseException as error:
            response.fail(error)
            raise
        finally:
            response.is_whole = True
            response.end()

    try:
        body.close = close_and_end
    except AttributeError:
        return False
    return True
