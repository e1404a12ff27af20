"""Blocks of `server_span` where they do not nest as blocks do: dropped, left in another thread, one within another."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.headers import Headers as WsgirefsHeaders

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from opentelemetry import baggage, trace
from opentelemetry.context import Context
from werkzeug.datastructures import EnvironHeaders

import meshmw
import meshmw.aiohttp
from meshmw import asgi, wsgi
from meshmw._otel import runtime_context, set_runtime_context
from meshmw.server import TraceContextBoundary
from tests.contracts.server.hosts.bare_asgi import BareASGI
from tests.contracts.server.hosts.home_made import HomeMade
from tests.test_server import PARENT_ID, REFUSED, VALID, block


@pytest.fixture
def host() -> HomeMade:
    return HomeMade()


def soon(found: Callable[[], Any]) -> Any:
    """What a span ends in a thread of its own is there within a moment."""
    for _ in range(500):
        if found():
            break
        time.sleep(0.01)
    return found()


def in_a_thread(call: Callable[[], Any]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def is_served() -> bool:
    return trace.get_current_span().get_span_context().is_valid


# Nobody ends it.


def begun(host: HomeMade) -> None:
    block(host).begin().set_status(204)


def entered(host: HomeMade) -> None:
    block(host).__enter__().set_status(204)


def entered_within_a_circle(host: HomeMade) -> None:
    circle: list[Any] = [block(host).__enter__()]
    circle[0].set_status(204)
    circle.append(circle)


@pytest.mark.parametrize("leave_open", [begun, entered, entered_within_a_circle])
def test_a_span_that_nobody_can_end_any_more_ends_unfinished(host: HomeMade, leave_open: Any) -> None:
    def left() -> bool:
        leave_open(host)
        gc.collect()
        return is_served()

    # The context is gone at once; what the garbage collector has found ends in another thread.
    assert contextvars.copy_context().run(left) is False
    (span,) = soon(lambda: host.server_spans)
    assert span.attributes["meshmw.response.incomplete"] is True
    assert span.attributes["http.response.status_code"] == 204
    assert not span.events


def test_a_span_that_has_ended_is_left_alone_when_its_block_goes(host: HomeMade) -> None:
    with block(host) as span:
        pass
    del span
    assert "meshmw.response.incomplete" not in host.server_span.attributes


def test_to_leave_a_block_that_was_not_entered_ends_what_has_begun(host: HomeMade) -> None:
    block(host).begin().__exit__(None, None, None)
    assert "meshmw.response.incomplete" not in host.server_span.attributes
    with pytest.raises(RuntimeError, match="not served yet"):
        block(host).__exit__(None, None, None)


def test_what_is_open_when_the_process_ends_is_not_ended_for_it(host: HomeMade) -> None:
    """Nor when one ends that was forked meanwhile, in which it would end a second time."""
    span = block(host).begin()
    assert not span._dropped.atexit
    span.end()


# Who keeps OpenTelemetry's contexts may have tokens of another kind: ddtrace's are plain objects.


class OthersContext:
    """Keeps contexts as ddtrace does."""

    def __init__(self) -> None:
        self.current = Context()

    def attach(self, context: Context) -> object:
        self.current = context
        return object()

    def get_current(self) -> Context:
        return self.current

    def detach(self, token: object) -> None:
        """Do nothing."""


def test_a_block_ends_where_somebody_else_keeps_the_contexts(host: HomeMade) -> None:
    before = runtime_context()
    set_runtime_context(OthersContext())
    try:
        with block(host) as span:
            span.set_status(200)
        with pytest.raises(ZeroDivisionError), block(host):
            1 / 0  # noqa: B018
    finally:
        set_runtime_context(before)
    assert len(host.server_spans) == 2


def test_to_leave_a_block_twice_harms_nobody(host: HomeMade) -> None:
    with block(host) as span:
        pass
    span.__exit__(None, None, None)
    assert len(host.server_spans) == 1


# Another thread ends it, as where each step of a generator runs in any thread of a pool.


def stepped(host: HomeMade) -> Iterator[None]:
    with block(host, [("traceparent", VALID)]):
        yield


@pytest.mark.parametrize("how", ["next", "throw", "close"])
def test_a_block_that_another_thread_leaves_logs_no_error(
    host: HomeMade, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    def go() -> None:
        steps: Any = stepped(host)
        next(steps)

        def finish() -> None:
            if how == "throw":
                with pytest.raises(LookupError):
                    steps.throw(host.error)
            elif how == "close":
                steps.close()
            else:
                assert next(steps, None) is None

        in_a_thread(finish)

    contextvars.copy_context().run(go)
    assert host.server_span.parent.span_id == int(PARENT_ID, 16)
    assert host.server_span.attributes.get("error.type") == ("LookupError" if how == "throw" else None)
    assert host.server_span.attributes.get("meshmw.response.incomplete", False) == (how != "next")
    assert "detach" not in caplog.text


# One request in two blocks.


@pytest.mark.parametrize("trust", ["continue", "restart"])
def test_a_block_that_is_given_the_same_headers_again_sees_none_that_were_refused(host: HomeMade, trust: Any) -> None:
    boundary = TraceContextBoundary(**host.options, trust=trust)
    came = dict(REFUSED)
    with boundary.span(came, method="GET", target="/items/7") as outer:
        with boundary.span(came, method="GET", target="/items/7") as inner:
            inner.set_status(500)
        assert inner.headers is outer.headers
    assert "TraceParent" not in inner.headers
    assert "http.response.status_code" not in host.server_span.attributes


def test_two_requests_without_any_header_are_not_one(host: HomeMade) -> None:
    with block(host, ()), block(host, ()):
        pass
    assert len(host.server_spans) == 2


def test_a_whole_url_is_the_path_in_it(host: HomeMade) -> None:
    """As a proxy is asked (RFC 9112, section 3.2.2)."""
    outer, paths = BareASGI(), []

    def trust(request: Any) -> Any:
        paths.append(request.path)
        return "continue"

    def inner() -> None:
        boundary = TraceContextBoundary(**outer.options, trust=trust)
        headers = [("Host", "shop.internal:8080"), ("traceparent", VALID)]
        for target in ("http://shop.internal:8080/items/7?q=http://x/", "http://u:p@shop.internal:8080/items/%37"):
            with boundary.span(headers, method="GET", target=target):
                pass
        with boundary.span(headers, method="GET", target="http://shop.internal"):
            pass

    outer.during = inner
    outer.get(headers=[("traceparent", VALID)])
    assert paths == ["/"]
    # The first two are the request that the middleware serves.
    assert len(outer.server_spans) == 2


# What headers may be, beyond the shapes in `test_server.py`.


def test_wsgirefs_headers_stay_as_they_are(host: HomeMade) -> None:
    pairs = list(REFUSED)
    headers = WsgirefsHeaders(pairs)
    with block(host, headers) as span:
        assert "traceparent" not in span.headers
        assert span.headers["baggage"] == "a=1"
    assert headers.items() == REFUSED
    assert pairs == REFUSED


def test_headers_that_refuse_to_be_copied_say_what_to_give_instead(host: HomeMade) -> None:
    headers = EnvironHeaders({"HTTP_TRACEPARENT": VALID})
    with pytest.raises(TypeError, match=r"'EnvironHeaders'; give list\(pairs\)"):
        block(host, headers)
    with block(host, list(headers)):
        pass
    assert host.server_span.parent.span_id == int(PARENT_ID, 16)


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_a_value_may_be_any_kind_of_bytes(host: HomeMade, kind: Any) -> None:
    with block(host, [("traceparent", kind(VALID.encode())), (b"baggage", kind(b"team=a"))]):
        assert baggage.get_all() == {"team": "a"}
    assert host.refusals == {}
    assert host.server_span.parent.span_id == int(PARENT_ID, 16)


@pytest.mark.parametrize("template", ["/items\n/{item}", "/items/\x00", "\x7f", "/\u2028"])
def test_a_route_with_a_control_character_is_no_template(host: HomeMade, template: str) -> None:
    with block(host) as span:
        meshmw.set_route(template)
        span.set_route(template)
    assert host.server_span.name == "GET"


# Copies share what belongs to the process.


@pytest.mark.parametrize("kind", [asgi.TraceContextMiddleware, wsgi.TraceContextMiddleware, None])
def test_a_deep_copy_of_an_adapter_serves_with_the_same_options(host: HomeMade, kind: Any) -> None:
    made = TraceContextBoundary(**host.options) if kind is None else kind(len, **host.options)
    copied = copy.deepcopy(made)
    assert copied is not made
    assert copied._serving is made._serving


# aiohttp: what goes out after its handler.


def ask_aiohttp(host: HomeMade, handler: Any, *middlewares: Any, **headers: str) -> Any:
    async def ask() -> Any:
        app = web.Application(middlewares=[*middlewares, meshmw.aiohttp.TraceContextMiddleware(**host.options)])
        app.router.add_get("/items/{item}", handler)
        async with TestClient(TestServer(app)) as client:
            response = await client.get("/items/7", headers={"traceparent": VALID} | headers)
            try:
                return response.status, await response.read()
            except Exception as error:
                return response.status, error

    return asyncio.run(ask())


@pytest.mark.parametrize(("name", "status"), [("there", 200), ("missing", 404)])
def test_the_status_of_a_file_is_what_aiohttp_finds_as_it_goes_out(
    host: HomeMade, tmp_path: Any, name: str, status: int
) -> None:
    (tmp_path / "there").write_bytes(b"in stock")

    async def file(request: web.Request) -> Any:
        return web.FileResponse(tmp_path / name)

    assert ask_aiohttp(host, file)[0] == status
    assert host.server_span.attributes["http.response.status_code"] == status
    assert "meshmw.response.incomplete" not in host.server_span.attributes


@pytest.mark.parametrize("breaks", [False, True])
def test_a_body_that_is_made_as_it_goes_out_is_within_the_span(
    host: HomeMade, breaks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []

    async def chunks() -> Any:
        yield b"a"
        seen.append((trace.get_current_span().get_span_context().trace_id, len(host.server_spans)))
        if breaks:
            raise host.error
        yield b"b"

    async def stream(request: web.Request) -> Any:
        return web.Response(body=chunks())

    status, body = ask_aiohttp(host, stream)
    assert (status, body == b"ab") == (200, not breaks)
    assert seen == [(int(VALID[3:35], 16), 0)]
    attributes = host.server_span.attributes
    assert attributes["http.response.status_code"] == 200
    assert attributes.get("error.type") == ("LookupError" if breaks else None)
    assert attributes.get("meshmw.response.incomplete", False) is breaks
    assert "detach" not in caplog.text


def test_a_client_that_goes_while_a_body_is_made_is_no_error(host: HomeMade) -> None:
    async def chunks() -> Any:
        while True:
            yield b"a"
            await asyncio.sleep(0)

    async def stream(request: web.Request) -> Any:
        return web.Response(body=chunks())

    async def go() -> None:
        app = web.Application(middlewares=[meshmw.aiohttp.TraceContextMiddleware(**host.options)])
        app.router.add_get("/items/{item}", stream)
        async with TestServer(app) as server:
            reader, writer = await asyncio.open_connection(server.host, server.port)
            writer.write(b"GET /items/7 HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.read(1)
            writer.transport.abort()
            await asyncio.to_thread(soon, lambda: host.server_spans)

    asyncio.run(go())
    attributes = host.server_span.attributes
    assert (attributes.get("error.type"), attributes["meshmw.response.incomplete"]) == (None, True)


def test_a_response_that_another_middleware_replaces_ends_the_span(host: HomeMade) -> None:
    @web.middleware
    async def replaces(request: web.Request, handler: Any) -> web.StreamResponse:
        await handler(request)
        return web.Response(status=418)

    async def file(request: web.Request) -> Any:
        return web.FileResponse("/nowhere")

    assert ask_aiohttp(host, file, replaces)[0] == 418
    gc.collect()
    assert soon(lambda: host.server_spans)


@pytest.mark.parametrize("error", [LookupError("x"), TimeoutError()])
def test_an_answer_that_breaks_off_says_no_status_that_nobody_has_seen(host: HomeMade, error: Exception) -> None:
    async def stream(request: web.Request) -> Any:
        response = web.StreamResponse(status=206)
        await response.prepare(request)
        await response.write(b"a")
        raise error

    assert ask_aiohttp(host, stream)[0] == 206
    attributes = host.server_span.attributes
    assert "http.response.status_code" not in attributes
    assert attributes["error.type"] == type(error).__name__
    assert attributes["meshmw.response.incomplete"] is True


def test_an_answer_that_aiohttp_sends_into_another_is_not_its_status(host: HomeMade) -> None:
    async def stream(request: web.Request) -> Any:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"a")
        raise web.HTTPNotFound

    with contextlib.suppress(aiohttp.ClientError):  # its head stands where a chunk's size should
        ask_aiohttp(host, stream)
    attributes = soon(lambda: host.server_spans)[0].attributes
    assert "http.response.status_code" not in attributes
    assert attributes["meshmw.response.incomplete"] is True
