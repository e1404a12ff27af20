"""Streams of each framework, inside of a middleware that takes its time once the server has everything."""

import asyncio

import litestar
import quart
from fastapi import FastAPI
from litestar.response import Stream
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

import meshmw
from meshmw.asgi import TraceContextMiddleware

meshmw.configure()
CHUNK = b"x" * 1000


async def chunks():
    for _ in range(3):
        yield CHUNK
        await asyncio.sleep(0)


async def chunks_that_hang():
    async for chunk in chunks():
        yield chunk
    await asyncio.sleep(1)


async def stream(request):
    return StreamingResponse(chunks())


async def promised(request):
    """Promise a length, and do not come to an end once it is reached."""
    return StreamingResponse(chunks_that_hang(), headers={"content-length": "3000"})


async def fail(request):
    raise LookupError("out of stock")


ROUTES = [Route("/stream", stream), Route("/promised", promised, methods=["GET", "HEAD"]), Route("/fail", fail)]


class Through(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        return await call_next(request)


with_base = Starlette(routes=ROUTES)
with_base.add_middleware(Through)

fast = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})
fast.get("/stream")(lambda: StreamingResponse(chunks()))


@litestar.get("/stream")
async def stream_of_litestar() -> Stream:
    return Stream(chunks())


lite = litestar.Litestar([stream_of_litestar], openapi_config=None, logging_config=None)
quarts = quart.Quart("odd")


@quarts.get("/stream")
async def stream_of_quart():
    return quarts.response_class(chunks())


@quarts.get("/promised")
async def promised_by_quart():
    return quarts.response_class(chunks_that_hang(), headers={"content-length": "3000"})


async def bare(scope, receive, send):
    """Answer in a task of its own, which ends with the connection."""

    async def answer():
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async for chunk in chunks():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body"})

    async def listen():
        while (await receive())["type"] != "http.disconnect":
            pass

    _, pending = await asyncio.wait(
        [asyncio.create_task(answer()), asyncio.create_task(listen())], return_when=asyncio.FIRST_COMPLETED
    )
    for task in pending:
        task.cancel()


APPS = {
    "starlette": Starlette(routes=ROUTES),
    "base": with_base,
    "fastapi": fast,
    "litestar": lite,
    "quart": quarts,
    "bare": bare,
    "": PlainTextResponse("ready"),
}


def within(app):
    """Let the middleware stand where it takes its time, or on either side of it."""

    async def slow(scope, receive, send):
        async def late(message):
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                await asyncio.sleep(0.05)

        await app(scope, receive, late)

    return slow


OUTSIDE = {name: within(TraceContextMiddleware(app)) for name, app in APPS.items()}
INSIDE = {name: TraceContextMiddleware(within(app)) for name, app in APPS.items()}


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await TraceContextMiddleware(Starlette())(scope, receive, send)
    _, framework, *rest = f"{scope['path']}//".split("/")
    framework, _, where = framework.partition("-")
    scope = {**scope, "path": f"/{rest[0]}", "raw_path": f"/{rest[0]}".encode()}
    await (INSIDE if where == "inside" else OUTSIDE)[framework](scope, receive, send)
