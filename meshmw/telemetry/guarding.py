"""Span processors of strangers that cannot fail a request.

OpenTelemetry calls processors in the request's own thread, and passes on whatever they raise.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, SynchronousMultiSpanProcessor

log = logging.getLogger("meshmw")


class GuardedSpanProcessors(SynchronousMultiSpanProcessor):
    """Calls span processors in the order in which they were added, whatever any of them raises.

    Args:
        warn_window: Seconds between two warnings of the same kind of processor.
    """

    def __init__(self, warn_window: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the SDK's own
        self._warn_window = warn_window
        self._warned_at: dict[type, float] = {}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Tell every processor that a span starts."""
        for each in self._span_processors:
            try:
                each.on_start(span, parent_context=parent_context)
            except Exception as error:
                self._say(each, error)

    def _on_ending(self, span: Span) -> None:
        for each in self._span_processors:
            try:
                each._on_ending(span)
            except Exception as error:
                self._say(each, error)

    def on_end(self, span: ReadableSpan) -> None:
        """Tell every processor that a span has ended."""
        for each in self._span_processors:
            try:
                each.on_end(span)
            except Exception as error:
                self._say(each, error)

    def shutdown(self) -> None:
        """End every processor."""
        for each in self._span_processors:
            self._guarded(each, each.shutdown)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Let every processor export what it holds; say whether all of them did, within the time."""
        deadline = time.monotonic() + timeout_millis / 1000
        flushed = True
        for each in self._span_processors:
            left = int((deadline - time.monotonic()) * 1000)
            flushed = left > 0 and self._guarded(each, lambda: each.force_flush(left)) and flushed  # noqa: B023
        return flushed

    def _guarded(self, processor: SpanProcessor, call: Callable[[], object]) -> bool:
        try:
            return call() is not False
        except Exception as error:
            self._say(processor, error)
            return False

    def _say(self, processor: SpanProcessor, error: Exception) -> None:
        now = time.monotonic()
        warned_at = self._warned_at.get(type(processor))
        if warned_at is None or now - warned_at >= self._warn_window:
            self._warned_at[type(processor)] = now
            log.warning(
                "the span processor %s raised; requests and other processors are unaffected",
                type(processor).__qualname__,
                exc_info=error,
            )
