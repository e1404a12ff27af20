"""The span processor between the application's threads and the collector."""

from __future__ import annotations

import logging
import time

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from meshmw.telemetry.collector import CollectorExporter
from meshmw.telemetry.muting import muted


class PromptBatchSpanProcessor(BatchSpanProcessor):
    """Batches spans in a bounded queue, says once in a while that it is full, and ends in a bounded time.

    Args:
        exporter: Where the batches go.
        warn_window: Seconds between two warnings that the queue is full.
    """

    def __init__(self, exporter: CollectorExporter, warn_window: float) -> None:
        super().__init__(exporter)
        self._collector = exporter
        self.shutdown_seconds = 5.0
        self._warn_window = warn_window
        self._warned_at: float | None = None

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span; where the queue is full the oldest one is dropped."""
        with muted(self._once_per_window):
            super().on_end(span)

    def shutdown(self) -> None:
        """Export what is queued for at most `shutdown_seconds`, then cut off the export that is under way."""
        self._collector.hurry()
        seconds = min(self.shutdown_seconds, 1.0) if self._collector.failing else self.shutdown_seconds
        # The SDK's own shutdown() waits up to 30 s for a collector that does not answer, and offers no other way
        # to say how long: https://github.com/open-telemetry/opentelemetry-python/issues/4568
        self._batch_processor.shutdown(timeout_millis=int(seconds * 1000))

    def _once_per_window(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        due = self._warned_at is None or now - self._warned_at >= self._warn_window
        if due:
            self._warned_at = now
        return due
