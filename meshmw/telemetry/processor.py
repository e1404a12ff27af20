"""The span processor between the application's threads and the collector."""

from __future__ import annotations

import logging
import time

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from meshmw.telemetry.batching import Batching
from meshmw.telemetry.collector import CollectorExporter
from meshmw.telemetry.losses import PROCESSORS
from meshmw.telemetry.muting import muted
from meshmw.telemetry.tally import Tally

log = logging.getLogger("meshmw")


class PromptBatchSpanProcessor(BatchSpanProcessor):
    """Batches spans in a bounded queue, counts and says what it drops, and ends in a bounded time.

    Args:
        exporter: Where the batches go.
        warn_window: Seconds between two warnings that the queue is full.
        batching: The queue's length and the batches' size; OpenTelemetry's own defaults by default.
    """

    def __init__(self, exporter: CollectorExporter, warn_window: float, batching: Batching | None = None) -> None:
        queue, batch, delay = batching or (None, None, None)
        super().__init__(exporter, queue, delay, batch)
        self.collector: CollectorExporter = exporter
        self.shutdown_seconds = 5.0
        self._dropped_full = Tally()
        self._dropped_ended = Tally()
        self._queue = self._batch_processor._queue
        self._longest = self._queue.maxlen or 0
        self._warn_window = warn_window
        self._warned_at: float | None = None
        PROCESSORS.add(self)

    @property
    def dropped_full(self) -> int:
        """Return the number of spans that were dropped because the queue was full."""
        return self._dropped_full.total

    @property
    def dropped_ended(self) -> int:
        """Return the number of spans that were dropped because the end came first."""
        return self._dropped_ended.total

    @property
    def queue_length(self) -> int:
        """Return the number of spans that wait."""
        return len(self._queue)

    @property
    def queue_capacity(self) -> int:
        """Return the number of spans that may wait."""
        return self._longest

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span; where the queue is full the oldest one is dropped."""
        if len(self._queue) < self._longest and not self._batch_processor._shutdown:
            super().on_end(span)
        elif span.context is not None and span.context.trace_flags.sampled:
            self._drop(span)

    def _drop(self, span: ReadableSpan) -> None:
        if self._batch_processor._shutdown:
            self._dropped_ended.add(1)
            return
        self._dropped_full.add(1)
        with muted(lambda record: False):
            super().on_end(span)
        now = time.monotonic()
        if self._warned_at is None or now - self._warned_at >= self._warn_window:
            self._warned_at = now
            log.warning("%s", self._fullness())

    def _fullness(self) -> str:
        remedy = (
            "the collector does not take them"
            if self.collector.failing
            else "raise MESHMW_QUEUE_SIZE, set MESHMW_BATCH_PROFILE=high, or record less by MESHMW_SAMPLING_RATIO"
        )
        return (
            f"the queue of {self._longest} spans is full and the oldest are dropped ({self.dropped_full} so far); "
            f"requests are unaffected: {remedy}"
        )

    def shutdown(self) -> None:
        """Export what is queued for at most `shutdown_seconds`, then cut off the export that is under way."""
        self.collector.hurry()
        seconds = min(self.shutdown_seconds, 1.0) if self.collector.failing else self.shutdown_seconds
        # The SDK's own shutdown() waits up to 30 s for a collector that does not answer, and offers no other way
        # to say how long: https://github.com/open-telemetry/opentelemetry-python/issues/4568
        self._batch_processor.shutdown(timeout_millis=int(seconds * 1000))
        self._dropped_ended.add(len(self._queue))
