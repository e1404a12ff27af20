"""A FastAPI service as a user writes it: `configure()`, one middleware, and meshmw's client for calls."""

import asyncio
import uuid
from pathlib import Path

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from report import echo, report, seen_in_scope, watch_server_spans

import meshmw
from meshmw.asgi import TraceContextMiddleware
from meshmw.httpx import AsyncClient

meshmw.configure()
watch_server_spans()

app = FastAPI()
app.add_middleware(TraceContextMiddleware)

next_service = AsyncClient(transport=httpx.MockTransport(echo))
network = AsyncClient(trust_env=False)


async def answer(request):
    response = await next_service.get("http://next-service/")
    return report(seen_in_scope(request.scope["headers"]), response.json())


@app.get("/")
async def root(request: Request):
    return await answer(request)


@app.post("/body")
async def body(request: Request):
    return {"size": len(await request.body()), **await answer(request)}


@app.get("/hold")
async def hold(request: Request, folder: Path):
    """Answer when the test lets it, after a sign that the request is under way."""
    (folder / f"begun-{uuid.uuid4()}").touch()
    while not (folder / "end").exists():  # noqa: ASYNC110 - the test is another process
        await asyncio.sleep(0.02)
    return await answer(request)


@app.get("/call")
async def call(to: str):
    response = await network.get(to)
    return {"status": response.status_code}


@app.api_route("/pages", methods=["GET", "HEAD"])
async def pages():
    async def chunks():
        for _ in range(3):
            yield b"a page"

    return StreamingResponse(chunks(), media_type="text/plain")


@app.get("/stream")
async def stream():
    async def chunks():
        for _ in range(10_000):
            yield b"x" * 65_536
            await asyncio.sleep(0)

    return StreamingResponse(chunks(), media_type="text/plain")


@app.get("/not-modified")
async def not_modified():
    return Response(status_code=304)


@app.get("/broken")
async def broken():
    async def chunks():
        yield b"a first chunk"
        raise ValueError("the body breaks off")

    return StreamingResponse(chunks(), media_type="text/plain")
