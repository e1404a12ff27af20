"""Metrics to a collector over OTLP: like spans, without harm or noise where it does not take them.

Knows the OTLP exporters of metrics, imported only when they are asked for. Must not know which metrics there are.
"""

from __future__ import annotations

import logging
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)

from meshmw.errors import MissingExtraError
from meshmw.settings import Settings, metrics_endpoint, metrics_over_http
from meshmw.telemetry.exporters import RECONNECTING, bounded_session, warn_under_gevent
from meshmw.telemetry.forking import ForkGate
from meshmw.telemetry.muting import install_mute, muted
from meshmw.telemetry.reachability import Reachability

log = logging.getLogger("meshmw")

_DEFAULTS: Final = {False: "http://localhost:4317", True: "http://localhost:4318/v1/metrics"}


class FrankMetricReader(PeriodicExportingMetricReader):
    """Reads and sends all metrics every minute, or OTEL_METRIC_EXPORT_INTERVAL, and says whether a flush arrived."""

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Send all metrics.

        Raises:
            ConnectionError: They did not arrive; the meter provider looks at nothing else.
        """
        super().force_flush(timeout_millis)
        if not self._exporter.force_flush(timeout_millis):
            raise ConnectionError("the metrics did not arrive")
        return True


def otlp_reader(settings: Settings) -> PeriodicExportingMetricReader:
    """Return what sends all metrics to the collector.

    Raises:
        MissingExtraError: The OTLP exporter is not installed.
    """
    http = metrics_over_http(settings.exporter)
    endpoint = metrics_endpoint(settings.exporter, settings.endpoint, http=http) or _DEFAULTS[http]
    exporter = _over_http(endpoint) if http else _over_grpc(endpoint)
    return FrankMetricReader(CalmMetricExporter(exporter, endpoint.partition("?")[0], settings.warn_window))


def _over_grpc(endpoint: str) -> MetricExporter:
    try:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    except ImportError as error:
        raise MissingExtraError("the OTLP exporter for gRPC", "otlp") from error
    warn_under_gevent()
    return OTLPMetricExporter(
        endpoint=endpoint, insecure=urlsplit(endpoint).scheme == "http", channel_options=RECONNECTING
    )


def _over_http(endpoint: str) -> MetricExporter:
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    except ImportError as error:
        raise MissingExtraError("the OTLP exporter for HTTP", "otlp") from error
    return OTLPMetricExporter(endpoint=endpoint, session=bounded_session("METRICS"))


class CalmMetricExporter(Reachability, MetricExporter):
    """Exports through another exporter, never raises, and says once that it fails and once that it works again.

    Args:
        exporter: The exporter that does the work.
        endpoint: The collector's address, as it shall stand in the log.
        warn_window: Seconds between two warnings.
    """

    what = "metrics"
    meanwhile = "are missing there"

    def __init__(self, exporter: MetricExporter, endpoint: str, warn_window: float) -> None:
        Reachability.__init__(self, endpoint, warn_window)
        # The reader asks for these: counters as a sum or as a difference, by the exporter's own variables.
        MetricExporter.__init__(self, exporter._preferred_temporality, exporter._preferred_aggregation)
        self._exporter = exporter
        self._reason = ""
        self._gate = ForkGate(lambda: self.failing)
        install_mute()

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **options: Any) -> MetricExportResult:
        """Export, and turn every exception into a failure."""
        self._reason = ""
        try:
            with self._gate, muted(self._keep_reason):
                result = self._exporter.export(metrics_data, timeout_millis, **options)
        except Exception as error:
            result, self._reason = MetricExportResult.FAILURE, repr(error)
        if result is MetricExportResult.SUCCESS:
            self._succeeded()
        else:
            self._failed(self._reason)
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Say whether the last export arrived; nothing is held back here."""
        return not self.failing

    def shutdown(self, timeout_millis: float = 30_000, **options: Any) -> None:
        """Shut the exporter down, which cuts off an export that is under way."""
        try:
            with muted(lambda record: False):
                self._exporter.shutdown(timeout_millis, **options)
        except Exception:
            log.debug("the exporter to %s did not shut down", self._endpoint, exc_info=True)

    def _keep_reason(self, record: logging.LogRecord) -> bool:
        self._reason = self._reason or record.getMessage()
        return False
