"""How a block or a step of a stream makes a context current, and takes it back wherever it ends.

A block attaches and detaches in one frame. `Current` is such a block; an adapter that cannot use one calls `detach`. A
stream has no frame of its own: `StepContext` or `StepVariables` makes its context current while one step runs.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable
from contextvars import Token
from typing import Any, Final, ParamSpec, TypeVar

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from meshmw._otel import runtime_context

P = ParamSpec("P")
R = TypeVar("R")
# Runs one step of a stream: `run` of a StepContext or of StepVariables.
Run = Callable[..., Any]

_INSIDE: Final[contextvars.ContextVar[object]] = contextvars.ContextVar("meshmw-inside", default=None)


class Current:
    """Makes a context current for the length of a block.

    Args:
        context: The context to attach.
    """

    __slots__ = ("_context", "_token")

    def __init__(self, context: Context) -> None:
        self._context = context

    def __enter__(self) -> None:
        self._token = otel_context.attach(self._context)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        detach(self._token, self._context, kind)

    def leave(self, kind: type[BaseException] | None) -> None:
        """End a block that is the application's own, in whichever thread or task it ends.

        A generator may end it in another one, where nothing is to be detached: what calls generators for a framework
        runs each step in any thread of a pool. Where it began, the context stays current.

        Args:
            kind: The class of the exception with which the block ends, if there is one.
        """
        if kind is not GeneratorExit or otel_context.get_current() is self._context:
            _reset(self._token)


def detach(token: Token[Context], context: Context, kind: type[BaseException] | None) -> None:
    """Detach *context* at the end of the block that has attached it.

    Args:
        token: What `attach` returned.
        context: What was attached.
        kind: The class of the exception with which the block ends, if there is one.
    """
    if kind is not GeneratorExit:
        otel_context.detach(token)
    elif otel_context.get_current() is context:
        # A coroutine that nobody finished is closed by the garbage collector, wherever that happens to run: in a task
        # that the block itself has started the very same context is current, and `detach` would log an error.
        _reset(token)


def _reset(token: Token[Context]) -> None:
    """Take back what was attached, without a word where that cannot be: `otel_context.detach` would log an error."""
    # OpenTelemetry lets others keep its contexts, such as ddtrace, whose tokens are no context variables'.
    with contextlib.suppress(Exception):
        runtime_context().detach(token)


class StepContext:
    """Makes a context current for each step of one stream, and keeps for the next step what that one left current.

    Other context variables are the thread's or task's own, as for the body of a response, whose application has set
    some of them before the first step and takes them back after the last.

    Args:
        context: What is current when the first step begins.
    """

    __slots__ = ("_context",)

    def __init__(self, context: Context) -> None:
        self._context = context

    def run(self, step: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call *step* with the context current, and return what it returns."""
        token = otel_context.attach(self._context)
        try:
            return step(*args, **kwargs)
        finally:
            self._context = otel_context.get_current()
            otel_context.detach(token)


class StepVariables:
    """Makes one copy of all context variables current for each step of one stream, whichever thread or task takes it.

    Args:
        variables: The copy, which nothing else runs in.
    """

    __slots__ = ("_entered", "_mark", "_variables")

    def __init__(self, variables: contextvars.Context) -> None:
        self._variables = variables
        self._entered = False
        self._mark = object()
        variables.run(_INSIDE.set, self._mark)

    def run(self, step: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call *step* with the variables current, and return what it returns."""
        if self._entered:
            # In the middle of a step, when the garbage collection closes what an earlier one has left.
            inside = _INSIDE.get() is self._mark
            return step(*args, **kwargs) if inside else self._variables.copy().run(step, *args, **kwargs)
        self._entered = True
        try:
            return self._variables.run(step, *args, **kwargs)
        finally:
            self._entered = False
