"""What a block has attached is taken back where it was attached, and nowhere else."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
from opentelemetry import context as otel_context
from opentelemetry.context import Context

from meshmw._context.current import Current
from meshmw.baggage import using
from meshmw.concurrency import detached, linked


@pytest.mark.parametrize(
    "block",
    [lambda: Current(Context()), lambda: using(tenant="a"), detached, lambda: linked("work")],
    ids=["context", "baggage", "detached", "linked"],
)
def test_a_task_that_is_dropped_takes_nothing_back_in_a_task_that_its_block_has_started(caplog, block):
    """The same context is current there, but it is another task's."""
    began = []

    async def collect():
        await asyncio.sleep(0)
        before = otel_context.get_current()
        gc.collect()
        return otel_context.get_current() is before

    async def work():
        with block():
            began.append(asyncio.create_task(collect()))
            await asyncio.get_running_loop().create_future()

    async def main():
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        dropped = weakref.ref(task)
        del task
        assert await began[0]
        assert dropped() is None

    asyncio.run(main())
    assert "detach" not in caplog.text
