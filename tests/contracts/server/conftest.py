"""The hosts that the server contract runs on: each way to put meshmw around an application, driven without a network.

A host serves the same routes whatever its framework: `/items/{item}` answers, `/fail` raises, `/stream` sends three
chunks. Whenever its code runs it calls `visit`, which notes what the application sees and what it would send on.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import django
import litestar
import pytest
import quart
from django.conf import settings as django_settings
from django.core.handlers.asgi import ASGIHandler
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse, StreamingHttpResponse
from django.urls import path as django_path
from fastapi import FastAPI
from fastapi import Request as FastAPIRequest
from flask import Flask
from flask import request as flask_request
from litestar import Request as LitestarRequest
from litestar import WebSocket as LitestarWebSocket
from litestar.response import Stream as LitestarStream
from opentelemetry import baggage, propagate, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware as ContribASGI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware as ContribWSGI
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from quart import Quart
from quart import request as quart_request
from quart import websocket as quart_websocket
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.opentelemetry import OpenTelemetryMiddleware as StarletteTelemetry
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

import meshmw.flask
from meshmw import MeshPropagator, asgi, wsgi

Headers = Sequence[tuple[str, str]]
FORMATS = ("tracecontext", "baggage", "b3", "b3multi")


@dataclass
class Visit:
    """What one step of the application saw."""

    headers: dict[str, list[str]]
    span_id: int
    trace_id: int
    sampled: bool
    baggage: dict[str, object]
    outbound: dict[str, str]


@dataclass
class Reply:
    """What the client of one request got."""

    status: int | None = None
    body: bytes = b""
    error: BaseException | None = None
    sent: list[str] = field(default_factory=list)


@dataclass
class Host(ABC):
    """Serves requests through meshmw in one framework, with providers of its own."""

    formats: Sequence[str] = FORMATS
    tracer_provider: trace.TracerProvider | None = None
    exclude: Sequence[str] | None = None
    visits: list[Visit] = field(default_factory=list)
    during: Callable[[], None] | None = None
    error: BaseException = field(default_factory=lambda: LookupError("out of stock"))

    # Whether the SERVER span is meshmw's own where the host's telemetry is on.
    own_span = True
    # Whether an exception of the application reaches the server, rather than being answered by the framework.
    raises = True

    def __post_init__(self) -> None:
        self.propagator = MeshPropagator(self.formats)
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer_provider = self.tracer_provider or provider
        self.options: dict[str, Any] = {
            "propagator": self.propagator,
            "tracer_provider": self.tracer_provider,
            "exclude": self.exclude,
        }
        self.app = self.build()

    @abstractmethod
    def build(self) -> Any:
        """Return the application."""

    @abstractmethod
    def get(self, path: str = "/items/7", headers: Headers = (), **options: Any) -> Reply:
        """Ask it for a path in its own protocol."""

    def visit(self, headers: Sequence[tuple[str, str]]) -> Visit:
        lines: dict[str, list[str]] = {}
        for name, value in headers:
            lines.setdefault(name.lower(), []).append(value)
        outbound: dict[str, str] = {}
        self.propagator.inject(outbound)
        current = trace.get_current_span().get_span_context()
        seen = Visit(
            lines,
            current.span_id,
            current.trace_id,
            current.trace_flags.sampled,
            dict(baggage.get_all()),
            outbound,
        )
        self.visits.append(seen)
        if self.during is not None:
            self.during()
        return seen

    @property
    def seen(self) -> Visit:
        """What the application saw, in the only step that it made."""
        (only,) = self.visits
        return only

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    @property
    def server_spans(self) -> list[ReadableSpan]:
        return [span for span in self.spans if span.kind is SpanKind.SERVER]

    @property
    def server_span(self) -> ReadableSpan:
        (only,) = self.server_spans
        return only

    @property
    def refusals(self) -> dict[tuple[str, str], int]:
        return self.propagator.rejections.counts


@contextmanager
def attached(context: Context | None) -> Iterator[None]:
    """A task or thread in which an earlier request left *context*; whoever runs there must leave it as it was."""
    token = None if context is None else otel_context.attach(context)
    before = otel_context.get_current()
    try:
        yield
        assert otel_context.get_current() == before, "the request left its context behind"
    finally:
        if token is not None:
            otel_context.detach(token)


def latin(text: str) -> bytes:
    return text.encode("latin-1")


class ASGIHost(Host):
    """Drives an ASGI application as a server would."""

    def scope(self, path: str, headers: Headers, **more: Any) -> dict[str, Any]:
        found = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": latin(path),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"shop.internal:8080")]
            + [(latin(name).lower(), latin(value)) for name, value in headers],
            "client": ("10.0.0.9", 41000),
            "server": ("10.0.0.1", 8080),
        } | more
        if found["type"] == "websocket":
            del found["method"]  # Litestar minds one, and the protocol has none
        return found

    async def serve(
        self,
        path: str = "/items/7",
        headers: Headers = (),
        *,
        ambient: Context | None = None,
        on_send: Callable[[dict[str, Any]], Any] | None = None,
        incoming: Sequence[dict[str, Any]] = ({"type": "http.request", "body": b"", "more_body": False},),
        changes: Mapping[str, Any] = MappingProxyType({}),
        **scope: Any,
    ) -> Reply:
        reply = Reply()
        waiting = list(incoming)
        answered = asyncio.Event()
        kind = scope.get("type", "http")

        async def receive() -> dict[str, Any]:
            if waiting:
                return waiting.pop(0)
            await answered.wait()
            return {"type": f"{kind}.disconnect"}

        async def send(message: Any) -> None:
            reply.sent.append(message["type"])
            if on_send is not None:
                on_send(message)
            if message["type"].endswith("http.response.start"):
                reply.status = message["status"]
            reply.body += message.get("body", b"")
            last = message["type"].endswith("http.response.body") and not message.get("more_body")
            if last or message["type"] == "websocket.close":
                answered.set()

        with attached(ambient):
            try:
                await self.app(self.scope(path, headers, **scope) | changes, receive, send)
            except Exception as error:
                reply.error = error
        return reply

    def get(self, path: str = "/items/7", headers: Headers = (), **options: Any) -> Reply:
        return asyncio.run(self.serve(path, headers, **options))

    def visit_scope(self, scope: Any) -> Visit:
        return self.visit([(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]])

    async def chunks(self, request: Any) -> Any:
        for _ in range(3):
            self.visit_scope(request.scope)
            yield b"chunk"

    async def talk(self, socket: WebSocket) -> None:
        """Answer a handshake in the way that the path names."""
        self.visit_scope(socket.scope)
        match socket.scope["path"]:
            case "/ws/deny":
                await socket.close()
            case "/ws/reject":
                await socket.send_denial_response(PlainTextResponse("who are you?", 401))
            case "/ws/fail":
                raise self.error
            case _:
                await socket.accept()
                self.visit_scope(socket.scope)
                await socket.send_text("hello")
                await socket.close()


class BareASGI(ASGIHost):
    """meshmw.asgi around a bare ASGI application."""

    async def application(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            return await self.talk(WebSocket(scope, receive, send))

        async def chunk(body: bytes, more: bool) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        if scope["path"] == "/fail":
            self.visit_scope(scope)
            raise self.error
        status = 200 if scope["path"].startswith(("/items/", "/stream", "/health")) else 404
        if scope["path"] == "/stream":
            await send({"type": "http.response.start", "status": status, "headers": []})
            for last in (False, False, True):
                self.visit_scope(scope)
                await chunk(b"chunk", not last)
            return
        seen = self.visit_scope(scope) if status == 200 else None
        await send({"type": "http.response.start", "status": status, "headers": []})
        await chunk(json.dumps(seen.outbound if seen else {}).encode(), False)

    def build(self) -> Any:
        return asgi.TraceContextMiddleware(self.application, **self.options)


class StarletteHost(ASGIHost):
    """meshmw.asgi among Starlette's middleware."""

    def stack(self) -> list[Middleware]:
        return [self.ours()]

    def ours(self) -> Middleware:
        return Middleware(asgi.TraceContextMiddleware, **self.options)

    def routes(self) -> list[BaseRoute]:
        async def item(request: Request) -> PlainTextResponse:
            return PlainTextResponse(json.dumps(self.visit_scope(request.scope).outbound))

        def sync_item(request: Request) -> PlainTextResponse:
            return PlainTextResponse(json.dumps(self.visit_scope(request.scope).outbound))

        async def stream(request: Request) -> StreamingResponse:
            return StreamingResponse(self.chunks(request))

        async def fail(request: Request) -> PlainTextResponse:
            self.visit_scope(request.scope)
            raise self.error

        return [
            Route("/items/{item}", item),
            Route("/sync/{item}", sync_item),
            Route("/health", item),
            Route("/stream", stream),
            Route("/fail", fail),
            WebSocketRoute("/ws/{how}", self.talk),
        ]

    def build(self) -> Any:
        return Starlette(routes=self.routes(), middleware=self.stack())


