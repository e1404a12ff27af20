"""Work that shall not belong to the request that began it: it outlives the request, or nobody waits for it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Final, Generic, ParamSpec, TypeVar

from opentelemetry import trace
from opentelemetry.context import get_current
from opentelemetry.trace import Link, Span, SpanKind
from opentelemetry.util.types import AttributeValue

from meshmw.boundary.operation import Current, Operation
from meshmw.concurrency.binding import is_kind
from meshmw.concurrency.carried import from_headers

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_ORIGIN: Final = {"meshmw.link": "origin"}


class Scope(Generic[T]):
    """Is a block of code, or decorates a function so that each of its calls is one.

    Args:
        begin: Makes what one block enters and leaves.
    """

    def __init__(self, begin: Callable[[], AbstractContextManager[T]]) -> None:
        self._begin = begin
        self._entered: AbstractContextManager[T] | None = None

    def __enter__(self) -> T:
        if self._entered is not None:
            raise RuntimeError("this block is entered already; make one for each use")
        self._entered = self._begin()
        return self._entered.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> bool | None:
        entered, self._entered = self._entered, None
        return None if entered is None else entered.__exit__(kind, error, at)

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]:
        """Return *fn* with each of its calls, until an `async` one has ended, in a block of its own.

        Raises:
            TypeError: *fn* is a generator function, whose consumer would be in the block too.
        """
        if is_kind(inspect.isgeneratorfunction, fn) or is_kind(inspect.isasyncgenfunction, fn):
            raise TypeError("a generator would take its consumer into the block; use it inside the generator's steps")
        return functools.wraps(fn)(self._in_block(fn))

    def _in_block(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        if is_kind(inspect.iscoroutinefunction, fn):

            async def run_coroutine(*args: Any, **kwargs: Any) -> Any:
                with self._begin():
                    return await fn(*args, **kwargs)

            return run_coroutine

        def run(*args: Any, **kwargs: Any) -> Any:
            with self._begin():
                return fn(*args, **kwargs)

        return run


def detached() -> Scope[None]:
    """Return a block, or decorator, in which there is no current span, no baggage and no header to pass on.

    Whatever makes a span in it begins a new trace, which tells nothing of the request. All other values of the context
    stay as they are.
    """
    return Scope(lambda: Current(from_headers({}, get_current())))


def linked(
    name: str,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, AttributeValue] | None = None,
    tracer: trace.Tracer | None = None,
) -> Scope[Span]:
    """Return a block, or decorator, that is a new trace, whose root span links to the span that was current before.

    Baggage and headers to pass on stay behind, as with `detached()`. The block's exceptions are recorded on the span.

    Args:
        name: The span's name.
        kind: The span's kind.
        attributes: The span's attributes.
        tracer: Makes the span; the global provider's by default.
    """
    return Scope(lambda: _new_root(tracer or trace.get_tracer("meshmw"), name, kind, attributes))


@contextmanager
def _new_root(
    tracer: trace.Tracer, name: str, kind: SpanKind, attributes: Mapping[str, AttributeValue] | None
) -> Iterator[Span]:
    origin = trace.get_current_span().get_span_context()
    context = from_headers({}, get_current())
    span = tracer.start_span(name, context, kind, attributes, [Link(origin, _ORIGIN)] if origin.is_valid else None)
    operation = Operation(span, trace.set_span_in_context(span, context), owned=True)
    try:
        with operation.current():
            yield span
    except BaseException as error:
        operation.fail(error)
        raise
    finally:
        operation.end()
