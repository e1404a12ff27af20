"""Exporters that a dead, slow or hostile collector cannot make noisy, and that no fork interrupts.

Each exports through one of OpenTelemetry's. It says once that the collector does not take what is sent and once that it
does again, keeps to itself what the other exporter logs meanwhile, and lets the process fork between two exports.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final, TypeVar

from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
)
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from meshmw._notices import LOGGER, Throttle, escaped, quoted, redacted
from meshmw._otel import (
    ENCODER_LOGGER,
    EXPORTER_LOGGERS,
    change_status_text,
    encodable,
    exception_events,
    is_too_large,
    is_unwritable,
    make_encodable,
    preferences_of,
)
from meshmw._telemetry.worker import ForkGate

T = TypeVar("T")

# A developer's machine is one of these, and a pod whose collector is a sidecar.
_LOCAL: Final = re.compile(r"^[a-z]+://(?:localhost|127\.[\d.]+|\[::1\])(?::|/|$)")
# So many refusals one after the other, of halves and of halves of these, and it is not the size.
_MOST_REFUSALS: Final = 32


class _Mute(logging.Filter):
    """Asks the thread that logs: the loggers are shared with exporters that the application made itself."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        passes: Callable[[logging.LogRecord], bool] | None = getattr(self.thread, "passes", None)
        return passes is None or passes(record)


_MUTE: Final = _Mute()


class _GaveUpError(Exception):
    """Ends an export whose reason is known, in place of the exporter's own retries."""


class Reachability:
    """Exports by a call that may fail, and says that exports fail, and that they work again, each once.

    Args:
        endpoint: The collector's address, as it shall stand in the log.
        warn_window: Seconds between two warnings, so that a collector that comes and goes does not fill the log.

    Attributes:
        failing: Whether the last export failed.
        what: What is sent.
        meanwhile: What becomes of it as long as it does not arrive.
        without: What to set where there is no collector.
        rejects: What is counted of what a collector takes in part.
    """

    what: ClassVar[str]
    meanwhile: ClassVar[str]
    without: ClassVar[str]
    rejects: ClassVar[str]

    def __init__(self, endpoint: str, warn_window: float) -> None:
        self.failing = False
        self._endpoint = endpoint
        self._throttle = Throttle(warn_window)
        self._is_said = False
        self._has_arrived = False
        self._reason = ""
        self._is_too_large = self._is_unwritable = False
        self._gate = ForkGate(lambda: self.failing)
        _install_mute()

    def _export(self, call: Callable[[], T]) -> T | None:
        """Return what the call returns, or None where it raises."""
        self._reason = _MUTE.thread.failure = ""
        _MUTE.thread.rejected = 0, ""
        self._is_too_large = self._is_unwritable = False
        try:
            with self._gate, muted(self._keep_reason):
                return call()
        except _GaveUpError:
            return None
        except Exception as error:
            self._reason, self._is_unwritable = repr(error), is_unwritable(error)
            return None

    def _end(self, call: Callable[[], object]) -> None:
        try:
            with muted(lambda record: False):
                call()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # such as a Rust library's panic, after which other processors would not end
            LOGGER.debug("the exporter to %s did not shut down", self._endpoint, exc_info=True)

    def _keep_reason(self, record: logging.LogRecord) -> bool:
        # The exporters log one line for each attempt that failed, in the thread that exports.
        message = record.getMessage()
        is_first = not self._reason
        self._reason = self._reason or _MUTE.thread.failure or message
        self._is_unwritable = is_unwritable(message)
        # Not where the collector has asked to wait, with the same code. The exporter would send the same again, for ten
        # seconds.
        if is_first and is_too_large(message):
            self._is_too_large = True
            raise _GaveUpError
        return False

    def _refused(self, what: str, consequence: str) -> None:
        """Say that the collector, which answers, refuses something for its size."""
        if self._throttle.opens(consequence) is not None:
            LOGGER.warning(
                "the collector at %s refused %s as too large, which %s; requests are unaffected (%s)",
                self._endpoint,
                what,
                consequence,
                escaped(self._reason, 200),
            )

    def _count_rejected(self) -> int:
        """Return how much of an export that arrived was rejected, and say why; its sender is not to try again."""
        count, why = _MUTE.thread.rejected
        if (count or why) and self._throttle.opens("rejected") is not None:
            line = "the collector at %s rejects %d %s of an export that it takes; requests are unaffected (%s)"
            LOGGER.warning(line, self._endpoint, count, self.rejects, escaped(why, 200))
        return int(count)

    def _failed(self, reason: str) -> None:
        if self.failing:
            return
        self.failing = True
        self._is_said = self._throttle.opens() is not None
        if self._is_said:
            from meshmw._telemetry.remedies import remedy_for  # most collectors never fail

            remedy = remedy_for(self._endpoint, reason)
            if not remedy and not self._has_arrived:
                remedy = f"set MESHMW_ENDPOINT to the collector's address, or {self.without}"
            LOGGER.warning(
                "%s do not reach %s and %s until it answers; requests are unaffected (%s)%s",
                self.what,
                self._endpoint,
                self.meanwhile,
                escaped(reason, 200),
                remedy and f"; {remedy}",
            )

    def _succeeded(self) -> None:
        if self.failing and self._is_said:
            LOGGER.info("%s reach %s again", self.what, self._endpoint)
        self.failing, self._has_arrived = False, True


