"""Work that leaves the frame which asked for it: threads, processes, callbacks, queues.

`bind`, the executors, `Thread`, `run_in_executor` and `to_thread` keep such work in the trace of whoever asked for it.
`detached` and `linked` take it out of that trace: it outlives the request, or nobody waits for it.

A thread gets a copy of all context variables. A process shares no memory with this one: it gets the span, the baggage
and the headers to pass on, as headers. Nothing of the context is pickled but strings.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import inspect
import json
import threading
from asyncio import to_thread
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from multiprocessing.util import Finalize
from types import TracebackType
from typing import Any, Final, Generic, ParamSpec, TypeVar

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import Link, Span, SpanKind
from opentelemetry.util.types import AttributeValue

from meshmw import _runtime
from meshmw._context.current import Current, StepVariables
from meshmw._context.extraction import PASSTHROUGH_KEY, Extraction
from meshmw._context.write import passthrough
from meshmw._lifecycle.operation import Operation
from meshmw._notices import LOGGER
from meshmw._policy.words import Format
from meshmw._telemetry.configure import configure, configured
from meshmw.propagator import MeshPropagator
from meshmw.settings import MOST_BYTES, MOST_MEMBERS, Settings
from meshmw.streams import AsyncGeneratorSteps, AwaitableSteps, GeneratorSteps
from meshmw.wire.headers import PROPAGATION_HEADERS

__all__ = [
    "ProcessPoolExecutor",
    "Scope",
    "Thread",
    "ThreadPoolExecutor",
    "bind",
    "detached",
    "linked",
    "run_in_executor",
    "to_thread",
]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_ORIGIN: Final = {"meshmw.link": "origin"}
# As if a request had come without any header.
_NOTHING: Final = Extraction(
    span_context=None, baggage={}, b3=None, passthrough={}, rewrites={}, refused=(), rejected=None
)

# After the application's finalizers, which may make spans. The lowest priority runs last.
_LAST: Final = -1000

# No proxy is between the processes, and the service decided what it trusts when the request came in. So everything is
# sent, whatever the settings say about other services. The limits are the largest that settings can have.
_FORMATS: Final[tuple[Format, ...]] = ("tracecontext", "baggage", "b3")

# Interpreters of Python 3.14 share no objects either, though their executor is one of threads.
_PICKLING: Final = tuple(
    getattr(concurrent.futures, name)
    for name in ("ProcessPoolExecutor", "InterpreterPoolExecutor")
    if hasattr(concurrent.futures, name)
)


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


def detached() -> Scope[None]:
    """Return a block, or decorator, in which there is no current span, no baggage and no header to pass on.

    Whatever makes a span in it begins a new trace, which holds nothing of the request. All other values of the context
    stay as they are.
    """
    return Scope(lambda: Current(_NOTHING.into(get_current())))


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
    return Scope(lambda: _new_root(tracer or _runtime.tracer(), name, kind, attributes))


class Scope(Generic[T]):
    """Encloses a block of code, or decorates a function so that each of its calls is such a block.

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
        if _is_kind(inspect.isgeneratorfunction, fn) or _is_kind(inspect.isasyncgenfunction, fn):
            raise TypeError("a generator would take its consumer into the block; use it inside the generator's steps")
        return functools.wraps(fn)(self._in_block(fn))

    def _in_block(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        if _is_kind(inspect.iscoroutinefunction, fn):

            async def run_coroutine(*args: Any, **kwargs: Any) -> Any:
                with self._begin():
                    return await fn(*args, **kwargs)

            return run_coroutine

        def run(*args: Any, **kwargs: Any) -> Any:
            with self._begin():
                return fn(*args, **kwargs)

        return run


@contextmanager
def _new_root(
    tracer: trace.Tracer, name: str, kind: SpanKind, attributes: Mapping[str, AttributeValue] | None
) -> Iterator[Span]:
    origin = trace.get_current_span().get_span_context()
    context = _NOTHING.into(get_current())
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


def _bound(fn: Callable[..., Any], bound: contextvars.Context) -> Callable[..., Any]:
    if _is_kind(inspect.iscoroutinefunction, fn):

        async def run_coroutine(*args: Any, **kwargs: Any) -> Any:
            run = StepVariables(bound.copy()).run
            return await AwaitableSteps(run(fn, *args, **kwargs), run)

        return run_coroutine
    if _is_kind(inspect.isgeneratorfunction, fn):
        return _streaming(fn, bound, GeneratorSteps)
    if _is_kind(inspect.isasyncgenfunction, fn):
        return _streaming(fn, bound, AsyncGeneratorSteps)
    return lambda *args, **kwargs: bound.copy().run(fn, *args, **kwargs)


def _streaming(fn: Callable[..., Any], bound: contextvars.Context, steps: Callable[..., Any]) -> Callable[..., Any]:
    def run_generator(*args: Any, **kwargs: Any) -> Any:
        run = StepVariables(bound.copy()).run
        return steps(run(fn, *args, **kwargs), run)

    return run_generator


def _is_kind(kind: Callable[[object], bool], fn: Callable[..., Any]) -> bool:
    """Say whether a callable, function or object, is of a kind that `inspect` knows for functions."""
    # To call a class makes an object. What that object's own `__call__` is does not matter here.
    return kind(fn) or (not isinstance(fn, type) and kind(fn.__call__))  # type: ignore[operator]  # an object may have the method that is of the kind


class ThreadPoolExecutor(concurrent.futures.ThreadPoolExecutor):
    """Runs each task of the standard library's executor in a copy of all context variables of whoever submits it.

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


class ProcessPoolExecutor(concurrent.futures.ProcessPoolExecutor):
    """Runs each task of the standard library's executor with the span and the baggage of whoever submits it.

    It takes the same arguments. Each worker is configured as this process is, before *initializer* runs, and exports
    its spans before it ends. Where `configure()` found a tracer provider of the application's own, *initializer* has
    to set one in the worker too, or its spans go nowhere.

    Args:
        max_workers: As for the standard executor.
        mp_context: As for the standard executor; every start method will do.
        initializer: Is called when a worker starts, in an empty context.
        initargs: Arguments of *initializer*.
        options: As for the standard executor, such as `max_tasks_per_child`.

    Raises:
        TypeError: *initializer* cannot be called.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        **options: Any,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        worker = (_OwnSettings(), initializer, initargs)
        super().__init__(max_workers, mp_context, _begin_worker, worker, **options)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[T]:
        """Schedule a call in the caller's span and baggage, as the standard executor does without."""
        return super().submit(Carried(fn), *args, **kwargs)

    def map(self, fn: Callable[..., T], *iterables: Iterable[Any], **options: Any) -> Iterator[T]:
        """Call *fn* for each item, in the caller's span and baggage also where items are asked for later."""
        run = StepVariables(contextvars.copy_context()).run
        return GeneratorSteps(super().map(fn, *iterables, **options), run)  # type: ignore[arg-type]


class Thread(threading.Thread):
    """Runs the standard library's thread in a copy of the context variables of whoever starts it.

    A subclass with a `run()` of its own is run in the copy too. A `context` that you give, as of Python 3.14,
    is used instead.

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
            # After a first start that succeeded, these belong to the thread that runs.
            if is_first:
                del self.run
                self._was_started = False
            raise

    def _take_context(self) -> None:
        context, run = contextvars.copy_context(), self.run

        def run_in_context() -> None:
            # The object outlives the work, and must not keep the request's context alive.
            del self.run
            context.run(run)

        self.run = run_in_context  # type: ignore[method-assign]
        self._was_started = True


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


class Carried:
    """Holds a function and the headers of the context in which to call it; pickles where the function does.

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


def to_headers(context: Context) -> dict[str, str]:
    """Return the span, the baggage and the headers to pass on that *context* holds; nothing else of it."""
    return {**passthrough(context), **_propagator(*_FORMATS).write(context)}


def from_headers(headers: Mapping[str, str]) -> Context:
    """Return a context with what *headers* hold, and nothing else."""
    # Baggage alone is no sign of a proxy that strips headers here.
    propagator = _propagator(*_FORMATS) if "traceparent" in headers else _propagator("baggage", "b3")
    read = propagator.read({name: [text] for name, text in headers.items() if name in PROPAGATION_HEADERS})
    passed_on = {name: text for name, text in headers.items() if name not in PROPAGATION_HEADERS}
    return Context({**read.entries(), **({PASSTHROUGH_KEY: passed_on} if passed_on else {})})


@functools.cache
def _propagator(*formats: Format) -> MeshPropagator:
    return MeshPropagator(
        formats, baggage_max_members=MOST_MEMBERS, baggage_max_bytes=MOST_BYTES, passthrough_headers=()
    )


class _OwnSettings:
    """Turns, on its way to a new process, into the text of the settings that are in force at that time.

    An executor may be made before `configure()` is called. A forked process has the settings in its memory.
    """

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        telemetry = configured()
        if telemetry is None:
            return str, ("",)
        return str, (json.dumps({"owned": telemetry.owned, "settings": asdict(telemetry.settings)}),)


def _begin_worker(own: object, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
    parent = json.loads(own) if isinstance(own, str) and own else None
    if parent and parent["owned"]:
        _configure(parent["settings"])
    Finalize(None, _runtime.flush, exitpriority=_LAST)
    if initializer is not None:
        # A forked worker begins in the context of the request that happened to start it.
        with Current(Context()):
            initializer(*initargs)
    if parent and not parent["owned"]:
        _configure({**parent["settings"], "exporter": "none"})


def _configure(settings: dict[str, Any]) -> None:
    try:
        configure(Settings(**settings))
    except Exception:
        LOGGER.warning("a worker process exports no spans: it cannot be configured as its parent was", exc_info=True)


def __dir__() -> list[str]:
    return sorted(__all__)
