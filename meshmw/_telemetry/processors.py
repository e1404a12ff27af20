"""The span processor between the application's threads and the collector."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from opentelemetry import baggage
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, SynchronousMultiSpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from meshmw._notices import escaped
from meshmw._policy.patterns import BaggageKeys
from meshmw._telemetry.batching import PROCESSORS, Batching, Tally
from meshmw._telemetry.collector import CollectorExporter, muted

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
            else "let more of them wait, as with MESHMW_BATCHING=high/20000, or record less by MESHMW_SAMPLING_RATIO"
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


# Span processors of strangers that cannot fail a request.
#
# OpenTelemetry calls processors in the request's own thread, and passes on whatever they raise.


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


# Baggage as attributes of spans: only keys that were asked for, short values, and few of them.
#
# opentelemetry-processor-baggage bounds neither the values' length nor their number, and overwrites what a span says.


OVERFLOW: Final = "_overflow"
# A pattern may fit keys without end, which strangers choose.
_MOST_KEYS: Final = 64


class _Window(NamedTuple):
    # The values of each key, and the keys that were warned of; the empty one stands for keys without end.
    values: dict[str, set[str]]
    warned: set[str]


class BaggageAttributes(SpanProcessor):
    """Sets the baggage members that were asked for as attributes of every span that starts.

    An attribute that the span has already stays. A key with more than *distinct* values within a window is a user's or
    a request's: its further values become `_overflow`, and one warning names the key.

    Args:
        keys: The keys, or patterns with `*` and `?`.
        longest: The characters of a value that are kept.
        distinct: The values of a key within a window.
        window: The window's length, in seconds.
        clock: A monotonic clock in seconds.
    """

    def __init__(
        self,
        keys: Sequence[str],
        *,
        longest: int = 128,
        distinct: int = 100,
        window: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wanted = BaggageKeys(keys)
        self._longest = longest
        self._distinct = distinct
        self._window = window
        self._clock = clock
        self._exact = frozenset(key for key in keys if not {"*", "?"} & set(key))
        self._windows: dict[int, _Window] = {}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Set the attributes of a span that starts."""
        members = baggage.get_all(parent_context)
        if not members or not span.is_recording():
            return
        present = span.attributes or {}
        for key, value in members.items():
            if key not in present and self._wanted.permits(key):
                bounded = self._bounded(key, str(value)[: self._longest])
                if bounded is not None:
                    span.set_attribute(key, bounded)

    def _bounded(self, key: str, value: str) -> str | None:
        window = self._current()
        seen = window.values.get(key)
        if seen is None:
            # What strangers call their keys leaves room for those that were asked for by name.
            if key not in self._exact and len(window.values.keys() - self._exact) >= _MOST_KEYS:
                self._say_keys(window)
                return None
            seen = window.values.setdefault(key, set())
        if value in seen:
            return value
        if len(seen) >= self._distinct:
            self._say(window, key)
            return OVERFLOW
        seen.add(value)
        return value

    def _current(self) -> _Window:
        # One dictionary call makes a window, so that of several threads at its beginning none empties another's.
        number = int(self._clock() // self._window)
        found = self._windows.get(number)
        if found is None:
            found = self._windows.setdefault(number, _Window({}, set()))
            for each in [each for each in self._windows.copy() if each < number]:
                self._windows.pop(each, None)
        return found

    def _say_keys(self, window: _Window) -> None:
        if "" in window.warned:
            return
        window.warned.add("")
        log.warning(
            "the patterns of baggage_attributes fit more than %d keys within %g s; further ones become no attribute",
            _MOST_KEYS,
            self._window,
        )

    def _say(self, window: _Window, key: str) -> None:
        if key in window.warned:
            return
        window.warned.add(key)
        log.warning(
            "baggage key %s has more than %d values within %g s; as a span attribute, further ones become %s",
            escaped(key),
            self._distinct,
            self._window,
            OVERFLOW,
        )