def note_failure(error: Exception) -> None:
    """Keep why an attempt of this thread failed: of a time-out, the exporter for HTTP logs no reason."""
    # The innermost names the fault, and no address with a key in it.
    while (inner := getattr(error, "reason", None) or next(iter(error.args), None)) and isinstance(inner, Exception):
        error = inner
    _MUTE.thread.failure = f"{type(error).__name__}: {error}"


def note_answer(answer: Any) -> None:
    """Keep what the collector says that it rejects, for the thread that exports; metrics' answers have other names."""
    said = answer.partial_success
    count = getattr(said, "rejected_spans", 0) or getattr(said, "rejected_data_points", 0)
    _MUTE.thread.rejected = max(count, 0), said.error_message


def redact_exceptions(spans: Sequence[ReadableSpan]) -> None:
    """Hide the secrets in the text of exceptions, which the application's own spans have recorded as they are.

    What cannot be encoded in it, or in a name, is escaped: a stranger's JSON may hold it, and an exception quote it.
    """
    for span in spans:
        make_encodable(span)
        change_status_text(span, _shown)
        for said in exception_events(span):
            said.update({key: _shown(text) for key, text in said.items() if isinstance(text, str)})


def _shown(text: str) -> str:
    return encodable(redacted(text))


class GuardedSpanExporter(Reachability, SpanExporter):
    """Exports spans through another exporter, and turns whatever that raises into a failure.

    Args:
        exporter: The exporter that does the work.
        endpoint: The collector's address, as it shall stand in the log.
        warn_window: Seconds between two warnings.

    Attributes:
        failing: Whether the last export failed.
        exports_failed: The exports that failed.
        spans_lost: The spans that were in them.
        exports_done: The exports that arrived.
        is_last: Whether the process is about to end, so that nobody is to wait for a collector that was never there.
    """

    what = "spans"
    meanwhile = "are dropped"
    without = "MESHMW_EXPORTER=none"
    rejects = "spans"

    def __init__(self, exporter: SpanExporter, endpoint: str, warn_window: float) -> None:
        super().__init__(endpoint, warn_window)
        self.exports_failed = 0
        self.spans_lost = 0
        self.exports_done = 0
        self.is_last = False
        self._exporter = exporter
        self._left_out = Throttle(warn_window)
        self._busy = False
        self._attempts_failed = 0
        self._hurried = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export, in halves where all at once are too large or one cannot be written; say whether all spans arrived."""
        redact_exceptions(spans)
        failed, refusals, waiting = self.exports_failed, 0, [spans]
        try:
            while waiting:
                if self._arrives(waiting[-1]):
                    refusals = 0
                    waiting.pop()
                elif self._is_unwritable or (self._is_too_large and refusals < _MOST_REFUSALS):
                    # The collector has not seen what cannot be written.
                    refusals += self._is_too_large
                    waiting += self._halves(waiting.pop())
                else:
                    # Where nobody answers, or nothing passes of whatever size, the rest would not arrive either.
                    break
        except BaseException as error:
            self._reason = repr(error)
            raise
        finally:
            if waiting:
                self._lose([span for batch in waiting for span in batch])
        return SpanExportResult.SUCCESS if self.exports_failed == failed else SpanExportResult.FAILURE

    def _arrives(self, spans: Sequence[ReadableSpan]) -> bool:
        self._busy, self._attempts_failed = True, 0
        try:
            result = self._export(lambda: self._exporter.export(spans))
        finally:
            self._busy = False
        if result is not SpanExportResult.SUCCESS:
            return False
        self.exports_done += 1
        self.spans_lost += min(self._count_rejected(), len(spans))
        self._succeeded()
        return True

    def _halves(self, spans: Sequence[ReadableSpan]) -> list[Sequence[ReadableSpan]]:
        middle = len(spans) // 2
        if not middle:
            self._lose(spans)
            return []
        if self._is_too_large:
            self._refused(f"a batch of {len(spans)} spans", "is sent in halves")
        # The first one is the next.
        return [spans[middle:], spans[:middle]]

    def _lose(self, spans: Sequence[ReadableSpan]) -> None:
        self.exports_failed += 1
        self.spans_lost += len(spans)
        if self._is_too_large:
            self._refused("a span" if len(spans) == 1 else f"a batch of {len(spans)} spans", "is dropped")
        elif not self._is_unwritable:
            self._failed(self._reason)
        elif self._throttle.opens("unwritable") is not None:
            line = "the span %s cannot be encoded and is dropped; requests and other spans are unaffected (%s)"
            LOGGER.warning(line, quoted(spans[0].name), escaped(self._reason, 200))

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Say whether the last export arrived; nothing is held back here."""
        return not self.failing

    @property
    def is_absent(self) -> bool:
        """Say whether nobody has ever listened at an address of this machine, as where a developer has no collector."""
        is_refused = "refused" in self._reason.lower()
        return is_refused and not self._has_arrived and _LOCAL.search(self._endpoint) is not None

    def hurry(self) -> None:
        """Allow no more than one retry from now on: the process waits for this exporter to end."""
        self._hurried = True
        if self._busy:
            self._give_up_if_hopeless(attempts=1)

    def shutdown(self) -> None:
        """Shut the exporter down; an export that is still on its way counts as failed."""
        if self._busy:
            self._failed(self._reason or "no answer in time")
        self._end(self._exporter.shutdown)

    def _keep_reason(self, record: logging.LogRecord) -> bool:
        if record.name == ENCODER_LOGGER:
            if self._left_out.opens() is not None:
                LOGGER.warning("an attribute is left out of a span or resource (%s)", escaped(record.getMessage(), 200))
            return False
        self._attempts_failed += 1
        super()._keep_reason(record)
        if (self._hurried or self.is_last) and self.is_absent:
            raise _GaveUpError
        if self._hurried:
            self._give_up_if_hopeless(attempts=2)
        return False

    def _give_up_if_hopeless(self, attempts: int) -> None:
        if self.failing or self._attempts_failed >= attempts:
            self._end(self._exporter.shutdown)


