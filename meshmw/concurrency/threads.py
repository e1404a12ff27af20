"""Threads whose work sees the context variables of whoever asked for it."""

from __future__ import annotations

import concurrent.futures
import contextvars
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

from meshmw.steps import StepVariables
from meshmw.streams import GeneratorSteps

P = ParamSpec("P")
T = TypeVar("T")


class ThreadPoolExecutor(concurrent.futures.ThreadPoolExecutor):
    """Is the standard library's executor, with one copy of all context variables for each task.

    It takes the same arguments, and serves as an event loop's default executor too.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[T]:
        """Schedule a call in a copy of the caller's context variables, as the standard executor does without."""
        run: Callable[..., T] = contextvars.copy_context().run
        return super().submit(run, fn, *args, **kwargs)

    def map(self, fn: Callable[..., T], *iterables: Iterable[Any], **options: Any) -> Iterator[T]:
        """Call *fn* for each item, in the caller's context variables also where items are asked for later."""
        run = StepVariables(contextvars.copy_context()).run
        return GeneratorSteps(super().map(fn, *iterables, **options), run)  # type: ignore[arg-type]


class Thread(threading.Thread):
    """Is the standard library's thread, run in a copy of the context variables of whoever starts it.

    A subclass with a `run()` of its own is run in the copy too. Who gives a `context`, as of Python 3.14, has chosen
    another.

    Args:
        args: As for the standard thread.
        options: As for the standard thread.
    """

    _was_started = False
    _has_a_context = False

    def __init__(self, *args: Any, **options: Any) -> None:
        self._has_a_context = options.get("context") is not None
        super().__init__(*args, **options)

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: It was started before, or the system has no thread to give.
        """
        is_first = not self._was_started and not self._has_a_context
        if is_first:
            self._take_context()
        try:
            super().start()
        except BaseException:
            # What a first start left belongs to the thread that runs.
            if is_first:
                del self.run
                self._was_started = False
            raise

    def _take_context(self) -> None:
        context, run = contextvars.copy_context(), self.run

        def run_in_context() -> None:
            # The thread lives on as an object: it shall not keep the request's context alive.
            del self.run
            context.run(run)

        self.run = run_in_context  # type: ignore[method-assign]
        self._was_started = True
