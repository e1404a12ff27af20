"""One operation, whatever its kind: its span, its context, and its single end.

Every adapter goes through these steps:

1. begin: read the headers or write them, decide the parent, start the span (`serving`, `http`, `rpc`, `messaging`);
2. run user code while `operation.context` is current, attached and detached in one frame;
3. tell the operation what happened: its status, its route, what was raised;
4. end it. Whoever comes second ends nothing.
"""

from __future__ import annotations

import _thread
import contextlib
import gc
import weakref
from collections.abc import Callable, ItemsView, Iterator, Mapping
from types import TracebackType
from typing import Final, cast

from opentelemetry.context import Context
from opentelemetry.trace import Span, StatusCode

from meshmw._context.current import Current
from meshmw._context.extraction import Extraction
from meshmw._lifecycle.decide import REJECTED
from meshmw._notices import exception_shown
from meshmw._otel import SUPPRESS_ALL_KEY, SUPPRESS_HTTP_KEY, SUPPRESS_KEY, add_plain_event

AttributeValue = str | int
Attributes = Mapping[str, AttributeValue]

# The threads in which the garbage collector runs: one at most, or none.
_collecting: Final[set[int]] = set()

_SUPPRESS: Final = frozenset({SUPPRESS_KEY, SUPPRESS_ALL_KEY})
_SUPPRESS_HTTP: Final = _SUPPRESS | {SUPPRESS_HTTP_KEY}


class Operation:
    """Holds one unit of work at a boundary.

    Args:
        span: The operation's span; not recording where there is no SDK, no sampling or no span wanted.
        context: What is current while user code runs.
        owned: Whether the span is ours to add to and to end; another's is left as it is.

    Attributes:
        is_over: Whether it has ended.
    """

    __slots__ = ("_failed_with", "_owned", "context", "is_over", "span")

    def __init__(self, span: Span, context: Context, *, owned: bool = True) -> None:
        self.span = span
        self.context = context
        self._owned = owned
        self.is_over = False
        # Until the end and no longer: its traceback leads back here.
        self._failed_with: BaseException | None = None

    def current(self) -> Current:
        """Return a block that makes the context current; it must not contain a `yield` to another frame."""
        return Current(self.context)

    @property
    def is_open(self) -> bool:
        """Say whether there is a span of our own to which something can still be added."""
        return self._owned and not self.is_over and self.span.is_recording()

    def fail(self, error: BaseException) -> None:
        """Record what user code or the network raised. Cancellation and the end of the process are no errors.

        A framework may have told of an exception that it raises afterwards: each is recorded once.
        """
        if not self._owned or self.is_over or not isinstance(error, Exception) or self._failed_with is error:
            return
        self._failed_with = error
        record_exception(self.span, error)
        self.span.set_attribute("error.type", error_type(error))
        self.span.set_status(StatusCode.ERROR, type(error).__name__)

    def end(self) -> None:
        """End the span, once."""
        if self.is_over:
            return
        self.is_over = True
        self._failed_with = None
        if self._owned:
            self.span.end()


def end_aside(end: Callable[[], object]) -> None:
    """End the operation of a response that was dropped, in a thread of its own.

    The garbage collector may find it while this thread holds any lock, such as one of OpenTelemetry's metrics, for
    which the end of an operation waits. At the end of the process, nothing is collected any more.

    Args:
        end: Ends the operation.
    """
    if gc.isenabled():
        # No more threads start while the interpreter ends, nor above a limit. Not by `threading`, which takes a lock.
        with contextlib.suppress(RuntimeError):
            _thread.start_new_thread(end, ())
    else:
        end()


def watch_collections() -> None:
    """Have `end_dropped` know from now on where the garbage collector runs."""
    if _note_collection not in gc.callbacks:
        gc.callbacks.append(_note_collection)


def _note_collection(phase: str, _: object) -> None:
    (_collecting.add if phase == "start" else _collecting.discard)(_thread.get_ident())


def end_dropped(end: Callable[[], object]) -> None:
    """End the operation of a response that a server has dropped: aside where the garbage collector found it, else here.

    asgiref drops nearly every response of WSGI, and none of them by the garbage collector.

    Args:
        end: Ends the operation.
    """
    if _thread.get_ident() in _collecting:
        end_aside(end)
    else:
        end()


