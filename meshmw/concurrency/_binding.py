"""`bind()`: any callable, to be called wherever, in the context in which it was bound."""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Final, Generic, ParamSpec, TypeVar

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import Link, Span, SpanKind
from opentelemetry.util.types import AttributeValue

from meshmw._context.current import Current, StepVariables
from meshmw._context.extraction import PASSTHROUGH_KEY
from meshmw._lifecycle.operation import Operation
from meshmw._policy.words import Format
from meshmw.propagator import MeshPropagator
from meshmw.streams import AsyncGeneratorSteps, AwaitableSteps, GeneratorSteps
from meshmw.wire.headers import PROPAGATION_HEADERS

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


# A context as strings, for a process that shares no memory with this one.


# No proxy is on the way, and the service has decided at its door what it believes: everything goes, whatever the
# settings say about other services. The numbers are the largest that the settings can let in.
_FORMATS: Final[tuple[Format, ...]] = ("tracecontext", "baggage", "b3")
_MAX_MEMBERS: Final = 1024
_MAX_BYTES: Final = 61_440


@functools.cache
def _carrier(*formats: Format) -> MeshPropagator:
    return MeshPropagator(
        formats, baggage_max_members=_MAX_MEMBERS, baggage_max_bytes=_MAX_BYTES, passthrough_headers=()
    )


def to_headers(context: Context) -> dict[str, str]:
    """Return the span, the baggage and the headers to pass on that *context* holds; nothing else of it."""
    passed_on = context.get(PASSTHROUGH_KEY)
    return {**(passed_on if isinstance(passed_on, dict) else {}), **_carrier(*_FORMATS).write(context)}


def from_headers(headers: Mapping[str, str], base: Context | None = None) -> Context:
    """Return *base*, empty by default, with no span and no baggage but those of *headers*."""
    # Baggage alone is no sign of a proxy that strips headers here.
    carrier = _carrier(*_FORMATS) if "traceparent" in headers else _carrier("baggage")
    read = carrier.read({name: [text] for name, text in headers.items() if name in PROPAGATION_HEADERS})
    context = read.into(Context() if base is None else base)
    passed_on = {name: text for name, text in headers.items() if name not in PROPAGATION_HEADERS}
    return Context({**context, PASSTHROUGH_KEY: passed_on}) if passed_on else context


class Carried:
    """Is a function and the headers of the context in which it is to run; it can be pickled where the function can.

    Args:
        fn: What to call, in another process.
    """

    __slots__ = ("_fn", "_headers")

    def __init__(self, fn: Any) -> None:
        self._fn = fn
        self._headers = to_headers(get_current())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function in that context."""
        with Current(from_headers(self._headers)):
            return self._fn(*args, **kwargs)


# Work that shall not belong to the request that began it: it outlives the request, or nobody waits for it.


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
