"""FastAPI that takes no headers in and sends none on."""

from __future__ import annotations

import os

import httpx
from fastapi import FastAPI, Request

app = FastAPI()


@app.get("/")
async def shop(request: Request) -> dict[str, object]:
    async with httpx.AsyncClient(trust_env=False) as client:
        # What a service does that knows nothing of traces; Envoy joins logs by this one header.
        passed = {"x-request-id": request.headers["x-request-id"]}
        downstream = (await client.get(os.environ["STOCK_URL"], headers=passed)).json()
    return {"headers": dict(request.headers), "downstream": downstream}
