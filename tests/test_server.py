"""`server_span` and `set_route`: what they take, what they refuse, and where a route's name comes to stand."""

from __future__ import annotations

import asyncio
import copy
import logging
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import SpanKind, StatusCode
from quart import Quart
from starlette.applications import Starlette
from starlette.datastructures import Headers as ImmutableHeaders
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tornado.httputil import HTTPHeaders
from werkzeug.datastructures import Headers as WerkzeugsHeaders

import meshmw
import meshmw.aiohttp
from meshmw import asgi, wsgi
from meshmw._context.carriers import checked_headers, plain_text, with_rewrites
from meshmw._lifecycle import http, http_conventions
from meshmw.server import TraceContextBoundary
from tests.contracts.server.hosts.bare_asgi import BareASGI
from tests.contracts.server.hosts.bare_wsgi import BareWSGI
from tests.contracts.server.hosts.home_made import HomeMade

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE_ID}-{PARENT_ID}-01"
REFUSED = [("Host", "shop"), ("TraceParent", "junk"), ("tracestate", "a=1"), ("Accept", "x"), ("baggage", "a=1,=")]
KEPT = {"host": "shop", "accept": "x", "baggage": "a=1"}


@pytest.fixture(autouse=True)
def few_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_conventions, "_routes", set())


@pytest.fixture
def host() -> HomeMade:
    return HomeMade()


def block(host: HomeMade, headers: Any = (), **more: Any) -> Any:
    return host.app.span(headers, **({"method": "GET", "target": "/items/7"} | more))


# What headers may be.


@pytest.mark.parametrize(
    "headers",
    [
        REFUSED,
        tuple(REFUSED),
        [list(pair) for pair in REFUSED],
        dict(REFUSED),
        CIMultiDict(REFUSED),
        CIMultiDictProxy(CIMultiDict(REFUSED)),
        WerkzeugsHeaders(REFUSED),
        HTTPHeaders(REFUSED),
        {name: [value] for name, value in REFUSED},
        {name: (value,) for name, value in REFUSED},
    ],
    ids=lambda headers: type(headers).__name__,
)
def test_headers_keep_their_shape_and_stay_as_they_are(host: HomeMade, headers: Any) -> None:
    before = list(headers) if isinstance(headers, list | tuple) else list(headers.items())
    with block(host, headers) as span:
        seen = span.headers
    after = list(headers) if isinstance(headers, list | tuple) else list(headers.items())
    assert before == after
    assert type(seen) is type(headers) or isinstance(headers, CIMultiDictProxy)
    pairs = list(seen) if isinstance(seen, list | tuple) else list(seen.items())
    texts = {name.lower(): value if isinstance(value, str) else value[0] for name, value in pairs}
    assert texts == KEPT


@pytest.mark.parametrize("headers", [[("host", "shop")], {"host": "shop"}, CIMultiDict(host="shop"), (), {}])
def test_where_nothing_is_refused_the_headers_are_the_same_object(host: HomeMade, headers: Any) -> None:
    with block(host, headers) as span:
        assert span.headers is headers


def test_headers_that_can_be_gone_through_once_become_a_list(host: HomeMade) -> None:
    with block(host, (pair for pair in REFUSED)) as span:
        assert span.headers == [("Host", "shop"), ("Accept", "x"), ("baggage", "a=1")]
    with block(host, (pair for pair in [(b"traceparent", VALID.encode())])) as span:
        assert span.headers == [(b"traceparent", VALID.encode())]
    assert host.spans[1].parent.span_id == int(PARENT_ID, 16)


def test_several_lines_of_one_name_in_any_case_are_all_gone(host: HomeMade) -> None:
    for headers in ({"Traceparent": VALID, "traceparent": VALID, "X": "1"}, CIMultiDict(Traceparent=VALID, X="1")):
        if isinstance(headers, CIMultiDict):
            headers.add("traceparent", VALID)
        with block(host, headers) as span:
            assert dict(span.headers) == {"X": "1"}
    assert host.refusals == {("traceparent", "duplicate"): 2}


def test_a_header_without_a_line_is_none(host: HomeMade) -> None:
    with block(host, {"traceparent": [], "tracestate": None, "host": "shop"}):
        pass
    assert host.refusals == {}
    assert with_rewrites({"baggage": []}, {"baggage": "a=1"}) == {"baggage": ["a=1"]}


