"""The handle that `configure()` returns, and what happens at the end of the process.

Exit handlers flush and end by themselves. Some ends run none: a SIGTERM that nobody handles, and those of
multiprocessing. There `flush_at_process_end` flushes.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import TracerProvider

from meshmw._notices import LOGGER
from meshmw._telemetry.batching import PromptBatchSpanProcessor
from meshmw._telemetry.collector import GuardedSpanExporter
from meshmw._telemetry.worker import signals_blocked

if TYPE_CHECKING:
    from meshmw.propagator import MeshPropagator
    from meshmw.settings import Settings

# The rest of a pod's grace period, 30 seconds by default, belongs to the application.
_BEFORE_END_SECONDS: Final = 2.0
# What is flushed at a signal keeps that shorter time; this one is for a flush that cannot even begin.
_SIGNAL_SECONDS: Final = 3.0
# After the finalizers of the application, which may make spans: the lowest number is the last.
_LAST: Final = -1000
_STATUS: Final = Path("/proc/self/status")


class Telemetry:
    """Holds what `configure()` set, and ends it.

    As a context manager it shuts down on leaving. None of its methods raises.

    Attributes:
        settings: The settings in force.
        propagator: The global propagator.
        tracer_provider: The global provider: our own, or the one that was there before.
    """

    def __init__(
        self,
        settings: Settings,
        propagator: MeshPropagator,
        tracer_provider: TracerProvider,
        *,
        owned: bool,
        processor: SpanProcessor | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self.settings = settings
        self.propagator = propagator
        self.tracer_provider = tracer_provider
        self._owned = owned
        self._processor = processor
        self._meter_provider = meter_provider
        self._lock = threading.Lock()
        self._ended = False
        # How many exports had arrived when a flush began that the collector let pass.
        self._unanswered: int | None = None

    @property
    def ended(self) -> bool:
        """Say whether it was shut down."""
        return self._ended

    @property
    def owned(self) -> bool:
        """Say whether `configure()` made the tracer provider."""
        return self._owned

    @property
    def exports(self) -> bool:
        """Say whether it exports by itself, rather than a provider that was there before, or nobody."""
        return (self._owned and self._processor is not None) or self._meter_provider is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def force_flush(self, timeout_seconds: float = 5.0) -> bool:
        """Export what is queued, and say whether all of it was handed over within the time, in seconds."""
        found = (getattr(each, "force_flush", None) for each in (self.tracer_provider, self._meter_provider))
        flushes = [flush for flush in found if flush is not None]
        if not flushes or self._ended:
            return not flushes
        done = self._exports_done()
        millis = int(timeout_seconds * 1000)
        in_time = _within(timeout_seconds, lambda: all([bool(flush(millis)) for flush in flushes]))  # noqa: C419 - each
        self._unanswered = None if in_time else done
        return in_time and self._delivered()

    def flush_before_end(self) -> None:
        """Export what is queued within 2 seconds, unless the collector is known not to answer, or not to be there.

        For a server that is about to end the process: exit handlers may not run any more. One end may ask several
        times, such as that of the lifespan and that of the process.
        """
        exporter = self._exporter()
        if not self._delivered() or self._is_silent() or getattr(exporter, "is_absent", False):
            return
        if isinstance(exporter, GuardedSpanExporter):
            exporter.is_last = True
        self.force_flush(_BEFORE_END_SECONDS)

    def shutdown(self, timeout_seconds: float = 5.0) -> None:
        """Export what is queued and end, within the time, in seconds; a second call does nothing.

        A provider that was there before `configure()` is left to whoever made it.
        """
        with self._lock:
            if self._ended:
                return
            self._ended = True
        deadline = time.monotonic() + timeout_seconds
        if isinstance(self._processor, PromptBatchSpanProcessor):
            # A collector that has just let a whole flush pass is not waited for as long a second time.
            self._processor.shutdown_seconds = min(timeout_seconds, 1.0) if self._is_silent() else timeout_seconds
        if self._owned:
            _quietly(self.tracer_provider.shutdown)  # type: ignore[attr-defined]
        if self._meter_provider is not None:
            self._end_metrics(self._meter_provider, deadline - time.monotonic())

    def _end_metrics(self, provider: MeterProvider, seconds: float) -> None:
        known = self._delivered() and not self._is_silent()
        # In no time at all the SDK would not even stop its thread.
        left = max(min(seconds, seconds if known else 1.0), 0.1)
        _quietly(lambda: provider.shutdown(timeout_millis=left * 1000))

    def _is_silent(self) -> bool:
        """Say whether the collector has let a whole flush pass, and has taken nothing since it began."""
        return self._unanswered is not None and self._unanswered == self._exports_done()

    def _exports_done(self) -> int | None:
        return getattr(self._exporter(), "exports_done", None)

    def _delivered(self) -> bool:
        return not getattr(self._exporter(), "failing", False)

    def _exporter(self) -> object:
        return getattr(self._processor, "span_exporter", None)


def _quietly(call: Callable[[], object]) -> bool:
    try:
        return call() is not False
    except Exception:
        LOGGER.debug("telemetry did not end cleanly", exc_info=True)
        return False


def _within(seconds: float, call: Callable[[], bool]) -> bool:
    # The SDK flushes in the calling thread and pays no heed to the time given.
    outcome: list[bool] = []
    thread = threading.Thread(target=lambda: outcome.append(_quietly(call)), name="meshmw-flush", daemon=True)
    try:
        with signals_blocked():
            thread.start()
    except RuntimeError:  # no thread starts while the interpreter ends; shutdown() flushes there
        return False
    thread.join(seconds)
    return outcome == [True]


def flush_at_process_end(flush: Callable[[], object]) -> None:
    """Call *flush* where this process, or one forked from it, would end without a word to exit handlers.

    SIGTERM is handled only where it would have killed the process, and kills it all the same once *flush* is done: a
    handler that a server or an application sets, before or after, is left alone. So is the signal outside Linux,
    where nobody tells whether a host such as uWSGI handles it; Windows ends a process without a signal.
    """
    if sys.platform == "linux":
        _flush_on_sigterm(flush)
    if not _flush_with_finalizers(flush) and hasattr(os, "register_at_fork"):
        # Somebody may import multiprocessing later, which forks then; what it spawns has imported it by now.
        os.register_at_fork(after_in_child=_until_true(lambda: _flush_with_finalizers(flush)))


def _until_true(call: Callable[[], bool]) -> Callable[[], None]:
    """Return a function that makes a call each time, up to the first that returns true."""
    is_done = False

    def again() -> None:
        nonlocal is_done
        is_done = is_done or call()

    return again


def _flush_with_finalizers(flush: Callable[[], object]) -> bool:
    """Call *flush* where multiprocessing ends this process or one forked from it, and say whether it is imported."""
    if "multiprocessing" not in sys.modules:
        return False
    from multiprocessing.util import Finalize, register_after_fork

    Finalize(None, flush, exitpriority=_LAST)
    # A forked process forgets its parent's finalizers. The function stands for an object that lives as long as this.
    register_after_fork(flush_at_process_end, lambda _: Finalize(None, flush, exitpriority=_LAST))
    return True


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
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return False
    caught = next((line.partition(":")[2] for line in lines if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def _call_aside(call: Callable[[], object]) -> None:
    # In a thread, for a bounded time: what the signal has interrupted may hold any lock. Not in a `threading.Thread`,
    # which takes a lock to start.
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
        done.acquire(timeout=_SIGNAL_SECONDS)


def _native(name: str) -> Any:
    # gevent puts greenlets in `_thread`, and its hub, where signals arrive, cannot wait for one.
    monkey = sys.modules.get("gevent.monkey")
    return getattr(_thread, name) if monkey is None else monkey.get_original("_thread", name)
