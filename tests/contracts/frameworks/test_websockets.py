"""WebSockets on a real uvicorn: the handshake's span, the connection's context, and each message in its own trace."""

from __future__ import annotations

import asyncio
import json

import pytest
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from meshmw import MeshPropagator, frames
from meshmw.asgi import TraceContextMiddleware
from tests.matrix.served import Ids, parent_of, span_here, trace_here, trace_of, uvicorn_serves, wait_for

PROPAGATOR = MeshPropagator()
EXPORTER = InMemorySpanExporter()
PROVIDER = TracerProvider()
PROVIDER.add_span_processor(SimpleSpanProcessor(EXPORTER))
TRACER = PROVIDER.get_tracer("test")
MESSAGES = 8
CONNECTIONS = 5


class Json:
    """Messages of text, with an envelope."""

    @staticmethod
    def write(payload):
        message = {"payload": payload}
        frames.inject_json(message, propagator=PROPAGATOR)
        return json.dumps(message)

    @staticmethod
    def read(text):
        message = json.loads(text)
        return frames.extract_json(message, propagator=PROPAGATOR), message["payload"]

    malformed = (
        '{"payload": 0}',
        '{"payload": 0, "trace_context": {"traceparent": "00-junk"}}',
        '{"payload": 0, "trace_context": {"traceparent": 5}}',
        '{"payload": 0, "trace_context": ["traceparent"]}',
        '{"payload": 0, "trace_context": null}',
    )


class Binary:
    """Messages of bytes, with a frame before them."""

    @staticmethod
    def write(payload):
        return frames.encode(propagator=PROPAGATOR) + bytes([payload])

    @staticmethod
    def read(data):
        context, rest = frames.decode(data, propagator=PROPAGATOR)
        return context, rest[-1] if rest else None

    malformed = (
        b"\x00",
        b"MW",
        b"MW\x01\xff\xff\x00",
        b"MW\x02\x00\x00\x00",
        b"MW\x01\x00\x0f\x0btraceparent\x00\x02!!\x00",
        bytes(range(64)),
    )


FORMS = {"/json": Json, "/binary": Binary}


def span_of(payload, name="message"):
    return TRACER.start_as_current_span(name, attributes={"payload": payload})


async def talk(socket, form, receive, send):
    """Answer each message as soon as may be, in an order of chance; say goodbye in the connection's own context."""
    await socket.accept()
    with span_of(-1, "opened"):
        pass

    async def answer(context, payload):
        with frames.using(context), span_of(payload):
            await asyncio.sleep(payload % 3 / 1000)
            with span_of(payload):
                await send(form.write(payload))

    try:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(answer(*form.read(await receive())))
    except* WebSocketDisconnect:
        pass
    with span_of(-1, "closed"):
        pass


@pytest.fixture(scope="module")
def port():
    app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})

    @app.websocket("/json")
    async def text(socket: WebSocket):
        await talk(socket, Json, socket.receive_text, socket.send_text)

    @app.websocket("/binary")
    async def binary(socket: WebSocket):
        await talk(socket, Binary, socket.receive_bytes, socket.send_bytes)

    @app.websocket("/fail")
    async def fail(socket: WebSocket):
        await socket.accept()
        await socket.receive_text()
        raise LookupError("as asked for")

    app.add_middleware(TraceContextMiddleware, propagator=PROPAGATOR, tracer_provider=PROVIDER)
    with uvicorn_serves(app) as port:
        yield port


@pytest.fixture(autouse=True)
def no_spans_of_another_test(caplog):
    EXPORTER.clear()
    yield
    assert "Failed to detach" not in caplog.text


def ended(name):
    return [span for span in EXPORTER.get_finished_spans() if span.name == name]


def server_spans(ids):
    return [
        span for span in EXPORTER.get_finished_spans() if span.kind is SpanKind.SERVER and trace_of(span) == ids.trace
    ]


async def exchange(port, path, ids, number=MESSAGES):
    """Send messages, each in a trace of its own, all before the first answer; return the traces of both directions."""
    form, sent, answered = FORMS[path], {}, {}
    async with connect(f"ws://127.0.0.1:{port}{path}", additional_headers=[ids.traceparent]) as client:
        for payload in range(number):
            with TRACER.start_as_current_span("sender"):
                sent[payload] = trace_here(), span_here()
                await client.send(form.write(payload))
        for _ in range(number):
            context, payload = form.read(await client.recv())
            answered[payload] = f"{trace.get_current_span(context).get_span_context().trace_id:032x}"
    return sent, answered


