"""The exporter that the settings ask for, imported only when it is asked for."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter

from meshmw._telemetry.collector import ForkGate, Reachability, install_mute, muted
from meshmw.errors import MissingExtraError
from meshmw.settings import Settings, is_set, metrics_endpoint, metrics_over_http

if TYPE_CHECKING:
    from requests import Session

log = logging.getLogger("meshmw")

_DEFAULTS: Final = {"otlp": "http://localhost:4317", "otlp-http": "http://localhost:4318"}

# gRPC waits longer and longer between two attempts to connect, up to 2 minutes, and up to as long for an answer to one:
# spans would be lost for so long after a collector that swallowed packets is back. Milliseconds;
# the exporter's own annotation of its argument says texts, where gRPC takes numbers.
RECONNECTING: Final[Any] = (("grpc.max_reconnect_backoff_ms", 10_000), ("grpc.min_reconnect_backoff_ms", 10_000))

# With one of these, the OTLP exporter makes its own HTTP session, which carries the user's credentials.
_CREDENTIAL_PROVIDERS: Final = (
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_{}_CREDENTIAL_PROVIDER",
)


def endpoint_of(settings: Settings) -> str | None:
    """Return the address that spans go to, complete, or None where they do not go to a collector."""
    if settings.exporter not in _DEFAULTS:
        return None
    url = settings.endpoint or _DEFAULTS[settings.exporter]
    if settings.exporter == "otlp-http" and not urlsplit(url).path:
        return f"{url}/v1/traces"
    return url


def shown_endpoint(settings: Settings) -> str | None:
    """Return the address as it may stand in a log: without a query, in which some vendors take a key."""
    endpoint = endpoint_of(settings)
    return endpoint and endpoint.partition("?")[0]


def build_exporter(settings: Settings) -> SpanExporter | None:
    """Return the exporter, or None where spans go nowhere.

    Raises:
        MissingExtraError: The OTLP exporter is not installed.
    """
    endpoint = endpoint_of(settings)
    if settings.exporter == "console":
        return ConsoleSpanExporter(out=sys.stdout)
    if endpoint is None:
        return None
    return _over_http(endpoint) if settings.exporter == "otlp-http" else _over_grpc(endpoint)


def _over_grpc(endpoint: str) -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise MissingExtraError("the OTLP exporter for gRPC", "otlp") from error
    warn_under_gevent()
    return OTLPSpanExporter(
        endpoint=endpoint, insecure=urlsplit(endpoint).scheme == "http", channel_options=RECONNECTING
    )


def warn_under_gevent() -> None:
    """Say that gRPC waits outside of gevent's sight, where gevent has made threads greenlets."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        log.warning(
            "gevent runs this process, and exporter=otlp waits for the collector in gRPC, which gevent cannot see: no "
            "request is served meanwhile, for up to 10 seconds where it does not answer. Set MESHMW_EXPORTER=otlp-http"
        )


def _over_http(endpoint: str) -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise MissingExtraError("the OTLP exporter for HTTP", "otlp") from error
    return OTLPSpanExporter(endpoint=endpoint, session=bounded_session("TRACES"))


def bounded_session(signal: str) -> Session | None:
    """Return a session for the OTLP exporter of a signal, or None where the exporter is to make its own."""
    from meshmw._telemetry.http_session import BoundedSession

    return None if any(is_set(each.format(signal)) for each in _CREDENTIAL_PROVIDERS) else BoundedSession()


# Metrics to a collector over OTLP: like spans, without harm or noise where it does not take them.


_METRIC_DEFAULTS: Final = {False: "http://localhost:4317", True: "http://localhost:4318/v1/metrics"}


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
    endpoint = metrics_endpoint(settings.exporter, settings.endpoint, http=http) or _METRIC_DEFAULTS[http]
    exporter = _metrics_over_http(endpoint) if http else _metrics_over_grpc(endpoint)
    return FrankMetricReader(CalmMetricExporter(exporter, endpoint.partition("?")[0], settings.warn_window))


def _metrics_over_grpc(endpoint: str) -> MetricExporter:
    try:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    except ImportError as error:
        raise MissingExtraError("the OTLP exporter for gRPC", "otlp") from error
    warn_under_gevent()
    return OTLPMetricExporter(
        endpoint=endpoint, insecure=urlsplit(endpoint).scheme == "http", channel_options=RECONNECTING
    )


def _metrics_over_http(endpoint: str) -> MetricExporter:
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
