"""The ends of a process that run no exit handlers: a SIGTERM that nobody handles, and those of multiprocessing.

Knows signals and processes. Must not know spans, nor where they go.
"""

from __future__ import annotations

import _thread
import contextlib
import re
import signal
import sys
from collections.abc import Callable
from multiprocessing.util import Finalize, register_after_fork
from pathlib import Path
from typing import Any, Final

# What is flushed keeps an own, shorter time; this one is for a flush that cannot even begin.
_SECONDS: Final = 3.0
# After the finalizers of the application, which may make spans: the lowest number is the last.
_LAST: Final = -1000
_STATUS: Final = Path("/proc/self/status")


def flush_at_process_end(flush: Callable[[], object]) -> None:
    """Call *flush* where this process, or one forked from it, would end without a word to exit handlers.

    SIGTERM is handled only where it would have killed the process, and kills it all the same once *flush* is done: a
    handler that a server or an application sets, before or after, is left alone.
    """
    _flush_on_sigterm(flush)
    Finalize(None, flush, exitpriority=_LAST)
    # A forked process forgets its parent's finalizers. The function stands for an object that lives as long as this.
    register_after_fork(flush_at_process_end, lambda _: Finalize(None, flush, exitpriority=_LAST))


def _flush_on_sigterm(flush: Callable[[], object]) -> None:
    def end(number: int, _frame: object) -> None:
        # A second signal ends the process at once.
        signal.signal(number, signal.SIG_DFL)
        try:
            _call_aside(flush)
        finally:
            signal.raise_signal(number)
            # Still here: the first process of a container, whom the kernel spares.
            signal.signal(number, end)

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and not _is_caught_outside_python():
        # Only the main thread may; elsewhere it stays as it is.
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, end)


def _is_caught_outside_python() -> bool:
    """Say whether somebody else's code catches SIGTERM, such as uWSGI's: Python does not know of it, Linux does."""
    try:
        caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return False
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def _call_aside(call: Callable[[], object]) -> None:
    """Call in a thread, for a bounded time: what the signal has interrupted may hold any lock.

    Not a `threading.Thread`, which takes a lock to start.
    """
    done = _native("allocate_lock")()
    done.acquire()

    def run() -> None:  # pragma: no cover - tracers do not see threads that were started so
        try:
            call()
        finally:
            done.release()

    # No thread starts while the interpreter ends; exit handlers have flushed by then, or are about to.
    with contextlib.suppress(RuntimeError):
        _native("start_new_thread")(run, ())
        done.acquire(timeout=_SECONDS)


def _native(name: str) -> Any:
    """Return what `_thread` calls so; gevent puts greenlets there, and its hub, where signals arrive, cannot wait."""
    monkey = sys.modules.get("gevent.monkey")
    return getattr(_thread, name) if monkey is None else monkey.get_original("_thread", name)