def test_a_copy_of_a_class_without_a_method_for_it_is_made() -> None:
    class Plain:
        def __init__(self, pairs: Any) -> None:
            self.pairs = dict(pairs)

        def items(self) -> Any:
            return self.pairs.items()

        def __copy__(self) -> Plain:
            return Plain(self.pairs)

        def __setitem__(self, name: str, value: str) -> None:
            self.pairs[name] = value

        def __delitem__(self, name: str) -> None:
            del self.pairs[name]

    given = checked_headers(Plain(REFUSED))
    assert with_rewrites(given, {"traceparent": None, "baggage": "a=1"}).pairs["baggage"] == "a=1"
    assert copy.copy(given).pairs == dict(REFUSED)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"headers": None}, "headers takes pairs"),
        ({"headers": "traceparent: x"}, "headers takes pairs"),
        ({"headers": b"x"}, "headers takes pairs"),
        ({"headers": ImmutableHeaders({"a": "b"})}, "a copy can be changed"),
        ({"method": None}, "method takes a text"),
        ({"target": 7}, "target takes a text"),
        ({"scheme": None}, "scheme takes a text"),
        ({"http_version": 1.1}, "http_version takes a text"),
        ({"peer": 7}, "peer takes a host"),
        ({"server": object()}, "server takes a host"),
    ],
)
def test_misuse_raises_where_the_block_is_made(host: HomeMade, arguments: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        block(host, **({"headers": ()} | arguments))


@pytest.mark.parametrize("pairs", [["traceparent"], [("a", "b", "c")], [(1, "x")], {1: "x"}, [None]])
def test_what_is_no_pair_raises_as_the_block_is_entered(host: HomeMade, pairs: Any) -> None:
    with pytest.raises(TypeError, match="pairs of name and value"):
        block(host, pairs).begin()


def test_a_block_is_for_one_request_and_says_so(host: HomeMade) -> None:
    with block(host) as span, pytest.raises(RuntimeError, match="served already"):
        span.begin()
    for call in (lambda new: new.current(), lambda new: new.end(), lambda new: new.set_route("/a")):
        with pytest.raises(RuntimeError, match="not served yet"):
            call(block(host))
    with pytest.raises(RuntimeError, match="not served yet"):
        block(host).record_exception(LookupError())


@pytest.mark.parametrize("code", ["200", None, 2.0, True])
def test_a_status_that_is_no_number_raises(host: HomeMade, code: Any) -> None:
    with block(host) as span, pytest.raises(TypeError, match="set_status takes"):
        span.set_status(code)


@pytest.mark.parametrize("template", [7, b"/items/{item}", ["/a"]])
def test_a_route_that_is_no_text_raises(host: HomeMade, template: Any) -> None:
    with block(host) as span:
        for call in (span.set_route, meshmw.set_route):
            with pytest.raises(TypeError, match="set_route takes"):
                call(template)


def test_an_option_that_is_none_raises() -> None:
    with pytest.raises(TypeError, match="trusted is no option"):
        TraceContextBoundary(trusted="restart")
    with pytest.raises(ValueError, match="trust takes"):
        TraceContextBoundary(trust="maybe")


# Nothing that a stranger sends raises.

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)
ANY_BYTES = st.binary(max_size=60)
NAMES = st.sampled_from(["traceparent", "TraceState", "baggage", "b3", "host", "User-Agent", "x-request-id", "\udcff"])


@given(
    st.lists(st.tuples(NAMES | ANY_TEXT, ANY_TEXT | ANY_BYTES)),
    ANY_TEXT | ANY_BYTES,
    ANY_TEXT | ANY_BYTES,
)
def test_no_bytes_of_a_strangers_raise(headers: Any, method: Any, target: Any) -> None:
    host = HomeMade()
    asked = []

    def trust(request: Any) -> Any:
        asked.append((request.path, request.header("host"), request.spiffe_id))
        return "continue"

    for shaped in (headers, dict(headers)):
        with TraceContextBoundary(**host.options, trust=trust).span(shaped, method=method, target=target):
            pass
    assert len(asked) == 2
    for span in host.spans:
        for value in span.attributes.values():
            str(value).encode()


def test_halves_of_characters_are_none() -> None:
    assert set(plain_text("a\udcff\ud800")) == {"a", "\ufffd"}
    assert plain_text(b"\xff") == "\xff"


# What the span says.


