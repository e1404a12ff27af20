"""A WSGI application for a server that loads it before it forks, traced by either kit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def _answer(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


def __getattr__(name: str) -> Any:
    if name == "meshmw":
        import meshmw as package
        from meshmw.wsgi import TraceContextMiddleware

        package.configure(package.Settings(service_name="matrix"))
        return TraceContextMiddleware(_answer)
    if name == "contrib":
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(insecure=True)))
        trace.set_tracer_provider(provider)
        return OpenTelemetryMiddleware(_answer)
    raise AttributeError(name)
