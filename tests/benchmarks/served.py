"""What uvicorn serves when whole servers are compared: `uvicorn --factory tests.benchmarks.served:<name>`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware as ContribASGI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

from meshmw.asgi import TraceContextMiddleware
from tests.benchmarks.hosts import QUIET, fastapi_app
from tests.benchmarks.servers import sdk_alone
from tests.benchmarks.traffic import SAMPLED, provider


async def plain(scope: Any, receive: Any, send: Any) -> None:
    """Answer as a bare application does."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


def bare() -> Any:
    """Return an application without tracing."""
    return plain


def bare_meshmw() -> Any:
    """Return it in our middleware."""
    provider()
    return TraceContextMiddleware(plain)


def bare_contrib() -> Any:
    """Return it in contrib's middleware."""
    provider()
    return ContribASGI(plain)


def bare_sdk() -> Any:
    """Return it around a span of OpenTelemetry's SDK with our attributes, and nothing else."""
    traced = sdk_alone(plain, SAMPLED)

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await traced(scope, receive, send)

    return serve


def fastapi() -> FastAPI:
    """Return a FastAPI application without tracing."""
    return fastapi_app(QUIET)


def fastapi_meshmw() -> Any:
    """Return it in our middleware."""
    provider()
    return TraceContextMiddleware(fastapi_app({}))


def fastapi_own() -> FastAPI:
    """Return it with its native telemetry."""
    provider()
    return fastapi_app({})


def fastapi_contrib() -> FastAPI:
    """Return it in contrib's middleware."""
    provider()
    app = fastapi_app(QUIET)
    FastAPIInstrumentor.instrument_app(app)
    return app


GROUPS: dict[str, dict[str, Callable[[], Any]]] = {
    "ASGI application": {
        "bare": bare,
        "meshmw": bare_meshmw,
        "SDK span alone": bare_sdk,
        "contrib": bare_contrib,
    },
    "FastAPI": {"bare": fastapi, "meshmw": fastapi_meshmw, "FastAPI's own": fastapi_own, "contrib": fastapi_contrib},
}
