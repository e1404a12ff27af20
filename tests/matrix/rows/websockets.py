"""WebSockets: the handshake, the connection, its messages."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, WebSocket
from opentelemetry import context as otel_context
from websockets.sync.client import connect

from tests.matrix.row import row
from tests.matrix.served import Ids, parent_of, trace_here, trace_of, uvicorn_serves, wait_for

GROUP = "WebSockets"


def service(kit: Any) -> FastAPI:
    """Answer each message with the connection's trace, and with the message's own."""
    app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})

    @app.websocket("/")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        while (message := await socket.receive_json()) is not None:
            token = otel_context.attach(kit.read_json(message))
            own = trace_here()
            otel_context.detach(token)
            await socket.send_json([trace_here(), own])

    return kit.fastapi(app)


def message_of(kit: Any) -> tuple[str, str]:
    """Return the trace of a message, and the message."""
    message: dict[str, Any] = {}
    with kit.tracer.start_as_current_span("sender"):
        kit.write_json(message)
        return trace_here(), json.dumps(message)


@row(GROUP, "the connection's handlers are in the handshake's trace")
def websocket_connection(kit: Any) -> None:
    ids = Ids()
    with uvicorn_serves(service(kit)) as port:
        with connect(f"ws://127.0.0.1:{port}/", additional_headers=[ids.traceparent]) as talk:
            seen = []
            for _ in range(2):
                talk.send(message_of(kit)[1])
                seen.append(json.loads(talk.recv())[0])
        assert wait_for(lambda: kit.server_spans), "no SERVER span"
    assert seen == [ids.trace] * 2, "another trace"
    server = [span for span in kit.server_spans if trace_of(span) == ids.trace]
    assert [parent_of(span) for span in server] == [ids.parent], "another parent"


@row(GROUP, "the SERVER span ends with the handshake, not hours later")
def websocket_handshake(kit: Any) -> None:
    ids = Ids()
    with (
        uvicorn_serves(service(kit)) as port,
        connect(f"ws://127.0.0.1:{port}/", additional_headers=[ids.traceparent]) as talk,
    ):
        talk.send(message_of(kit)[1])
        talk.recv()
        ended = [span for span in kit.server_spans if trace_of(span) == ids.trace]
    assert ended, "it lasts as long as the connection"


@row(GROUP, "each message in a trace of its own, as JSON")
def websocket_json(kit: Any) -> None:
    with uvicorn_serves(service(kit)) as port, connect(f"ws://127.0.0.1:{port}/") as talk:
        for _ in range(2):
            trace, text = message_of(kit)
            talk.send(text)
            assert json.loads(talk.recv())[1] == trace, "another trace"


@row(GROUP, "a message whose header is malformed breaks nothing and starts a new trace")
def websocket_malformed(kit: Any) -> None:
    for envelope in {"traceparent": 5}, {"traceparent": "00-junk"}, [1], None:
        try:
            context = kit.read_json({"trace_context": envelope})
        except Exception as error:
            raise AssertionError(f"reading it raises {type(error).__name__}") from error
        token = otel_context.attach(context)
        seen = trace_here()
        otel_context.detach(token)
        assert seen == "0" * 32, "it is trusted"


@row(GROUP, "binary messages: a bounded, versioned header", needs="write_frame")
def websocket_binary(kit: Any) -> None:
    with kit.tracer.start_as_current_span("sender"):
        trace, frame = trace_here(), kit.write_frame()
    context, rest = kit.read_frame(frame + b"payload")
    token = otel_context.attach(context)
    seen = trace_here()
    otel_context.detach(token)
    assert (seen, rest) == (trace, b"payload"), "another trace"
