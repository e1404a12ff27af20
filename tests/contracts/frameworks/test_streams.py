"""Responses that are made step by step: every step in its request's trace, and the span's end with the last of them."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from fastapi import FastAPI
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.sse import EventSourceResponse
from flask import Flask, Response, request, send_file, stream_with_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import meshmw.flask
from meshmw import MeshPropagator
from meshmw.asgi import TraceContextMiddleware
from meshmw.streams import stream
from tests.matrix.served import (
    Connection,
    Ids,
    parent_of,
    span_here,
    trace_of,
    uvicorn_serves,
    wait_for,
    werkzeug_serves,
)

STEPS = 3
EXPORTER = InMemorySpanExporter()
PROVIDER = TracerProvider()
PROVIDER.add_span_processor(SimpleSpanProcessor(EXPORTER))
TRACER = PROVIDER.get_tracer("test")
OPTIONS = {"propagator": MeshPropagator(), "tracer_provider": PROVIDER}


def work():
    with TRACER.start_as_current_span("work"):
        pass


def new_fastapi():
    app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})

    async def steps(count=STEPS, fail=False):
        try:
            for _ in range(count):
                work()
                yield "data: x\n\n"
                await asyncio.sleep(0)
            if fail:
                raise LookupError("half-way")
        finally:
            work()

    async def across():
        with TRACER.start_as_current_span("across"):
            async for step in steps():
                yield step

    def in_threads():
        try:
            for _ in range(STEPS):
                work()
                yield "data: x\n\n"
        finally:
            work()

    makers = {"plain": steps, "across": lambda: stream(across()), "threads": in_threads}
    makers |= {"fails": lambda: steps(fail=True), "endless": lambda: steps(1_000_000)}
    for name, make in makers.items():
        app.get(f"/{name}")(streaming(make))

    @app.get("/events", response_class=EventSourceResponse)
    async def events():
        async for step in steps():
            yield step

    @app.get("/file")
    async def file():
        for _ in range(STEPS + 1):
            work()
        return FileResponse(__file__)

    @app.get("/dropped")
    async def dropped():
        half = stream(across())
        await anext(half)
        del half
        gc.collect()
        await asyncio.sleep(0.01)
        return span_here()

    return app


def streaming(make):
    async def handle():
        return StreamingResponse(make())

    return handle


def new_flask():
    app = Flask("streams")

    def steps(count=STEPS, fail=False):
        try:
            for _ in range(count):
                work()
                yield b"x" * 65_536
            if fail:
                raise LookupError("half-way")
        finally:
            work()

    def across():
        with TRACER.start_as_current_span("across"):
            yield from steps()

    def with_context():
        for _ in range(STEPS + 1):
            work()
            yield request.path.encode()

    makers = {"plain": steps, "across": across, "fails": lambda: steps(fail=True), "endless": lambda: steps(1_000_000)}
    for name, make in makers.items():
        app.get(f"/{name}", endpoint=name)(lambda make=make: Response(make()))
    app.get("/with-context", endpoint="with-context")(lambda: Response(stream_with_context(with_context())))
    app.get("/with-context-across", endpoint="with-context-across")(lambda: Response(stream_with_context(across())))

    @app.get("/file")
    def file():
        for _ in range(STEPS + 1):
            work()
        return send_file(__file__)

    return app


@pytest.fixture(scope="module")
def ports():
    fastapi, flask = new_fastapi(), new_flask()
    fastapi.add_middleware(TraceContextMiddleware, **OPTIONS)
    meshmw.flask.init_app(flask, **OPTIONS)
    flask.logger.disabled = True
    with uvicorn_serves(fastapi) as asgi, werkzeug_serves(flask) as wsgi:
        yield {"asgi": asgi, "wsgi": wsgi}


@pytest.fixture(autouse=True)
def no_spans_of_another_test(caplog):
    EXPORTER.clear()
    yield
    assert "Failed to detach" not in caplog.text


def ask(port, path):
    ids, connection = Ids(), Connection(port)
    connection.ask(path, ids.traceparent)
    return ids, connection


def ended(name):
    return [span for span in EXPORTER.get_finished_spans() if span.name == name]


def server_span(ids):
    wait_for(lambda: server_spans(ids))
    (span,) = server_spans(ids)
    assert parent_of(span) == ids.parent
    return span


def server_spans(ids):
    spans = EXPORTER.get_finished_spans()
    return [span for span in spans if span.kind is SpanKind.SERVER and trace_of(span) == ids.trace]


def is_unaffected(connection):
    """Ask once more, without a trace, on the same connection."""
    EXPORTER.clear()
    connection.ask("/plain")
    assert wait_for(lambda: [span for span in EXPORTER.get_finished_spans() if span.kind is SpanKind.SERVER])
    (server,) = [span for span in EXPORTER.get_finished_spans() if span.kind is SpanKind.SERVER]
    connection.close()
    return parent_of(server) == "" and {trace_of(span) for span in ended("work")} == {trace_of(server)}


WHOLE = [("asgi", path) for path in ("/plain", "/threads", "/events", "/file")]
WHOLE += [("wsgi", path) for path in ("/plain", "/with-context", "/file")]
ACROSS = [("asgi", "/across"), ("wsgi", "/across"), ("wsgi", "/with-context-across")]
BOTH = ["asgi", "wsgi"]


@pytest.mark.parametrize(("kind", "path"), WHOLE)
def test_every_step_is_below_the_server_span_which_ends_after_the_last(ports, kind, path):
    ids, connection = ask(ports[kind], path)
    server = server_span(ids)
    assert wait_for(lambda: len(ended("work")) == STEPS + 1)
    assert {parent_of(span) for span in ended("work")} == {f"{server.context.span_id:016x}"}
    assert server.status.is_unset
    assert "meshmw.response.incomplete" not in server.attributes
    assert is_unaffected(connection)


@pytest.mark.parametrize(("kind", "path"), ACROSS)
def test_a_span_that_a_generator_holds_across_its_steps_is_theirs_and_nobody_elses(ports, kind, path):
    ids, connection = ask(ports[kind], path)
    server = server_span(ids)
    assert wait_for(lambda: ended("across"))
    (across,) = ended("across")
    assert parent_of(across) == f"{server.context.span_id:016x}"
    assert [parent_of(span) for span in ended("work")] == [f"{across.context.span_id:016x}"] * (STEPS + 1)
    assert is_unaffected(connection)


@pytest.mark.parametrize("kind", BOTH)
def test_an_exception_half_way_marks_the_span_and_harms_nobody_else(ports, kind):
    ids, connection = Ids(), Connection(ports[kind])
    connection.send("/fails", ids.traceparent)
    connection.read_some()
    server = server_span(ids)
    connection.close()
    assert server.status.status_code is StatusCode.ERROR
    assert server.attributes["error.type"] == "LookupError"
    assert server.attributes["meshmw.response.incomplete"] is True
    assert len(ended("work")) == STEPS + 1
    assert is_unaffected(Connection(ports[kind]))


@pytest.mark.parametrize("kind", BOTH)
def test_a_client_that_leaves_ends_the_span_and_the_generator_in_their_trace(ports, kind):
    ids, connection = Ids(), Connection(ports[kind])
    connection.send("/endless", ids.traceparent)
    connection.read_some()
    connection.close()
    server = server_span(ids)
    assert server.status.is_unset
    assert server.attributes["meshmw.response.incomplete"] is True
    assert {trace_of(span) for span in ended("work")} == {ids.trace}
    assert is_unaffected(Connection(ports[kind]))


def test_a_stream_that_is_dropped_half_way_leaves_its_request_as_it_was(ports):
    ids, connection = Ids(), Connection(ports["asgi"])
    inside = connection.ask("/dropped", ids.traceparent).decode().strip('"')
    assert inside == f"{server_span(ids).context.span_id:016x}"
    (across,) = ended("across")
    assert trace_of(across) == ids.trace
    assert is_unaffected(connection)


class TestCancelled:
    """A server that stops cancels what is under way."""

    @pytest.mark.parametrize("path", ["/plain", "/across"])
    def test_a_request_that_is_cancelled_between_two_steps_ends_its_span(self, path, strict_context):
        begun, ids = threading.Event(), Ids()

        async def app(scope, receive, send):
            async def steps():
                with TRACER.start_as_current_span("across"):
                    yield 1
                    begun.set()
                    await asyncio.Event().wait()

            async for _ in stream(steps()) if path == "/across" else steps():
                await send({"type": "http.response.start", "status": 200, "headers": []})

        async def main():
            async def quiet(*_):
                await asyncio.sleep(0)

            headers = [tuple(part.encode() for part in ids.traceparent)]
            scope = {"type": "http", "method": "GET", "path": path, "headers": headers}
            task = asyncio.create_task(TraceContextMiddleware(app, **OPTIONS)(scope, quiet, quiet))
            while not begun.is_set():  # noqa: ASYNC110 - one event for all threads
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not trace.get_current_span().get_span_context().is_valid

        asyncio.run(main())
        assert server_span(ids).attributes["meshmw.response.incomplete"] is True
        assert server_span(ids).status.is_unset
        assert trace_of(ended("across")[0]) == ids.trace
