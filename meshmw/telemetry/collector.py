"""An exporter that a dead, slow or hostile collector cannot make noisy."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from meshmw.settings.faults import escaped
from meshmw.telemetry.forking import ForkGate
from meshmw.telemetry.muting import ENCODER, install_mute, muted
from meshmw.telemetry.reachability import Reachability

log = logging.getLogger("meshmw")


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
