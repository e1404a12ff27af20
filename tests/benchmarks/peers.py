"""The peers of `exported`: each wraps the bare ASGI application and exports as its documentation shows.

Each is made in a process of its own: several patch what the others stand on. A peer that is not installed is left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from tests.benchmarks.hosts import QUIET, fastapi_app
from tests.benchmarks.servers import asgi_app

# An application, and what exports all that has waited.
Made = tuple[Any, Callable[[], object]]
UNREACHABLE: Final = "http://127.0.0.1:9"


def _nothing() -> None:
    """Export nothing."""


def _sdk(endpoint: str) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, insecure=True)))
    trace.set_tracer_provider(provider)
    return provider


def bare(endpoint: str) -> Made:
    return asgi_app, _nothing


def meshmw(endpoint: str) -> Made:
    from meshmw import Settings, configure
    from meshmw.asgi import TraceContextMiddleware

    configure(Settings(endpoint=endpoint, service_name="items", show_log=False))
    return TraceContextMiddleware(asgi_app), trace.get_tracer_provider().force_flush  # type: ignore[attr-defined]


def contrib(endpoint: str) -> Made:
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    provider = _sdk(endpoint)
    return OpenTelemetryMiddleware(asgi_app), provider.force_flush


def starlette(endpoint: str) -> Made:
    from starlette.middleware.opentelemetry import OpenTelemetryMiddleware

    provider = _sdk(endpoint)
    return OpenTelemetryMiddleware(asgi_app), provider.force_flush


def logfire(endpoint: str) -> Made:
    import logfire
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    processor = BatchSpanProcessor(OTLPSpanExporter(endpoint, insecure=True))
    logfire.configure(
        send_to_logfire=False,
        console=False,
        service_name="items",
        additional_span_processors=[processor],
        distributed_tracing=True,
    )
    return logfire.instrument_asgi(asgi_app), processor.force_flush


def ddtrace_dropped(endpoint: str) -> Made:
    """Drop each trace before it is encoded."""
    made = ddtrace_unreachable(endpoint)
    from ddtrace.trace import TraceFilter, tracer

    class Drop(TraceFilter):
        def process_trace(self, trace: object) -> None:
            """Keep nothing of it."""

    tracer.configure(trace_processors=[Drop()])
    return made


def ddtrace_unreachable(endpoint: str) -> Made:
    """Encode each trace, for an agent that does not answer."""
    os.environ |= {
        "DD_TRACE_AGENT_URL": UNREACHABLE,
        "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
        "DD_REMOTE_CONFIGURATION_ENABLED": "false",
    }
    from ddtrace.contrib.asgi import TraceMiddleware
    from ddtrace.trace import tracer

    return TraceMiddleware(asgi_app), tracer.flush


def sentry(endpoint: str) -> Made:
    import sentry_sdk
    from sentry_sdk.integrations.asgi import SentryAsgiMiddleware

    sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", traces_sample_rate=1.0, default_integrations=False)
    return SentryAsgiMiddleware(asgi_app), _nothing


def elastic(endpoint: str) -> Made:
    """Encode nothing: its client sends nowhere."""
    from elasticapm import Client
    from elasticapm.contrib.asgi import ASGITracingMiddleware

    # The middleware takes the client that was made last.
    Client(service_name="items", disable_send=True, central_config=False, metrics_interval="0s")
    return ASGITracingMiddleware(asgi_app), _nothing


def fastapi_bare(endpoint: str) -> Made:
    return fastapi_app(QUIET), _nothing


def fastapi_meshmw(endpoint: str) -> Made:
    from meshmw.asgi import TraceContextMiddleware

    _, flush = meshmw(endpoint)
    return TraceContextMiddleware(fastapi_app(QUIET)), flush


def fastapi_own(endpoint: str) -> Made:
    provider = _sdk(endpoint)
    return fastapi_app({}), provider.force_flush


def fastapi_contrib(endpoint: str) -> Made:
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    provider = _sdk(endpoint)
    app = fastapi_app(QUIET)
    FastAPIInstrumentor.instrument_app(app)
    return app, provider.force_flush


# By what serves; the first of each is the floor.
GROUPS: Final[dict[str, dict[str, Callable[[str], Made]]]] = {
    "ASGI application": {
        "bare": bare,
        "meshmw": meshmw,
        "contrib": contrib,
        "starlette": starlette,
        "logfire": logfire,
        "ddtrace, dropped": ddtrace_dropped,
        "ddtrace, agent unreachable": ddtrace_unreachable,
        "sentry": sentry,
        "elastic-apm, not sending": elastic,
    },
    "FastAPI": {
        "bare": fastapi_bare,
        "meshmw": fastapi_meshmw,
        "FastAPI's own": fastapi_own,
        "contrib": fastapi_contrib,
    },
}
NEEDS: Final = {"logfire": "logfire", "ddtrace": "ddtrace", "sentry": "sentry_sdk", "elastic": "elasticapm"}
