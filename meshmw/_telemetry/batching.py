"""How many spans wait, how many go at once, how often, and what is told of those that were lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol
from weakref import WeakSet

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from meshmw._telemetry.collector import CollectorExporter
from meshmw._telemetry.container import memory_headroom
from meshmw.errors import SettingsError
from meshmw.settings import Settings, count_in

_BATCH: Final = "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
_QUEUE: Final = "OTEL_BSP_MAX_QUEUE_SIZE"
_DELAY: Final = "OTEL_BSP_SCHEDULE_DELAY"

# 48 KB for each span that waits: a span of ours takes 5 to 10, and most of the room is the application's.
_SPANS: Final = 1_024
_PER_BYTES: Final = 50_000_000
_LARGEST: Final = 65_536


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


PROFILES: Final = {"moderate": Batching(2_048, 512, 5_000), "high": Batching(8_192, 2_048, 1_000)}


def batching_of(settings: Settings, headroom: Callable[[], int | None] = memory_headroom) -> Batching:
    """Return what the settings and `OTEL_BSP_*` say; what they do not say is the profile's.

    Args:
        settings: The settings.
        headroom: Returns the bytes that are left to this container, or None where nothing limits it.

    Raises:
        SettingsError: The queue is smaller than one export.
    """
    name, _, own = settings.batching.partition("/")
    profile = PROFILES[name]
    batch, delay = count_in(_BATCH) or profile.batch, count_in(_DELAY) or profile.delay
    # What the setting says of the queue decides over the standard variable, which is then not even warned of.
    standard = None if own else count_in(_QUEUE)
    queue = _fitting(headroom(), profile.queue, batch) if own == "auto" else int(own or standard or profile.queue)
    if queue < batch:
        asked = _QUEUE if standard else f"batching={settings.batching}"
        remedy = f"MESHMW_BATCHING to {name}/{batch}" if own else f"{_QUEUE} to {batch}"
        fault = f"a queue of {queue} spans ({asked}) is smaller than one export of {batch}"
        raise SettingsError([f"{fault}: set {remedy} or more, or {_BATCH} to {queue} or less"])
    return Batching(queue, batch, delay)


def _fitting(room: int | None, without_limit: int, least: int) -> int:
    if room is None:
        return max(without_limit, least)
    return max(least, min(_LARGEST, room * _SPANS // _PER_BYTES))


# What the span pipeline tells of itself: spans dropped, spans waiting, exports failed.
#
# The instruments belong to whichever meter provider the process has, also one that is set later, and cost nothing
# without one. Read when somebody scrapes, so that what was lost before the first scrape is counted too.


class CountingProcessor(Protocol):
    """Is a span processor that keeps count of what becomes of its spans."""

    collector: CollectorExporter

    @property
    def dropped_full(self) -> int:
        """Return the number of spans that were dropped because the queue was full."""
        ...

    @property
    def dropped_ended(self) -> int:
        """Return the number of spans that were dropped because the end came first."""
        ...

    @property
    def queue_length(self) -> int:
        """Return the number of spans that wait."""
        ...

    @property
    def queue_capacity(self) -> int:
        """Return the number of spans that may wait."""
        ...


PROCESSORS: Final[WeakSet[CountingProcessor]] = WeakSet()

_METER: Final = metrics.get_meter("meshmw")


def _dropped(_: CallbackOptions) -> Iterable[Observation]:
    """Observe every reason, also where nothing was dropped: an alert on a series that does not exist never fires."""
    yield Observation(_sum(lambda each: each.dropped_full), {"reason": "queue_full"})
    yield Observation(_sum(lambda each: each.collector.spans_lost), {"reason": "export_failed"})
    yield Observation(_sum(lambda each: each.dropped_ended), {"reason": "shutdown"})


def _observed(of: Callable[[CountingProcessor], int]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _: [Observation(_sum(of))]


def _sum(of: Callable[[CountingProcessor], int]) -> int:
    return sum(map(of, list(PROCESSORS)))


_METER.create_observable_counter(
    "otel.bsp.dropped_spans", [_dropped], "{span}", "Spans that were dropped, by reason; requests are unaffected."
)
_METER.create_observable_counter(
    "otel.bsp.export_failures",
    [_observed(lambda each: each.collector.exports_failed)],
    "{export}",
    "Exports that failed.",
)
_METER.create_observable_gauge(
    "otel.bsp.queue_length", [_observed(lambda each: each.queue_length)], "{span}", "Spans that wait for an export."
)
_METER.create_observable_gauge(
    "otel.bsp.queue_capacity", [_observed(lambda each: each.queue_capacity)], "{span}", "Spans that may wait."
)

# A number that many threads add to, without a lock.
#
# A process that forks while somebody holds a lock would wait for it for ever; and so would a signal handler.


class Tally:
    """Counts: each thread in a place of its own, so that no two write into one."""

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
