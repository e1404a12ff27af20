"""One operation, whatever its kind: its span, its context, and its single end.

Knows OpenTelemetry's spans and contexts. Must not know what is operated on.
"""

from __future__ import annotations

import contextlib
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, StatusCode

from meshmw.propagation.attachment import take_back
from meshmw.semconv.attributes import error_type
from meshmw.version import __version__

TRACER: Final = trace.get_tracer("meshmw", __version__)


def tracer() -> trace.Tracer:
    """Return the process's own tracer, without the stand-in that OpenTelemetry hands out before there is a provider."""
    return getattr(TRACER, "_real_tracer", None) or TRACER


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
        take_back(self._token, self._context, kind)


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
