"""The exporter that the settings ask for, imported only when it is asked for."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter

from meshmw.errors import MissingExtraError
from meshmw.settings import Settings, is_set

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
    from meshmw.telemetry.bounded_session import BoundedSession

    return None if any(is_set(each.format(signal)) for each in _CREDENTIAL_PROVIDERS) else BoundedSession()
