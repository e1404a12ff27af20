"""What the span pipeline tells of itself: spans dropped, spans waiting, exports failed.

The instruments belong to whichever meter provider the process has, also one that is set later, and cost nothing
without one. Read when somebody scrapes, so that what was lost before the first scrape is counted too. Knows numbers
that processors keep. Must not know how they batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol
from weakref import WeakSet

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from meshmw.telemetry.collector import CollectorExporter


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