class StarletteTelemetryOutside(StarletteHost):
    """meshmw.asgi inside Starlette's own OpenTelemetryMiddleware, whose span it adopts."""

    own_span = False

    def stack(self) -> list[Middleware]:
        return [Middleware(StarletteTelemetry, tracer_provider=self.tracer_provider), self.ours()]


class StarletteTelemetryInside(StarletteHost):
    """meshmw.asgi outside of Starlette's own OpenTelemetryMiddleware, which stands back."""

    def stack(self) -> list[Middleware]:
        return [self.ours(), Middleware(StarletteTelemetry, tracer_provider=self.tracer_provider)]


class ContribASGIOutside(StarletteHost):
    """meshmw.asgi inside contrib's ASGI middleware, whose span it adopts."""

    own_span = False

    def build(self) -> Any:
        return ContribASGI(super().build(), tracer_provider=self.tracer_provider, exclude_spans=["receive", "send"])


class ContribASGIInside(StarletteHost):
    """meshmw.asgi outside of contrib's ASGI middleware, whose span becomes an INTERNAL child."""

    def stack(self) -> list[Middleware]:
        contrib = Middleware(ContribASGI, tracer_provider=self.tracer_provider, exclude_spans=["receive", "send"])
        return [self.ours(), contrib]


class FastAPIHost(ASGIHost):
    """meshmw.asgi among FastAPI's middleware, native telemetry off."""

    def telemetry(self) -> dict[str, Any]:
        return {"tracing": False, "metrics": False, "logs": False}

    def build(self) -> Any:
        app = self.bare_app()
        app.add_middleware(asgi.TraceContextMiddleware, **self.options)
        return app

    def bare_app(self) -> FastAPI:
        app = FastAPI(telemetry=self.telemetry())

        @app.get("/items/{item}")
        @app.get("/health")
        async def read_item(request: FastAPIRequest) -> dict[str, str]:
            return self.visit_scope(request.scope).outbound

        @app.get("/sync/{item}")
        def read_item_in_a_thread(request: FastAPIRequest) -> dict[str, str]:
            return self.visit_scope(request.scope).outbound

        @app.get("/stream")
        async def stream(request: FastAPIRequest) -> StreamingResponse:
            return StreamingResponse(self.chunks(request))

        @app.websocket("/ws/{how}")
        async def talk(socket: WebSocket) -> None:
            await self.talk(socket)

        @app.get("/fail")
        async def fail(request: FastAPIRequest) -> None:
            self.visit_scope(request.scope)
            raise self.error

        return app