def test_a_span_says_what_was_asked(host: HomeMade) -> None:
    with block(
        host,
        [(b"User-Agent", b"probe/1")],
        method=b"POST",
        target=b"/st%C3%B6ck/\xc3\xb6?q=1&sig=x",
        scheme="https",
        peer=("10.0.0.9", 41000, 0, 0),
        server=("10.0.0.1", 8443),
        http_version="2",
    ) as span:
        span.set_status(404)
    assert dict(host.server_span.attributes) == {
        "http.request.method": "POST",
        "url.scheme": "https",
        "url.path": "/st\xf6ck/\xf6",
        "url.query": "q=1&sig=REDACTED",
        "client.address": "10.0.0.9",
        "network.peer.address": "10.0.0.9",
        "network.peer.port": 41000,
        "server.address": "10.0.0.1",
        "server.port": 8443,
        "network.protocol.version": "2",
        "user_agent.original": "probe/1",
        "http.response.status_code": 404,
    }


@pytest.mark.parametrize(
    ("peer", "found"),
    [
        (None, {}),
        ("", {}),
        (b"", {}),
        ((), {}),
        ("10.0.0.9", {"client.address": "10.0.0.9"}),
        (("10.0.0.9", "x"), {"client.address": "10.0.0.9"}),
        (b"\0abstract", {"client.address": "\0abstract"}),
        ((b"10.0.0.9", "x"), {"client.address": "10.0.0.9"}),
        (("/run/\udcff", "x"), {"client.address": "/run/\ufffd\ufffd\ufffd"}),
    ],
)
def test_a_peer_is_what_sockets_say(host: HomeMade, peer: Any, found: Any) -> None:
    with block(host, peer=peer):
        pass
    said = {name: value for name, value in host.server_span.attributes.items() if "client" in name or "peer" in name}
    assert said == found


def test_a_trust_callable_sees_the_request(host: HomeMade) -> None:
    seen = []

    def trust(request: Any) -> Any:
        seen.append((request.method, request.path, request.peer, request.header("X-Team"), request.header("X-None")))
        return "restart"

    boundary = TraceContextBoundary(**host.options, trust=trust)
    with boundary.span({"X-Team": ["a", "b"], "traceparent": VALID}, method="GET", target="/a%20b?c", peer="10.0.0.9"):
        pass
    assert seen == [("GET", "/a b", "10.0.0.9", "a,b", None)]
    assert host.server_span.parent is None
    assert host.server_span.links[0].context.trace_id == int(TRACE_ID, 16)


@pytest.mark.parametrize(
    ("error", "status"),
    [(LookupError("x"), 500), (asyncio.CancelledError(), None), (KeyboardInterrupt(), None), (GeneratorExit(), None)],
)
def test_what_the_block_raises_goes_on(host: HomeMade, error: BaseException, status: int | None) -> None:
    with pytest.raises(type(error)), block(host):
        raise error
    span = host.server_span
    assert span.attributes.get("http.response.status_code") == status
    assert span.attributes["meshmw.response.incomplete"] is True
    assert (span.status.status_code is StatusCode.ERROR) == isinstance(error, Exception)


def test_the_last_status_counts_and_one_that_was_set_stays(host: HomeMade) -> None:
    with block(host) as span:
        span.set_status(503)
        span.set_status(200)
    with pytest.raises(LookupError), block(host) as span:
        span.set_status(200)
        raise host.error
    first, second = host.server_spans
    assert (first.attributes["http.response.status_code"], first.status.status_code) == (200, StatusCode.UNSET)
    assert (second.attributes["http.response.status_code"], second.attributes["error.type"]) == (200, "LookupError")


def test_an_exception_that_the_server_answers_is_recorded(host: HomeMade) -> None:
    with block(host) as span:
        span.record_exception(host.error)
        span.set_status(503)
    assert host.server_span.attributes["error.type"] == "LookupError"
    assert "meshmw.response.incomplete" not in host.server_span.attributes


def test_a_span_ends_once(host: HomeMade) -> None:
    with block(host) as span:
        span.end()
    span.end(LookupError())
    span.set_status(500)
    span.set_route("/late")
    assert host.server_span.name == "GET"
    assert host.server_span.status.status_code is StatusCode.UNSET


def test_a_request_that_is_over_holds_no_headers(host: HomeMade) -> None:
    left = []
    with block(host, REFUSED):
        left.append(otel_context.get_current())
    assert http.current_operation(left[0]) is None
    (request,) = [value for value in left[0].values() if isinstance(value, http.Request)]
    assert request.carrier == {}


# One span per request, whoever else serves it.


