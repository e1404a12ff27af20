"""Work that leaves the frame which asked for it: threads, processes, callbacks, queues.

`bind`, the executors, `Thread`, `run_in_executor` and `to_thread` keep such work in the trace of whoever asked for it.
`detached` and `linked` take it out of that trace: it outlives the request, or nobody waits for it.

This package knows context variables, operations and how this process was configured. It knows no framework.
"""

from __future__ import annotations

from asyncio import to_thread

from meshmw.concurrency._binding import bind, detached, linked
from meshmw.concurrency._executors import ProcessPoolExecutor, Thread, ThreadPoolExecutor, run_in_executor

__all__ = [
    "ProcessPoolExecutor",
    "Thread",
    "ThreadPoolExecutor",
    "bind",
    "detached",
    "linked",
    "run_in_executor",
    "to_thread",
]


def __dir__() -> list[str]:
    return sorted(__all__)
