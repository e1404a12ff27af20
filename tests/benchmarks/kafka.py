"""Kafka's header helpers: what it costs to read one record's headers and to write another's."""

from __future__ import annotations

from tests.benchmarks.measure import Case


def cases() -> list[Case]:
    """Return the cases of this file."""
    return []
