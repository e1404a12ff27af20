"""Times rivals side by side: short batches in turn, so that what disturbs the machine disturbs them all alike.

Knows clocks and medians. Must not know what is timed.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

Batch = Callable[[int], object]


def nothing() -> None:
    """Do nothing between two batches."""


@dataclass(frozen=True)
class Case:
    """Names what is compared.

    Attributes:
        name: What every rival does, such as `ASGI request, sampled`.
        rivals: By label: does the thing as often as it is told. `meshmw` is ours.
        floor: The rival whose time is taken off all others, such as the bare application; None where nothing is.
        times: How often the thing is done in one batch.
        between: Is called before each batch, untimed: to empty a queue.
        target: By rival: at most which part of its time ours may take.
        drawn: Whether the chart shows it.
    """

    name: str
    rivals: Mapping[str, Batch]
    floor: str | None = None
    times: int = 200
    between: Callable[[], object] = nothing
    target: Mapping[str, float] = field(default_factory=dict)
    drawn: bool = False


class Spread(NamedTuple):
    """Says where half of all rounds lie, and the middle one."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Return the quartiles of some samples."""
        if len(samples) < 2:
            return cls(samples[0], samples[0], samples[0])
        return cls(*statistics.quantiles(samples, n=4))


def confidence(samples: Sequence[float]) -> tuple[float, float]:
    """Return between which of the samples the true median lies, with 95 %, whatever their distribution is.

    The number of samples below the median is binomial; of many it is near to a normal one.
    """
    ordered = sorted(samples)
    reach = 0.98 * math.sqrt(len(ordered))
    low = max(0, math.floor(len(ordered) / 2 - reach))
    high = min(len(ordered) - 1, math.ceil(len(ordered) / 2 + reach))
    return ordered[low], ordered[high]


@dataclass(frozen=True)
class Result:
    """Says what one case took.

    Attributes:
        case: What was timed.
        costs: By rival, the floor left out: microseconds of processor time for doing it once, over the floor.
        ratios: By rival but ours: how many times ours it took, in the same round.
        floor: Microseconds of the floor itself, or None where there is none.
        intervals: By rival but ours: the bounds of the ratio's median, with 95 %.
    """

    case: Case
    costs: dict[str, Spread]
    ratios: dict[str, Spread]
    floor: Spread | None
    intervals: dict[str, tuple[float, float]]


def measure(case: Case, rounds: int, times: int | None = None) -> Result:
    """Time the rivals of a case in turn, and compare them round by round; *times* stands for the case's own."""
    case = case if times is None else replace(case, times=times)
    # What is there by now stays, so the collection before each batch need not look at it.
    gc.freeze()
    samples: dict[str, list[float]] = {label: [] for label in case.rivals}
    for batch in case.rivals.values():
        batch(max(1, case.times // 4))
    labels = list(case.rivals)
    for number in range(rounds):
        turn = number % len(labels)
        for label in labels[turn:] + labels[:turn]:
            samples[label].append(_timed(case, case.rivals[label]))
    floor = samples.pop(case.floor) if case.floor else [0.0] * rounds
    over = {label: [each - low for each, low in zip(taken, floor, strict=True)] for label, taken in samples.items()}
    ratios = {label: _ratios(taken, over["meshmw"]) for label, taken in over.items() if label != "meshmw"}
    return Result(
        case,
        {label: Spread.of(taken) for label, taken in over.items()},
        {label: Spread.of(found) for label, found in ratios.items()},
        Spread.of(floor) if case.floor else None,
        {label: confidence(found) for label, found in ratios.items()},
    )


def _ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    # A round in which noise made ours free says nothing.
    pairs = [(their, our) for their, our in zip(theirs, ours, strict=True) if our > 0]
    return [their / our for their, our in pairs] or [float("nan")]


def _timed(case: Case, batch: Batch) -> float:
    case.between()
    gc.collect()
    gc.disable()
    try:
        began = time.process_time_ns()
        batch(case.times)
        return (time.process_time_ns() - began) / case.times / 1000
    finally:
        gc.enable()
