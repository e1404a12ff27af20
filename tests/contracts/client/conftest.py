"""The callers that the client contract runs on: httpx and httpx2, sync and async, in memory and over a real socket.

A contract test is written once, for an async client; a sync client's results are awaited as they are.
"""

from __future__ import annotations

import asyncio
import http.server
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import httpx2
import pytest
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

import meshmw.httpx
import meshmw.httpx2
from meshmw import MeshPropagator

FAMILIES = {"httpx": (httpx, meshmw.httpx), "httpx2": (httpx2, meshmw.httpx2)}
Lines = list[tuple[str, str]]


def answer(path: str) -> tuple[int, dict[str, str], bytes]:
    """What the server says to a path, whether it is in memory or behind a socket."""
    if path.startswith("/status/"):
        return int(path.removeprefix("/status/")), {}, b"as you asked"
    if path == "/redirect":
        return 302, {"location": "/redirect-again"}, b""
    if path == "/redirect-again":
        return 307, {"location": "/items/7"}, b""
    return 200, {"content-type": "text/plain"}, b"in stock"


class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    got: list[Lines]

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.got.append([(name.lower(), value) for name, value in self.headers.items()])
        status, headers, body = answer(self.path.partition("?")[0])
        self.send_response(status)
        for name, value in (headers | {"content-length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_BREW = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


async def result_of(value: Any) -> Any:
    """Wait for what an async client returns; a sync client's result is there already."""
    return await value if inspect.isawaitable(value) else value


@dataclass
class Caller:
    """Calls a server through meshmw with one client class."""

    family: str
    is_async: bool
    over: str
    address: str = "http://shop.internal"
    got: list[Lines] = field(default_factory=list)
    inner: Any = None
    formats: tuple[str, ...] = ("tracecontext", "baggage")

    def __post_init__(self) -> None:
        self.library, self.ours = FAMILIES[self.family]
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("application")
        self.propagator = MeshPropagator(self.formats)
        self.inner = self.inner or self.library.MockTransport(self.answer)

    def answer(self, request: Any) -> Any:
        self.got.append([(name.decode().lower(), value.decode("latin-1")) for name, value in request.headers.raw])
        status, headers, body = answer(request.url.path)
        return self.library.Response(status, headers=headers, content=body)

    def wrap(self, inner: Any) -> Any:
        kind = self.ours.AsyncTraceContextTransport if self.is_async else self.ours.TraceContextTransport
        return kind(inner, propagator=self.propagator, tracer_provider=self.provider)

    def network(self) -> Any:
        return self.library.AsyncHTTPTransport() if self.is_async else self.library.HTTPTransport()

    def client(self, **options: Any) -> Any:
        inner = self.network() if self.over == "network" else self.inner
        kind = self.ours.AsyncClient if self.is_async else self.ours.Client
        ours = {"transport": self.wrap(inner), "base_url": self.address, "trust_env": False, "timeout": 60.0}
        return kind(**ours | options)

    def run(self, use: Callable[[Any], Awaitable[Any]], *, within: Context | None = None, **options: Any) -> Any:
        """Use a client, within a context that must be current again afterwards."""

        async def whole() -> Any:
            with current(within):
                client = self.client(**options)
                try:
                    return await use(client)
                finally:
                    await result_of(client.aclose() if self.is_async else client.close())

        return asyncio.run(whole())

    def call(
        self, path: str = "/items/7", method: str = "GET", *, within: Context | None = None, **options: Any
    ) -> Any:
        return self.run(lambda client: result_of(client.request(method, path, **options)), within=within)

    def close(self, response: Any) -> Any:
        return result_of(response.aclose() if self.is_async else response.close())

    async def chunks(self, response: Any) -> AsyncIterator[bytes]:
        if self.is_async:
            async for chunk in response.aiter_bytes():
                yield chunk
        else:
            for chunk in response.iter_bytes():
                yield chunk

    @property
    def sent(self) -> dict[str, list[str]]:
        """The header lines of the only request that reached the server."""
        (only,) = self.got
        return by_name(only)

    @property
    def spans(self) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.kind is SpanKind.CLIENT]

    @property
    def span(self) -> ReadableSpan:
        (only,) = self.spans
        return only


def by_name(lines: Lines) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in lines:
        found.setdefault(name, []).append(value)
    return found


@contextmanager
def current(context: Context | None) -> Iterator[None]:
    token = None if context is None else otel_context.attach(context)
    before = otel_context.get_current()
    try:
        yield
        assert otel_context.get_current() == before, "the call left its context behind"
    finally:
        if token is not None:
            otel_context.detach(token)


class ForMany(http.server.ThreadingHTTPServer):
    # Else, of fifty calls at once, all but five knock again and again, under load for more than a minute.
    request_queue_size = 128


@pytest.fixture(scope="session")
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    running = ForMany(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


KINDS = [(family, is_async) for family in FAMILIES for is_async in (False, True)]


def name_of(kind: tuple[str, bool]) -> str:
    return f"{kind[0]}-{'async' if kind[1] else 'sync'}"


@pytest.fixture
def make() -> Any:
    """Makes a caller of one client class, whose requests end in memory."""
    return lambda family, is_async, **options: Caller(family, is_async, "memory", **options)


@pytest.fixture(params=KINDS, ids=name_of)
def in_memory(make: Any, request: pytest.FixtureRequest) -> Any:
    """Makes a caller of each client class, whose requests end in memory."""
    return partial(make, *request.param)


@pytest.fixture(params=["memory", "network"])
def caller(in_memory: Any, request: pytest.FixtureRequest, server: http.server.ThreadingHTTPServer) -> Caller:
    """A caller of each client class, over each kind of transport."""
    made: Caller = in_memory()
    if request.param == "network":
        made.over, made.address = "network", f"http://127.0.0.1:{server.server_port}"
        Server.got = made.got
    return made


@pytest.fixture(scope="session")
def listening() -> Iterator[Any]:
    from tests.contracts.client import every_client

    running = every_client.Listening(("127.0.0.1", 0), every_client.Server)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def address(listening: Any) -> Iterator[str]:
    """Where the server of `every_client.py` listens, which has got nothing yet."""
    listening.RequestHandlerClass.got = []
    listening.RequestHandlerClass.goes_on = goes_on = threading.Event()
    yield f"http://127.0.0.1:{listening.server_port}"
    goes_on.set()


@pytest.fixture(autouse=True)
def no_detach_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Law 5, in every test of this folder."""
    yield
    for when in ("setup", "call", "teardown"):
        said = [record.getMessage() for record in caplog.get_records(when)]
        assert not [line for line in said if "Failed to detach" in line], said
