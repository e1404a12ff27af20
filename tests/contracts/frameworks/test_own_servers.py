"""Servers that speak HTTP themselves, on real sockets: Tornado, Sanic, aiohttp, `http.server`, and one of one's own.

`docs/guides/other-servers.md` has the same lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
import sanic
import tornado.httpserver
import tornado.httputil
import tornado.web
from aiohttp import web
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import meshmw
from meshmw.aiohttp import TraceContextMiddleware
from meshmw.server import TraceContextBoundary
from meshmw.testing import free_port

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE_ID}-{PARENT_ID}-01"


class Shop:
    """What every server serves: `/stock/{item}` answers with what it saw, `/fail` raises."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.propagator = meshmw.MeshPropagator()
        self.options: dict[str, Any] = {"propagator": self.propagator, "tracer_provider": provider}
        self.boundary = TraceContextBoundary(**self.options)

    def stock(self, headers: Any) -> dict[str, Any]:
        meshmw.set_route("/stock/{item}")
        outbound: dict[str, str] = {}
        self.propagator.inject(outbound)
        named = [name.lower() for name in headers]
        return {"seen": [name for name in named if name.startswith("trace")], "outbound": outbound}


class TornadosDelegate(tornado.httputil.HTTPMessageDelegate):
    def __init__(self, inner: Any, span: Any) -> None:
        self.inner, self.span, self.is_whole = inner, span, False

    def headers_received(self, start_line: Any, headers: Any) -> Any:
        with self.span.current():
            return self.inner.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Any:
        with self.span.current():
            return self.inner.data_received(chunk)

    def finish(self) -> None:
        self.is_whole = True
        with self.span.current():
            self.inner.finish()

    def on_connection_close(self) -> None:
        self.inner.on_connection_close()
        if not self.is_whole:
            self.span.end()


class TornadosApplication(tornado.web.Application):
    def get_handler_delegate(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        span = self.settings["shop"].boundary.span(
            request.headers,
            method=request.method,
            target=request.uri,
            scheme=request.protocol,
            peer=request.remote_ip,
            http_version=request.version,
        )
        request.span = span.begin()
        request.headers = span.headers
        return TornadosDelegate(super().get_handler_delegate(request, *args, **kwargs), span)

    def log_request(self, handler: Any) -> None:
        handler.request.span.set_status(handler.get_status())
        handler.request.span.end()


class TornadosStock(tornado.web.RequestHandler):
    async def get(self, item: str) -> None:
        await asyncio.sleep(0)
        self.write(self.settings["shop"].stock(self.request.headers))

    async def post(self, item: str) -> None:
        await self.get(item)


class TornadosFailure(tornado.web.RequestHandler):
    def get(self) -> None:
        raise LookupError("out of stock")

    def log_exception(self, kind: Any, error: Any, at: Any) -> None:
        self.request.span.record_exception(error)


@contextlib.asynccontextmanager
async def tornados(shop: Shop, port: int) -> AsyncIterator[None]:
    app = TornadosApplication([(r"/stock/(\w+)", TornadosStock), ("/fail", TornadosFailure)], shop=shop)
    server = tornado.httpserver.HTTPServer(app)
    server.listen(port, "127.0.0.1")
    yield
    server.stop()
    await server.close_all_connections()


class SanicsApplication(sanic.Sanic):
    async def handle_request(self, request: Any) -> None:
        block = self.ctx.shop.boundary.span(
            request.headers,
            method=request.method,
            target=request.raw_url,
            scheme=request.scheme,
            peer=(request.ip, request.port),
            http_version=request.version,
        )
        with block as span:
            request.headers = span.headers
            request.ctx.span = span
            await super().handle_request(request)
            span.set_route(request.uri_template)


@contextlib.asynccontextmanager
async def sanics(shop: Shop, port: int) -> AsyncIterator[None]:
    app = SanicsApplication("shop", configure_logging=False)
    app.ctx.shop = shop
    # It rewrites Sanic's own code, once in a process.
    app.config.TOUCHUP = False

    @app.get("/stock/<item>")
    async def stock(request: Any, item: str) -> Any:
        await asyncio.sleep(0)
        return sanic.json(shop.stock(request.headers))

    @app.get("/fail")
    async def fail(request: Any) -> None:
        raise LookupError("out of stock")

    @app.on_response
    async def note(request: Any, response: Any) -> None:
        request.ctx.span.set_status(response.status)

    @app.signal("http.lifecycle.exception")
    async def record(request: Any, exception: Any) -> None:
        if not isinstance(exception, sanic.SanicException):
            request.ctx.span.record_exception(exception)

    server = await app.create_server("127.0.0.1", port)
    await server.startup()
    await server.start_serving()
    yield
    server.close()
    await server.wait_closed()
    sanic.Sanic._app_registry.clear()


@contextlib.asynccontextmanager
async def aiohttps(shop: Shop, port: int) -> AsyncIterator[None]:
    async def stock(request: web.Request) -> web.Response:
        await asyncio.sleep(0)
        return web.json_response(shop.stock(request.headers))

    async def fail(request: web.Request) -> web.Response:
        raise LookupError("out of stock")

    app = web.Application(middlewares=[TraceContextMiddleware(**shop.options)])
    app.router.add_get("/stock/{item}", stock)
    app.router.add_get("/fail", fail)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield
    await runner.cleanup()


@contextlib.asynccontextmanager
async def home_mades(shop: Shop, port: int) -> AsyncIterator[None]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head[:-4].split(b"\r\n")
                method, target, _ = first.split(b" ")
                headers = [tuple(line.split(b": ", 1)) for line in lines]
                await answer(writer, method, target, headers)
        writer.close()

    async def answer(writer: Any, method: bytes, target: bytes, headers: Any) -> None:
        try:
            block = shop.boundary.span(
                headers, method=method, target=target, peer=writer.get_extra_info("peername"), http_version="1.1"
            )
            with block as span:
                if target == b"/fail":
                    raise LookupError("out of stock")
                found = target.startswith(b"/stock/")
                span.set_status(200 if found else 404)
                seen = shop.stock([name.decode() for name, _ in span.headers]) if found else {}
                body = httpx.Response(200, json=seen).content
        except LookupError:
            writer.write(b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n")
            return
        status = b"200 OK" if found else b"404 Not Found"
        writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body))

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    yield
    server.close()


