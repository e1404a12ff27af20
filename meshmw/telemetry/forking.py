"""Exports that are not under way while the process forks: a gRPC client that was interrupted so never works again."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import Final

_WAIT_SECONDS: Final = 1.0


class ForkGate:
    """Is held while an export runs, and by whoever forks this process.

    Args:
        is_hopeless: Says that an export which is under way is not worth waiting for.
    """

    def __init__(self, is_hopeless: Callable[[], bool]) -> None:
        self._is_hopeless = is_hopeless
        self._lock = threading.RLock()
        self._gave_up = False
        if hasattr(os, "register_at_fork"):
            gate = weakref.ref(self)
            os.register_at_fork(
                before=lambda: _tell(gate, ForkGate._close),
                after_in_parent=lambda: _tell(gate, ForkGate._open),
                after_in_child=lambda: _tell(gate, ForkGate._renew),
            )

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._gave_up = False
        self._lock.release()

    def _close(self) -> None:
        # One wait for each export: a pool forks its workers one after the other.
        hopeless = self._gave_up or self._is_hopeless()
        self._gave_up = not self._lock.acquire(timeout=0 if hopeless else _WAIT_SECONDS)

    def _open(self) -> None:
        # Not ours to open where the wait was over before the export.
        with contextlib.suppress(RuntimeError):
            self._lock.release()

    def _renew(self) -> None:
        # Whoever held it is no thread of this process.
        self._lock = threading.RLock()


def _tell(gate: weakref.ref[ForkGate], what: Callable[[ForkGate], None]) -> None:
    found = gate()
    if found is not None:
        what(found)