def test_a_block_within_a_block_for_one_request_has_no_span(host: HomeMade) -> None:
    with block(host, REFUSED) as outer:
        with block(host, outer.headers) as inner:
            meshmw.set_route("/items/{item}")
            inner.set_route("/other")
            inner.set_status(200)
        with block(host, list(outer.headers)):
            "another request, that is served meanwhile"
        with block(host, outer.headers, target="/other"):
            "another one"
    assert [span.name for span in host.server_spans] == ["GET", "GET", "GET /items/{item}"]
    assert host.refusals[("context", "leaked_span")] == 2


@pytest.mark.parametrize("kind", [BareASGI, BareWSGI])
def test_a_block_within_a_middleware_has_no_span_and_names_the_outer(kind: Any) -> None:
    host = kind()
    boundary = TraceContextBoundary(**host.options)

    def inner() -> None:
        headers = [("Host", "shop.internal:8080"), ("traceparent", VALID)]
        with boundary.span(headers, method="GET", target="/items/7") as span:
            span.set_status(500)
            span.set_route("/items/{item}")

    host.during = inner
    host.get(headers=[("traceparent", VALID)])
    assert host.server_span.name == "GET /items/{item}"
    assert host.server_span.attributes["http.response.status_code"] == 200


def test_a_middleware_within_a_block_has_no_span() -> None:
    host = BareASGI()

    async def serve() -> None:
        scope = host.scope("/items/7", [])
        with TraceContextBoundary(**host.options).span(scope["headers"], method="GET", target="/items/7"):
            await host.app(scope, None, lambda message: asyncio.sleep(0))

    asyncio.run(serve())
    assert len(host.server_spans) == 1


@pytest.mark.parametrize("kind", [Flask, Quart])
def test_a_framework_within_a_block_names_it(host: HomeMade, kind: Any) -> None:
    app = kind("shop")
    app.get("/items/<item>")(lambda item: {"item": item})
    TraceContextBoundary()
    if kind is Flask:
        with block(host, [("Host", "localhost")]):
            app.test_client().get("/items/7")
    else:

        async def serve() -> None:
            with block(host, [("Host", "localhost")]):
                await app.test_client().get("/items/7")

        asyncio.run(serve())
    assert host.server_span.name == "GET /items/<item>"


def test_a_host_that_opened_the_span_keeps_it(host: HomeMade) -> None:
    tracer = host.tracer_provider.get_tracer("host")
    around = host.propagator.extract({"traceparent": VALID}, Context())
    with tracer.start_as_current_span("host", around, SpanKind.SERVER), block(host, {"traceparent": VALID}) as span:
        span.set_status(500)
        span.set_route("/of/the/server")
        meshmw.set_route("/items/{item}")
    assert host.server_span.name == "GET /items/{item}"
    assert "http.response.status_code" not in host.server_span.attributes


def test_the_configured_boundary_serves_with_what_was_configured(caplog: pytest.LogCaptureFixture) -> None:
    with meshmw.server_span({"traceparent": VALID}, method="GET", target="/items/7") as span:
        span.set_status(200)
        carried: dict[str, str] = {}
        meshmw.inject(carried)
    assert carried["traceparent"].startswith(f"00-{TRACE_ID}-")


# set_route.


def test_outside_of_a_request_a_route_names_nothing(caplog: pytest.LogCaptureFixture, host: HomeMade) -> None:
    caplog.set_level(logging.DEBUG, "meshmw")
    meshmw.set_route("/items/{item}")
    assert "outside of a request" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    with block(host):
        left = otel_context.get_current()
    token = otel_context.attach(left)
    meshmw.set_route("/items/{item}")
    otel_context.detach(token)
    assert host.server_span.name == "GET"


@pytest.mark.parametrize("template", [None, ""])
def test_no_route_changes_nothing(host: HomeMade, template: Any) -> None:
    with block(host) as span:
        meshmw.set_route("/items/{item}")
        meshmw.set_route(template)
        span.set_route(template)
    assert host.server_span.name == "GET /items/{item}"


async def in_a_task() -> None:
    await asyncio.create_task(in_a_coroutine())


async def in_a_coroutine() -> None:
    meshmw.set_route("/items/{item}")


async def in_a_thread() -> None:
    await asyncio.to_thread(meshmw.set_route, "/items/{item}")


async def in_a_pool() -> None:
    with meshmw.concurrency.ThreadPoolExecutor(1) as pool:
        pool.submit(meshmw.set_route, "/items/{item}").result()


async def in_a_pool_without_the_context() -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(meshmw.set_route, "/items/{item}").result()


