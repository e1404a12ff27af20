"""WSGI middleware for any framework: Flask, Django, Bottle, or a bare application."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar

from opentelemetry import context as otel_context
from opentelemetry import trace

from meshmw._context.carriers import rewrite_wsgi
from meshmw._context.current import StepContext, detach
from meshmw._context.read import BaggageLimit
from meshmw._lifecycle import http_conventions as semconv
from meshmw._lifecycle.conventions import AttributeValue
from meshmw._lifecycle.http import HttpOperation, Request
from meshmw._lifecycle.serving import ServerOptions
from meshmw._notices import DEFAULT_WARN_WINDOW
from meshmw._policy.trust import RequestView, Trust, TrustCallable
from meshmw._runtime import Runtime, ServerSpans
from meshmw.propagator import MeshPropagator
from meshmw.streams import kept
from meshmw.wire.baggage import MAX_BYTES, MAX_MEMBERS

# The body of a WSGI response: each step of it in the request's context, and the span's end with its last byte.


P = ParamSpec("P")
R = TypeVar("R")

# Whose steps are no work of the application's, and need not be in the request's context.
_PLAIN: Final = frozenset({list, tuple})


def watched(body: Iterable[bytes], operation: HttpOperation, file_wrapper: object) -> Iterable[bytes]:
    """Return a body for the server that ends the operation when it is over.

    Args:
        body: What the application returned.
        operation: The request's; its context is current during each step of the body and at no other time.
        file_wrapper: The server's own, as it stands in the environ; a plain file in it is left to the server to send.
    """
    if _is_plain_file(body, file_wrapper) and _ends_when_closed(body, operation):
        return body
    return _SizedBody(body, operation) if isinstance(body, Sized) else _Body(body, operation)


class _Body:
    """Is the response body as steps of the application's; what these make current stays with them.

    An object rather than a generator: a server may close a body that it never began to read.
    """

    __slots__ = ("_body", "_kept", "_next", "_operation", "_run")

    def __init__(self, body: Iterable[bytes], operation: HttpOperation) -> None:
        self._body: Iterable[bytes] = body
        self._operation = operation
        self._run = _directly if type(body) in _PLAIN else StepContext(operation.context).run
        self._next: Callable[[], bytes] | None = None
        self._kept: object = None

    def __iter__(self) -> _Body:
        return self

    def __next__(self) -> bytes:
        try:
            step = self._next
            if step is None:
                step = self._next = self._begin()
            return self._run(step)
        except StopIteration:
            self._operation.end()
            raise
        except BaseException as error:
            self._operation.fail(error)
            self._operation.break_off()
            raise

    def close(self) -> None:
        """Close the application's body, and end the operation if its last byte never went out."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                self._run(close)
        except BaseException as error:
            self._operation.fail(error)
            raise
        finally:
            self._kept = None
            self._operation.break_off()

    def _begin(self) -> Callable[[], bytes]:
        steps = self._run(iter, self._body)
        # What a generator has made current would be taken back to the request's context, in the server's thread.
        self._kept = kept(steps, self._run)
        return steps.__next__


class _SizedBody(_Body):
    """Is a body whose number of chunks the server may ask for, to set Content-Length itself."""

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


def _ends_when_closed(body: Any, operation: HttpOperation) -> bool:
    """Let the server's object end the operation when it is closed; say whether it can be made to.

    Only an object of the server's own class is sent by sendfile, so none of ours can stand around it. Whether the
    last byte went out is not to be seen from there.
    """
    step = StepContext(operation.context)
    close = getattr(body, "close", None)

    def close_and_end() -> None:
        try:
            if close is not None:
                step.run(close)
        except BaseException as error:
            operation.fail(error)
            raise
        finally:
            operation.end()

    try:
        body.close = close_and_end
    except AttributeError:
        return False
    return True


Environ: TypeAlias = dict[str, Any]
StartResponse: TypeAlias = Callable[..., Callable[[bytes], object]]
App: TypeAlias = Callable[[Environ, StartResponse], Iterable[bytes]]

OPERATION: Final = "meshmw.operation"


