"""What hidden set-up of a page may import: `from helpers import ...`. No page shows it to its readers."""

from __future__ import annotations

import asyncio
import io
import threading
import time
import wsgiref.simple_server
from collections.abc import Awaitable, Callable
from typing import Any
from wsgiref.util import setup_testing_defaults

import httpx
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshmw.testing import free_port

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"

_exporter = InMemorySpanExporter()
_watched: list[Any] = []


def watch() -> None:
    """Collect what the current tracer provider's spans say from here on; call it after `configure()`."""
    provider = trace.get_tracer_provider()
    if provider not in _watched:
        _watched.append(provider)
        provider.add_span_processor(SimpleSpanProcessor(_exporter))  # type: ignore[attr-defined]


def spans() -> list[ReadableSpan]:
    """Return the spans that ended since `watch()`."""
    return list(_exporter.get_finished_spans())


def names() -> list[str]:
    """Return `KIND name` of each span that ended, in the order of their ends."""
    return [f"{span.kind.name} {span.name}" for span in spans()]


def traces() -> set[str]:
    """Return the ids of all traces that the spans belong to."""
    return {trace.format_trace_id(span.context.trace_id) for span in spans()}


def get(app: Any, path: str = "/", **headers: str) -> httpx.Response:
    """Send a request with a valid traceparent (or your own) to an ASGI application, and answer what came back."""
    watch()

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path, headers={"traceparent": TRACEPARENT} | headers)

    return asyncio.run(send())


def get_wsgi(app: Any, path: str = "/", **headers: str) -> httpx.Response:
    """Do the same with a WSGI application."""
    watch()
    with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://test") as client:
        return client.get(path, headers={"traceparent": TRACEPARENT} | headers)


def environ(path: str = "/") -> dict[str, Any]:
    """Return a WSGI environ with a valid traceparent."""
    made: dict[str, Any] = {"PATH_INFO": path, "HTTP_TRACEPARENT": TRACEPARENT, "wsgi.input": io.BytesIO()}
    setup_testing_defaults(made)
    return made


def serve_wsgi(app: Any) -> str:
    """Serve a WSGI application in a thread until the program ends; return its URL."""
    server = wsgiref.simple_server.make_server("127.0.0.1", 0, app)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def get_served(serve: Callable[[int], Awaitable[Any]], path: str = "/", **headers: str) -> httpx.Response:
    """Send a request to the server that a coroutine starts on a port, and answer what came back once a span ended."""
    watch()

    async def send() -> httpx.Response:
        port = free_port()
        await serve(port)
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{port}{path}", headers={"traceparent": TRACEPARENT} | headers)
        until = time.monotonic() + 10
        while not spans() and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return answer

    return asyncio.run(send())
