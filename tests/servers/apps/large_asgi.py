"""A FastAPI service that streams as much as it is asked for, in both directions."""

import asyncio
import os

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, StreamingResponse
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import meshmw
from meshmw.asgi import TraceContextMiddleware

CHUNK = b"x" * 65_536

meshmw.configure(meshmw.Settings(exporter="none", service_name="large"))
spans = InMemorySpanExporter()
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(spans))

app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})
if os.environ.get("LARGE_WITHOUT") != "1":
    app.add_middleware(TraceContextMiddleware)
received = 0
go_on = asyncio.Event()


@app.get("/down")
async def down(chunks: int):
    async def steps():
        for _ in range(chunks):
            yield CHUNK

    return StreamingResponse(steps())


@app.get("/waits")
async def waits():
    async def steps():
        yield b"first"
        await go_on.wait()
        yield b"last"

    return StreamingResponse(steps())


@app.get("/go-on")
async def release():
    go_on.set()


@app.post("/up")
async def up(request: Request):
    global received
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
    return received


@app.get("/received")
async def so_far():
    return received


@app.get("/file")
async def file():
    return FileResponse(os.environ["LARGE_FILE"])


@app.get("/spans")
async def ended():
    return [f"{span.context.trace_id:032x}" for span in spans.get_finished_spans()]
