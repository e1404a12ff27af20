"""One operation, whatever its kind: its span, its context, and its single end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Final, cast

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, StatusCode

from meshmw._context.current import Current
from meshmw._context.extraction import Extraction
from meshmw._lifecycle.conventions import error_type
from meshmw._otel import real_tracer
from meshmw._version import __version__

TRACER: Final = trace.get_tracer("meshmw", __version__)


def tracer() -> trace.Tracer:
    """Return the process's own tracer, without the stand-in that OpenTelemetry hands out before there is a provider."""
    return real_tracer(TRACER)


def tracer_of(provider: trace.TracerProvider | None) -> trace.Tracer:
    """Return meshmw's tracer of a provider; None means the process's own."""
    return tracer() if provider is None else provider.get_tracer("meshmw", __version__)


class Operation:
    """Is one unit of work at a boundary.

    Args:
        span: The operation's span; not recording where there is no SDK, no sampling or no span wanted.
        context: What is current while user code runs.
        owned: Whether the span is ours to add to and to end; another's is left as it is.

    Attributes:
        is_over: Whether it has ended.
    """

    __slots__ = ("_owned", "context", "is_over", "span")

    def __init__(self, span: Span, context: Context, *, owned: bool) -> None:
        self.span = span
        self.context = context
        self._owned = owned
        self.is_over = False

    def current(self) -> Current:
        """Return a block that makes the context current; it must not contain a `yield` to another frame."""
        return Current(self.context)

    @property
    def is_open(self) -> bool:
        """Say whether there is a span of our own to which something can still be added."""
        return self._owned and not self.is_over and self.span.is_recording()

    def fail(self, error: BaseException) -> None:
        """Record what user code or the network raised. Cancellation and the end of the process are no errors."""
        if not self._owned or self.is_over or not isinstance(error, Exception):
            return
        # It asks the application's exception for its text, and that may raise.
        with contextlib.suppress(Exception):
            self.span.record_exception(error)
        self.span.set_attribute("error.type", error_type(error))
        self.span.set_status(StatusCode.ERROR, type(error).__name__)

    def end(self) -> None:
        """End the span, once."""
        if self.is_over:
            return
        self.is_over = True
        if self._owned:
            self.span.end()


# The block in which one operation is current.


class OperationScope:
    """Is a block in which one operation is current, and at whose end it has ended; for one use.

    Works in `async` functions as it is. Whatever the block raises is recorded and goes on.

    Args:
        begin: Begins the operation, when the block is entered.
    """

    __slots__ = ("_begin", "_current", "operation")

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
        return operation.span

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._current.__exit__(kind, error, at)
        operation = cast(Operation, self.operation)
        if error is not None:
            operation.fail(error)
        operation.end()


# On the link of a fresh root to the parent that its request named and that is not believed.
_REJECTED: Final = {"meshmw.link": "rejected_parent"}


def record_refusals(span: Span, extraction: Extraction) -> None:
    """Note on a span that somebody else made what was refused of its request, and which parent is not believed."""
    if span.is_recording():
        _record_refused(span, extraction)
        if extraction.rejected is not None:
            span.add_link(extraction.rejected, _REJECTED)


def _record_refused(span: Span, extraction: Extraction) -> None:
    if span.is_recording():
        for header, reason in extraction.refused:
            span.add_event("meshmw.header.refused", {"meshmw.header": header, "meshmw.reason": reason})
