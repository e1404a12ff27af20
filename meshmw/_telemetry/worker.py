"""The thread that exports, which nothing ends before its time: no exporter, no signal, no fork.

Nobody else exports: whoever asks for a flush waits for this thread, except under gevent. So what an exporter raises
reaches no caller, and what interrupts a caller, such as a KeyboardInterrupt, reaches no exporter. `ForkGate` lets the
process fork between two exports.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Final
from weakref import WeakSet

from meshmw._notices import LOGGER, Throttle, escaped

_NAME: Final = "meshmw-export"
# How long a fork waits for an export that is under way.
_WAIT_SECONDS: Final = 1.0
# What ends a server's process, or has it reload. Windows has but some of them, and no thread's mask.
_SIGNALS: Final = {
    getattr(signal, name)
    for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
}
# Ends the thread, once it has exported all.
_END: Final = threading.Event()


class Worker:
    """Calls a function in a thread of its own: when it is woken, and after a delay at the latest.

    Args:
        work: Exports. It is told whether to export all, or only what fills a batch.
        seconds: The delay.
        warn_window: Seconds between two warnings that something has tried to end the thread.
    """

    def __init__(self, work: Callable[[bool], object], seconds: float, warn_window: float) -> None:
        self._work = work
        self._seconds = seconds
        self._throttle = Throttle(warn_window)
        self._ended = False
        self._is_woken = False
        self._thread: threading.Thread
        # The flushes that something ended before all was exported, as long as somebody waits for them.
        self._failed: WeakSet[threading.Event] = WeakSet()
        self._begin()

    def wake(self) -> None:
        """Let the thread export what fills a batch."""
        if not self._is_woken:
            self._is_woken = True
            # This waits for no lock, not even where a signal handler interrupts it and calls it too.
            self._calls.put(None)
        elif not self._thread.is_alive():
            self._begin()

    def flush(self, seconds: float) -> bool:
        """Let the thread export all, and say whether it did so within the time."""
        if _is_greenlet():
            # At a signal its hub waits for us, and runs no greenlet meanwhile.
            self._work(True)
            return True
        if not self._thread.is_alive():
            self._begin()
        done = threading.Event()
        self._calls.put(done)
        return self._thread.is_alive() and done.wait(seconds) and done not in self._failed

    def end(self, seconds: float) -> None:
        """Let the thread export all and end, and wait for it no longer than the time."""
        if not self._thread.is_alive():
            self._begin()
        self._ended = True
        self._calls.put(_END)
        if self._thread.is_alive():
            self._thread.join(seconds)

    def renew(self) -> None:
        """Start again in a forked process, which has no thread but the one that forked."""
        if not self._ended:
            self._begin()

    def _begin(self) -> None:
        # Found by attribute, because gevent replaces it.
        self._calls: queue.SimpleQueue[threading.Event | None] = queue.SimpleQueue()
        self._is_woken = False
        self._thread = threading.Thread(target=self._run, args=(self._calls,), name=_NAME, daemon=True)
        try:
            with signals_blocked():
                self._thread.start()
        except RuntimeError:  # no thread starts while the interpreter ends, nor above a limit of threads
            LOGGER.debug("no thread to export in", exc_info=True)

    def _run(self, calls: queue.SimpleQueue[threading.Event | None]) -> None:
        try:
            while calls is self._calls and self._wait_and_work(calls) is not _END:
                pass
        finally:
            # Killed even so, such as while it warned.
            if calls is self._calls and not self._ended:
                self._begin()

    def _wait_and_work(self, calls: queue.SimpleQueue[threading.Event | None]) -> threading.Event | None:
        asked, everything = None, True
        try:
            with contextlib.suppress(queue.Empty):
                asked = calls.get(timeout=self._seconds)
                everything = asked is not None
            self._is_woken = False
            self._work(everything)
        except BaseException as error:
            if asked is not None:
                self._failed.add(asked)
            self._warn(error)
        finally:
            if asked is not None:
                asked.set()
        return asked

    def _warn(self, error: BaseException) -> None:
        if self._throttle.opens() is not None:
            LOGGER.warning(
                "the thread that exports was to be ended by %s; it goes on, without what it was exporting",
                escaped(repr(error), 200),
            )


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Let no thread that starts in the block handle a signal, where uWSGI is the server.

    The system hands a signal to any thread that does not block it. uWSGI ends a worker within the handler: in a thread
    of ours the end would wait for that very thread, for ever. Elsewhere Python's handlers run in the main thread alone,
    and nothing is blocked, for what is blocked stays so in the processes that somebody starts meanwhile.
    """
    # The module is there in uWSGI alone, and uWSGI is on Unix alone.
    if sys.platform == "win32" or "uwsgi" not in sys.modules or _is_greenlet():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_greenlet() -> bool:
    """Say whether what looks like a thread is one of gevent's greenlets."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


class ForkGate:
    """Holds a fork back while an export runs: a gRPC client that was interrupted so never works again.

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
                before=lambda: _call(gate, ForkGate._close),
                after_in_parent=lambda: _call(gate, ForkGate._open),
                after_in_child=lambda: _call(gate, ForkGate._renew),
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


def _call(gate: weakref.ref[ForkGate], what: Callable[[ForkGate], None]) -> None:
    # What a process does at a fork is registered for ever, and an exporter's gate is not kept alive by it.
    found = gate()
    if found is not None:
        what(found)
