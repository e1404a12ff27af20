"""Laws 5 and 8 on every host: telemetry changes nothing, and a span ends once, when the response is complete."""

import asyncio
import sys
from types import ModuleType

import pytest
from asgiref.wsgi import WsgiToAsgi
from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import StatusCode

from meshmw import asgi

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE_ID}-{PARENT_ID}-01"
FROM_CALLER = [("traceparent", VALID)]


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text either")


def events(span, name="exception"):
    return [event for event in span.events if event.name == name]


def test_an_exception_of_the_application_passes_unchanged_and_marks_the_span(host):
    reply = host.get("/fail", headers=FROM_CALLER)
    assert reply.error is (host.error if host.raises else None)
    assert host.server_span.status.status_code is StatusCode.ERROR
    if not host.raises:
        assert reply.status == 500
    if host.own_span:
        assert host.server_span.attributes["error.type"] == "LookupError"
        assert host.server_span.attributes["http.response.status_code"] == 500
        assert len(events(host.server_span)) == 1


@pytest.mark.parametrize(
    "name", ["BareASGI", "StarletteHost", "FastAPIHost", "AroundNativeFastAPI", "BareWSGI", "FlaskHost"]
)
def test_an_exception_without_a_text_passes_unchanged(make, name):
    host = make(name, error=Unprintable())
    reply = host.get("/fail", headers=FROM_CALLER)
    assert reply.error is host.error
    assert host.server_span.status.status_code is StatusCode.ERROR


def test_a_streamed_body_has_the_context_in_each_step(host):
    reply = host.get("/stream", headers=FROM_CALLER)
    assert reply.body == b"chunkchunkchunk"
    assert len(host.visits) == 3
    assert {f"{visit.trace_id:032x}" for visit in host.visits} == {TRACE_ID}
    assert {visit.span_id for visit in host.visits} <= {span.context.span_id for span in host.spans}
    assert host.server_span.attributes.get("meshmw.response.incomplete") is None


def test_the_span_of_a_streamed_response_ends_with_its_last_byte(asgi_host):
    ended = []
    asgi_host.get("/stream", on_send=lambda message: ended.append(len(asgi_host.server_spans)))
    assert set(ended) == {0}
    assert len(asgi_host.server_spans) == 1


def test_a_span_ends_before_a_background_task_runs(make):
    host = make("BareASGI")
    ended = []

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        ended.append(len(host.server_spans))
        assert trace.get_current_span().get_span_context().is_valid

    host.app.app = application
    assert host.get().error is None
    assert ended == [1]


@pytest.mark.parametrize("path", ["/items/7", "/stream"])
def test_a_cancelled_request_ends_its_span_without_an_error(asgi_host, path):
    """The server cancels a request whose client has gone, or that takes too long."""

    async def cancel():
        started = asyncio.Event()

        async def wait_for_ever(scope, receive, send):
            async def stuck(message):
                started.set()
                await asyncio.Event().wait()

            await app(scope, receive, stuck)

        app, asgi_host.app = asgi_host.app, wait_for_ever
        task = asyncio.create_task(asgi_host.serve(path, FROM_CALLER))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    span = asgi_host.server_span
    assert span.end_time is not None
    if asgi_host.own_span:
        assert span.status.status_code is StatusCode.UNSET
        assert "error.type" not in span.attributes
        assert span.attributes["meshmw.response.incomplete"] is True