class NativeFastAPI(FastAPIHost):
    """meshmw.asgi among the middleware of a FastAPI with native telemetry, whose span it adopts."""

    own_span = False

    def telemetry(self) -> dict[str, Any]:
        return {"tracer_provider": self.tracer_provider, "metrics": False, "logs": False, "operation_spans": False}


class AroundNativeFastAPI(NativeFastAPI):
    """meshmw.asgi outermost around a FastAPI with native telemetry, which stands back."""

    own_span = True

    def build(self) -> Any:
        return asgi.TraceContextMiddleware(self.bare_app(), **self.options)


class ContribFastAPI(FastAPIHost):
    """meshmw.asgi in a FastAPI that contrib's instrumentor has instrumented, whose span it adopts."""

    own_span = False

    def build(self) -> Any:
        app = super().build()
        FastAPIInstrumentor.instrument_app(app, tracer_provider=self.tracer_provider, exclude_spans=["receive", "send"])
        return app


class WSGIHost(Host):
    """Drives a WSGI application as a server would, PEP 3333 checked on both sides."""

    def environ(self, path: str, headers: Headers, **more: Any) -> dict[str, Any]:
        environ: dict[str, Any] = {
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "REMOTE_ADDR": "10.0.0.9",
            "REMOTE_PORT": "41000",
            "HTTP_HOST": "shop.internal:8080",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "QUERY_STRING": "",
        }
        for name, value in headers:
            key = "HTTP_" + name.upper().replace("-", "_")
            environ[key] = f"{environ[key]},{value}" if key in environ else value
        setup_testing_defaults(environ)
        return environ | more

    def get(
        self,
        path: str = "/items/7",
        headers: Headers = (),
        *,
        ambient: Context | None = None,
        between: Callable[[], None] = lambda: None,
        **more: Any,
    ) -> Reply:
        reply = Reply()

        def start_response(status: str, _headers: Any, exc_info: Any = None) -> Any:
            reply.status = int(status[:3])
            return lambda data: None

        with attached(ambient):
            try:
                body = validator(self.app)(self.environ(path, headers, **more), start_response)
                try:
                    for chunk in body:
                        reply.body += chunk
                        between()
                finally:
                    body.close()
            except Exception as error:
                reply.error = error
        return reply

    def visit_environ(self, environ: dict[str, Any]) -> Visit:
        return self.visit(
            [(key[5:].replace("_", "-"), value) for key, value in environ.items() if key.startswith("HTTP_")]
        )


