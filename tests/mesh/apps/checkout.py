"""FastAPI, as a user would write it; the test says in each request where to call next."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from opentelemetry import trace

import meshmw
from meshmw.asgi import TraceContextMiddleware
from meshmw.httpx import AsyncClient

logging.basicConfig(level=logging.INFO)
meshmw.configure()
# Operation spans would stand between the SERVER span and the CLIENT span.
app = FastAPI(telemetry={"operation_spans": False})
app.add_middleware(TraceContextMiddleware)


@app.get("/api/checkout")
async def checkout(request: Request, inventory: str | None = None) -> dict[str, object]:
    downstream = None
    if inventory:
        async with AsyncClient() as client:
            downstream = (await client.get(inventory)).json()
    trace_id = trace.get_current_span().get_span_context().trace_id
    return {"seen": dict(request.headers), "trace_id": f"{trace_id:032x}", "downstream": downstream}