@pytest.mark.parametrize("path", FORMS)
def test_the_handshake_is_one_server_span_which_ends_while_the_connection_goes_on(port, path):
    ids = Ids()

    async def main():
        async with connect(f"ws://127.0.0.1:{port}{path}", additional_headers=[ids.traceparent]):
            return await asyncio.to_thread(wait_for, lambda: server_spans(ids))

    (server,) = asyncio.run(main())
    assert parent_of(server) == ids.parent
    assert server.attributes["http.response.status_code"] == 101
    assert server.attributes["http.route"] == path
    assert wait_for(lambda: ended("closed"))
    assert len(server_spans(ids)) == 1


@pytest.mark.parametrize("path", FORMS)
def test_the_connections_context_is_there_from_the_first_to_the_last(port, path):
    ids = Ids()
    asyncio.run(exchange(port, path, ids))
    assert wait_for(lambda: ended("closed"))
    (server,) = server_spans(ids)
    for name in "opened", "closed":
        assert [parent_of(span) for span in ended(name)] == [f"{server.context.span_id:016x}"]
    assert ended("closed")[0].start_time > server.end_time


@pytest.mark.parametrize("path", FORMS)
def test_messages_that_overtake_each_other_stay_in_their_own_traces_both_ways(port, path):
    async def main():
        talks = (exchange(port, path, Ids()) for _ in range(CONNECTIONS))
        return await asyncio.gather(*talks)

    results = asyncio.run(main())
    assert wait_for(lambda: len(ended("message")) == 2 * MESSAGES * CONNECTIONS)
    traces = {trace for sent, _ in results for trace, _ in sent.values()}
    assert len(traces) == MESSAGES * CONNECTIONS
    by_id = {f"{span.context.span_id:016x}": span for span in ended("message")}
    for sent, answered in results:
        for payload, (trace_id, span_id) in sent.items():
            assert answered[payload] == trace_id
            (outer,) = [span for span in by_id.values() if parent_of(span) == span_id]
            (inner,) = [span for span in by_id.values() if parent_of(span) == f"{outer.context.span_id:016x}"]
            assert {trace_of(outer), trace_of(inner)} == {trace_id}
            assert outer.attributes["payload"] == inner.attributes["payload"] == payload


@pytest.mark.parametrize("path", FORMS)
def test_a_malformed_header_means_a_fresh_root_and_harms_no_other_message(port, path):
    ids, form = Ids(), FORMS[path]

    async def main():
        async with connect(f"ws://127.0.0.1:{port}{path}", additional_headers=[ids.traceparent]) as client:
            for message in form.malformed:
                await client.send(message)
            with TRACER.start_as_current_span("sender"):
                good = trace_here()
                await client.send(form.write(7))
            answers = [form.read(await client.recv()) for _ in range(len(form.malformed) + 1)]
        return good, answers

    good, answers = asyncio.run(main())
    assert wait_for(lambda: len(ended("message")) == 2 * len(answers))
    roots = [span for span in ended("message") if parent_of(span) == ""]
    assert len(roots) == len(form.malformed)
    assert len({trace_of(span) for span in roots} | {good, ids.trace}) == len(roots) + 2
    assert trace_of(next(span for span in ended("message") if span.attributes["payload"] == 7)) == good


def test_an_exception_after_the_handshake_changes_nothing_of_its_span(port):
    ids = Ids()

    async def main():
        async with connect(f"ws://127.0.0.1:{port}/fail", additional_headers=[ids.traceparent]) as client:
            await client.send("go on")
            with pytest.raises(ConnectionClosed):
                await client.recv()

    asyncio.run(main())
    (server,) = server_spans(ids)
    assert server.status.is_unset


def test_a_connection_without_headers_begins_its_own_trace_beside_others(port):
    async def main():
        url = f"ws://127.0.0.1:{port}/json"
        async with connect(url, additional_headers=[Ids().traceparent]), connect(url):
            pass

    asyncio.run(main())
    assert wait_for(lambda: len(ended("closed")) == 2)
    opened = [span for span in EXPORTER.get_finished_spans() if span.kind is SpanKind.SERVER]
    assert sorted(bool(parent_of(span)) for span in opened) == [False, True]
    assert len({trace_of(span) for span in ended("opened")}) == 2