def test_a_client_that_goes_away_ends_the_span(asgi_host):
    sent = []

    def gone(message):
        sent.append(message["type"])
        if len(sent) > 2:
            raise OSError("client gone")

    reply = asgi_host.get("/stream", on_send=gone)
    assert type(reply.error).__name__ in {"OSError", "ClientDisconnect", "LitestarException"}
    assert asgi_host.server_span.end_time is not None
    if asgi_host.own_span:
        assert asgi_host.server_span.attributes["meshmw.response.incomplete"] is True


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("error", [OSError("client gone"), asyncio.CancelledError()])
def test_a_last_byte_that_does_not_go_out_leaves_the_response_incomplete(make, status, error):
    host = make("BareASGI")

    async def answers(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body"})

    def gone(message):
        if message["type"] == "http.response.body":
            raise error

    host.app.app = answers
    try:
        assert host.get(on_send=gone).error is error
    except asyncio.CancelledError:
        assert not isinstance(error, Exception)
    assert host.server_span.attributes["meshmw.response.incomplete"] is True
    assert len(events(host.server_span)) == isinstance(error, Exception)


def test_an_exception_after_a_whole_answer_of_5xx_is_recorded(make):
    """So does a framework that answers for an exception, and raises it afterwards."""
    host = make("BareASGI")
    ended = []

    async def answers(scope, receive, send):
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body"})
        ended.append((len(host.server_spans), scope["meshmw.operation"].request.is_over))
        raise host.error

    host.app.app = answers
    assert host.get().error is host.error
    assert ended == [(0, True)]
    assert host.server_span.attributes["http.response.status_code"] == 503
    assert host.server_span.attributes["error.type"] == "LookupError"
    assert "meshmw.response.incomplete" not in host.server_span.attributes


@pytest.mark.parametrize("await_it", [lambda sent: sent, asyncio.create_task, asyncio.shield])
def test_an_application_awaits_what_sending_returns_as_it_would_the_servers_own(make, await_it):
    host = make("BareASGI")

    async def application(scope, receive, send):
        await await_it(send({"type": "http.response.start", "status": 200, "headers": []}))
        await await_it(send({"type": "http.response.body", "body": b"in ", "more_body": True}))
        await await_it(send({"type": "http.response.body", "body": b"stock"}))

    host.app.app = application
    reply = host.get()
    assert (reply.error, reply.body) == (None, b"in stock")
    assert "meshmw.response.incomplete" not in host.server_span.attributes


def test_a_server_whose_send_returns_a_future_is_served(make):
    """An awaitable is all that ASGI asks for; granian's is no coroutine."""
    host = make("BareASGI")
    sent = []

    def send(message):
        sent.append(message["type"])
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    host.app.app = application

    async def serve():
        await host.app(host.scope("/items/7", FROM_CALLER), None, send)

    asyncio.run(serve())
    assert sent == ["http.response.start", "http.response.body"]
    assert "meshmw.response.incomplete" not in host.server_span.attributes


def test_asgirefs_adapter_serves_a_wsgi_application_without_a_warning(make):
    """It asks whether `send` can be awaited before it calls it."""
    host = make("BareASGI")

    def application(environ, start_response):
        start_response("200 OK", [])
        return [b"in ", b"stock"]

    host.app.app = WsgiToAsgi(application)
    reply = host.get()
    assert (reply.error, reply.body) == (None, b"in stock")
    assert "meshmw.response.incomplete" not in host.server_span.attributes


def test_a_response_that_never_starts_ends_the_span(make):
    host = make("BareASGI")

    async def silent(scope, receive, send):
        return None

    host.app.app = silent
    host.get()
    assert host.server_span.attributes["meshmw.response.incomplete"] is True
    assert "http.response.status_code" not in host.server_span.attributes


def test_the_span_ends_after_the_trailers(make):
    host = make("BareASGI")
    ended = []

    async def with_trailers(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"x"})
        ended.append(len(host.server_spans))
        await send({"type": "http.response.trailers", "headers": [], "more_trailers": True})
        ended.append(len(host.server_spans))
        await send({"type": "http.response.trailers", "headers": []})
        ended.append(len(host.server_spans))

    host.app.app = with_trailers
    host.get()
    assert ended == [0, 0, 1]