class OperationScope:
    """Makes an operation current for the length of one block, and ends it with the block; for one use.

    It works in `async` functions as it is. Whatever the block raises is recorded and goes on.

    Args:
        begin: Begins the operation, when the block is entered.
    """

    __slots__ = ("__weakref__", "_begin", "_current", "_dropped", "operation")

    operation: Operation | None

    def __init__(self, begin: Callable[[], Operation]) -> None:
        self._begin = begin
        self.operation = None

    def __enter__(self) -> Span:
        if self.operation is not None:
            raise RuntimeError("this block was entered before; make one for each message")
        self.operation = operation = self._begin()
        self._current: Current = operation.current()
        self._current.__enter__()
        # Nobody may ever leave the block, as where a framework forgets a generator, or an error keeps it from that.
        self._dropped = weakref.finalize(self, _drop, operation, self._current)
        # At the end of the process, and of one that was forked from it, other blocks are open and not dropped.
        self._dropped.atexit = False
        return operation.span

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._current.leave(kind)
        self._dropped.detach()
        operation = cast(Operation, self.operation)
        if error is not None:
            operation.fail(error)
        operation.end()


def _drop(operation: Operation, current: Current) -> None:
    current.leave(GeneratorExit)
    end_dropped(operation.end)


class StandDown:
    """Holds, under a key that suppresses, what we say to the instrumentations further in; to us it says nothing."""

    __slots__ = ()


def is_suppressed(context: Context, *, http: bool = False) -> bool:
    """Say whether somebody has suppressed instrumentation in a context, by one of OpenTelemetry's keys.

    Args:
        context: What is current where an operation begins.
        http: Whether it is an HTTP call, of which more may be suppressed.
    """
    keys = _SUPPRESS_HTTP if http else _SUPPRESS
    # Nearly always none of them is there.
    if keys.isdisjoint(context):
        return False
    found = [context.get(key) for key in keys]
    return any(value and not isinstance(value, StandDown) for value in found)


def record_exception(span: Span, error: Exception) -> None:
    """Add an exception to a span as an event, without the secrets that its text quotes.

    `Span.record_exception` would take the text as it is.
    """
    if span.is_recording():
        # It asks the application's exception for its text, and that may raise.
        with contextlib.suppress(Exception):
            message, stacktrace = exception_shown(error)
            span.add_event(
                "exception",
                {
                    "exception.type": error_type(error),
                    "exception.message": message,
                    "exception.stacktrace": stacktrace,
                },
            )


def record_refusals(span: Span, extraction: Extraction, *, link: bool = True) -> None:
    """Note on a span what was refused of its request's headers, and which parent is not trusted.

    Args:
        span: The request's.
        extraction: What its headers say.
        link: Whether the span is still to be linked to the parent that is not trusted.
    """
    if (extraction.refused or extraction.rejected is not None) and span.is_recording():
        for header, reason in extraction.refused:
            add_plain_event(span, "meshmw.header.refused", {"meshmw.header": header, "meshmw.reason": reason})
        if link and extraction.rejected is not None:
            span.add_link(extraction.rejected, REJECTED)


class LazyAttributes(Mapping[str, AttributeValue]):
    """Computes attributes when somebody first looks at them, so that an unsampled span costs none.

    Args:
        build: Returns the attributes; called at most once.
    """

    __slots__ = ("_build", "_built")

    def __init__(self, build: Callable[[], dict[str, AttributeValue]]) -> None:
        self._build = build
        self._built: dict[str, AttributeValue] | None = None

    def _attributes(self) -> dict[str, AttributeValue]:
        if self._built is None:
            self._built = self._build()
        return self._built

    def __getitem__(self, key: str) -> AttributeValue:
        return self._attributes()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._attributes())

    def __len__(self) -> int:
        return len(self._attributes())

    def items(self) -> ItemsView[str, AttributeValue]:
        """Return all at once: the SDK copies them, and `Mapping` would look each one up."""
        return self._attributes().items()

    def copy(self) -> dict[str, AttributeValue]:
        """Return all in a dictionary; older SDKs ask for this of whatever attributes a sampler has returned."""
        return dict(self._attributes())


def error_type(error: BaseException) -> str:
    """Return the fully qualified name of an exception's class, without `builtins`."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
