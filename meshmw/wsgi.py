"""WSGI middleware for any framework: Flask, Django, Bottle, or a bare application (PEP 3333).

    app.wsgi_app = meshmw.wsgi.TraceContextMiddleware(app.wsgi_app)

A body that is made step by step runs in the request's context too, and nothing stays current between two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sized
from typing import Any, Final, Self, TypeAlias, Unpack

from opentelemetry import context as otel_context

from meshmw._context.carriers import wsgi_key
from meshmw._context.current import Run, StepContext, detach
from meshmw._context.read_baggage import BaggageLimit
from meshmw._file_wrapper import ends_when_closed, is_plain_file
from meshmw._frameworks import BOTTLES, exception_answered, listen, tell_bottles_route
from meshmw._lifecycle.http import OPERATION, HttpOperation, Request
from meshmw._lifecycle.http_conventions import authority_of, is_short, protocol_version, server_attributes
from meshmw._lifecycle.operation import AttributeValue, end_dropped, watch_collections
from meshmw._lifecycle.serving import ServerOptions, Serving
from meshmw._notices import DEFAULT_WARN_WINDOW
from meshmw._policy.trust import RequestView, wsgi_path
from meshmw.streams import closed_on_drop
from meshmw.wire.baggage import MAX_BYTES, MAX_MEMBERS

__all__ = ["BaggageSizeFilter", "ServerOptions", "TraceContextMiddleware"]

Environ: TypeAlias = dict[str, Any]
StartResponse: TypeAlias = Callable[..., Callable[[bytes], object]]
App: TypeAlias = Callable[[Environ, StartResponse], Iterable[bytes]]

# By SERVER_SOFTWARE: it sends the head as soon as the application returns.
_GRANIAN: Final = "Granian"
# These send it with the first part of the body, though PEP 3333 says with the first that is not empty.
_HASTY: Final = ("gunicorn/", "WSGIServer/", "Werkzeug/")
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
        listen()
        watch_collections()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        if OPERATION in environ:
            return self.app(environ, start_response)
        effective = self._serving.effective()
        lines = _header_lines(environ, effective.header_names.wsgi)
        request = _WsgiRequest(environ["REQUEST_METHOD"], wsgi_path(environ) or "/", lines, environ)
        operation = self._serving.begin(request, effective)
        environ[OPERATION] = operation

        response = _Response(operation, environ, start_response)
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
            if BOTTLES in environ:
                tell_bottles_route(operation, environ, self.app)
            if ended_by is not None:
                response.end()
        response.is_returned = True
        return _watched(body, response, environ)


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


def _own_authority(environ: Mapping[str, Any]) -> str:
    return authority_of(environ.get("SERVER_NAME", ""), environ.get("SERVER_PORT", ""))


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
        environ: What it came in.
        start_response: The server's own.

    Attributes:
        operation: The request's.
        is_returned: Whether the application has returned a body.
        is_begun: Whether the server was handed a part of it, be it empty.
        is_out: Whether the head of the response went out, as far as the bytes of the body tell.
        is_whole: Whether the application has come to the end of the body.
        sent: The bytes of the body that the server was handed.
    """

    __slots__ = (
        "_environ",
        "_headers",
        "_start_response",
        "_status",
        "is_begun",
        "is_out",
        "is_returned",
        "is_whole",
        "operation",
        "sent",
    )

    def __init__(self, operation: HttpOperation, environ: Environ, start_response: StartResponse) -> None:
        self.operation = operation
        self.sent = 0
        self.is_returned = self.is_begun = self.is_out = self.is_whole = False
        self._environ = environ
        self._start_response = start_response
        self._status: int | None = None
        self._headers: Iterable[tuple[str, str]] = ()

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        """Hand the status on; a second one, with *exc_info*, counts where the first has not gone out."""
        # The server refuses it by raising, and then the client keeps the status that it has.
        write: Any
        if exc_info is None:
            write = self._start_response(status, headers)
        else:
            write = self._start_response(status, headers, exc_info)
        if not self._is_out():
            code = str(status)[:3]
            self._status = int(code) if code.isdecimal() else 0
            self._headers = headers
            if self._status >= 500:
                self._note_exception(exc_info)

        def counting(data: bytes) -> object:
            self.is_out = True
            self.sent += len(data)
            return write(data)

        # granian's server has none.
        return counting if callable(write) else write

    def hand(self, chunk: bytes) -> bytes:
        """Count a part of the body."""
        self.is_begun = True
        if chunk:
            self.is_out = True
            self.sent += len(chunk)
        return chunk

    def fail(self, error: BaseException) -> None:
        """Record an error; a server answers 500 for an application that raised before the head went out."""
        if isinstance(error, Exception) and not (self._is_out() or self._is_sent_anyway()):
            self._status = 500
        self.operation.fail(error)

    def end(self) -> None:
        """End the operation, once, as incomplete where not all went out."""
        if self.operation.is_over:
            return
        if self._status is None and (self.is_begun or self.is_whole):
            # A server has nothing to begin such a body with, and raises; granian has a status of its own.
            self._status = 200 if self._environ.get("SERVER_SOFTWARE") == _GRANIAN else 500
        if self._status:
            self.operation.status(self._status, error_from=500)
        if self._is_short():
            self.operation.break_off()
        else:
            self.operation.end()

    def _is_out(self) -> bool:
        """Say whether the head of the response has gone out: with the first byte of the body, or as the server does."""
        if self.is_out or not self.is_returned:
            return self.is_out
        software = str(self._environ.get("SERVER_SOFTWARE", ""))
        return software == _GRANIAN or (self.is_begun and software.startswith(_HASTY))

    def _is_sent_anyway(self) -> bool:
        """Say whether the server sends the head also where the body raises."""
        return self.is_returned and str(self._environ.get("SERVER_SOFTWARE", "")).startswith("Cheroot/")

    def _note_exception(self, exc_info: Any) -> None:
        """Record the exception that the application answers with 5xx."""
        error = exc_info[1] if isinstance(exc_info, tuple) else exception_answered(_CALLS_THE_APPLICATION)
        if isinstance(error, Exception):
            self.operation.fail(error)

    def _is_short(self) -> bool:
        """Say whether the client lacks something; a server may leave a body there once it has what was promised."""
        if not self._status:
            return not self.is_whole
        # A number is no text, and Werkzeug's server takes it for one.
        lengths = [str(value) for name, value in self._headers if name.lower() == "content-length"]
        found = is_short(self._environ["REQUEST_METHOD"], self._status, lengths, self.sent)
        return not self.is_whole if found is None else found


