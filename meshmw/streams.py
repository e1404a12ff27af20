"""Generators and other iterators that run each of their steps in a context of their own, and leave none behind.

Between two steps a generator shares its thread or task with whoever consumes it. What it attaches around a `yield` is
current for the consumer too, and its `detach` fails where the last step runs somewhere else. Here a context is attached
only while a step runs. `stream` chooses among the classes below, which other boundaries use too.
"""

from __future__ import annotations

import contextvars
import sys
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable
from collections.abc import Iterator as IteratorType
from functools import partial
from typing import Any, Generic, TypeVar, overload

from opentelemetry.context import Context

from meshmw._context.current import Run, StepContext, StepVariables

__all__ = ["stream"]

Y = TypeVar("Y")
S = TypeVar("S")
R = TypeVar("R")


@overload
def stream(source: Generator[Y, S, R], context: Context | None = None) -> Generator[Y, S, R]: ...


@overload
def stream(source: AsyncGenerator[Y, S], context: Context | None = None) -> AsyncGenerator[Y, S]: ...


@overload
def stream(source: AsyncIterable[Y], context: Context | None = None) -> AsyncIterator[Y]: ...


@overload
def stream(source: Iterable[Y], context: Context | None = None) -> IteratorType[Y]: ...


def stream(source: Any, context: Context | None = None) -> Any:
    """Return *source* with a context of its own: current during each of its steps, and at no other time.

    The steps share one copy of all context variables, made now, whichever thread or task takes them. What a generator
    makes current across a `yield` is current again in its next step, and can be detached in any later one. A
    half-consumed generator that is dropped is closed, in that same context.

    Args:
        source: A generator, an asynchronous generator, or anything that can be iterated over in either way.
        context: What is current in the first step; what is current now by default.

    Raises:
        TypeError: *source* cannot be iterated over.
    """
    run: Run = StepVariables(contextvars.copy_context()).run
    if context is not None:
        run = partial(run, StepContext(context).run)
    if isinstance(source, Generator):
        return GeneratorSteps(source, run)
    if isinstance(source, AsyncGenerator):
        return AsyncGeneratorSteps(source, run)
    if isinstance(source, AsyncIterable):
        return AsyncSteps(source, run)
    return Steps(source, run)


class Steps(IteratorType[Y]):
    """Iterates over *source*, each step through *run*; `close()` closes the source where it can be."""

    def __init__(self, source: Iterable[Y], run: Run) -> None:
        self._source: Any = source
        self._run = run
        steps = run(iter, source)
        self._next = steps.__next__
        self._closing = closed_on_drop(steps, run)

    def __next__(self) -> Y:
        return self._run(self._next)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the source, if it has anything to close."""
        close = getattr(self._source, "close", None)
        if close is not None:
            self._run(close)
        self._closing = None


def closed_on_drop(steps: object, run: Run) -> object:
    """Return an object to hold on to: when it is dropped, *steps* is closed through *run*, where it is a generator.

    An object's `__iter__` may be a generator function, and nobody but who iterates knows of that generator.
    """
    return GeneratorSteps(steps, run) if isinstance(steps, Generator) else None


class GeneratorSteps(Generator[Y, S, R], Generic[Y, S, R]):
    """Runs the generator *source*, each step through *run*; dropped half-way, it closes the source."""

    __slots__ = ("__weakref__", "_run", "_source")

    def __init__(self, source: Generator[Y, S, R], run: Run) -> None:
        self._source = source
        self._run = run

    def __next__(self) -> Y:
        return self._run(self._source.__next__)  # type: ignore[no-any-return]

    def send(self, value: S, /) -> Y:
        """Go on, with *value* as what the `yield` returns."""
        return self._run(self._source.send, value)  # type: ignore[no-any-return]

    def throw(self, *error: Any) -> Y:
        """Go on by raising an exception where the source stands."""
        return self._run(self._source.throw, *error)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the source: it may finish what it has begun, and yields no more."""
        self._run(self._source.close)

    def __del__(self) -> None:
        # Else the garbage collector would run the source's `finally` blocks in whatever context it happens to meet.
        self.close()


class AwaitableSteps(Awaitable[R]):
    """Awaits *source*, each step through *run*."""

    __slots__ = ("_run", "_source")

    def __init__(self, source: Awaitable[R], run: Run) -> None:
        self._source = source
        self._run = run

    def __await__(self) -> Generator[Any, Any, R]:
        steps: Any = self._run(self._source.__await__)
        kind: Any = GeneratorSteps if isinstance(steps, Generator) else Steps
        return kind(steps, self._run)  # type: ignore[no-any-return]


class AsyncSteps(AsyncIterator[Y]):
    """Iterates over the asynchronous *source*, each step through *run*; `aclose()` closes the source."""

    def __init__(self, source: AsyncIterable[Y], run: Run) -> None:
        self._source: Any = source
        self._run = run
        self._steps: Any = run(source.__aiter__)
        self._begun = False

    async def __anext__(self) -> Y:
        return await self._step(self._steps.__anext__)

    async def aclose(self) -> None:
        """Close the source, if it has anything to close."""
        aclose = getattr(self._source, "aclose", None)
        if aclose is not None:
            await self._step(aclose)

    def _step(self, ask: Callable[..., Awaitable[Y]], *args: Any) -> AwaitableSteps[Y]:
        if self._begun:
            return AwaitableSteps(ask(*args), self._run)
        self._begun = True
        return AwaitableSteps(self._begin(ask, *args), self._run)

    def _begin(self, ask: Callable[..., Awaitable[Y]], *args: Any) -> Awaitable[Y]:
        """Ask for the first step; from then on the loop closes a source that is dropped, or left when the loop ends.

        The loop closes it in a task that has context variables of its own, where what the source has attached cannot be
        detached. So the loop's hooks get objects instead, which close the source in the context of its steps.
        """
        hooks = sys.get_asyncgen_hooks()
        firstiter, finalizer = hooks
        closing: Any = self  # has the `aclose` that the loop asks for
        sys.set_asyncgen_hooks(
            firstiter and (lambda source: firstiter(closing)),
            finalizer and partial(_close_in_its_context, finalizer, self._run),
        )
        try:
            return ask(*args)
        finally:
            sys.set_asyncgen_hooks(*hooks)


def _close_in_its_context(finalizer: Callable[[Any], object], run: Run, source: Any) -> None:
    finalizer(_Dropped(source, run))


class _Dropped:
    """Stands for an asynchronous generator that nobody holds any more, before the event loop that is to close it."""

    def __init__(self, source: Any, run: Run) -> None:
        self._source = source
        self._run = run

    async def aclose(self) -> None:
        """Close the source."""
        await AwaitableSteps(self._source.aclose(), self._run)

    def __getattr__(self, name: str) -> Any:
        # A loop may log the generator's name.
        return getattr(self._source, name)


class AsyncGeneratorSteps(AsyncSteps[Y], AsyncGenerator[Y, S], Generic[Y, S]):
    """Runs the asynchronous generator *source*, each step through *run*."""

    async def asend(self, value: S, /) -> Y:
        """Go on, with *value* as what the `yield` returns."""
        return await self._step(self._source.asend, value)

    async def athrow(self, *error: Any) -> Y:
        """Go on by raising an exception where the source stands."""
        return await self._step(self._source.athrow, *error)


def __dir__() -> list[str]:
    return sorted(__all__)
