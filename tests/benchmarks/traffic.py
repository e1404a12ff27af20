"""The requests that every rival serves, and the provider that takes everybody's spans."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any
from wsgiref.util import setup_testing_defaults

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from meshmw import MeshPropagator
from meshmw import _runtime as runtime
from meshmw._runtime import Runtime
from tests.benchmarks.measure import Batch

IDS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"{IDS}-01", f"{IDS}-00"

# What an application behind an Envoy sidecar gets of a small request.
COMMON = (
    ("host", "items.local"),
    ("user-agent", "python-httpx/0.28.1"),
    ("accept", "*/*"),
    ("accept-encoding", "gzip, deflate"),
    ("x-forwarded-proto", "http"),
    ("x-request-id", "9acb4236-4cdf-4863-b1e2-5f786b9484ea"),
    ("x-envoy-expected-rq-timeout-ms", "15000"),
)
STATE = (("tracestate", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"), ("baggage", "user=alice,tenant=5"))

Headers = Sequence[tuple[str, str]]


class _Null(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


@cache
def provider() -> TracerProvider:
    """Return the global provider of this process, which exports to nowhere, and configure meshmw beside it."""
    made = TracerProvider()
    made.add_span_processor(BatchSpanProcessor(_Null()))
    trace.set_tracer_provider(made)
    runtime.install(Runtime(propagator=MeshPropagator()))
    return made


def flush() -> None:
    """Empty the span queue, so that the next batch does not pay for the last one's."""
    provider().force_flush()


def headers(traceparent: str = SAMPLED, more: Headers = STATE) -> list[tuple[str, str]]:
    """Return the headers of one request."""
    return [*COMMON, ("traceparent", traceparent), *more]


def scope_of(lines: Headers) -> dict[str, Any]:
    """Return an HTTP scope; each request needs a fresh one."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "path": "/items/1",
        "raw_path": b"/items/1",
        "query_string": b"page=1",
        "scheme": "http",
        "root_path": "",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "headers": [(name.encode(), value.encode()) for name, value in lines],
    }


def environ_of(lines: Headers) -> dict[str, Any]:
    """Return an environ for a GET request; each request needs a fresh one."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/items/1",
        "QUERY_STRING": "page=1",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "50000",
    }
    setup_testing_defaults(environ)
    environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in lines}
    return environ


async def receive() -> dict[str, Any]:
    """Return the whole body of a request that has none."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: object) -> None:
    """Take one message of a response."""


@cache
def loop() -> asyncio.AbstractEventLoop:
    """Return the one event loop that all batches run in."""
    return asyncio.new_event_loop()


def asgi_batch(app: Callable[..., Awaitable[None]], lines: Headers) -> Batch:
    """Return what serves the same request again and again."""
    scope = scope_of(lines)

    async def serve(times: int) -> None:
        for _ in range(times):
            await app(dict(scope), receive, send)

    return lambda times: loop().run_until_complete(serve(times))


def wsgi_batch(app: Callable[..., Any], lines: Headers) -> Batch:
    """Return what serves the same request again and again, and reads and closes its body as a server does."""
    environ = environ_of(lines)

    def start_response(status: str, found: object, exc_info: object = None) -> Callable[[bytes], object]:
        return lambda data: None

    def serve(times: int) -> None:
        for _ in range(times):
            body = app(dict(environ), start_response)
            for _chunk in body:
                pass
            if hasattr(body, "close"):
                body.close()

    return serve