def _watched(body: Iterable[bytes], response: _Response, environ: Environ) -> Iterable[bytes]:
    """Return a body for the server that ends the operation when it is over.

    Args:
        body: What the application returned.
        response: The request's; the context is current during each step of the body and at no other time.
        environ: What says how the server sends bodies.
    """
    if isinstance(body, list) and environ.get("SERVER_SOFTWARE") == _GRANIAN:
        # It tells the length of a list, and sends whatever else there is in pieces.
        response.sent, response.is_whole = sum(map(len, body)), True
        response.end()
        return body
    if type(body) in _PLAIN:
        return _PlainBody(body, response)
    # A plain file in the server's own wrapper is left to the server to send.
    if is_plain_file(body, environ.get("wsgi.file_wrapper")) and ends_when_closed(body, response):
        return body
    return _SizedBody(body, response) if isinstance(body, Sized) else _Body(body, response)


class _Watched(Iterator[bytes]):
    """Stands for a response's body. An object rather than a generator: a server may close what it never began to read.

    Args:
        body: What the application returned.
        response: The request's.
    """

    __slots__ = ("_body", "_response")

    def __init__(self, body: Any, response: _Response) -> None:
        self._body = body
        self._response = response

    def __iter__(self) -> Self:
        return self

    def __del__(self) -> None:
        # asgiref's WsgiToAsgi stops where it has what was promised, and closes nothing.
        if not self._response.operation.is_over:
            end_dropped(self._response.end)


class _PlainBody(_Watched):
    """Hands on the chunks of a list or a tuple, as of nearly every response: there is no step of the application's."""

    __slots__ = ("_chunks",)

    def __init__(self, body: Any, response: _Response) -> None:
        super().__init__(body, response)
        self._chunks: Iterator[bytes] = iter(body)

    def __len__(self) -> int:
        return len(self._body)

    def __next__(self) -> bytes:
        response = self._response
        try:
            for chunk in self._chunks:
                return response.hand(chunk)
        except BaseException as error:
            # It is no bytes.
            response.fail(error)
            response.end()
            raise
        response.is_whole = True
        response.end()
        raise StopIteration

    def close(self) -> None:
        """End the operation if its last byte never went out."""
        self._response.end()


class _Body(_Watched):
    """Takes each chunk of a response in the request's context; what the application makes current stays with it."""

    __slots__ = ("_kept", "_next", "_run")

    def __init__(self, body: Iterable[bytes], response: _Response) -> None:
        super().__init__(body, response)
        self._run: Run = StepContext(response.operation.context).run
        self._next: Callable[[], bytes] | None = None
        self._kept: object = None

    def __next__(self) -> bytes:
        response = self._response
        try:
            step = self._next
            if step is None:
                step = self._next = self._begin()
            return response.hand(self._run(step))
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
        return steps.__next__  # type: ignore[no-any-return]


_CALLS_THE_APPLICATION: Final = frozenset({TraceContextMiddleware.__call__.__code__, _Body.__next__.__code__})


class _SizedBody(_Body):
    """Has a length, by which a server may set Content-Length itself."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._body)
