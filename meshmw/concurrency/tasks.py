"""Event loops that hand work to executors."""

from __future__ import annotations

import asyncio
import concurrent.futures
from asyncio import to_thread
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from meshmw.concurrency.binding import bind
from meshmw.concurrency.carried import Carried
from meshmw.concurrency.processes import ProcessPoolExecutor
from meshmw.concurrency.threads import ThreadPoolExecutor

__all__ = ["run_in_executor", "to_thread"]

P = ParamSpec("P")
T = TypeVar("T")


def run_in_executor(
    executor: concurrent.futures.Executor | None, fn: Callable[..., T], *args: Any
) -> asyncio.Future[T]:
    """Call *fn* in an executor of any kind, in the caller's context, as the running loop's method does without.

    Args:
        executor: One of the standard library's, one of ours, or None for the loop's default one.
        fn: What to call; where the executor has processes, it must be possible to pickle it.
        args: Its arguments.

    Raises:
        RuntimeError: No event loop runs in this thread, or the executor was shut down.
    """
    return asyncio.get_running_loop().run_in_executor(executor, _carrying(executor, fn), *args)


def _carrying(executor: concurrent.futures.Executor | None, fn: Callable[..., T]) -> Callable[..., T]:
    if isinstance(executor, ThreadPoolExecutor | ProcessPoolExecutor):
        return fn
    if isinstance(executor, _PICKLING):
        return Carried(fn)
    return bind(fn)


# Interpreters of Python 3.14 share no objects either, though their executor is one of threads.
_PICKLING = tuple(
    getattr(concurrent.futures, name)
    for name in ("ProcessPoolExecutor", "InterpreterPoolExecutor")
    if hasattr(concurrent.futures, name)
)
