"""The queue of spans between the application's threads and the exporter: how long it is, and what it has dropped.

The application's threads put spans in. A thread of the SDK takes them out in batches. Where the queue is full the
oldest span is dropped, and every dropped span is counted by reason.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple
from weakref import WeakSet

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from meshmw._notices import LOGGER, Throttle
from meshmw._otel import queue_of, shut_down_within
from meshmw._policy.words import DEFAULT_BATCHING
from meshmw._telemetry.collector import GuardedSpanExporter, muted
from meshmw._telemetry.container import memory_headroom
from meshmw.errors import SettingsError
from meshmw.settings import LARGEST, Settings, count_in, first_of

_BATCH: Final = "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
_QUEUE: Final = "OTEL_BSP_MAX_QUEUE_SIZE"
_DELAY: Final = "OTEL_BSP_SCHEDULE_DELAY"

# 48 KB for each span that waits: a span of ours takes 5 to 10, and most of the room is the application's.
_SPANS: Final = 1_024
_PER_BYTES: Final = 50_000_000
_LARGEST_QUEUE: Final = 65_536


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
    standard = count_in(_QUEUE) if not own and "batching" in settings.model_fields_set else None
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


class PromptBatchSpanProcessor(BatchSpanProcessor):
    """Batches spans in a bounded queue, counts and says what it drops, and ends in a bounded time.

    Args:
        exporter: Where the batches go.
        warn_window: Seconds between two warnings that the queue is full.
        batching: The queue's length and the batches' size.

    Attributes:
        collector: The exporter.
        shutdown_seconds: How long `shutdown()` may take.
        queue_capacity: The number of spans that may wait.
    """

    def __init__(
        self, exporter: GuardedSpanExporter, warn_window: float, batching: Batching = PROFILES[DEFAULT_BATCHING]
    ) -> None:
        super().__init__(exporter, batching.queue, batching.delay, batching.batch)
        self.collector = exporter
        self.shutdown_seconds = 5.0
        self.queue_capacity = batching.queue
        self._queue = queue_of(self)
        self._dropped_full = Tally()
        self._dropped_ended = Tally()
        self._ended = False
        self._throttle = Throttle(warn_window)
        _PROCESSORS.add(self)

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
        if len(self._queue) < self.queue_capacity and not self._ended:
            super().on_end(span)
        # A span that is recorded and not sampled is for other processors, so it is no loss.
        elif span.context is not None and span.context.trace_flags.sampled:
            self._drop(span)

    def _drop(self, span: ReadableSpan) -> None:
        if self._ended:
            self._dropped_ended.add(1)
            return
        self._dropped_full.add(1)
        with muted(lambda record: False):
            super().on_end(span)
        if self._throttle.opens() is not None:
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

    def shutdown(self) -> None:
        """Export what is queued for at most `shutdown_seconds`, then cut off the export that is under way."""
        self.collector.hurry()
        self._ended = True
        seconds = min(self.shutdown_seconds, 1.0) if self.collector.failing else self.shutdown_seconds
        shut_down_within(self, int(seconds * 1000), super().shutdown)
        self._dropped_ended.add(len(self._queue))


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
