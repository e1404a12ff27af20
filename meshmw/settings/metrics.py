"""Where metrics go over OTLP, and by which protocol: the standard variables, beside what is set for spans.

Knows the names of the variables. Must not know the exporters.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from meshmw.settings.faults import log
from meshmw.settings.standard import Standard

_HTTP = "otlp-http"


def metrics_over_http(exporter: str) -> bool:
    """Say whether metrics go over HTTP: as their own variable says; or as spans do, by *exporter*; or as all do."""
    standard = Standard(os.environ)  # noqa: TID251
    own = standard.protocol("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL")
    _warn(standard)
    if own is not None:
        return own[0] == _HTTP
    if exporter in ("otlp", _HTTP):
        return exporter == _HTTP
    for_all = Standard(os.environ).protocol("OTEL_EXPORTER_OTLP_PROTOCOL")  # noqa: TID251
    return for_all is not None and for_all[0] == _HTTP


def metrics_endpoint(exporter: str, endpoint: str | None, *, http: bool) -> str | None:
    """Return the URL that metrics go to, or None where nothing says it.

    That is what their own variable says; else the collector of spans, where *endpoint* is no standard variable's and
    the protocol is the same; else what OTEL_EXPORTER_OTLP_ENDPOINT says.

    Args:
        exporter: The setting, of spans.
        endpoint: The setting, of spans.
        http: Whether metrics go over HTTP.
    """
    standard = Standard(os.environ, {"exporter": exporter})  # noqa: TID251
    own = standard.endpoint(["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"], "metrics", http=http)
    _warn(standard)
    if own is not None:
        return own[0]
    if endpoint is not None and http == (exporter == _HTTP) and endpoint != standard.read().get("endpoint", [None])[0]:
        return _beside_traces(endpoint) if http else endpoint
    for_all = standard.endpoint(["OTEL_EXPORTER_OTLP_ENDPOINT"], "metrics", http=http)
    return for_all and for_all[0]


def _beside_traces(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(path=f"{parts.path.removesuffix('/').removesuffix('/v1/traces')}/v1/metrics").geturl()


def _warn(standard: Standard) -> None:
    for warning in standard.warnings:
        log.warning("%s", warning)
