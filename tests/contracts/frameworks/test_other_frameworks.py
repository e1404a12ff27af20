"""Litestar and Quart on a real uvicorn: their WebSockets, and the route that an application of Quart tells itself."""

from __future__ import annotations

import asyncio
import json
import urllib.request

import litestar
import pytest
import quart
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from websockets.asyncio.client import connect

from meshmw import MeshPropagator, frames
from meshmw.asgi import TraceContextMiddleware
from tests.matrix.served import Ids, parent_of, trace_here, trace_of, uvicorn_serves, wait_for

PROPAGATOR = MeshPropagator()
EXPORTER = InMemorySpanExporter()
PROVIDER = TracerProvider()
PROVIDER.add_span_processor(SimpleSpanProcessor(EXPORTER))
TRACER = PROVIDER.get_tracer("test")


def answer(text):
    """Say in which trace the connection is, and in which the message."""
    connection = trace_here()
    with frames.using(frames.extract_json(json.loads(text), propagator=PROPAGATOR)):
        return json.dumps([connection, trace_here()])


def litestar_application():
    @litestar.websocket("/rooms/{room:int}")
    async def room(socket: litestar.WebSocket) -> None:
        await socket.accept()
        async for text in socket.iter_data("text"):
            await socket.send_text(answer(text))

    return litestar.Litestar([room], openapi_config=None, logging_config=None)


def quart_application():
    app = quart.Quart("shop")

    @app.websocket("/rooms/<int:room>")
    async def talk(room):
        while True:
            await quart.websocket.send(answer(await quart.websocket.receive()))

    @app.get("/items/<int:item>")
    async def read_item(item):
        return "ok"

    @app.before_request
    async def tell_route():
        if quart.request.url_rule:
            quart.request.scope["path_template"] = quart.request.url_rule.rule

    return app


FRAMEWORKS = {"litestar": litestar_application, "quart": quart_application}


def served(framework):
    EXPORTER.clear()
    app = TraceContextMiddleware(FRAMEWORKS[framework](), propagator=PROPAGATOR, tracer_provider=PROVIDER)
    return uvicorn_serves(app)


def server_spans(ids):
    mine = (span for span in EXPORTER.get_finished_spans() if trace_of(span) == ids.trace)
    return [span for span in mine if span.kind is SpanKind.SERVER]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_connection_keeps_its_context_and_each_message_brings_its_own(framework, caplog):
    ids = Ids()

    async def exchange(port):
        async with connect(f"ws://127.0.0.1:{port}/rooms/7", additional_headers=[ids.traceparent]) as client:
            for _ in range(3):
                with TRACER.start_as_current_span("sender"):
                    message = {}
                    frames.inject_json(message, propagator=PROPAGATOR)
                    await client.send(json.dumps(message))
                    assert json.loads(await client.recv()) == [ids.trace, trace_here()]
            # The handshake's span has ended, and the connection goes on.
            (handshake,) = server_spans(ids)
        return handshake

    with served(framework) as port:
        handshake = asyncio.run(exchange(port))
    assert parent_of(handshake) == ids.parent
    assert handshake.attributes["http.response.status_code"] == 101
    assert server_spans(ids) == [handshake]
    assert "Failed to detach" not in caplog.text


def test_an_application_of_quart_tells_its_route_in_the_scope():
    ids = Ids()
    with served("quart") as port:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/items/7", headers=dict([ids.traceparent]))
        assert urllib.request.urlopen(request, timeout=30).read() == b"ok"
        (server,) = wait_for(lambda: server_spans(ids))
    assert (server.name, server.attributes["http.route"]) == ("GET /items/<int:item>", "/items/<int:item>")
    assert trace.get_current_span() is trace.INVALID_SPAN
