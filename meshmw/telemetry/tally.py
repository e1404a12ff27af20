"""A number that many threads add to, without a lock.

A process that forks while somebody holds a lock would wait for it for ever; and so would a signal handler.
"""

from __future__ import annotations

import threading


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
