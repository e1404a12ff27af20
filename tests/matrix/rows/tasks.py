"""Tasks, callbacks, queues, and work that outlives its request."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from fastapi import BackgroundTasks, FastAPI

from tests.matrix.row import row
from tests.matrix.rows.threads import asked
from tests.matrix.served import (
    Connection,
    Ids,
    ask_once,
    parent_of,
    span_here,
    told,
    trace_here,
    trace_of,
    uvicorn_serves,
    wait_for,
)

GROUP = "tasks and callbacks"


async def trace_there() -> str:
    await asyncio.sleep(0)
    return trace_here()


@row(GROUP, "`create_task` and `TaskGroup`")
def tasks(kit: Any) -> None:
    async def handler() -> list[str]:
        alone = asyncio.create_task(trace_there())
        async with asyncio.TaskGroup() as group:
            grouped = group.create_task(trace_there())
        return [await alone, grouped.result()]

    trace, seen = asked(kit, handler)
    assert seen == [trace] * 2, "another trace in the task"


@row(GROUP, "`call_soon`, `call_later`, `call_at`")
def callbacks(kit: Any) -> None:
    async def handler() -> list[str]:
        loop, seen = asyncio.get_running_loop(), asyncio.Queue[str]()
        loop.call_soon(lambda: seen.put_nowait(trace_here()))
        loop.call_later(0.001, lambda: seen.put_nowait(trace_here()))
        loop.call_at(loop.time() + 0.001, lambda: seen.put_nowait(trace_here()))
        return [await seen.get() for _ in range(3)]

    trace, seen = asked(kit, handler)
    assert seen == [trace] * 3, "another trace in the callback"


@row(GROUP, "a callback from a thread that knows no context", needs="bind")
def foreign_callback(kit: Any) -> None:
    def handler() -> list[str]:
        import _thread
        import threading

        seen, done = [], threading.Event()

        def call() -> None:
            seen.append(trace_here())
            done.set()

        _thread.start_new_thread(kit.bind(call), ())
        done.wait(30)
        return seen

    trace, seen = asked(kit, handler)
    assert seen == [trace], "another trace in the callback"


@row(GROUP, "a queue: each item in its own request's trace", needs="bind")
def queue_items(kit: Any) -> None:
    app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})
    queue: asyncio.Queue[Any] = asyncio.Queue()
    workers: list[Any] = []

    async def consume() -> None:
        while True:
            work, answer = await queue.get()
            answer.set_result(work())

    @app.get("/")
    async def ask() -> str:
        if not workers:
            workers.append(asyncio.create_task(consume()))
        answer = asyncio.get_running_loop().create_future()
        queue.put_nowait((kit.bind(trace_here), answer))
        return str(await answer)

    ids = Ids(), Ids()
    with uvicorn_serves(kit.fastapi(app)) as port:
        seen = [told(Connection(port).ask("/", each.traceparent)) for each in ids]
    assert seen == [each.trace for each in ids], "an item in another request's trace"


@row(GROUP, "`BackgroundTasks`: a child span, after the SERVER span ended with the response")
def background_tasks(kit: Any) -> None:
    app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})

    async def later() -> None:
        await asyncio.sleep(0.05)
        with kit.tracer.start_as_current_span("later"):
            pass

    @app.get("/")
    async def ask(background: BackgroundTasks) -> str:
        background.add_task(later)
        return span_here()

    ids = Ids()
    ask_once(uvicorn_serves, kit.fastapi(app), "/", ids.traceparent)
    assert wait_for(lambda: kit.server_spans), "no SERVER span"
    (server,) = kit.server_spans
    (work,) = [span for span in kit.spans if span.name == "later"]
    assert trace_of(work) == ids.trace, "the work is in another trace"
    assert server.end_time < work.start_time, "the SERVER span lasts until the work is done"


@row(GROUP, "work that outlives the request: a trace of its own, with a link", needs="linked")
def linked_work(kit: Any) -> None:
    async def handler() -> str:
        with kit.linked("nightly"):
            return trace_here()

    trace, seen = asked(kit, handler)
    assert seen != trace, "the same trace"
    assert wait_for(lambda: [span for span in kit.spans if span.name == "nightly"]), "no span"
    (root,) = [span for span in kit.spans if span.name == "nightly"]
    assert parent_of(root) == "", "it has a parent"
    assert f"{root.links[0].context.trace_id:032x}" == trace, "no link"


@row(GROUP, "a task that is cancelled: its span ends, nothing stays current")
def cancelled_task(kit: Any) -> None:
    async def handler() -> str:
        async def never() -> None:
            with kit.tracer.start_as_current_span("never"):
                await asyncio.Event().wait()

        task = asyncio.create_task(never())
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return trace_here()

    trace, seen = asked(kit, handler)
    assert seen == trace, "another trace after it"
    (span,) = [span for span in kit.spans if span.name == "never"]
    assert trace_of(span) == trace, "the span is in another trace"
    assert kit.detach_errors == 0, "a context failed to detach"
