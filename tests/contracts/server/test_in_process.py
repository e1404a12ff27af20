"""A caller in the same process is no leak: the span that is current is the one that the headers name."""

import asyncio

import httpx
import pytest
from fastapi.testclient import TestClient
from flask import Flask
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

import meshmw.flask
from meshmw import MeshPropagator
from meshmw.asgi import TraceContextMiddleware
from meshmw.httpx import AsyncTraceContextTransport, TraceContextTransport

FORMATS = [("tracecontext",), ("b3",), ("b3multi",), ("tracecontext", "b3")]


@pytest.fixture(params=[ALWAYS_ON, ALWAYS_OFF], ids=["sampled", "not sampled"])
def provider(request):
    return TracerProvider(sampler=request.param)


@pytest.fixture(params=FORMATS, ids="+".join)
def propagator(request):
    return MeshPropagator(request.param)


@pytest.fixture
def options(propagator, provider):
    return {"propagator": propagator, "tracer_provider": provider}


@pytest.fixture
def seen():
    """The ids of the spans below which the applications have run, the outermost first."""
    return []


@pytest.fixture
def asgi_app(options, seen):
    async def app(scope, receive, send):
        seen.append(trace.get_current_span().get_span_context().trace_id)
        if scope["path"] == "/outer":
            transport = AsyncTraceContextTransport(httpx.ASGITransport(served), **options)
            async with httpx.AsyncClient(transport=transport) as client:
                await client.get("http://shop/inner")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    served = TraceContextMiddleware(app, **options)
    return served


@pytest.fixture
def flask_app(options, seen):
    app = Flask("shop")
    app.get("/inner")(lambda: seen.append(trace.get_current_span().get_span_context().trace_id) or "ok")
    meshmw.flask.init_app(app, **options)
    return app


def ask_asgi(app, path, headers, transport=lambda inner: inner):
    async def ask():
        async with httpx.AsyncClient(transport=transport(httpx.ASGITransport(app))) as client:
            await client.get(f"http://shop{path}", headers=headers)

    asyncio.run(ask())


def headers_here(propagator):
    headers = {}
    propagator.inject(headers)
    return headers


def test_a_call_through_httpxs_asgi_transport(asgi_app, provider, propagator, options, seen):
    with provider.get_tracer("test").start_as_current_span("test") as span:
        ask_asgi(asgi_app, "/inner", headers_here(propagator))
        ask_asgi(asgi_app, "/outer", {}, lambda inner: AsyncTraceContextTransport(inner, **options))
    assert seen == [span.get_span_context().trace_id] * 3
    assert propagator.rejections.counts == {}


def test_a_call_by_a_test_client(asgi_app, flask_app, provider, propagator, options, seen):
    with provider.get_tracer("test").start_as_current_span("test") as span:
        headers = headers_here(propagator)
        assert TestClient(asgi_app).get("/inner", headers=headers).status_code == 200
        assert flask_app.test_client().get("/inner", headers=headers).status_code == 200
        with httpx.Client(transport=TraceContextTransport(httpx.WSGITransport(flask_app), **options)) as client:
            assert client.get("http://shop/inner").status_code == 200
    assert seen == [span.get_span_context().trace_id] * 3
    assert propagator.rejections.counts == {}


@pytest.mark.parametrize("trust", ["restart", "ignore"])
def test_a_caller_that_is_not_trusted_is_no_leak_either(provider, trust):
    propagator = MeshPropagator()
    app = Flask("shop")
    app.get("/inner")(lambda: "ok")
    meshmw.flask.init_app(app, propagator=propagator, tracer_provider=provider, trust=trust)
    with provider.get_tracer("test").start_as_current_span("test"):
        app.test_client().get("/inner", headers=headers_here(propagator))
    assert propagator.rejections.counts == {}


def test_a_leak_is_still_one(asgi_app, flask_app, provider, propagator):
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("caller"):
        headers = headers_here(propagator)
    with tracer.start_as_current_span("leaked"):
        ask_asgi(asgi_app, "/inner", headers)
        flask_app.test_client().get("/inner", headers=headers)
        # A sibling of the leaked span's: the same trace, and another parent.
        with tracer.start_as_current_span("other"):
            sibling = headers_here(propagator)
        flask_app.test_client().get("/inner", headers=sibling)
    assert propagator.rejections.counts == {("context", "leaked_span"): 3}
