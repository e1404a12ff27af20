"""The FastAPI service that is soaked: each route is a way to leave the frame that holds the context."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import BackgroundTasks, FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, StreamingResponse
from opentelemetry import context as otel_context

from meshmw import frames
from meshmw.asgi import TraceContextMiddleware
from meshmw.concurrency import Thread, ThreadPoolExecutor, bind, detached, linked, to_thread
from meshmw.streams import stream
from tests.soak.watch import Watch, span

watch = Watch()
pool = ThreadPoolExecutor(4)
service = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})


def work(n: int, **attributes: Any) -> int:
    with span(n, **attributes):
        return n


async def later(n: int) -> None:
    with span(n):
        await asyncio.sleep(0)
        work(n)


@service.get("/plain")
async def plain(n: int) -> int:
    return work(n)


@service.get("/sync")
def sync(n: int) -> int:
    return work(n)


@service.post("/body")
async def body(n: int, request: Request) -> int:
    work(n)
    size = len(await request.body())
    work(n)
    return size


@service.get("/threads")
async def threads(n: int) -> int:
    thread = Thread(target=work, args=(n,))
    thread.start()
    futures = [asyncio.wrap_future(pool.submit(work, n)), to_thread(work, n)]
    await asyncio.gather(*futures, asyncio.get_running_loop().run_in_executor(pool, work, n))
    thread.join()
    return n


@service.get("/tasks")
async def tasks(n: int) -> int:
    loop, called = asyncio.get_running_loop(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(later(n))
        group.create_task(later(n))
    loop.call_soon(bind(work), n)
    loop.call_later(0.001, lambda: (work(n), called.set()))
    await called.wait()
    return n


@service.get("/cancelled")
async def cancelled(n: int) -> int:
    async def never() -> None:
        with span(n):
            await asyncio.sleep(60)

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(never(), 0.001)
    return work(n)


@service.get("/fail")
async def fail(n: int) -> None:
    work(n)
    raise LookupError("as asked for")


async def chunks(n: int, count: int, fail: bool = False) -> AsyncIterator[bytes]:
    with span(n):  # current across every yield: what breaks traces and logs errors, were it not for `stream`
        for _ in range(count):
            work(n)
            yield b"x" * 1024
            await asyncio.sleep(0)
        if fail:
            raise LookupError("half-way")


@service.get("/stream")
async def whole_stream(n: int) -> StreamingResponse:
    return StreamingResponse(stream(chunks(n, 3)))


@service.get("/stream-fail")
async def stream_fail(n: int) -> StreamingResponse:
    return StreamingResponse(stream(chunks(n, 2, fail=True)))


@service.get("/stream-gone")
async def stream_gone(n: int) -> StreamingResponse:
    return StreamingResponse(stream(chunks(n, 100_000)))


@service.get("/dropped")
async def dropped(n: int) -> int:
    half = stream(chunks(n, 3))
    await anext(half)
    del half  # the garbage collection's to close
    return work(n)


@service.get("/sync-stream")
def sync_stream(n: int) -> StreamingResponse:
    def steps() -> Iterator[bytes]:
        for _ in range(3):
            work(n)
            yield b"x"

    return StreamingResponse(steps())


@service.get("/file")
async def file(n: int) -> FileResponse:
    work(n)
    return FileResponse(__file__)


@service.get("/background")
async def background(n: int, after: BackgroundTasks) -> int:
    after.add_task(later, n)
    after.add_task(work, n)
    return n


@service.get("/apart")
async def apart(n: int) -> int:
    with linked("apart", attributes={"soak.request": n, "soak.apart": True}):
        pass
    with detached():
        work(n, **{"soak.apart": True})
    return work(n)


@service.websocket("/ws")
async def ws(socket: WebSocket, n: int) -> None:
    await socket.accept()
    work(n)

    async def answer(message: bytes) -> None:
        context, rest = frames.decode(message)
        with frames.using(context), span(n, **{"soak.message": int(rest)}):
            await asyncio.sleep(0)
            await socket.send_bytes(frames.encode() + rest)

    with contextlib.suppress(WebSocketDisconnect):
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(answer(await socket.receive_bytes()))
    work(n)


class Watched:
    """Compares what is current before and after each request; the outermost of all."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["path"] == "/report":
            return await self._report(scope, send)
        # uvicorn begins a request in the context of the one before it, after a large body on the same connection.
        before = watch.begin(may_inherit=True)
        try:
            await self._app(scope, receive, send)
        except LookupError:
            # uvicorn would write each of them to its log.
            pass
        finally:
            watch.end(before)

    async def _report(self, scope: Any, send: Any) -> None:
        base = concurrent.futures.ThreadPoolExecutor.submit(pool, otel_context.get_current).result()
        told = watch.report(thorough=b"thorough" in scope["query_string"])
        told["left"] += bool(base)
        text = json.dumps(told).encode()
        headers = [(b"content-length", str(len(text)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text})


app = Watched(TraceContextMiddleware(service))