@pytest.mark.parametrize("where", [in_a_coroutine, in_a_task, in_a_thread, in_a_pool, in_a_pool_without_the_context])
def test_a_route_is_set_wherever_the_context_is(where: Any) -> None:
    host = BareASGI()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await where()
        await host.application(scope, receive, send)

    host.app.app = application
    host.get()
    is_there = where is not in_a_pool_without_the_context
    assert host.server_span.name == ("GET /items/{item}" if is_there else "GET")


def test_a_route_is_set_while_a_wsgi_body_is_made() -> None:
    host = BareWSGI()
    host.during = lambda: meshmw.set_route("/stream/{of}")
    host.get("/stream")
    assert host.server_span.name == "GET /stream/{of}"


def test_what_the_application_says_goes_before_what_its_framework_has_matched() -> None:
    host = BareASGI()

    async def plain(request: Any) -> Any:
        meshmw.set_route("/chosen/{item}")
        return PlainTextResponse("ok")

    host.app.app = Starlette(routes=[Route("/items/{item}", plain)])
    host.get()
    assert host.server_span.name == "GET /chosen/{item}"
    app = Flask("shop")
    app.get("/items/<item>")(lambda item: meshmw.set_route("/chosen/{item}") or "ok")
    flasks = BareWSGI()
    flasks.app = wsgi.TraceContextMiddleware(app, **flasks.options)
    flasks.get()
    assert flasks.server_span.name == "GET /chosen/{item}"


