"""One shop, set up beside the telemetry of others: uvicorn serves `neighbours:NAME`, each in a process of its own."""

from __future__ import annotations

import os
from typing import Any

import httpx
from fastapi import FastAPI, Request
from opentelemetry import trace

import meshmw
import meshmw.httpx
from meshmw.asgi import TraceContextMiddleware

QUIET: Any = {"tracing": False, "metrics": False, "logs": False}
# What a neighbour has made of requests and would have sent to its own backend.
kept: list[dict[str, Any]] = []


def shop() -> FastAPI:
    """Return the application, which calls the next hop by our client and by httpx's own."""
    app = FastAPI(telemetry=QUIET)
    ours, plain = meshmw.httpx.AsyncClient(), httpx.AsyncClient()

    @app.get("/items/{item}")
    async def item(item: str, request: Request) -> dict[str, Any]:
        found = trace.get_current_span().get_span_context()
        return {
            "traceparent": request.headers.get("traceparent"),
            "trace_id": f"{found.trace_id:032x}",
            "ours": (await ours.get(os.environ["NEXT_HOP"])).json(),
            "plain": (await plain.get(os.environ["NEXT_HOP"])).json(),
        }

    @app.get("/kept")
    async def what_was_kept() -> list[dict[str, Any]]:
        return kept

    return app


def alone() -> FastAPI:
    meshmw.configure()
    app = shop()
    app.add_middleware(TraceContextMiddleware)
    return app


def datadog() -> FastAPI:
    """Under `ddtrace-run`, which has patched everything by now."""
    from ddtrace.trace import TraceFilter, tracer

    class Keep(TraceFilter):
        def process_trace(self, trace: Any) -> None:
            kept.extend(
                {
                    "name": span.name,
                    "resource": span.resource,
                    "kind": span.get_tag("span.kind"),
                    "route": span.get_tag("http.route"),
                    "trace_id": f"{span.trace_id:032x}",
                    "span_id": f"{span.span_id:016x}",
                    "parent_id": f"{span.parent_id or 0:016x}",
                }
                for span in trace
            )

    tracer.configure(trace_processors=[Keep()])
    return alone()


def _logfire(app: FastAPI) -> None:
    import logfire

    # Without the last it warns of each trace that comes in, and with None it continues it.
    logfire.configure(send_to_logfire=False, console=False, distributed_tracing=True)
    logfire.instrument_fastapi(app)
    logfire.instrument_httpx()


def logfire_before() -> FastAPI:
    app = shop()
    _logfire(app)
    meshmw.configure()
    app.add_middleware(TraceContextMiddleware)
    return app


def logfire_after() -> FastAPI:
    app = alone()
    _logfire(app)
    return app


def _sentry(**options: Any) -> None:
    import sentry_sdk

    def keep(event: Any, _hint: Any) -> None:
        kept.append({"name": event["transaction"], "trace_id": event["contexts"]["trace"]["trace_id"]})

    sentry_sdk.init("http://key@127.0.0.1:9/1", traces_sample_rate=1.0, before_send_transaction=keep, **options)


def sentry_before() -> FastAPI:
    _sentry()
    return alone()


def sentry_after() -> FastAPI:
    app = alone()
    _sentry()
    return app


def sentry_otel() -> FastAPI:
    """Sentry as a processor of OpenTelemetry's spans, which makes none by itself."""
    from sentry_sdk.integrations.opentelemetry import SentrySpanProcessor

    _sentry(instrumenter="otel")
    app = alone()
    trace.get_tracer_provider().add_span_processor(SentrySpanProcessor())  # type: ignore[attr-defined]
    return app


def prometheus() -> FastAPI:
    from prometheus_fastapi_instrumentator import Instrumentator

    app = alone()
    Instrumentator().instrument(app).expose(app)
    return app


def fastmcp() -> Any:
    from fastmcp import FastMCP

    meshmw.configure()
    mcp = FastMCP("shop")
    ours = meshmw.httpx.AsyncClient()

    @mcp.tool
    async def item(number: int) -> dict[str, Any]:
        found = trace.get_current_span().get_span_context()
        return {"trace_id": f"{found.trace_id:032x}", "ours": (await ours.get(os.environ["NEXT_HOP"])).json()}

    return TraceContextMiddleware(mcp.http_app(stateless_http=True, json_response=True))
