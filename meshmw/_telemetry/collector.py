"""An exporter that a dead, slow or hostile collector cannot make noisy."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Final

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from meshmw._notices import escaped

# What the log says of a collector: once that it does not take what is sent, and once that it does again.


log = logging.getLogger("meshmw")


class Reachability:
    """Says that exports fail, and that they work again, each once.

    Args:
        endpoint: The collector's address, as it shall stand in the log.
        warn_window: Seconds between two warnings, so that a collector that comes and goes does not fill the log.

    Attributes:
        failing: Whether the last export failed.
        what: What is sent.
        meanwhile: What becomes of it as long as it does not arrive.
    """

    what: ClassVar[str]
    meanwhile: ClassVar[str]

    def __init__(self, endpoint: str, warn_window: float) -> None:
        self.failing = False
        self._endpoint = endpoint
        self._warn_window = warn_window
        self._warned_at: float | None = None
        self._said = False

    def _failed(self, reason: str) -> None:
        if self.failing:
            return
        self.failing = True
        now = time.monotonic()
        self._said = self._warned_at is None or now - self._warned_at >= self._warn_window
        if self._said:
            self._warned_at = now
            log.warning(
                "%s do not reach %s and %s until it answers; requests are unaffected (%s)",
                self.what,
                self._endpoint,
                self.meanwhile,
                escaped(reason, 200),
            )

    def _succeeded(self) -> None:
        if self.failing and self._said:
            log.info("%s reach %s again", self.what, self._endpoint)
        self.failing = False


# Silence for what OpenTelemetry's exporters log, in our own exporter's calls alone.
#
# The loggers are shared by every exporter of the process, also by those that the application made itself. So the filter
# looks at the thread: it acts only between `muted()` and its end.


# Says of every attribute that it cannot encode so, with a traceback, and sends the span without it.
ENCODER: Final = "opentelemetry.exporter.otlp.proto.common._internal"

_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.common.http",
    ENCODER,
    "opentelemetry.sdk._shared_internal",
    "urllib3.connectionpool",
)


class _Mute(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        passes: Callable[[logging.LogRecord], bool] | None = getattr(self.thread, "passes", None)
        return passes is None or passes(record)


_MUTE = _Mute()


@contextmanager
def muted(passes: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Ask *passes*, for each line that this thread logs through OpenTelemetry's exporters, whether to let it out."""
    before = getattr(_MUTE.thread, "passes", None)
    _MUTE.thread.passes = passes
    try:
        yield
    finally:
        _MUTE.thread.passes = before


def install_mute() -> None:
    """Put the filter on the exporters' loggers; a second call changes nothing."""
    for name in _LOGGERS:
        filters = logging.getLogger(name).filters
        # First, because the SDK's own filter hides repeated lines, by which we count failed attempts.
        if _MUTE not in filters:
            filters.insert(0, _MUTE)


# Exports that are not under way while the process forks: a gRPC client that was interrupted so never works again.


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


class CollectorExporter(Reachability, SpanExporter):
    """Exports through another exporter, never raises, and says once that it fails and once that it works again.

    Args:
        exporter: The exporter that does the work.
        endpoint: The collector's address, as it shall stand in the log.
        warn_window: Seconds between two warnings, so that a collector that comes and goes does not fill the log.

    Attributes:
        failing: Whether the last export failed.
        exports_failed: The exports that failed.
        spans_lost: The spans that were in them.
        exports_done: The exports that arrived.
    """

    what = "spans"
    meanwhile = "are dropped"

    def __init__(self, exporter: SpanExporter, endpoint: str, warn_window: float) -> None:
        super().__init__(endpoint, warn_window)
        self.exports_failed = 0
        self.spans_lost = 0
        self.exports_done = 0
        self._exporter = exporter
        self._left_out_at: float | None = None
        self._busy = False
        self._reason = ""
        self._attempts_failed = 0
        self._hurried = False
        self._gate = ForkGate(lambda: self.failing)
        install_mute()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export, and turn every exception into a failure."""
        self._busy, self._reason, self._attempts_failed = True, "", 0
        try:
            with self._gate, muted(self._keep_reason):
                result = self._exporter.export(spans)
        except Exception as error:
            result, self._reason = SpanExportResult.FAILURE, repr(error)
        finally:
            self._busy = False
        if result is SpanExportResult.SUCCESS:
            self.exports_done += 1
            self._succeeded()
        else:
            self.exports_failed += 1
            self.spans_lost += len(spans)
            self._failed(self._reason)
        return result

    def shutdown(self) -> None:
        """Shut the exporter down; an export that is still on its way counts as failed."""
        if self._busy:
            self._failed(self._reason or "no answer in time")
        self._stop()

    def hurry(self) -> None:
        """Allow no more than one retry from now on: the process waits for this exporter to end."""
        self._hurried = True
        if self._busy:
            self._give_up_if_hopeless(attempts=1)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Say whether the last export arrived; nothing is held back here."""
        return not self.failing

    def _keep_reason(self, record: logging.LogRecord) -> bool:
        if record.name == ENCODER:
            self._say_left_out(record)
            return False
        # The exporters log one line for each attempt that failed, in the thread that exports.
        self._reason = self._reason or record.getMessage()
        self._attempts_failed += 1
        if self._hurried:
            self._give_up_if_hopeless(attempts=2)
        return False

    def _say_left_out(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if self._left_out_at is None or now - self._left_out_at >= self._warn_window:
            self._left_out_at = now
            log.warning("an attribute is left out of a span or resource (%s)", escaped(record.getMessage(), 200))

    def _give_up_if_hopeless(self, attempts: int) -> None:
        if self.failing or self._attempts_failed >= attempts:
            self._stop()

    def _stop(self) -> None:
        try:
            with muted(lambda record: False):
                self._exporter.shutdown()
        except Exception:
            log.debug("the exporter to %s did not shut down", self._endpoint, exc_info=True)
