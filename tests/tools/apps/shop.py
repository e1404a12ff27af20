"""FastAPI with meshmw: echoes its headers and calls the next service."""

from __future__ import annotations

import os

from fastapi import FastAPI, Request
from opentelemetry import trace

import meshmw
from meshmw.asgi import TraceContextMiddleware
from meshmw.httpx import AsyncClient

meshmw.configure()
app = FastAPI(telemetry={"operation_spans": False})
app.add_middleware(TraceContextMiddleware)


@app.get("/")
async def shop(request: Request) -> dict[str, object]:
    trace_id = f"{trace.get_current_span().get_span_context().trace_id:032x}"
    async with AsyncClient() as client:
        downstream = (await client.get(os.environ["STOCK_URL"])).json()
    return {"headers": dict(request.headers), "trace_id": trace_id, "downstream": downstream}