class BareWSGI(WSGIHost):
    """meshmw.wsgi around a bare WSGI application."""

    def application(self, environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        found = path.startswith(("/items/", "/stream", "/health"))
        if path == "/fail":
            self.visit_environ(environ)
            raise self.error
        start_response("200 OK" if found else "404 Not Found", [("Content-Type", "text/plain")])
        if path == "/stream":
            return self.chunks(environ)
        return [json.dumps(self.visit_environ(environ).outbound).encode() if found else b"nothing"]

    def chunks(self, environ: dict[str, Any]) -> Iterator[bytes]:
        for _ in range(3):
            self.visit_environ(environ)
            yield b"chunk"

    def build(self) -> Any:
        return wsgi.TraceContextMiddleware(validator(self.application), **self.options)


class ContribWSGIOutside(BareWSGI):
    """meshmw.wsgi inside contrib's WSGI middleware, whose span it adopts."""

    own_span = False

    def build(self) -> Any:
        return ContribWSGI(super().build(), tracer_provider=self.tracer_provider)


class ContribWSGIInside(BareWSGI):
    """meshmw.wsgi outside of contrib's WSGI middleware, whose span becomes an INTERNAL child."""

    def build(self) -> Any:
        app = ContribWSGI(self.application, tracer_provider=self.tracer_provider)
        return wsgi.TraceContextMiddleware(app, **self.options)


class FlaskHost(WSGIHost):
    """meshmw.flask in a Flask application."""

    def build(self) -> Any:
        app = Flask("shop")
        app.config["PROPAGATE_EXCEPTIONS"] = True

        @app.get("/items/<item>")
        def read_item(item: str) -> dict[str, str]:
            return self.visit_environ(flask_request.environ).outbound

        @app.get("/health")
        def health() -> dict[str, str]:
            return self.visit_environ(flask_request.environ).outbound

        @app.get("/stream")
        def stream() -> Any:
            environ = flask_request.environ

            def chunks() -> Iterator[bytes]:
                for _ in range(3):
                    self.visit_environ(environ)
                    yield b"chunk"

            return app.response_class(chunks())

        @app.get("/fail")
        def fail() -> None:
            self.visit_environ(flask_request.environ)
            raise self.error

        self.finish(app)
        return app

    def finish(self, app: Flask) -> None:
        meshmw.flask.init_app(app, **self.options)


class ContribFlask(FlaskHost):
    """meshmw.flask in a Flask that contrib's instrumentor has instrumented, whose span becomes an INTERNAL child."""

    def finish(self, app: Flask) -> None:
        super().finish(app)
        FlaskInstrumentor.instrument_app(app, tracer_provider=self.tracer_provider)


class LitestarHost(ASGIHost):
    """meshmw.asgi around a Litestar application, which answers exceptions itself."""

    raises = False

    def build(self) -> Any:
        @litestar.get(["/items/{item:str}", "/health"])
        async def item(request: LitestarRequest) -> dict[str, str]:
            return self.visit_scope(request.scope).outbound

        @litestar.get("/sync/{item:str}", sync_to_thread=True)
        def sync_item(request: LitestarRequest) -> dict[str, str]:
            return self.visit_scope(request.scope).outbound

        @litestar.get("/stream")
        async def stream(request: LitestarRequest) -> LitestarStream:
            return LitestarStream(self.chunks(request))

        @litestar.get("/fail")
        async def fail(request: LitestarRequest) -> None:
            self.visit_scope(request.scope)
            raise self.error

        @litestar.websocket("/ws/{how:str}")
        async def talk(socket: LitestarWebSocket) -> None:
            await self.talk_in_litestar(socket)

        app = litestar.Litestar([item, sync_item, stream, fail, talk], openapi_config=None, logging_config=None)
        return asgi.TraceContextMiddleware(app, **self.options)

    async def talk_in_litestar(self, socket: Any) -> None:
        self.visit_scope(socket.scope)
        match socket.scope["path"]:
            case "/ws/deny":
                await socket.close()
            case "/ws/reject":
                # It has no words of its own for this.
                await socket.send({"type": "websocket.http.response.start", "status": 401, "headers": []})
                await socket.send({"type": "websocket.http.response.body", "body": b"who are you?"})
            case "/ws/fail":
                raise self.error
            case _:
                await socket.accept()
                self.visit_scope(socket.scope)
                await socket.send_text("hello")
                await socket.close()


class QuartHost(ASGIHost):
    """meshmw.asgi in a Quart application, around its `asgi_app` as Quart documents."""

    def build(self) -> Any:
        app = Quart("shop")
        app.config["PROPAGATE_EXCEPTIONS"] = True

        @app.get("/items/<item>")
        @app.get("/health")
        async def read_item(item: str = "") -> dict[str, str]:
            return self.visit_scope(quart_request.scope).outbound

        @app.get("/sync/<item>")
        def read_item_in_a_thread(item: str) -> dict[str, str]:
            return self.visit_scope(quart_request.scope).outbound

        @app.get("/stream")
        async def stream() -> Any:
            request = SimpleNamespace(scope=quart_request.scope)
            return app.response_class(self.chunks(request))

        @app.get("/fail")
        async def fail() -> None:
            self.visit_scope(quart_request.scope)
            raise self.error

        @app.websocket("/ws/<how>")
        async def talk(how: str) -> None:
            self.visit_scope(quart_websocket.scope)
            match how:
                case "deny":
                    await quart_websocket.close(1000)
                case "reject":
                    quart.abort(401)
                case "fail":
                    raise self.error
                case _:
                    await quart_websocket.accept()
                    self.visit_scope(quart_websocket.scope)
                    await quart_websocket.send("hello")
                    await quart_websocket.close(1000)

        app.asgi_app = asgi.TraceContextMiddleware(app.asgi_app, **self.options)
        return app


class DjangoASGI(ASGIHost):
    """meshmw.asgi around a Django application, with the middleware that knows Django's routes."""

    def build(self) -> Any:
        app = ClosingHandler()

        async def of_this_host(scope: Any, receive: Any, send: Any) -> None:
            scope[DJANGO_HOST] = self
            try:
                await app(scope, receive, send)
            finally:
                del scope[DJANGO_HOST]

        return asgi.TraceContextMiddleware(of_this_host, **self.options)


class DjangoWSGI(WSGIHost):
    """meshmw.wsgi around a Django application, with the middleware that knows Django's routes."""

    def build(self) -> Any:
        app = get_wsgi_application()

        def of_this_host(environ: dict[str, Any], start_response: Any) -> Any:
            return app(environ | {DJANGO_HOST: self}, start_response)

        return wsgi.TraceContextMiddleware(of_this_host, **self.options)


DJANGO_HOST = "tests.host"


class ClosingHandler(ASGIHandler):
    """Closes the file with a request's body, which Django leaves open where a view raises or a request is cancelled."""

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        opened = []
        create_request = self.create_request

        def remember(scope: Any, body_file: Any) -> Any:
            opened.append(body_file)
            return create_request(scope, body_file)

        handler = copy(self)
        handler.create_request = remember
        try:
            await super(ClosingHandler, handler).handle(scope, receive, send)
        finally:
            for file in opened:
                file.close()


def django_visit(request: Any) -> Visit:
    if hasattr(request, "scope"):
        return request.scope[DJANGO_HOST].visit_scope(request.scope)
    return request.META[DJANGO_HOST].visit_environ(request.META)


class DjangoURLs:
    """Django has one table of routes in a process; the views find their host by the request."""

    @staticmethod
    async def item(request: Any, item: str = "") -> JsonResponse:
        return JsonResponse(django_visit(request).outbound)

    @staticmethod
    def sync_item(request: Any, item: str = "") -> JsonResponse:
        return JsonResponse(django_visit(request).outbound)

    @staticmethod
    def stream(request: Any) -> StreamingHttpResponse:
        async def chunks() -> Any:
            for _ in range(3):
                django_visit(request)
                yield b"chunk"

        def sync_chunks() -> Iterator[bytes]:
            for _ in range(3):
                django_visit(request)
                yield b"chunk"

        return StreamingHttpResponse(chunks() if hasattr(request, "scope") else sync_chunks())

    @staticmethod
    def fail(request: Any) -> None:
        django_visit(request)
        host = request.scope[DJANGO_HOST] if hasattr(request, "scope") else request.META[DJANGO_HOST]
        raise host.error


DjangoURLs.urlpatterns = (
    django_path("items/<item>", DjangoURLs.item),
    django_path("sync/<item>", DjangoURLs.sync_item),
    django_path("health", DjangoURLs.sync_item),
    django_path("stream", DjangoURLs.stream),
    django_path("fail", DjangoURLs.fail),
)
django_settings.configure(
    ALLOWED_HOSTS=["*"],
    DEBUG_PROPAGATE_EXCEPTIONS=True,
    LOGGING_CONFIG=None,
    MIDDLEWARE=["meshmw.django.route_middleware"],
    ROOT_URLCONF=DjangoURLs,
    SECRET_KEY="tests",
)
django.setup()


ASGI_HOSTS = [
    BareASGI,
    StarletteHost,
    FastAPIHost,
    NativeFastAPI,
    AroundNativeFastAPI,
    StarletteTelemetryOutside,
    StarletteTelemetryInside,
    ContribASGIOutside,
    ContribASGIInside,
    ContribFastAPI,
    LitestarHost,
    QuartHost,
    DjangoASGI,
]
# Django has none.
WEBSOCKET_HOSTS = [host for host in ASGI_HOSTS if host is not DjangoASGI]
WSGI_HOSTS = [BareWSGI, FlaskHost, ContribWSGIOutside, ContribWSGIInside, ContribFlask, DjangoWSGI]
HOSTS = {host.__name__: host for host in ASGI_HOSTS + WSGI_HOSTS}


@pytest.fixture
def make() -> Iterator[Any]:
    """Makes hosts by class name; their frameworks' telemetry reads with their propagator, as after `configure()`."""
    before = propagate.get_global_textmap()

    def make_host(name: str, **options: Any) -> Any:
        host = HOSTS[name](**options)
        propagate.set_global_textmap(host.propagator)
        return host

    yield make_host
    propagate.set_global_textmap(before)


@pytest.fixture(params=list(HOSTS))
def new_host(make: Any, request: pytest.FixtureRequest) -> Any:
    """Makes each host in turn, with options of the test's own."""
    return partial(make, request.param)


@pytest.fixture
def host(new_host: Any) -> Any:
    return new_host()


@pytest.fixture(params=[each.__name__ for each in ASGI_HOSTS])
def new_asgi_host(make: Any, request: pytest.FixtureRequest) -> Any:
    return partial(make, request.param)


@pytest.fixture
def asgi_host(new_asgi_host: Any) -> Any:
    return new_asgi_host()


@pytest.fixture(params=[each.__name__ for each in WEBSOCKET_HOSTS])
def websocket_host(make: Any, request: pytest.FixtureRequest) -> Any:
    return make(request.param)


@pytest.fixture(params=[each.__name__ for each in WSGI_HOSTS])
def new_wsgi_host(make: Any, request: pytest.FixtureRequest) -> Any:
    return partial(make, request.param)


@pytest.fixture
def wsgi_host(new_wsgi_host: Any) -> Any:
    return new_wsgi_host()


@pytest.fixture(autouse=True)
def no_detach_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Law 5, in every test of this folder."""
    yield
    for when in ("setup", "call", "teardown"):
        said = [record.getMessage() for record in caplog.get_records(when)]
        assert not [line for line in said if "Failed to detach" in line], said
