"""How many spans wait, how many go at once, and how often: a profile, the standard variables, the container's memory.

Knows the settings and cgroups. Must not know exporters, nor how a queue works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from meshmw.errors import SettingsError
from meshmw.settings import Settings, count_in
from meshmw.telemetry.cgroup import memory_headroom

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
    profile = PROFILES[settings.batch_profile]
    batch, delay = count_in(_BATCH) or profile.batch, count_in(_DELAY) or profile.delay
    queue = settings.queue_size or profile.queue
    if queue == "auto":
        queue = _fitting(headroom(), profile.queue, batch)
    if queue < batch:
        raise SettingsError([_too_small(queue, batch, settings)])
    return Batching(queue, batch, delay)


def _fitting(room: int | None, without_limit: int, least: int) -> int:
    if room is None:
        return max(without_limit, least)
    return max(least, min(_LARGEST, room * _SPANS // _PER_BYTES))


def _too_small(queue: int, batch: int, settings: Settings) -> str:
    is_standard = settings.origins().get("queue_size") == _QUEUE and settings.queue_size == count_in(_QUEUE)
    variable = _QUEUE if is_standard else "MESHMW_QUEUE_SIZE"
    asked = variable if settings.queue_size else f"batch_profile={settings.batch_profile}"
    return (
        f"a queue of {queue} spans ({asked}) is smaller than one export of {batch}: "
        f"set {variable} to {batch} or more, or {_BATCH} to {queue} or less"
    )
