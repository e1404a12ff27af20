"""Two services between sidecars; the request says which way the first one reaches the second."""

from __future__ import annotations

from fastapi import FastAPI, Request

import meshmw
from meshmw.asgi import TraceContextMiddleware
from meshmw.httpx import AsyncClient

meshmw.configure()
# Operation spans would stand between the SERVER span and the CLIENT span.
app = FastAPI(telemetry={"operation_spans": False})
app.add_middleware(TraceContextMiddleware)


@app.get("/checkout")
async def checkout(request: Request, inventory: str, host: str) -> dict[str, object]:
    async with AsyncClient() as client:
        answer = (await client.get(inventory, headers={"host": host})).json()
    return {"checkout": dict(request.headers), **answer}


@app.get("/stock")
async def stock(request: Request) -> dict[str, object]:
    return {"inventory": dict(request.headers)}
