"""httpx, sync and async: what each tracing transport adds to an outbound request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx
from opentelemetry import context as otel_context
from opentelemetry.instrumentation.httpx import AsyncOpenTelemetryTransport, SyncOpenTelemetryTransport
from opentelemetry.trace import SpanKind, get_tracer

from meshmw import MeshPropagator
from meshmw.httpx import AsyncTraceContextTransport, TraceContextTransport
from tests.benchmarks.floor_sent import SentInOneFunction
from tests.benchmarks.measure import Batch, Case
from tests.benchmarks.traffic import COMMON, SAMPLED, STATE, UNSAMPLED, flush, loop, provider

URL = "http://items.local:8000/items/1?page=1"

# What our own span says of the request.
ATTRIBUTES = {
    "http.request.method": "GET",
    "server.address": "items.local",
    "server.port": 8000,
    "url.full": URL,
}


class _Answers(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Answers at once, so that only what is around it takes time."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=b"ok")

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=b"ok")


class _SpanAlone(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Starts and ends a span with our attributes around each request, and does nothing else."""

    def __init__(self) -> None:
        self._tracer = provider().get_tracer("sdk")

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        span = self._tracer.start_span("GET", None, SpanKind.CLIENT, ATTRIBUTES)
        response = httpx.Response(200, content=b"ok")
        span.set_attribute("http.response.status_code", 200)
        span.end()
        return response

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)


def cases() -> list[Case]:
    """Return the cases of this file."""
    provider()
    target = {"contrib": 1 / 4}
    sync = {
        "bare": _Answers(),
        "meshmw": TraceContextTransport(_Answers()),
        "contrib": SyncOpenTelemetryTransport(_Answers()),
        "one function": SentInOneFunction(_Answers()),
        "SDK span alone": _SpanAlone(),
    }
    asynchronous = {
        "bare": _Answers(),
        "meshmw": AsyncTraceContextTransport(_Answers()),
        "contrib": AsyncOpenTelemetryTransport(_Answers()),
        "SDK span alone": _SpanAlone(),
    }
    cases = []
    for name, traceparent in (("sampled", SAMPLED), ("unsampled", UNSAMPLED)):
        batches = {label: _sync(transport, traceparent) for label, transport in sync.items()}
        cases.append(Case(f"httpx request, {name}", batches, floor="bare", between=flush, target=target))
    batches = {label: _async(transport) for label, transport in asynchronous.items()}
    cases.append(Case("httpx request, async, sampled", batches, floor="bare", between=flush, target=target))
    return cases


def _sync(transport: httpx.BaseTransport, traceparent: str) -> Batch:
    around = _around(traceparent)

    def send(times: int) -> None:
        with around():
            for _ in range(times):
                transport.handle_request(httpx.Request("GET", URL)).close()

    return send


def _async(transport: httpx.AsyncBaseTransport) -> Batch:
    around = _around(SAMPLED)

    async def send(times: int) -> None:
        with around():
            for _ in range(times):
                response = await transport.handle_async_request(httpx.Request("GET", URL))
                await response.aclose()

    return lambda times: loop().run_until_complete(send(times))


def _around(traceparent: str) -> Callable[[], AbstractContextManager[object]]:
    """Return what makes a request that is being served current, as where a service calls the next one."""
    received = MeshPropagator().extract({**dict(COMMON), "traceparent": traceparent, **dict(STATE)})

    @contextmanager
    def serving() -> Iterator[None]:
        # Not `start_as_current_span(..., received)`: of that only the span would be current, and no baggage.
        token = otel_context.attach(received)
        try:
            with get_tracer("service").start_as_current_span("GET"):
                yield
        finally:
            otel_context.detach(token)

    return serving
