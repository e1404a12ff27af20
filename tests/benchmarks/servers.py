"""Bare ASGI and WSGI applications: what each tracing middleware adds to a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from opentelemetry import propagate
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware as ContribASGI
from opentelemetry.instrumentation.asgi import asgi_getter
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware as ContribWSGI
from opentelemetry.trace import NoOpTracer, NoOpTracerProvider, SpanKind
from starlette.middleware.opentelemetry import OpenTelemetryMiddleware as StarletteASGI

from meshmw import MeshPropagator, asgi, wsgi
from tests.benchmarks.floor_served import served_in_one_function
from tests.benchmarks.measure import Case
from tests.benchmarks.traffic import (
    SAMPLED,
    UNSAMPLED,
    asgi_batch,
    flush,
    headers,
    provider,
    scope_of,
    wsgi_batch,
)

App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]

# What our own span says of the request.
ATTRIBUTES = {
    "http.request.method": "GET",
    "url.path": "/items/1",
    "url.scheme": "http",
    "url.query": "page=1",
    "server.address": "items.local",
    "server.port": 80,
    "network.protocol.version": "1.1",
    "client.address": "127.0.0.1",
    "network.peer.address": "127.0.0.1",
    "network.peer.port": 50000,
    "user_agent.original": "python-httpx/0.28.1",
}


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    """Answer with two messages, as frameworks do."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


def wsgi_app(environ: Any, start_response: Any) -> list[bytes]:
    """Answer with one chunk."""
    start_response("200 OK", [])
    return [b"ok"]


def by_hand(app: App) -> App:
    """Do what OpenTelemetry's documentation shows: extract, and serve in a span."""
    tracer = provider().get_tracer("by hand")

    async def serve(scope: dict[str, Any], receive: Any, send: Any) -> None:
        carrier = {name.decode(): value.decode() for name, value in scope["headers"]}
        context = propagate.extract(carrier)
        with tracer.start_as_current_span("GET", context, SpanKind.SERVER, ATTRIBUTES) as span:
            await app(scope, receive, send)
            span.set_attribute("http.response.status_code", 200)

    return serve


def sdk_alone(app: App, traceparent: str) -> App:
    """Start and end a span with our attributes below a parent that is there already, and do nothing else."""
    tracer = provider().get_tracer("sdk")
    context = MeshPropagator().extract({"traceparent": traceparent})

    async def serve(scope: dict[str, Any], receive: Any, send: Any) -> None:
        span = tracer.start_span("GET", context, SpanKind.SERVER, ATTRIBUTES)
        await app(scope, receive, send)
        span.set_attribute("http.response.status_code", 200)
        span.end()

    return serve


def cases() -> list[Case]:
    """Return the cases of this file."""
    provider()
    return [
        _asgi("ASGI request, sampled", SAMPLED, {"contrib": 1 / 7, "starlette": 1 / 3.5, "SDK span alone": 1.6}),
        _asgi("ASGI request, unsampled", UNSAMPLED, {"contrib": 1 / 12, "starlette": 1 / 6}),
        _disabled(),
        _wsgi("WSGI request, sampled", SAMPLED, {"contrib": 1 / 4}),
        _wsgi("WSGI request, unsampled", UNSAMPLED, {}),
    ]


def _asgi(name: str, traceparent: str, target: dict[str, float]) -> Case:
    apps = {
        "bare": asgi_app,
        "meshmw": asgi.TraceContextMiddleware(asgi_app),
        "contrib": ContribASGI(asgi_app),
        "contrib, one span": ContribASGI(asgi_app, exclude_spans=["receive", "send"]),
        "starlette": StarletteASGI(asgi_app),
        "by hand": by_hand(asgi_app),
        "one function": served_in_one_function(asgi_app),
        "SDK span alone": sdk_alone(asgi_app, traceparent),
    }
    batches = {label: asgi_batch(app, headers(traceparent)) for label, app in apps.items()}
    return Case(name, batches, floor="bare", between=flush, target=target, drawn=True)


def _disabled() -> Case:
    """Without an SDK only the context goes on; its measure is what it takes to read the headers alone."""
    disabled = asgi.TraceContextMiddleware(asgi_app, tracer_provider=NoOpTracerProvider())
    lines = headers(SAMPLED)
    scope = scope_of(lines)

    async def extract_alone(found: Any, receive: Any, send: Any) -> None:
        propagate.extract(scope, getter=asgi_getter)
        await asgi_app(found, receive, send)

    async def extract_mapping(found: Any, receive: Any, send: Any) -> None:
        propagate.extract(mapping)
        await asgi_app(found, receive, send)

    mapping = dict(lines)
    apps = {
        "bare": asgi_app,
        "meshmw": disabled,
        "one function": served_in_one_function(asgi_app, NoOpTracer()),
        "propagate.extract, ASGI getter": extract_alone,
        "propagate.extract, dict": extract_mapping,
    }
    batches = {label: asgi_batch(app, lines) for label, app in apps.items()}
    return Case("ASGI request, SDK disabled", batches, "bare", target={"propagate.extract, dict": 1 / 4})


def _wsgi(name: str, traceparent: str, target: dict[str, float]) -> Case:
    tracer = provider().get_tracer("sdk")
    context = MeshPropagator().extract({"traceparent": traceparent})

    def span_alone(environ: Any, start_response: Any) -> list[bytes]:
        span = tracer.start_span("GET", context, SpanKind.SERVER, ATTRIBUTES)
        body = wsgi_app(environ, start_response)
        span.set_attribute("http.response.status_code", 200)
        span.end()
        return body

    apps = {
        "bare": wsgi_app,
        "meshmw": wsgi.TraceContextMiddleware(wsgi_app),
        "contrib": ContribWSGI(wsgi_app),
        "SDK span alone": span_alone,
    }
    batches = {label: wsgi_batch(app, headers(traceparent)) for label, app in apps.items()}
    return Case(name, batches, floor="bare", between=flush, target=target, drawn=traceparent == SAMPLED)
