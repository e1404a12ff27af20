"""A meter provider whose metrics a Prometheus scrape finds.

Only for processes that have none: every instrument of ours belongs to whichever meter provider there is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider

from meshmw.errors import MissingExtraError
from meshmw.settings import Settings
from meshmw.telemetry.resource import build_resource

log = logging.getLogger("meshmw")


def meter_provider_of(settings: Settings) -> Callable[[], MeterProvider] | None:
    """Return what makes the meter provider that the settings ask for, or None where there is one, or none is wanted.

    What it collects stands in prometheus_client's default registry, which its `make_asgi_app()`, `make_wsgi_app()` and
    `start_http_server()` show.

    Raises:
        MissingExtraError: The exporter for Prometheus is not installed.
    """
    if settings.metrics == "none":
        return None
    # OpenTelemetry exports no name for what stands there until somebody sets a provider.
    if type(metrics.get_meter_provider()).__name__ != "_ProxyMeterProvider":
        log.warning("a meter provider was there before configure(): metrics=%s has no effect", settings.metrics)
        return None
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
    except ImportError as error:
        raise MissingExtraError("the exporter for Prometheus", "prometheus") from error
    return lambda: MeterProvider([PrometheusMetricReader()], build_resource(settings))
