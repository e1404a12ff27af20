"""Work that leaves the frame which asked for it, and stays in its trace: threads, processes, callbacks; and work that
shall leave the trace.
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
