"""The exporters of spans and metrics that the settings ask for, each imported only when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter

from meshmw._notices import LOGGER, escaped, quoted
from meshmw._telemetry.collector import CheckedMetricReader, GuardedMetricExporter
from meshmw.errors import IncompatibleExporterError, MissingExtraError
from meshmw.settings import Settings, metrics_endpoint, metrics_over_http

_DEFAULTS: Final = {"otlp": "http://localhost:4317", "otlp-http": "http://localhost:4318"}

# gRPC waits longer and longer between two attempts to connect, up to 2 minutes, and up to as long for an answer to one:
# spans would be lost for so long after a collector that swallowed packets is back. Milliseconds;
# the exporter's own annotation of its argument says texts, where gRPC takes numbers.
_RECONNECTING: Final[Any] = (("grpc.max_reconnect_backoff_ms", 10_000), ("grpc.min_reconnect_backoff_ms", 10_000))


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
    return endpoint and _without_query(endpoint)


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
    if settings.exporter == "otlp-http":
        return _spans_over_http(endpoint)
    # Of a standard variable the path is gone by now, and said.
    if path := urlsplit(endpoint).path.rstrip("/"):
        LOGGER.warning("endpoint (MESHMW_ENDPOINT) holds a path, %s, which is ignored: gRPC has none", quoted(path))
    return _spans_over_grpc(endpoint)


def otlp_reader(settings: Settings) -> PeriodicExportingMetricReader:
    """Return what sends all metrics to the collector.

    Raises:
        MissingExtraError: The OTLP exporter is not installed.
    """
    http = metrics_over_http(settings.exporter)
    by_default = f"{_DEFAULTS['otlp-http']}/v1/metrics" if http else _DEFAULTS["otlp"]
    endpoint = metrics_endpoint(settings.exporter, settings.endpoint, http=http) or by_default
    exporter = _metrics_over_http(endpoint) if http else _metrics_over_grpc(endpoint)
    guarded = GuardedMetricExporter(exporter, _without_query(endpoint), settings.warn_window)
    return CheckedMetricReader(guarded, settings.warn_window)


def _spans_over_grpc(endpoint: str) -> SpanExporter:
    with importing("opentelemetry.exporter.otlp.proto.grpc", "the OTLP exporter for gRPC", "otlp"):
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    _warn_under_gevent()
    return OTLPSpanExporter(endpoint=endpoint, insecure=_is_insecure(endpoint), channel_options=_RECONNECTING)


def _metrics_over_grpc(endpoint: str) -> MetricExporter:
    with importing("opentelemetry.exporter.otlp.proto.grpc", "the OTLP exporter for gRPC", "otlp"):
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    _warn_under_gevent()
    return OTLPMetricExporter(endpoint=endpoint, insecure=_is_insecure(endpoint), channel_options=_RECONNECTING)


def _spans_over_http(endpoint: str) -> SpanExporter:
    with importing("opentelemetry.exporter.otlp.proto.http", "the OTLP exporter for HTTP", "otlp"):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from meshmw._telemetry.http_session import session_for

    return OTLPSpanExporter(endpoint=endpoint, session=session_for("TRACES"))


def _metrics_over_http(endpoint: str) -> MetricExporter:
    with importing("opentelemetry.exporter.otlp.proto.http", "the OTLP exporter for HTTP", "otlp"):
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from meshmw._telemetry.http_session import session_for

    return OTLPMetricExporter(endpoint=endpoint, session=session_for("METRICS"))


@contextmanager
def importing(package: str, what: str, extra: str) -> Iterator[None]:
    """Import an exporter in the block, and say what is wrong where that fails.

    Raises:
        MissingExtraError: *package*, or one that the extra brings with it, is not installed.
        IncompatibleExporterError: It is installed and cannot be imported, such as beside another release of the SDK.
    """
    try:
        yield
    except Exception as error:
        absent = (error.name or package) if isinstance(error, ModuleNotFoundError) else ""
        is_own = f"{package}.".startswith(f"{absent}.") or absent.startswith(package)
        # The SDK is there: what is missing of it is not of its release.
        if absent and (is_own or not absent.startswith("opentelemetry.")):
            raise MissingExtraError(what, extra) from error
        raise IncompatibleExporterError(what, extra, escaped(f"{type(error).__name__}: {error}", 200)) from error


def _is_insecure(endpoint: str) -> bool:
    return urlsplit(endpoint).scheme == "http"


def _without_query(endpoint: str) -> str:
    return endpoint.partition("?")[0]


def _warn_under_gevent() -> None:
    """Say that gRPC waits outside of gevent's sight, where gevent has made threads greenlets."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        LOGGER.warning(
            "gevent runs this process, and exporter=otlp waits for the collector in gRPC, which gevent cannot see: no "
            "request is served meanwhile, for up to 10 seconds where it does not answer. Set MESHMW_EXPORTER=otlp-http"
        )