@pytest.mark.parametrize(
    "message", [{"type": "http.response.pathsend", "path": "/x"}, {"type": "http.response.zerocopysend"}]
)
def test_the_span_ends_after_a_file_that_the_server_sends_itself(make, message):
    host = make("BareASGI")

    async def with_file(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send(message)

    host.app.app = with_file
    host.get()
    assert "meshmw.response.incomplete" not in host.server_span.attributes


def test_other_messages_do_not_end_the_span(make):
    host = make("BareASGI")
    ended = []

    async def with_hints(scope, receive, send):
        await send({"type": "http.response.early_hint", "links": []})
        await send({"type": "http.response.debug", "info": {}})
        ended.append(len(host.server_spans))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    host.app.app = with_hints
    host.get()
    assert ended == [0]
    assert host.server_span.attributes["http.response.status_code"] == 200


def test_a_second_start_that_the_server_refuses_changes_no_status(make):
    host = make("BareASGI")
    refusal = RuntimeError("the response has begun")

    async def begins_twice(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.start", "status": 204, "headers": []})

    def refuse(message):
        if message["status"] == 204:
            raise refusal

    host.app.app = begins_twice
    assert host.get(on_send=refuse).error is refusal
    assert host.server_span.attributes["http.response.status_code"] == 200


def test_an_exception_after_the_response_leaves_its_status(make):
    host = make("BareASGI")

    async def fails_late(scope, receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": []})
        raise host.error

    host.app.app = fails_late
    assert host.get().error is host.error
    assert host.server_span.attributes["http.response.status_code"] == 204
    assert host.server_span.status.status_code is StatusCode.ERROR


def test_an_exception_after_the_last_byte_changes_no_ended_span(make, caplog):
    host = make("BareASGI")

    async def fails_late(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})
        raise host.error

    host.app.app = fails_late
    assert host.get().error is host.error
    assert host.server_span.status.status_code is StatusCode.UNSET
    assert "ended span" not in caplog.text


@pytest.mark.parametrize(("status", "is_error"), [(200, False), (404, False), (499, False), (500, True), (503, True)])
def test_from_500_on_a_status_is_an_error_of_the_server(make, status, is_error):
    host = make("BareASGI")

    async def answers(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body"})

    host.app.app = answers
    host.get()
    assert (host.server_span.status.status_code is StatusCode.ERROR) is is_error
    assert host.server_span.attributes.get("error.type") == (str(status) if is_error else None)


def test_a_sync_route_in_a_thread_pool_has_the_context(make):
    for name in ("StarletteHost", "FastAPIHost", "NativeFastAPI", "AroundNativeFastAPI"):
        host = make(name)
        host.get("/sync/7", headers=FROM_CALLER)
        assert host.seen.span_id == host.server_span.context.span_id


def test_the_marks_in_the_scope_are_gone_after_the_request(asgi_host):
    """A server may keep the scope, and an application that is called again must not take the marks for its own."""
    scopes = []
    inner = asgi_host.app

    async def keep(scope, receive, send):
        scopes.append(scope)
        await inner(scope, receive, send)

    asgi_host.app = keep
    asgi_host.get()
    assert not [key for key in scopes[0] if key.startswith(("meshmw", "starlette.opent", "fastapi.tel"))]


@pytest.mark.parametrize("kind", ["lifespan", "custom.protocol"])
def test_what_is_no_request_passes_untouched(make, kind):
    host = make("BareASGI")
    got, marks = [], []

    async def application(*of_asgi):
        got.append(of_asgi)
        marks.append("meshmw.operation" in of_asgi[0])

    host.app.app = application
    scope, receive, send = {"type": kind}, object(), object()
    asyncio.run(host.app(scope, receive, send))
    assert [argument is given for argument, given in zip(got[0], (scope, receive, send), strict=True)] == [True] * 3
    assert scope == {"type": kind}
    # Of several middleware the outermost exports what is queued at the end of a lifespan, and of that alone.
    assert marks == [kind == "lifespan"]
    assert host.spans == ()


# WSGI bodies


@pytest.mark.parametrize("name", ["BareWSGI", "FlaskHost", "ContribWSGIInside", "ContribFlask"])
def test_the_context_is_not_current_between_two_steps_of_a_body(make, name):
    wsgi_host = make(name)
    outside = get_current()
    between = []
    wsgi_host.get("/stream", between=lambda: between.append(get_current() == outside))
    assert between == [True] * 3


def start(*_):
    return lambda data: None


OURS = ["BareWSGI", "FlaskHost", "ContribWSGIInside", "ContribFlask"]


@pytest.fixture(params=OURS)
def wsgi_server_side(make, request):
    """A host of whose span meshmw is the owner, and what is called in place of the server."""
    host = make(request.param)
    return host, lambda path: host.app(host.environ(path, FROM_CALLER), start)


def test_a_body_that_is_closed_before_its_first_chunk_ends_its_span(wsgi_server_side):
    host, call = wsgi_server_side
    before = get_current()
    call("/stream").close()
    assert host.server_span.attributes["meshmw.response.incomplete"] is True
    assert get_current() == before


def test_a_body_that_is_closed_after_its_first_chunk_ends_its_span(wsgi_server_side):
    host, call = wsgi_server_side
    body = call("/stream")
    next(iter(body))
    assert host.server_spans == []
    body.close()
    assert host.server_span.attributes["meshmw.response.incomplete"] is True
    assert host.server_span.status.status_code is StatusCode.UNSET


def test_a_body_that_is_closed_twice_ends_its_span_once(wsgi_server_side):
    host, call = wsgi_server_side
    body = call("/items/7")
    assert list(body)
    body.close()
    body.close()
    assert "meshmw.response.incomplete" not in host.server_span.attributes


def test_a_body_that_nobody_closes_ends_its_span_with_its_last_chunk(wsgi):
    host, body = wsgi(lambda environ, start_response: iter([b"a", b"b"]))
    list(body)
    assert "meshmw.response.incomplete" not in host.server_span.attributes


@pytest.fixture
def wsgi(make):
    """Serves a WSGI callable of the test's own."""

    def serve(application):
        host = make("BareWSGI")
        host.app.app = application
        return host, host.app(host.environ("/items/7", FROM_CALLER), start)

    return serve


def test_a_sized_body_keeps_its_size_so_that_the_server_can_set_content_length(wsgi):
    _, body = wsgi(lambda environ, start_response: [b"a", b"b"])
    assert len(body) == 2
    _, body = wsgi(lambda environ, start_response: iter([b"a"]))
    assert not hasattr(body, "__len__")


def test_the_applications_close_is_called_within_the_context(wsgi):
    closed = []

    class Body:
        def __iter__(self):
            return iter([b"x"])

        def close(self):
            closed.append(f"{trace.get_current_span().get_span_context().trace_id:032x}")

    _, body = wsgi(lambda environ, start_response: Body())
    list(body)
    body.close()
    assert closed == [TRACE_ID]


def test_an_exception_of_the_body_passes_unchanged_and_marks_the_span(wsgi):
    error = LookupError("out of stock")

    def chunks():
        yield b"x"
        raise error

    host, body = wsgi(lambda environ, start_response: chunks())
    assert next(body) == b"x"
    with pytest.raises(LookupError) as caught:
        next(body)
    body.close()
    assert caught.value is error
    assert host.server_span.status.status_code is StatusCode.ERROR
    assert len(events(host.server_span)) == 1


def test_an_exception_of_close_passes_unchanged_and_marks_the_span(wsgi):
    error = LookupError("out of stock")

    class Body:
        def __iter__(self):
            return iter([b"x"])

        def close(self):
            raise error

    host, body = wsgi(lambda environ, start_response: Body())
    with pytest.raises(LookupError) as caught:
        body.close()
    assert caught.value is error
    assert host.server_span.status.status_code is StatusCode.ERROR


def test_a_second_start_response_decides_the_status(make):
    host = make("BareWSGI")
    passed = []

    def application(environ, start_response):
        start_response("200 OK", [])
        try:
            raise LookupError("out of stock")
        except LookupError as error:
            start_response("503 Busy", [], (LookupError, error, error.__traceback__))
        return [b"busy"]

    host.app.app = application
    list(host.app(host.environ("/items/7", ()), lambda *given: passed.append(given)))
    assert host.server_span.attributes["http.response.status_code"] == 503
    assert [len(given) for given in passed] == [2, 3]


def test_a_status_without_a_code_is_the_servers_matter(make):
    host = make("BareWSGI")

    def application(environ, start_response):
        start_response("OK", [])
        return [b""]

    host.app.app = application
    list(host.app(host.environ("/items/7", ()), start))
    assert "http.response.status_code" not in host.server_span.attributes


def test_the_write_callable_of_the_server_is_handed_on(make):
    host = make("BareWSGI")
    written = []

    def application(environ, start_response):
        start_response("200 OK", [])(b"old style")
        return []

    host.app.app = application
    list(host.app(host.environ("/items/7", ()), lambda *given: written.append))
    assert written == [b"old style"]


def test_a_generator_whose_collection_runs_elsewhere_logs_no_error(make):
    """An abandoned request is closed by the garbage collector, in whatever context that runs."""
    host = make("BareASGI")

    async def stuck(scope, receive, send):
        await asyncio.Event().wait()

    host.app.app = stuck

    async def abandon():
        request = host.app(host.scope("/items/7", ()), None, None)
        request.send(None)
        return request

    request = asyncio.run(abandon())
    del request
    assert host.server_span.attributes["meshmw.response.incomplete"] is True


@pytest.mark.parametrize("loaded", [(), ("fastapi.telemetry",), ("fastapi.telemetry", "starlette.opentelemetry")])
def test_a_scope_is_marked_for_those_hosts_alone_that_are_loaded(make, monkeypatch, loaded):
    modules = {
        "fastapi.telemetry": "fastapi.telemetry",
        "starlette.opentelemetry": "starlette.middleware.opentelemetry",
    }
    host, seen = make("BareASGI"), []

    async def app(scope, receive, send):
        seen.append({mark for mark in modules if mark in scope})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    host.app = asgi.TraceContextMiddleware(app, **host.options)
    for mark, name in modules.items():
        if mark in loaded:
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        else:
            monkeypatch.delitem(sys.modules, name, raising=False)
    assert host.get("/items/7").status == 200
    assert seen == [set(loaded)]


@pytest.mark.parametrize("headers", [[], [("traceparent", "00-malformed")]], ids=["none", "malformed"])
def test_the_span_that_datadog_has_opened_for_the_request_serves_it(make, headers):
    """Its kind says nothing: ddtrace's bridge to OpenTelemetry says it by a word."""
    host, held = make("BareASGI"), object()
    opened = host.tracer_provider.get_tracer("datadog").start_span("fastapi.request", Context())
    opened._ddspan = held
    ambient = trace.set_span_in_context(opened, Context())
    reply = host.get(headers=headers, ambient=ambient, datadog={"request_spans": [held]})
    assert reply.status == 200
    assert host.seen.span_id == opened.get_span_context().span_id
    assert host.spans == ()
    assert ("context", "leaked_span") not in host.refusals
