"""A meter provider whose metrics a Prometheus scrape finds.

Only for processes that have none: every instrument of ours belongs to whichever meter provider there is.
"""

from __future__ import annotations

import logging
from typing import Final

from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader

from meshmw.errors import MissingExtraError, SettingsError
from meshmw.settings import Settings, first_of, hidden
from meshmw.settings.faults import escaped, excerpt
from meshmw.telemetry.resource import build_resource

_VARIABLE: Final = "OTEL_METRICS_EXPORTER"

log = logging.getLogger("meshmw")


def meter_provider_of(settings: Settings) -> MeterProvider | None:
    """Return the meter provider that the settings ask for, or None where there is one, or none is wanted.

    What it collects stands in prometheus_client's default registry, which its `make_asgi_app()`, `make_wsgi_app()` and
    `start_http_server()` show.

    Raises:
        MissingExtraError: The exporter for Prometheus is not installed.
        SettingsError: OpenTelemetry refuses one of the variables that it reads by itself.
    """
    # OpenTelemetry exports no name for what stands there until somebody sets a provider.
    is_there = type(metrics.get_meter_provider()).__name__ != "_ProxyMeterProvider"
    if settings.metrics == "none":
        if not is_there and "metrics" not in settings.model_fields_set:
            _warn_of_another_exporter()
        return None
    if is_there:
        log.warning("a meter provider was there before configure(): metrics=%s has no effect", settings.metrics)
        return None
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
    except ImportError as error:
        raise MissingExtraError("the exporter for Prometheus", "prometheus") from error
    return _meter_provider(PrometheusMetricReader(), settings)


def _warn_of_another_exporter() -> None:
    asked = first_of(_VARIABLE).strip(" ,")
    if asked and asked.lower() != "none":
        log.warning(
            "%s holds %s, which is ignored; meshmw sets up prometheus, and for any other exporter set a meter provider "
            "before configure()",
            _VARIABLE,
            excerpt(asked),
        )


def _meter_provider(reader: MetricReader, settings: Settings) -> MeterProvider:
    try:
        # The settings have decided whether the SDK is disabled; the provider would decide by the variable alone.
        with hidden("OTEL_SDK_DISABLED"):
            return MeterProvider([reader], build_resource(settings))
    except Exception as error:
        reader.shutdown()  # takes it out of the registry
        fault = f"an OTEL_* variable, of which OpenTelemetry says {escaped(str(error), 200)}"
        raise SettingsError([fault]) from error