def test_a_route_that_is_chosen_twice_is_the_last(host: HomeMade) -> None:
    with block(host) as span:
        meshmw.set_route("/first")
        meshmw.set_route("/second")
        span.set_route("/third")
    assert host.server_span.name == "GET /second"


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Any:
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("test")
    histogram = meter.create_histogram("http.server.request.duration")
    monkeypatch.setattr(http, "SERVER", histogram)
    monkeypatch.setattr(http, "SERVER_IS_MEASURED", lambda: True)

    def read() -> Any:
        data = reader.get_metrics_data()
        (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
        return [dict(point.attributes) for point in metric.data.data_points]

    return read


@pytest.mark.parametrize("is_sampled", [True, False])
def test_a_route_is_a_label_of_the_metric(host: HomeMade, points: Any, is_sampled: bool) -> None:
    with block(host, {"traceparent": VALID if is_sampled else VALID[:-1] + "0"}) as span:
        meshmw.set_route("/items/{item}")
        span.set_status(200)
    (labels,) = points()
    assert (labels["http.route"], labels["http.response.status_code"]) == ("/items/{item}", 200)
    assert len(host.spans) == is_sampled


def test_paths_that_are_given_for_routes_are_no_labels_without_end(
    host: HomeMade, points: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_conventions, "_MOST_ROUTES", 5)
    monkeypatch.setattr(http_conventions, "_no_templates", http_conventions.Throttle())
    for number in range(20):
        with block(host):
            meshmw.set_route(f"/items/{number}")
    with block(host):
        meshmw.set_route("/" + "x" * 600)
    assert len({span.name for span in host.server_spans}) == 6
    assert len(points()) == 6
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "a route is a template" in warning


def test_a_route_with_half_a_character_is_no_template(
    host: HomeMade, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_conventions, "_no_templates", http_conventions.Throttle())
    with block(host):
        meshmw.set_route("/items/\udcff")
    with block(host):
        meshmw.set_route("/b\u00fccher/{item}")
    # No exporter can encode the half, and with it the whole batch would be lost.
    assert [span.name for span in host.server_spans] == ["GET", "GET /b\u00fccher/{item}"]
    assert "a route is a template" in caplog.text


def test_a_route_within_a_contrib_span_of_ones_own_hurts_nobody() -> None:
    host = BareASGI()
    host.app = asgi.TraceContextMiddleware(host.application, **host.options, server_spans="contrib")
    host.during = lambda: meshmw.set_route("/items/{item}")
    assert host.get().status == 200


# aiohttp's middleware, beyond the contract.


def aiohttp_app(host: HomeMade, **routes: Any) -> web.Application:
    app = web.Application(middlewares=[meshmw.aiohttp.TraceContextMiddleware(**host.options)])
    for name, handler in routes.items():
        app.router.add_get(f"/{name}/{{item}}", handler)
    return app


def ask_aiohttp(app: web.Application, *paths: str, **headers: str) -> list[int]:
    async def ask() -> list[int]:
        async with TestClient(TestServer(app)) as client:
            return [(await client.get(path, headers=headers)).status for path in paths]

    return asyncio.run(ask())


async def busy(request: web.Request) -> web.Response:
    raise web.HTTPServiceUnavailable


async def late(request: web.Request) -> web.Response:
    raise TimeoutError


async def plain(request: web.Request) -> web.Response:
    return web.Response(text="ok")


def test_aiohttps_answers_by_exception_are_answers(host: HomeMade) -> None:
    assert ask_aiohttp(aiohttp_app(host, busy=busy, late=late), "/busy/7", "/late/7", "/none") == [503, 504, 404]
    found = [(span.name, span.attributes.get("error.type"), len(span.events)) for span in host.server_spans]
    assert found == [("GET /busy/{item}", "503", 0), ("GET /late/{item}", "TimeoutError", 1), ("GET", None, 0)]
    codes = [span.attributes["http.response.status_code"] for span in host.server_spans]
    assert codes == [503, 504, 404]


@pytest.mark.parametrize("traceparent", [VALID, "junk"])
def test_aiohttps_application_within_another_has_one_span(host: HomeMade, traceparent: str) -> None:
    app = aiohttp_app(host)
    app.add_subapp("/shop", aiohttp_app(host, items=plain))
    assert ask_aiohttp(app, "/shop/items/7", traceparent=traceparent) == [200]
    assert host.server_span.name == "GET /shop/items/{item}"
    assert ("context", "leaked_span") not in host.refusals


@pytest.mark.parametrize("traceparent", [VALID, "junk"])
def test_aiohttps_request_is_the_same_but_for_what_was_refused(host: HomeMade, traceparent: str) -> None:
    seen = []

    @web.middleware
    async def outermost(request: web.Request, handler: Any) -> web.StreamResponse:
        # As aiohttp-remotes puts the client's address there, and as one that verifies a signature reads the body.
        request = request.clone(remote="10.0.0.9", scheme="https", host="shop")
        await request.read()
        return await handler(request)

    async def echo(request: web.Request) -> web.Response:
        seen.append((await request.text(), request.remote, request.scheme, request.host, request.match_info["item"]))
        seen.append((request.headers.get("traceparent"), request.headers["user-agent"], dict(request.raw_headers)))
        return web.Response(text="ok")

    async def ask() -> bytes:
        app = web.Application(middlewares=[outermost, meshmw.aiohttp.TraceContextMiddleware(**host.options)])
        app.router.add_post("/items/{item}", echo)
        async with TestServer(app) as server:
            reader, writer = await asyncio.open_connection(server.host, server.port)
            writer.write(b"POST /items/7 HTTP/1.0\r\nHost: x\r\nContent-Length: 2\r\nUser-Agent: \xff\r\n")
            writer.write(f"traceparent: {traceparent}\r\n\r\nab".encode())
            answer = await reader.read()
            writer.close()
            return answer

    assert asyncio.run(ask()).startswith(b"HTTP/1.0 200")
    request, (kept, user_agent, raw) = seen
    assert request == ("ab", "10.0.0.9", "https", "shop", "7")
    assert (kept, user_agent) == (VALID if traceparent == VALID else None, "\udcff")
    assert raw[b"User-Agent"] == b"\xff"
    assert (b"traceparent" in raw) == (traceparent == VALID)
    assert host.server_span.name == "POST /items/{item}"


def test_aiohttps_handler_without_a_response_is_aiohttps_matter(
    host: HomeMade, caplog: pytest.LogCaptureFixture
) -> None:
    async def nothing(request: web.Request) -> Any:
        return None

    assert ask_aiohttp(aiohttp_app(host, nothing=nothing), "/nothing/7") == [500]
    assert "Missing return statement" in caplog.text
    assert host.server_span.attributes["http.response.status_code"] == 500


@pytest.mark.parametrize("remote", ["127.0.0.1", "10.0.0.9", None])
def test_aiohttps_peer_is_what_the_application_says(host: HomeMade, remote: str | None) -> None:
    transport = SimpleNamespace(get_extra_info=lambda name, default=None: ("127.0.0.1", 41000))
    request = make_mocked_request("GET", "/", transport=transport).clone(remote=remote or "10.0.0.7")
    if remote is None:
        # The client has gone.
        request.protocol.transport = None
    middleware = meshmw.aiohttp.TraceContextMiddleware(**host.options)
    request._match_info = SimpleNamespace(route=SimpleNamespace(resource=None))
    asyncio.run(middleware(request, plain))
    attributes = host.server_span.attributes
    assert attributes["client.address"] == (remote or "10.0.0.7")
    assert ("network.peer.port" in attributes) == (remote == "127.0.0.1")