class TraceContextMiddleware:
    """Continues the caller's trace in a WSGI application: extracts, validates, attaches, and opens the SERVER span.

    A malformed trace header is removed from the environ, and the request starts a new trace. The context is current
    while the application or its body runs, and never between two steps of it. The span ends with the last byte, or
    when the server closes the body.

    Args:
        app: The WSGI application to wrap.
        exclude: Path patterns of requests that get no span, as in `Settings.exclude`.
        trust: `continue`, `restart` or `ignore`, or a callable that gets a `RequestView` and returns one of them.
        server_spans: `auto` or `off`; `contrib` is `auto` here, for there is no such mode for WSGI.
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
            protocol="wsgi",
        )

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        if OPERATION in environ:
            return self.app(environ, start_response)
        effective = self._options.effective()
        operation = self._options.begin(_WsgiRequest(environ, effective), effective)
        environ[OPERATION] = operation

        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
            if status[:3].isdecimal():
                operation.status(int(status[:3]), error_from=500)
            return start_response(status, headers, *exc_info)

        ended_by: type[BaseException] | None = None
        # Not `with operation.current()`: that takes five calls more.
        token = otel_context.attach(operation.context)
        try:
            body = self.app(environ, start)
        except BaseException as error:
            ended_by = type(error)
            operation.status(500, error_from=500)
            operation.fail(error)
            raise
        finally:
            detach(token, operation.context, ended_by)
            if ended_by is not None:
                operation.break_off()
        return watched(body, operation, environ.get("wsgi.file_wrapper"))


class _WsgiRequest(Request):
    """Is a request in its environ."""

    __slots__ = ()

    protocol = "wsgi"

    def __init__(self, environ: Environ, effective: Runtime) -> None:
        super().__init__(environ["REQUEST_METHOD"], _path(environ), effective.headers.from_wsgi(environ), environ)

    def view(self) -> RequestView:
        return RequestView.from_wsgi(self.carrier)

    def attributes(self) -> dict[str, AttributeValue]:
        environ, lines = self.carrier, self.lines
        client, port = environ.get("REMOTE_ADDR"), str(environ.get("REMOTE_PORT", ""))
        return semconv.server_attributes(
            method=self.method,
            scheme=environ.get("wsgi.url_scheme", "http"),
            path=self.path,
            query=environ.get("QUERY_STRING", ""),
            authority=lines["host"][0] if "host" in lines else _own_authority(environ),
            protocol_version=semconv.protocol_version(environ.get("SERVER_PROTOCOL", "")),
            client=client,
            client_port=int(port) if port.isdecimal() else None,
            user_agent=lines["user-agent"][0] if "user-agent" in lines else None,
        )

    def rewrite(self, rewrites: dict[str, str | None]) -> None:
        super().rewrite(rewrites)
        rewrite_wsgi(self.carrier, rewrites)


def _path(environ: Environ) -> str:
    """Return the path that was asked for; PEP 3333 hands out its bytes as latin-1."""
    text = str(environ.get("SCRIPT_NAME", "")) + str(environ.get("PATH_INFO", ""))
    if text.isascii():
        return text or "/"
    return text.encode("latin-1", "replace").decode("utf-8", "replace")


def _own_authority(environ: Mapping[str, Any]) -> str:
    return f"{environ.get('SERVER_NAME', '')}:{environ.get('SERVER_PORT', '')}"


WsgiApp: TypeAlias = Callable[[dict[str, Any], Any], Iterable[bytes]]


class BaggageSizeFilter:
    """Keeps the baggage that a WSGI application receives within limits, as `BaggageSizeFilter` does for ASGI.

    Args:
        app: The WSGI application to wrap.
        max_members: Members kept at most.
        max_bytes: Bytes kept at most, commas included.
        warn_window: Seconds between two warnings of the same reason.

    Raises:
        ValueError: A limit is negative.
    """

    def __init__(
        self,
        app: WsgiApp,
        *,
        max_members: int = MAX_MEMBERS,
        max_bytes: int = MAX_BYTES,
        warn_window: float = DEFAULT_WARN_WINDOW,
    ) -> None:
        self.app = app
        self._limit = BaggageLimit(max_members, max_bytes, warn_window)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Serve one request."""
        line = environ.get("HTTP_BAGGAGE")
        if line is not None and (rewrites := self._limit.rewrites([line])):
            rewrite_wsgi(environ, rewrites)
        return self.app(environ, start_response)
