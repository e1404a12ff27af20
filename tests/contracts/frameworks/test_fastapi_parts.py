"""What FastAPI runs around a route is in the request's trace: with its own telemetry off, on, and inside ours."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse
from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.middleware.base import BaseHTTPMiddleware

from meshmw import MeshPropagator
from meshmw.asgi import TraceContextMiddleware

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}


class Service:
    """A FastAPI application with our middleware, and what its parts saw."""

    def __init__(self, placement):
        self.placement = placement
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.options = {"tracer_provider": self.provider, "propagator": MeshPropagator()}
        native = {"tracer_provider": self.provider, "metrics": False, "logs": False, "operation_spans": False}
        self.app = FastAPI(telemetry={"tracing": False} if placement == "no telemetry" else native)
        self.seen = []

    @property
    def own_span(self):
        return self.placement != "inside telemetry"

    def served(self):
        if self.placement == "around telemetry":
            return TraceContextMiddleware(self.app, **self.options)
        self.app.add_middleware(TraceContextMiddleware, **self.options)
        return self.app

    def see(self, what):
        self.seen.append((what, f"{trace.get_current_span().get_span_context().trace_id:032x}"))

    def get(self, path="/x", served=None):
        """Return the answer, or what was raised to the server."""

        async def ask():
            transport = httpx.ASGITransport(served or self.served())
            async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
                return await client.get(path, headers=HEADERS)

        try:
            return asyncio.run(ask())
        except Exception as error:
            return error

    @property
    def span(self):
        (only,) = [span for span in self.exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
        assert f"{only.parent.span_id:016x}" == PARENT_ID
        return only

    def saw(self, *expected):
        return self.seen == [(what, TRACE_ID) for what in expected]


@pytest.fixture(params=["no telemetry", "inside telemetry", "around telemetry"])
def service(request):
    before = propagate.get_global_textmap()
    found = Service(request.param)
    propagate.set_global_textmap(found.options["propagator"])
    yield found
    propagate.set_global_textmap(before)


@pytest.fixture(autouse=True)
def nothing_is_said(caplog):
    yield
    said = [record.getMessage() for record in caplog.get_records("call")]
    assert not [line for line in said if "detach" in line or "ended span" in line], said


def test_a_dependency_sees_the_trace_before_and_after_its_yield(service):
    async def session():
        service.see("opened")
        yield
        service.see("closed")

    def sync_session(_: None = Depends(session)):
        service.see("opened in a thread")
        yield
        service.see("closed in a thread")

    @service.app.get("/x")
    def route(_: None = Depends(sync_session)):
        service.see("route")

    assert service.get().status_code == 200
    assert service.saw("opened", "opened in a thread", "route", "closed in a thread", "closed")
    assert service.span.name == "GET /x"


def test_a_dependency_that_fails_after_the_response_changes_no_span(service):
    async def session():
        yield
        raise LookupError("cannot close")

    @service.app.get("/x")
    async def route(_: None = Depends(session)):
        return 1

    assert str(service.get()) == "cannot close"
    if service.own_span:
        assert service.span.attributes["http.response.status_code"] == 200
        assert service.span.status.status_code is StatusCode.UNSET


def test_a_dependency_sees_the_error_of_its_route_which_passes_on(service):
    async def session():
        try:
            yield
        except LookupError:
            service.see("rolled back")
            raise

    @service.app.get("/x")
    async def route(_: None = Depends(session)):
        raise LookupError("out of stock")

    assert str(service.get()) == "out of stock"
    assert service.saw("rolled back")
    assert service.span.status.status_code is StatusCode.ERROR


@pytest.mark.parametrize(("status", "is_error"), [(418, False), (503, True)])
def test_the_status_of_an_exception_handler_is_the_spans(service, status, is_error):
    @service.app.exception_handler(LookupError)
    async def handle(request: Request, error: LookupError):
        service.see("handler")
        return PlainTextResponse("gone", status)

    @service.app.get("/x")
    async def route():
        raise LookupError("out of stock")

    assert service.get().status_code == status
    assert service.saw("handler")
    assert service.span.attributes["http.response.status_code"] == status
    assert (service.span.status.status_code is StatusCode.ERROR) is is_error


def test_an_http_exception_is_an_answer(service):
    @service.app.get("/x")
    async def route():
        raise HTTPException(404)

    assert service.get().status_code == 404
    assert service.span.attributes["http.response.status_code"] == 404
    assert service.span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("placed", ["below", "above"])
def test_base_http_middleware_below_or_above_ours_keeps_the_trace(service, placed):
    async def dispatch(request, call_next):
        service.see("before")
        response = await call_next(request)
        service.see("after")
        return response

    @service.app.get("/items/{item}")
    async def route(item: str):
        service.see("route")
        return item

    if placed == "below":
        service.app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    served = service.served()
    if placed == "above" and served is service.app:
        service.app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    elif placed == "above":
        served = BaseHTTPMiddleware(served, dispatch)
    assert service.get("/items/7", served).status_code == 200
    assert dict(service.seen)["route"] == TRACE_ID
    if placed == "below" or not service.own_span:
        assert service.saw("before", "route", "after")
    assert service.span.name == "GET /items/{item}"


def test_base_http_middleware_that_answers_itself_is_one_span(service):
    async def dispatch(request, call_next):
        return PlainTextResponse("no", 403)

    service.app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    assert service.get().status_code == 403
    assert service.span.attributes["http.response.status_code"] == 403


def test_a_sub_application_with_telemetry_and_middleware_of_its_own_is_the_same_request(service):
    native = {"tracer_provider": service.provider, "metrics": False, "logs": False, "operation_spans": False}
    admin = FastAPI(telemetry=native)
    admin.add_middleware(TraceContextMiddleware, **service.options)

    @admin.get("/users/{user}")
    def route(user: str):
        service.see("route")
        return user

    service.app.mount("/admin", admin)
    assert service.get("/admin/users/7").text == json.dumps("7")
    assert service.saw("route")
    if service.own_span:
        assert service.span.name == "GET /admin/users/{user}"
    assert service.span
