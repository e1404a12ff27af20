"""Responses that are made step by step, and generators."""

from __future__ import annotations

import asyncio
import gc
import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from opentelemetry import context as otel_context
from opentelemetry.trace import StatusCode

from tests.matrix.row import row
from tests.matrix.served import (
    Connection,
    Ids,
    ask_once,
    trace_here,
    trace_of,
    uvicorn_serves,
    wait_for,
    werkzeug_serves,
)

GROUP = "streams"


def wsgi_call(app: Any, ids: Ids | None = None, **more: Any) -> Any:
    """Call a WSGI application as a server does, and return its body."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    if ids is not None:
        environ["HTTP_TRACEPARENT"] = ids.traceparent[1]
    return app(environ | more, lambda status, headers, exc_info=None: lambda data: None)


@row(GROUP, "`StreamingResponse`: every chunk in the request's trace")
def streaming_response(kit: Any) -> None:
    app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})

    async def chunks() -> AsyncIterator[str]:
        for _ in range(3):
            yield trace_here()
            await asyncio.sleep(0)

    @app.get("/")
    async def ask() -> StreamingResponse:
        return StreamingResponse(chunks())

    ids = Ids()
    assert ask_once(uvicorn_serves, kit.fastapi(app), "/", ids.traceparent).decode() == ids.trace * 3, "another trace"


@row(GROUP, "a client that leaves in the middle of a stream ends the span")
def stream_disconnect(kit: Any) -> None:
    app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})

    async def chunks() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65_536
            await asyncio.sleep(0)

    @app.get("/")
    async def ask() -> StreamingResponse:
        return StreamingResponse(chunks())

    ids = Ids()
    with uvicorn_serves(kit.fastapi(app)) as port:
        connection = Connection(port)
        connection.send("/", ids.traceparent)
        connection.read_some()
        connection.close()
        assert wait_for(lambda: kit.server_spans), "the span never ends"
    assert trace_of(kit.server_spans[0]) == ids.trace, "another trace"


@row(GROUP, "an async generator with a span across its `yield`: the consumer is not in it")
def generator_consumer(kit: Any) -> None:
    async def source() -> AsyncIterator[str]:
        with kit.tracer.start_as_current_span("of the source"):
            yield trace_here()
            yield trace_here()

    async def consume() -> list[tuple[str, str]]:
        return [(inside, trace_here()) async for inside in kit.stream(source())]

    seen = asyncio.run(consume())
    assert seen[0][0] == seen[1][0] != "0" * 32, "the second step has lost the span"
    assert [outside for _, outside in seen] == ["0" * 32] * 2, "its span is current for the consumer"


@row(GROUP, 'the same, dropped half-way: no "Failed to detach context"')
def generator_dropped(kit: Any) -> None:
    async def source() -> AsyncIterator[int]:
        with kit.tracer.start_as_current_span("of the source"):
            yield 1
            yield 2

    async def consume() -> str:
        steps = kit.stream(source())
        await anext(steps)
        del steps
        gc.collect()
        await asyncio.sleep(0.01)
        return trace_here()

    seen = asyncio.run(consume())
    assert kit.detach_errors == 0, "a context failed to detach"
    assert seen == "0" * 32, "its span stays current for good"


@row(GROUP, "a WSGI generator: every chunk in the request's trace")
def wsgi_generator(kit: Any) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        return (trace_here().encode() for _ in range(3))

    ids = Ids()
    assert ask_once(werkzeug_serves, kit.wsgi(app), "/", ids.traceparent).decode() == ids.trace * 3, "another trace"


@row(GROUP, "between two chunks of WSGI nothing is current in the server's thread")
def wsgi_between_chunks(kit: Any) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        return (b"chunk" for _ in range(3))

    outside = otel_context.get_current()
    body = wsgi_call(kit.wsgi(app), Ids())
    between = [otel_context.get_current() == outside for _ in body]
    getattr(body, "close", lambda: None)()
    assert all(between), "the request's context is current for the server"


@row(GROUP, "a WSGI body that is closed unread (HEAD, an aborted client) ends its span")
def wsgi_closed_unread(kit: Any) -> None:
    closed = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"never read"])

        def close(self) -> None:
            closed.append(True)

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return Body()

    outside = otel_context.get_current()
    body = wsgi_call(kit.wsgi(app), Ids())
    getattr(body, "close", lambda: None)()
    assert kit.server_spans, "the span never ends"
    assert otel_context.get_current() == outside, "its context stays current for the thread's next request"
    assert closed, "the application's own close is not called"


@row(GROUP, "a WSGI body that raises half-way marks its span as an error")
def wsgi_body_raises(kit: Any) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"1"
        raise LookupError("half-way")

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        return chunks()

    body, raised = wsgi_call(kit.wsgi(app), Ids()), False
    try:
        list(body)
    except LookupError:
        raised = True
    getattr(body, "close", lambda: None)()
    assert raised, "the error does not pass"
    assert kit.server_spans, "the span never ends"
    assert kit.server_spans[0].status.status_code is StatusCode.ERROR, "the span tells nothing"


@row(GROUP, "a file in `wsgi.file_wrapper` is still sent by sendfile")
def wsgi_sendfile(kit: Any) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](io.FileIO(Path(__file__)))

    body = wsgi_call(kit.wsgi(app), Ids(), **{"wsgi.file_wrapper": FileWrapper})
    kept = type(body) is FileWrapper
    getattr(body, "close", lambda: None)()
    assert kept, "the server gets another object"
    assert kit.server_spans, "the span never ends"
