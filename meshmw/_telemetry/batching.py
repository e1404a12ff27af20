"""The queue of spans between the application's threads and the exporter: how long it is, and what it has dropped.

The application's threads put spans in. A thread of our own takes them out in batches. Where the queue is full the
oldest span is dropped, and every dropped span is counted by reason.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from os import getpid
from typing import Final, NamedTuple
from weakref import WeakSet

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import TraceFlags

from meshmw._notices import LOGGER, Throttle
from meshmw._otel import suppressed
from meshmw._policy.words import DEFAULT_BATCHING
from meshmw._telemetry.bounds import FAIR, FAIR_BYTES, BoundedSpan
from meshmw._telemetry.collector import GuardedSpanExporter
from meshmw._telemetry.resource import memory_headroom
from meshmw._telemetry.worker import Worker
from meshmw.errors import SettingsError
from meshmw.settings import LARGEST, Settings, count_in, first_of

_BATCH: Final = "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
_QUEUE: Final = "OTEL_BSP_MAX_QUEUE_SIZE"
_DELAY: Final = "OTEL_BSP_SCHEDULE_DELAY"

# 48 KB for each span that waits: a span of ours takes 5 to 10, and most of the room is the application's.
_SPANS: Final = 1_024
_PER_BYTES: Final = 50_000_000
_LARGEST_QUEUE: Final = 65_536
# Once large spans take so many bytes, they are exported before the batch is full.
_BATCH_BYTES: Final = 1_000_000
# Beside the bytes that every waiting span may take, those above take these together.
_LARGE_BYTES: Final = 12 * 1024 * 1024
_SAMPLED: Final = TraceFlags.SAMPLED


class Batching(NamedTuple):
    """Says how spans are queued and exported.

    Attributes:
        queue: The spans that may wait.
        batch: The spans that one export takes.
        delay: Milliseconds between two exports, where no batch is full before.
    """

    queue: int
    batch: int
    delay: int


# The first one holds the defaults of OpenTelemetry's specification.
PROFILES: Final = {"moderate": Batching(2_048, 512, 5_000), "high": Batching(8_192, 2_048, 1_000)}


def batching_of(settings: Settings, headroom: Callable[[], int | None] = memory_headroom) -> Batching:
    """Return what the settings and `OTEL_BSP_*` say; what they do not say is the profile's.

    Args:
        settings: The settings.
        headroom: Returns the bytes that are left to this container, or None where nothing limits it.

    Raises:
        SettingsError: The setting asks for a queue that is smaller than one export.
    """
    name, _, own = settings.batching.partition("/")
    profile = PROFILES[name]
    asked, delay = count_in(_BATCH), count_in(_DELAY, LARGEST) or profile.delay
    batch = asked or profile.batch
    # A profile that was chosen by its name alone leaves the queue to the standard variable; where nothing was chosen,
    # the settings have read that one already, and warned of it.
    standard = count_in(_QUEUE) if not own and "batching" in settings.given else None
    queue = _fitting_queue(headroom(), profile.queue, batch) if own == "auto" else int(own or standard or profile.queue)
    if asked is not None and asked > queue:
        batch = profile.batch
        instead = min(batch, queue)
        LOGGER.warning("%s holds %d, above the queue of %d, and is ignored; so it is %d", _BATCH, asked, queue, instead)
    if own and own != first_of(_QUEUE) and queue < batch:
        fault = f"a queue of {queue} spans (batching={settings.batching}) is smaller than one export of {batch}"
        remedy = f"set MESHMW_BATCHING to {name}/{batch} or more, or {_BATCH} to {queue} or less"
        raise SettingsError([f"{fault}: {remedy}"])
    # A standard variable stops no application; the specification asks for no export above the queue.
    return Batching(queue, min(batch, queue), delay)


def _fitting_queue(headroom: int | None, without_limit: int, least: int) -> int:
    if headroom is None:
        return max(without_limit, least)
    return max(least, min(_LARGEST_QUEUE, headroom * _SPANS // _PER_BYTES))


class PromptBatchSpanProcessor(SpanProcessor):
    """Batches spans in a queue that is bounded in spans and in bytes, counts and says what it drops, and ends in time.

    Where the queue is full of spans, the oldest one is dropped. Bytes push out nobody: a span of ordinary size always
    has its place, and the larger ones share a room of their own. What does not fit in there is cut to ordinary size.

    Args:
        exporter: Where the batches go.
        warn_window: Seconds between two warnings that the queue is full.
        batching: The queue's length and the batches' size.

    Attributes:
        collector: The exporter.
        span_exporter: The exporter, by the name that the SDK's processors give it.
        shutdown_seconds: How long `shutdown()` may take.
        queue_capacity: The number of spans that may wait.
    """

    def __init__(
        self, exporter: GuardedSpanExporter, warn_window: float, batching: Batching = PROFILES[DEFAULT_BATCHING]
    ) -> None:
        self.collector = self.span_exporter = exporter
        self.shutdown_seconds = 5.0
        self.queue_capacity = batching.queue
        # None of these is free after the end.
        self._places = batching.queue
        self._batch = batching.batch
        self._throttle = Throttle(warn_window)
        self._dropped_full = Tally()
        self._dropped_ended = Tally()
        self._ended = self._is_cut_off = False
        self._begin()
        self._worker = Worker(self._export, batching.delay / 1000, warn_window)
        _PROCESSORS.add(self)
        if hasattr(os, "register_at_fork"):
            processor = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _renew(processor()))

    def _begin(self) -> None:
        self._process = getpid()
        self._queue: deque[ReadableSpan] = deque()
        self._large_bytes = Tally()

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

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span; where the queue is full the oldest one is dropped."""
        context = span.context
        # A span that is recorded and not sampled is for other processors, so it is no loss.
        if context is None or not context.trace_flags & _SAMPLED:
            return
        if self._process != getpid():
            # Forked by a server that tells Python nothing of it, such as uWSGI.
            self.renew()
        waiting = len(self._queue)
        if waiting >= self._places:
            if self._ended:
                self._dropped_ended.add(1)
                return
            self._drop_oldest()
        if isinstance(span, BoundedSpan):
            span = self._fitting(span)
        self._queue.append(span)
        if waiting + 1 >= self._batch:
            self._worker.wake()

    def renew(self) -> None:
        """Start again in a forked process: what waits there is its parent's."""
        self._begin()
        self._worker.renew()

    def _drop_oldest(self) -> None:
        self._dropped_full.add(1)
        self._take()
        if self._throttle.opens("full") is not None:
            LOGGER.warning(
                "the queue of %d spans is full and the oldest are dropped (%d so far); requests are unaffected: %s",
                self.queue_capacity,
                self.dropped_full,
                self._remedy(),
            )

    def _remedy(self) -> str:
        if self.collector.failing:
            return "the collector does not take them"
        return "let more of them wait, as with MESHMW_BATCHING=high/20000, or record less by MESHMW_SAMPLING_RATIO"

    def _fitting(self, span: BoundedSpan) -> BoundedSpan:
        if self._large_bytes.total + _large(span) > _LARGE_BYTES:
            span = BoundedSpan(span, FAIR)
            if self._throttle.opens("large") is not None:
                LOGGER.warning(
                    "large spans fill %d MiB of the queue, and further ones are cut to %d KiB each; others are "
                    "unaffected",
                    _LARGE_BYTES >> 20,
                    FAIR_BYTES >> 10,
                )
        self._large_bytes.add(_large(span))
        if self._large_bytes.total >= _BATCH_BYTES:
            self._worker.wake()
        return span

    def _export(self, everything: bool) -> None:
        while self._queue and not self._is_cut_off and (everything or self._is_due()):
            with suppressed():
                batch = self._next_batch()
                # Nothing is left where other threads dropped the last span, or none could be written.
                if batch:
                    self.collector.export(batch)

    def _is_due(self) -> bool:
        return len(self._queue) >= self._batch or self._large_bytes.total >= _BATCH_BYTES

    def _next_batch(self) -> Sequence[ReadableSpan]:
        batch = self.collector.batch()
        while len(batch) < self._batch and batch.room > 0 and (span := self._take()) is not None:
            self.collector.collect(span, batch)
        return batch

    def _take(self) -> ReadableSpan | None:
        # Other threads may have taken the last one meanwhile.
        try:
            span = self._queue.popleft()
        except IndexError:
            return None
        if isinstance(span, BoundedSpan):
            self._large_bytes.add(-_large(span))
        return span

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export what is queued, and say whether that was done within the time."""
        return not self._ended and self._worker.flush(timeout_millis / 1000)

    def shutdown(self) -> None:
        """Export what is queued for at most `shutdown_seconds`, then cut off the export that is under way."""
        self.collector.hurry()
        if not self._ended:
            self._ended, self._places = True, 0
            self._worker.end(min(self.shutdown_seconds, 1.0) if self.collector.failing else self.shutdown_seconds)
            self._is_cut_off = True
            self.collector.shutdown()
            self._dropped_ended.add(len(self._queue))


def _renew(processor: PromptBatchSpanProcessor | None) -> None:
    # What a process does at a fork is registered for ever, and no processor is kept alive by it.
    if processor is not None:
        processor.renew()


def _large(span: BoundedSpan) -> int:
    return span.size if span.size > FAIR_BYTES else 0


class Tally:
    """Counts without a lock: each thread in a place of its own, so that no two write into one.

    A process that forks while somebody holds a lock would wait for it for ever, and so would a signal handler.
    """

    def __init__(self) -> None:
        self._by_thread: dict[int, int] = {}

    def add(self, number: int) -> None:
        """Add a number."""
        thread = threading.get_ident()
        self._by_thread[thread] = self._by_thread.get(thread, 0) + number

    @property
    def total(self) -> int:
        """Return the sum of what all threads added, those that have ended included."""
        return sum(self._by_thread.copy().values())


# What the queue tells of itself. The instruments belong to whichever meter provider the process has, also one that is
# set later, and cost nothing without one. They are read when somebody scrapes, so that what was lost before the first
# scrape is counted too.
_PROCESSORS: Final[WeakSet[PromptBatchSpanProcessor]] = WeakSet()
_METER: Final = metrics.get_meter("meshmw")


def _sum(count: Callable[[PromptBatchSpanProcessor], int]) -> int:
    return sum(map(count, list(_PROCESSORS)))


def _observe(count: Callable[[PromptBatchSpanProcessor], int]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _: [Observation(_sum(count))]


def _observe_dropped(_: CallbackOptions) -> Iterable[Observation]:
    # Every reason, also where nothing was dropped: an alert on a series that does not exist never fires.
    yield Observation(_sum(lambda each: each.dropped_full), {"reason": "queue_full"})
    yield Observation(_sum(lambda each: each.collector.spans_lost), {"reason": "export_failed"})
    yield Observation(_sum(lambda each: each.dropped_ended), {"reason": "shutdown"})


_METER.create_observable_counter(
    "otel.bsp.dropped_spans",
    [_observe_dropped],
    "{span}",
    "Spans that were dropped, by reason; requests are unaffected.",
)
_METER.create_observable_counter(
    "otel.bsp.export_failures",
    [_observe(lambda each: each.collector.exports_failed)],
    "{export}",
    "Exports that failed.",
)
_METER.create_observable_gauge(
    "otel.bsp.queue_length", [_observe(lambda each: each.queue_length)], "{span}", "Spans that wait for an export."
)
_METER.create_observable_gauge(
    "otel.bsp.queue_capacity", [_observe(lambda each: each.queue_capacity)], "{span}", "Spans that may wait."
)