class GuardedMetricExporter(Reachability, MetricExporter):
    """Exports metrics through another exporter, and turns whatever that raises into a failure.

    Args:
        exporter: The exporter that does the work.
        endpoint: The collector's address, as it shall stand in the log.
        warn_window: Seconds between two warnings.
    """

    what = "metrics"
    meanwhile = "are missing there"
    without = "MESHMW_METRICS=none"
    rejects = "data points"

    def __init__(self, exporter: MetricExporter, endpoint: str, warn_window: float) -> None:
        Reachability.__init__(self, endpoint, warn_window)
        # The reader asks for these: counters as a sum or as a difference, by the exporter's own variables.
        MetricExporter.__init__(self, *preferences_of(exporter))
        self._exporter = exporter

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **options: Any) -> MetricExportResult:
        """Export, and say whether the metrics arrived; never raises."""
        result = self._export(lambda: self._exporter.export(metrics_data, timeout_millis, **options))
        if result is MetricExportResult.SUCCESS:
            self._count_rejected()
            self._succeeded()
            return result
        if self._is_too_large:
            self._refused(self.what, self.meanwhile)
        else:
            self._failed(self._reason)
        return MetricExportResult.FAILURE

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Say whether the last export arrived; nothing is held back here."""
        return not self.failing

    def shutdown(self, timeout_millis: float = 30_000, **options: Any) -> None:
        """Shut the exporter down, which cuts off an export that is under way."""
        self._end(lambda: self._exporter.shutdown(timeout_millis, **options))


@contextmanager
def muted(passes: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Ask *passes*, for each line that this thread logs through OpenTelemetry's exporters, whether to let it out."""
    before = getattr(_MUTE.thread, "passes", None)
    _MUTE.thread.passes = passes
    try:
        yield
    finally:
        _MUTE.thread.passes = before


def _install_mute() -> None:
    for name in EXPORTER_LOGGERS:
        filters = logging.getLogger(name).filters
        # First, because the SDK's own filter hides repeated lines, by which we count failed attempts.
        if _MUTE not in filters:
            filters.insert(0, _MUTE)
