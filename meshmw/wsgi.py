"""WSGI middleware for any framework: Flask, Django, Bottle, or a bare application.

Knows the WSGI protocol (PEP 3333). Must not know the formats, nor how a span lives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from opentelemetry import context as otel_context
from opentelemetry import trace

from meshmw.boundary.request import Request
from meshmw.carriers import rewrite_wsgi
from meshmw.policy.request_view import RequestView
from meshmw.policy.trust import Trust, TrustCallable
from meshmw.propagation.attachment import take_back
from meshmw.propagator import MeshPropagator
from meshmw.runtime import Runtime, ServerSpans
from meshmw.semconv import http as semconv
from meshmw.semconv.attributes import AttributeValue
from meshmw.serving import ServerOptions
from meshmw.wsgi_body import watched

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
        settled = self._options.settled()
        operation = self._options.begin(_WsgiRequest(environ, settled), settled)
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
            take_back(token, operation.context, ended_by)
            if ended_by is not None:
                operation.break_off()
        return watched(body, operation, environ.get("wsgi.file_wrapper"))


class _WsgiRequest(Request):
    """Is a request in its environ."""

    __slots__ = ()

    protocol = "wsgi"

    def __init__(self, environ: Environ, settled: Runtime) -> None:
        super().__init__(environ["REQUEST_METHOD"], _path(environ), settled.headers.from_wsgi(environ), environ)

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
