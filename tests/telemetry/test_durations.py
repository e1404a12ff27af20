"""HTTP durations: once per request, with the conventions' labels and buckets, and no label that a stranger chooses."""

from __future__ import annotations

import asyncio

import flask
import httpx
import pytest
from opentelemetry.metrics import NoOpHistogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from werkzeug.test import Client

import meshmw.flask
from meshmw import MeshPropagator
from meshmw._lifecycle import http_conventions as durations
from meshmw._lifecycle.http import begin_client
from meshmw._notices import Throttle
from meshmw._runtime import TRACER, Runtime
from meshmw.asgi import TraceContextMiddleware
from meshmw.httpx import TraceContextTransport
from meshmw.wsgi import TraceContextMiddleware as WsgiMiddleware

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)


@pytest.fixture
def measured(monkeypatch):
    """Return a function that returns every (name, labels, count) so far, of a provider of its own."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    meter = provider.get_meter("test")
    for name in ("SERVER", "CLIENT"):
        own = meter.create_histogram(
            f"http.{name.lower()}.request.duration", "s", explicit_bucket_boundaries_advisory=durations._BUCKETS
        )
        monkeypatch.setattr(f"meshmw._lifecycle.http.{name}", own)
        monkeypatch.setattr(f"meshmw._lifecycle.http.{name}_IS_MEASURED", lambda: True)
        monkeypatch.setattr(durations, name, own)
    monkeypatch.setattr(durations, "_hosts", set())
    monkeypatch.setattr("meshmw._runtime._fallback", Runtime())

    def collect():
        data = reader.get_metrics_data()
        metrics = [m for r in (data.resource_metrics if data else []) for s in r.scope_metrics for m in s.metrics]
        for metric in metrics:
            assert all(tuple(point.explicit_bounds) == BUCKETS for point in metric.data.data_points)
        return [(m.name, dict(point.attributes), point.count) for m in metrics for point in m.data.data_points]

    yield collect
    provider.shutdown()


class Route:
    path = "/items/{item}"


async def app(scope, receive, send):
    if scope["path"].startswith("/items"):
        scope["route"] = Route()
    if scope["path"] == "/fails":
        raise LookupError
    status = 503 if scope["path"] == "/sorry" else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def serve(
    path="/",
    method="GET",
    sampler=ALWAYS_ON,
    *,
    scheme="http",
    version="1.1",
    spans=None,
    headers=(),
    processor=None,
    limits=None,
    **options,
):
    scope = {"type": "http", "path": path, "method": method, "scheme": scheme, "http_version": version}
    scope["headers"] = list(headers)

    async def ignore(message=None):
        return {"type": "http.request"}

    provider = TracerProvider(sampler, shutdown_on_exit=False, span_limits=limits)
    if processor is not None:
        provider.add_span_processor(processor)
    if spans is not None:
        provider.add_span_processor(SimpleSpanProcessor(spans))
    wrapped = TraceContextMiddleware(app, tracer_provider=provider, propagator=MeshPropagator(), **options)
    asyncio.run(wrapped(scope, ignore, ignore))


def labels(**more):
    plain = {"http.request.method": "GET", "url.scheme": "http", "network.protocol.version": "1.1"}
    return plain | {name.replace("__", "."): value for name, value in more.items()}


@pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF])
def test_a_request_is_measured_once_under_its_route_whether_it_is_sampled_or_not(sampler, measured):
    for item in range(3):
        serve(f"/items/{item}", sampler=sampler)
    expected = {**labels(http__route="/items/{item}"), "http.response.status_code": 200}
    assert measured() == [("http.server.request.duration", expected, 3)]


class Writes(SpanProcessor):
    """Writes into a span that starts, among it what is a label of the duration too."""

    def on_start(self, span, parent_context=None):
        for number in range(20):
            span.set_attribute(f"more{number}", number)
        span.set_attribute("http.request.method", "a stranger's")


@pytest.mark.parametrize("flags", [b"00", b"01"])
@pytest.mark.parametrize("limits", [None, SpanLimits(max_span_attributes=10)])
def test_what_a_processor_writes_into_the_span_is_no_label(measured, flags, limits):
    traceparent = (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-" + flags)
    serve("/items/7", headers=[traceparent], processor=Writes(), limits=limits)
    found = labels(http__route="/items/{item}", http__response__status_code=200)
    assert measured() == [("http.server.request.duration", found, 1)]


def test_an_answer_of_5xx_and_an_exception_are_errors(measured):
    serve("/sorry")
    with pytest.raises(LookupError):
        serve("/fails")
    found = [found for _, found, _ in measured()]
    assert {**labels(), "http.response.status_code": 503, "error.type": "503"} in found
    assert {**labels(), "http.response.status_code": 500, "error.type": "LookupError"} in found


def test_what_happens_after_the_last_byte_changes_nothing_of_what_was_recorded(measured):
    """The meter provider may hold on to the labels that it was given."""
    operation = begin_client("GET", lambda: {"http.request.method": "GET", "server.address": "a.b"}, TRACER)
    operation.status(200, error_from=400)
    operation.end()
    operation.fail(LookupError())
    operation.status(500, error_from=400)
    operation.route("/late")
    operation.end()
    found = {"http.request.method": "GET", "server.address": "a.b", "http.response.status_code": 200}
    assert measured() == [("http.client.request.duration", found, 1)]


def test_a_meter_provider_that_raises_fails_no_request_and_is_said_once(monkeypatch, caplog):
    class Raising(NoOpHistogram):
        def record(self, *args, **named):
            raise RuntimeError

    monkeypatch.setattr("meshmw._lifecycle.http.SERVER", Raising("h"))
    monkeypatch.setattr("meshmw._lifecycle.http.SERVER_IS_MEASURED", lambda: True)
    monkeypatch.setattr(durations, "_failures", Throttle())
    spans = InMemorySpanExporter()
    for _ in range(2):
        serve(spans=spans)
    assert len(spans.get_finished_spans()) == 2
    assert caplog.messages == ["the meter provider raised; requests are unaffected, and durations are missing"]


def test_cancellation_is_no_error():
    measurement = durations.Measurement(durations.SERVER, {"http.request.method": "GET"})
    measurement.fail(asyncio.CancelledError())
    assert measurement.labels == {"http.request.method": "GET"}


def test_what_a_stranger_chooses_is_no_label(measured):
    for number in range(20):
        serve(f"/unknown/{number}", method=f"HACK{number}", scheme=f"s{number}", version=f"9.{number}")
    assert measured() == [
        ("http.server.request.duration", {"http.request.method": "_OTHER", "http.response.status_code": 200}, 20)
    ]


@pytest.mark.parametrize(("code", "label"), [(99, None), (100, 100), (503, 503), (999, 999), (1000, None)])
def test_a_status_code_that_is_none_is_no_label(code, label):
    measurement = durations.Measurement(durations.CLIENT, {"http.request.method": "GET", "server.address": "shop"})
    measurement.status(code, error_from=400)
    assert measurement.labels.get("http.response.status_code") == label
    assert measurement.labels.get("error.type") == {503: "503", 999: "999", 1000: "_OTHER"}.get(code)


@pytest.mark.parametrize("options", [{"exclude": ["/health"]}, {"server_spans": "off"}])
def test_what_has_no_span_by_wish_is_not_measured(options, measured):
    serve("/health/live", **options)
    assert measured() == []


def test_flask_routes_are_labels(measured):
    application = flask.Flask("shop")
    application.get("/stock/<item>")(lambda item: item)
    meshmw.flask.init_app(application)
    Client(application).get("/stock/teapot").close()
    ((name, found, count),) = measured()
    assert (name, found["http.route"], found["http.response.status_code"], count) == (
        "http.server.request.duration",
        "/stock/<item>",
        200,
        1,
    )


def test_a_wsgi_body_that_is_closed_early_is_measured_once(measured):
    def application(environ, start_response):
        start_response("200 OK", [])
        return iter([b"a", b"b"])

    body = WsgiMiddleware(application)({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda *_: None)
    next(iter(body))
    body.close()
    body.close()
    assert [count for _, _, count in measured()] == [1]


class TestClients:
    def client(self, answer):
        return httpx.Client(transport=TraceContextTransport(httpx.MockTransport(answer), propagator=MeshPropagator()))

    def test_a_call_is_measured_with_the_host(self, measured):
        self.client(lambda request: httpx.Response(404)).get("http://inventory:8080/stock/1?q=2")
        assert measured() == [
            (
                "http.client.request.duration",
                {
                    "http.request.method": "GET",
                    "server.address": "inventory",
                    "server.port": 8080,
                    "http.response.status_code": 404,
                    "error.type": "404",
                },
                1,
            )
        ]

    def test_a_call_that_fails_is_measured_too(self, measured):
        def refuse(request):
            raise httpx.ConnectError("refused")

        with pytest.raises(httpx.ConnectError):
            self.client(refuse).get("http://inventory/")
        ((_, found, count),) = measured()
        assert (found["error.type"], "http.response.status_code" in found, count) == ("httpx.ConnectError", False, 1)

    def test_hosts_without_end_are_one(self, measured):
        client = self.client(lambda request: httpx.Response(200))
        for number in range(120):
            client.get(f"http://host-{number}/")
        client.get("http://host-0/")
        found = {(each["server.address"], each.get("server.port")): count for _, each, count in measured()}
        assert len(found) == 101
        assert found["_OTHER", None] == 20
        assert found["host-0", 80] == 2


def test_without_a_meter_provider_nothing_is_measured():
    assert not durations.SERVER_IS_MEASURED()


PROGRAM = """
import httpx, asyncio, prometheus_client
configure(Settings(exporter="none", metrics="prometheus", service_name="s"))
from fastapi import FastAPI
from meshmw.asgi import TraceContextMiddleware
async def endpoint(item: str): return item
def made(how):
    app = FastAPI()
    app.get("/items/{item}")(endpoint)
    if how == "inside": app.add_middleware(TraceContextMiddleware)
    return TraceContextMiddleware(app) if how == "around" else app
async def ask(app):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s") as client:
        await client.get("/items/7", headers={"traceparent": "00-xyz"})
HOW = "%s"
asyncio.run(ask(made(HOW)))
scrape = prometheus_client.generate_latest().decode()
print([line for line in scrape.splitlines() if line.startswith("http_server_request_duration_seconds_count")])
print("meshmw_context_extractions_total" in scrape)
"""


@pytest.mark.parametrize("how", ["inside", "around"])
def test_beside_fastapis_own_metrics_a_request_is_measured_once(how, run_program):
    program = run_program(PROGRAM % how, strict=False)
    (line, counted) = program.stdout.splitlines()
    assert line.count("http_server_request_duration_seconds_count") == 1, program.stdout + program.stderr
    assert 'http_route="/items/{item}"' in line
    assert line.endswith(" 1.0']")
    assert counted == "True"
