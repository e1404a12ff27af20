"""`bind()`: any callable, to be called wherever, in the context in which it was bound."""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from meshmw.steps import StepVariables
from meshmw.streams import AsyncGeneratorSteps, AwaitableSteps, GeneratorSteps

P = ParamSpec("P")
R = TypeVar("R")


def bind(fn: Callable[P, R]) -> Callable[P, R]:
    """Return *fn* so that it runs in what all context variables hold now, wherever and whenever it is called.

    Each call gets a copy of its own, so that calls at the same time do not see each other's changes. Functions with
    `async` or `yield` keep their kind, and each of their steps runs in the one copy of that call.

    Args:
        fn: What to call from a thread, a timer, a callback or a queue.

    Raises:
        TypeError: *fn* is not callable.
    """
    if not callable(fn):
        raise TypeError(f"bind() takes a callable, not {type(fn).__name__}")
    return functools.wraps(fn)(_bound(fn, contextvars.copy_context()))


def _bound(fn: Callable[..., Any], bound: contextvars.Context) -> Callable[..., Any]:
    if is_kind(inspect.iscoroutinefunction, fn):

        async def run_coroutine(*args: Any, **kwargs: Any) -> Any:
            run = StepVariables(bound.copy()).run
            return await AwaitableSteps(run(fn, *args, **kwargs), run)

        return run_coroutine
    if is_kind(inspect.isgeneratorfunction, fn):
        return _streaming(fn, bound, GeneratorSteps)
    if is_kind(inspect.isasyncgenfunction, fn):
        return _streaming(fn, bound, AsyncGeneratorSteps)
    return lambda *args, **kwargs: bound.copy().run(fn, *args, **kwargs)


def _streaming(fn: Callable[..., Any], bound: contextvars.Context, steps: Callable[..., Any]) -> Callable[..., Any]:
    def run_generator(*args: Any, **kwargs: Any) -> Any:
        run = StepVariables(bound.copy()).run
        return steps(run(fn, *args, **kwargs), run)

    return run_generator


def is_kind(kind: Callable[[object], bool], fn: Callable[..., Any]) -> bool:
    """Say whether a callable, function or object, is of a kind that `inspect` knows for functions."""
    # A class is called to make an object; what that object is called for is another matter.
    return kind(fn) or (not isinstance(fn, type) and kind(fn.__call__))  # type: ignore[operator]  # an object may have the method that is of the kind
