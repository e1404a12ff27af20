"""Exporters that a dead, slow or hostile collector cannot make noisy, and that no fork interrupts.

Each exports through one of OpenTelemetry's. It says once that the collector does not take what is sent and once that it
does again, keeps to itself what the other exporter logs meanwhile, and lets the process fork between two exports.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from opentelemetry.sdk.metrics.export import (
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from meshmw._notices import LOGGER, Throttle, escaped, quoted, redacted
from meshmw._otel import change_status_text, encodable, exception_events, make_encodable
from meshmw._otel_exporters import ENCODER_LOGGER, preferences_of, room_of
from meshmw._regex import compiled_late
from meshmw._telemetry.bounds import FAIR_BYTES, BoundedSpan
from meshmw._telemetry.otlp import WrittenBatch, odd_span_bytes
from meshmw._telemetry.reachability import GaveUpError, Reachability, muted
from meshmw._telemetry.span import plain_size

# A developer's machine is one of these, and a pod whose collector is a sidecar.
_LOCAL: Final = compiled_late(r"^[a-z]+://(?:localhost|127\.[\d.]+|\[::1\])(?::|/|$)")
# So many refusals one after the other, of halves and of halves of these, and it is not the size.
_MOST_REFUSALS: Final = 32
# Bytes of memory, which are at most twice as many on their way, and so below the 4 MiB that gRPC takes.
_LARGEST_BATCH: Final = 1_000_000


def redact_exceptions(span: ReadableSpan) -> ReadableSpan:
    """Return a span without the secrets in the text of exceptions, which the application's own spans record as it is.

    What cannot be encoded in it, or in a name, is escaped: a stranger's JSON may hold it, and an exception quote it.
    """
    make_encodable(span)
    change_status_text(span, _shown)
    for said in exception_events(span):
        said.update({key: _shown(text) for key, text in said.items() if isinstance(text, str)})
    return span


def _shown(text: str) -> str:
    return encodable(redacted(text))


def _name_of(span: ReadableSpan) -> str:
    try:
        return quoted(span.name)
    except Exception:  # of a class of anybody's
        return "without a name"


class Batch(list[ReadableSpan]):
    """Spans that leave together, as many as there is room for by what they take in memory.

    Attributes:
        room: The bytes that are left.
    """

    room = _LARGEST_BATCH

    def add(self, span: ReadableSpan) -> None:
        """Add a span."""
        self.append(span)
        self.room -= span.size if isinstance(span, BoundedSpan) else min(plain_size(span), FAIR_BYTES)


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
        self._room = room_of(exporter)
        self._left_out = Throttle(warn_window)
        self._busy = False
        self._attempts_failed = 0
        self._hurried = False

    def batch(self) -> Batch | WrittenBatch:
        """Return a batch without a span."""
        return WrittenBatch(self._write_odd, self._room) if self._room else Batch()

    def collect(self, span: ReadableSpan, batch: Batch | WrittenBatch) -> None:
        """Add a span to a batch. What its class raises loses the span, and what ends a thread loses the whole batch."""
        try:
            batch.add(redact_exceptions(span))
        except Exception as error:
            self._lose_unwritable(span, error)
        except BaseException as error:
            self._reason, self._is_too_large, self._is_unwritable = repr(error), False, False
            self._lose([*batch, span])
            raise

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export, in halves where all at once are too large or one cannot be written; say whether all spans arrived."""
        failed, refusals, waiting = self.exports_failed, 0, [spans]
        try:
            if not isinstance(spans, Batch | WrittenBatch):
                for span in spans:
                    redact_exceptions(span)
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

    def _write_odd(self, span: ReadableSpan) -> bytes:
        # What it leaves out of the span it logs.
        with muted(self._keep_reason):
            try:
                return odd_span_bytes(span)
            except Exception as error:
                self._lose_unwritable(span, error)
                return b""

    def _lose_unwritable(self, span: ReadableSpan, error: Exception) -> None:
        self._reason, self._is_unwritable, self._is_too_large = repr(error), True, False
        self._lose([span])

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
            LOGGER.warning(line, _name_of(spans[0]), escaped(self._reason, 200))

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Say whether the last export arrived; nothing is held back here."""
        return not self.failing

    @property
    def is_absent(self) -> bool:
        """Say whether nobody has ever listened at an address of this machine, as where a developer has no collector."""
        is_refused = "refused" in self._reason.lower()
        return is_refused and not self._has_arrived and _LOCAL().search(self._endpoint) is not None

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
            raise GaveUpError
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
        """Export, without what cannot be encoded, and say whether all that could arrived; never raises."""
        result = self._export(lambda: self._exporter.export(metrics_data, timeout_millis, **options))
        if self._is_unwritable and (encodable_ones := self._encodable(metrics_data)) is not None:
            result = self._export(lambda: self._exporter.export(encodable_ones, timeout_millis, **options))
        if result is MetricExportResult.SUCCESS:
            self._count_rejected()
            self._succeeded()
            return result
        if self._is_too_large:
            self._refused(self.what, self.meanwhile)
        else:
            self._failed(self._reason)
        return MetricExportResult.FAILURE

    def _encodable(self, data: MetricsData) -> MetricsData | None:
        """Return the metrics that can be encoded, and name the others; None where that is none or all of them."""
        kept, left_out = [], []
        # Each resource and each scope once: of equal ones the encoder keeps the last.
        for resource in data.resource_metrics:
            scopes = []
            for scope in resource.scope_metrics:
                faults = [_fault(resource, scope, metric) for metric in scope.metrics]
                good = [metric for metric, fault in zip(scope.metrics, faults, strict=True) if fault is None]
                left_out += [fault for fault in faults if fault is not None]
                scopes += [replace(scope, metrics=good)] if good else []
            kept += [replace(resource, scope_metrics=scopes)] if scopes else []
        if not kept or not left_out:
            return None
        if self._throttle.opens("unwritable") is not None:
            name, reason = left_out[0]
            line = "%d metrics cannot be encoded and are missing there, the first of which is %s; others arrive (%s)"
            LOGGER.warning(line, len(left_out), quoted(name), escaped(reason, 200))
        return MetricsData(kept)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Say whether the last export arrived; nothing is held back here."""
        return not self.failing

    def shutdown(self, timeout_millis: float = 30_000, **options: Any) -> None:
        """Shut the exporter down, which cuts off an export that is under way."""
        self._end(lambda: self._exporter.shutdown(timeout_millis, **options))


def _fault(resource: ResourceMetrics, scope: ScopeMetrics, metric: Metric) -> tuple[str, str] | None:
    """Return the name of a metric that cannot be encoded, and why; None for every other."""
    # With the exporters, which are imported where somebody asks for them.
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

    try:
        encode_metrics(MetricsData([replace(resource, scope_metrics=[replace(scope, metrics=[metric])])]))
    except Exception as error:
        # The encoder wraps what is wrong in an exception that shows the whole metric.
        return metric.name, repr(getattr(error, "original_exception", error))
    return None