@contextlib.asynccontextmanager
async def standard_librarys(shop: Shop, port: int) -> AsyncIterator[None]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            try:
                block = shop.boundary.span(
                    self.headers,
                    method=self.command,
                    target=self.path,
                    peer=self.client_address,
                    http_version=self.request_version,
                )
                with block as self.span:
                    if self.path == "/fail":
                        raise LookupError("out of stock")
                    found = self.path.startswith("/stock/")
                    self.answer(200 if found else 404, shop.stock(self.span.headers.keys()) if found else {})
            except LookupError:
                self.answer(500, {})

        def answer(self, status: int, seen: Any) -> None:
            body = httpx.Response(200, json=seen).content
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def send_response(self, code: int, message: str | None = None) -> None:
            self.span.set_status(code)
            super().send_response(code, message)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield
    await asyncio.to_thread(server.shutdown)
    thread.join()
    server.server_close()


SERVERS = {
    "tornado": tornados,
    "sanic": sanics,
    "aiohttp": aiohttps,
    "home-made": home_mades,
    "http.server": standard_librarys,
}


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture(params=SERVERS)
def ask(request: pytest.FixtureRequest, shop: Shop) -> Iterator[Any]:
    """Asks a server, whose loop runs in a thread, over one connection that it keeps alive."""
    port, started, over = free_port(), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with SERVERS[request.param](shop, port):
            started.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(60)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client.get
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


def spans_of(shop: Shop, wanted: int) -> Any:
    # A server may end the span after the client has its answer.
    for _ in range(1000):
        found = shop.exporter.get_finished_spans()
        if len(found) >= wanted:
            break
        threading.Event().wait(0.01)
    return [span for span in found if span.kind is SpanKind.SERVER]


def test_a_valid_caller_goes_on(ask: Any, shop: Shop) -> None:
    answer = ask("/stock/teapot?full=1", headers={"traceparent": VALID, "tracestate": "vendor=1"})
    assert answer.status_code == 200
    (span,) = spans_of(shop, 1)
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE_ID, PARENT_ID)
    assert answer.json()["outbound"]["traceparent"] == f"00-{TRACE_ID}-{span.context.span_id:016x}-01"
    assert answer.json()["outbound"]["tracestate"] == "vendor=1"
    assert answer.json()["seen"] == ["traceparent", "tracestate"]
    found = dict(span.attributes)
    assert span.name == "GET /stock/{item}"
    assert (found["http.route"], found["http.response.status_code"]) == ("/stock/{item}", 200)
    assert (found["url.path"], found["url.query"], found["url.scheme"]) == ("/stock/teapot", "full=1", "http")
    assert (found["client.address"], found["server.address"]) == ("127.0.0.1", "127.0.0.1")
    assert found["network.protocol.version"] == "1.1"
    assert "meshmw.response.incomplete" not in found


@pytest.mark.parametrize("text", ["junk", VALID.upper(), VALID + "\xff", f"{VALID},{VALID}"])
def test_a_malformed_caller_goes_no_further(ask: Any, shop: Shop, text: str) -> None:
    headers = [(b"traceparent", text.encode("latin-1")), (b"tracestate", b"vendor=1")]
    answer = ask("/stock/teapot", headers=headers)
    assert answer.json()["seen"] == []
    (span,) = spans_of(shop, 1)
    assert span.parent is None
    assert answer.json()["outbound"]["traceparent"].startswith(f"00-{span.context.trace_id:032x}-")
    assert sum(shop.propagator.rejections.counts.values()) == 1


def test_a_connection_that_is_kept_alive_leaves_nothing(ask: Any, shop: Shop) -> None:
    ask("/stock/teapot", headers={"traceparent": VALID})
    ask("/stock/teapot")
    ask("/secret")
    first, second, third = spans_of(shop, 3)
    assert (second.parent, third.parent) == (None, None)
    assert len({first.context.trace_id, second.context.trace_id, third.context.trace_id}) == 3
    assert shop.propagator.rejections.counts == {}
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_path_that_nobody_knows_names_nothing(ask: Any, shop: Shop) -> None:
    assert ask("/secret").status_code == 404
    (span,) = spans_of(shop, 1)
    # Tornado's and Sanic's own handlers of a missing path are no route.
    assert (span.name, span.attributes["http.response.status_code"]) == ("GET", 404)
    assert "error.type" not in span.attributes


def test_an_exception_is_recorded_once(ask: Any, shop: Shop) -> None:
    assert ask("/fail", headers={"traceparent": VALID}).status_code == 500
    (span,) = spans_of(shop, 1)
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes["error.type"], span.attributes["http.response.status_code"]) == ("LookupError", 500)
    assert [event.name for event in span.events] == ["exception"]


def test_hundred_requests_do_not_mix(ask: Any, shop: Shop) -> None:
    for number in range(1, 101):
        ask("/stock/teapot", headers={"traceparent": f"00-{number:032x}-{PARENT_ID}-01"})
    assert [span.context.trace_id for span in spans_of(shop, 100)] == list(range(1, 101))
