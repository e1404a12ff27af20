"""Threads, pools, processes."""

from __future__ import annotations

import asyncio
import contextvars
import multiprocessing
from typing import Any

from fastapi import FastAPI

from tests.matrix.row import row
from tests.matrix.served import Ids, ask_once, told, trace_here, uvicorn_serves

GROUP = "threads and processes"
SEEN = 30


def asked(kit: Any, handler: Any) -> tuple[str, Any]:
    """Serve one request with a handler of FastAPI's; return its trace and what the handler returned."""
    app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})
    app.get("/")(handler)
    ids = Ids()
    return ids.trace, told(ask_once(uvicorn_serves, kit.fastapi(app), "/", ids.traceparent))


@row(GROUP, "a `Thread` that a handler starts")
def thread(kit: Any) -> None:
    def handler() -> list[str]:
        seen: list[str] = []
        work = kit.thread(lambda: seen.append(trace_here()))
        work.start()
        work.join(SEEN)
        return seen

    trace, seen = asked(kit, handler)
    assert seen == [trace], "another trace in the thread"


@row(GROUP, "`ThreadPoolExecutor.submit` and `map`")
def thread_pool(kit: Any) -> None:
    def handler() -> list[str]:
        with kit.thread_pool() as pool:
            return [pool.submit(trace_here).result(SEEN), *pool.map(lambda _: trace_here(), range(2))]

    trace, seen = asked(kit, handler)
    assert seen == [trace] * 3, "another trace in the pool"


@row(GROUP, "a pool's thread keeps nothing for its next task")
def thread_pool_is_left_clean(kit: Any) -> None:
    with kit.thread_pool() as pool:

        def handler() -> str:
            return str(pool.submit(trace_here).result(SEEN))

        trace, seen = asked(kit, handler)
        assert seen == trace, "another trace in the pool"
        assert pool.submit(trace_here).result(SEEN) == "0" * 32, "the next task is in the trace"


@row(GROUP, "other context variables in a pool's thread")
def thread_pool_other_variables(kit: Any) -> None:
    user = contextvars.ContextVar("user", default="nobody")

    def handler() -> str:
        user.set("alice")
        with kit.thread_pool() as pool:
            return str(pool.submit(user.get).result(SEEN))

    assert asked(kit, handler)[1] == "alice", "only OpenTelemetry's own is carried"


@row(GROUP, "`loop.run_in_executor` with a pool as the loop's default")
def loop_default_executor(kit: Any) -> None:
    async def handler() -> str:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(kit.thread_pool())
        return await loop.run_in_executor(None, trace_here)

    trace, seen = asked(kit, handler)
    assert seen == trace, "another trace in the executor"


@row(GROUP, "`asyncio.to_thread`")
def asyncio_to_thread(kit: Any) -> None:
    async def handler() -> str:
        return await asyncio.to_thread(trace_here)

    trace, seen = asked(kit, handler)
    assert seen == trace, "another trace in the thread"


@row(GROUP, "a sync route, in AnyIO's threads")
def sync_route(kit: Any) -> None:
    def handler() -> str:
        return trace_here()

    trace, seen = asked(kit, handler)
    assert seen == trace, "another trace in the route"


@row(GROUP, "`ProcessPoolExecutor`, started by `spawn`")
def process_pool_spawn(kit: Any) -> None:
    in_process_pool(kit, "spawn")


@row(GROUP, "`ProcessPoolExecutor`, started by `fork`")
def process_pool_fork(kit: Any) -> None:
    in_process_pool(kit, "fork")


def in_process_pool(kit: Any, method: str) -> None:
    context = multiprocessing.get_context(method)

    def handler() -> list[str]:
        with kit.process_pool(mp_context=context) as pool:
            # A forked child has a copy of the request that started it, so that the first task proves nothing.
            pool.submit(int).result(SEEN)
            with kit.tracer.start_as_current_span("later"):
                return [pool.submit(trace_here).result(SEEN)]

    trace, seen = asked(kit, handler)
    assert seen == [trace], "another trace in the process"
    # A worker of a pool that outlives the request must not stay in the request that started it.
    with kit.process_pool(mp_context=context) as pool:

        def first() -> str:
            return str(pool.submit(trace_here).result(SEEN))

        trace, seen = asked(kit, first)
        assert seen == trace, "another trace in the process"
        assert pool.submit(trace_here).result(SEEN) == "0" * 32, "later tasks stay in the first request"
