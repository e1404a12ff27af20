"""A meter provider, whose metrics a Prometheus scrape finds or a collector gets.

Only for processes that have none: every instrument of ours belongs to whichever meter provider there is.
"""

from __future__ import annotations

import logging
from typing import Final, get_args

from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader

from meshmw.errors import MeshmwError, MissingExtraError, SettingsError
from meshmw.settings import Settings, first_of, hidden
from meshmw.settings.faults import escaped, excerpt
from meshmw.settings.values import MetricsExporter
from meshmw.telemetry.existing import is_asked_for
from meshmw.telemetry.metric_exporter import otlp_reader
from meshmw.telemetry.resource import build_resource

_VARIABLE: Final = "OTEL_METRICS_EXPORTER"

log = logging.getLogger("meshmw")


def meter_provider_of(settings: Settings) -> MeterProvider | None:
    """Return the meter provider that the settings ask for, or None where there is one, or none is wanted.

    With `metrics=prometheus`, what it collects stands in prometheus_client's default registry, which its
    `make_asgi_app()`, `make_wsgi_app()` and `start_http_server()` show. With `metrics=otlp` it is the caller's to end.

    Raises:
        MissingExtraError: The exporter is not installed.
        SettingsError: OpenTelemetry refuses one of the variables that it reads by itself.
    """
    # OpenTelemetry exports no name for what stands there until somebody sets a provider.
    if type(metrics.get_meter_provider()).__name__ != "_ProxyMeterProvider":
        if settings.metrics != "none" and is_asked_for(settings, "metrics"):
            log.warning("a meter provider was there before configure(): metrics=%s has no effect", settings.metrics)
        return None
    _warn_of_other_exporters(settings)
    if settings.metrics == "none":
        return None
    try:
        reader = otlp_reader(settings) if settings.metrics == "otlp" else _prometheus_reader()
    except MeshmwError:
        raise
    except Exception as error:
        raise _refused(error) from error
    return _meter_provider(reader, settings)


def _warn_of_other_exporters(settings: Settings) -> None:
    """Name what OTEL_METRICS_EXPORTER holds and nobody will export to, unless another setting has decided."""
    asked = [name for name in (each.strip().lower() for each in first_of(_VARIABLE).split(",")) if name]
    known = [name for name in asked if name in get_args(MetricsExporter)][:1]
    is_decided_elsewhere = settings.metrics != known[0] if known else "metrics" in settings.model_fields_set
    left_out = [name for name in asked if name not in known]
    if left_out and not is_decided_elsewhere:
        log.warning(
            "%s holds %s, which is ignored; meshmw sets up one of %s, and for any other exporter set a meter provider "
            "before configure()",
            _VARIABLE,
            excerpt(",".join(left_out)),
            ", ".join(get_args(MetricsExporter)),
        )


def _prometheus_reader() -> MetricReader:
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
    except ImportError as error:
        raise MissingExtraError("the exporter for Prometheus", "prometheus") from error
    return PrometheusMetricReader()


def _meter_provider(reader: MetricReader, settings: Settings) -> MeterProvider:
    try:
        # The settings have decided whether the SDK is disabled; the provider would decide by the variable alone.
        with hidden("OTEL_SDK_DISABLED"):
            # At the end of the process a collector has as long as for spans, and not the SDK's 30 seconds.
            return MeterProvider([reader], build_resource(settings), shutdown_on_exit=settings.metrics != "otlp")
    except Exception as error:
        reader.shutdown()  # takes it out of the registry, and ends its thread
        raise _refused(error) from error


def _refused(error: Exception) -> SettingsError:
    return SettingsError([f"an OTEL_* variable, of which OpenTelemetry says {escaped(str(error), 200)}"])
