"""A span says what the client got: which status, and whether all of it, in every way that a response may go out."""

import asyncio
import io
import sys
from functools import partial
from wsgiref.handlers import SimpleHandler
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import litestar
import pytest
import quart
from litestar.response import Stream
from opentelemetry.trace import StatusCode
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from meshmw import asgi, wsgi
from meshmw._frameworks import may_be_of

ERROR = LookupError("out of stock")
PLAIN = ("Content-Type", "text/plain")
SERVERS = ["gunicorn/27.0.1", "WSGIServer/0.2 CPython/3.11", "Werkzeug/3.1.9", "waitress", "Granian", "another", None]
# They send the head with the first chunk, even with an empty one.
HASTY = SERVERS[:3]


def is_incomplete(host):
    return host.server_span.attributes.get("meshmw.response.incomplete", False)


def status_of(host):
    return host.server_span.attributes.get("http.response.status_code")


def errors_of(host):
    return [event.attributes["exception.type"] for event in host.server_span.events]


# ASGI: what a server says while it is sent the last message.


async def chunks():
    for _ in range(3):
        yield b"x"


def new_starlette():
    async def stream(request):
        return StreamingResponse(chunks())

    return Starlette(routes=[Route("/stream", stream)])


def new_litestar():
    @litestar.get("/stream")
    async def stream() -> Stream:
        return Stream(chunks())

    return litestar.Litestar([stream], openapi_config=None, logging_config=None)


def new_quart():
    app = quart.Quart("shop")
    app.get("/stream")(lambda: app.response_class(chunks()))
    return app


async def listens(scope, receive, send):
    """Answer in a task, which ends with the connection."""

    async def answer():
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"xxx"})

    async def listen():
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(answer()), asyncio.create_task(listen())]
    _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()


STREAMS = {"starlette": new_starlette, "litestar": new_litestar, "quart": new_quart, "bare": lambda: listens}


def serve_slowly(app, host):
    """Serve one request, by a server that says that it is over before its last `send` returns; return the body."""
    got = bytearray()

    async def serve():
        is_over, incoming = asyncio.Event(), [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive():
            if incoming:
                return incoming.pop()
            await is_over.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            got.extend(message.get("body", b""))
            if message["type"] == "http.response.body" and not message.get("more_body"):
                is_over.set()
                await asyncio.sleep(0.05)

        spec = {"version": "3.0", "spec_version": "2.3"}  # uvicorn's: frameworks listen whether the client is there
        await app(host.scope("/stream", (), asgi=spec), receive, send)

    asyncio.run(serve())
    return bytes(got)


@pytest.mark.parametrize("framework", STREAMS)
def test_a_stream_is_whole_though_the_server_reports_the_end_before_its_send_returns(make, framework):
    host = make("BareASGI")
    app = asgi.TraceContextMiddleware(STREAMS[framework](), **host.options)
    assert serve_slowly(app, host) == b"xxx"
    assert not is_incomplete(host)
    assert host.server_span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("status", [200, 503])
def test_a_last_message_that_somebody_outside_has_cancelled_is_not_whole(make, status):
    """Such as a limit of time: nobody knows whether the server, which holds it back, has sent it."""
    host = make("BareASGI")

    async def answers(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body"})

    async def serve():
        async def stuck(message):
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        app = asgi.TraceContextMiddleware(answers, **host.options)
        await asyncio.wait_for(app(host.scope("/stream", ()), None, stuck), 0.02)

    with pytest.raises(TimeoutError):
        asyncio.run(serve())
    assert is_incomplete(host)


def test_a_response_that_was_whole_stays_so_though_what_comes_after_it_is_cancelled(make):
    host = make("BareASGI")

    async def answers(scope, receive, send):
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body"})
        raise asyncio.CancelledError

    host.app = asgi.TraceContextMiddleware(answers, **host.options)
    with pytest.raises(asyncio.CancelledError):
        host.get()
    assert not is_incomplete(host)


@pytest.mark.parametrize(
    ("method", "status", "headers", "incomplete"),
    [
        ("GET", 200, [(b"content-length", b"3")], False),
        ("GET", 200, [(b"Content-Length", b" 2 ")], False),
        ("GET", 200, [(memoryview(b"content-length"), memoryview(b"3"))], False),
        ("GET", 200, [("content-length", "3")], True),
        ("GET", 200, [(b"content-length", b"4")], True),
        ("GET", 200, [(b"content-length", b"three")], True),
        # Python makes no number of more than 4,300 digits.
        ("GET", 200, [(b"content-length", b"1" * 5_000)], True),
        ("GET", 200, [(b"content-length", b"0" * 5_000)], False),
        ("GET", 200, [(b"content-length", b"0" * 5_000 + b"4")], True),
        ("GET", 200, [(b"content-length", b"3"), (b"content-length", b"3")], True),
        ("GET", 200, [], True),
        ("HEAD", 200, [(b"content-length", b"4")], False),
        ("HEAD", 200, [], False),
        ("GET", 204, [], False),
        ("GET", 304, [(b"content-length", b"4")], False),
    ],
)
def test_a_client_that_leaves_with_all_that_was_promised_has_all(make, method, status, headers, incomplete):
    host = make("BareASGI")

    async def goes_on(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"xxx", "more_body": True})

    host.app = asgi.TraceContextMiddleware(goes_on, **host.options)
    host.get(method=method)
    assert is_incomplete(host) is incomplete


@pytest.mark.parametrize("message", [{"trailers": True}, {"headers": [(b"content-length", b"4")]}, {}])
def test_a_stream_that_raises_or_whose_trailers_are_missing_is_not_whole(make, message):
    host = make("BareASGI")

    async def fails(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [], **message})
        await send({"type": "http.response.body", "body": b"xxx", "more_body": "trailers" not in message})
        if "trailers" not in message:
            raise ERROR

    host.app = asgi.TraceContextMiddleware(fails, **host.options)
    host.get()
    assert is_incomplete(host)


class Refusal(Exception):
    """Is what an application makes of a server's own exception."""


def from_server(how):
    """An application that has sent all that it promised but the end, and raises *how*."""

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        try:
            await send({"type": "http.response.body", "body": b"12", "more_body": True})
        except OSError as error:
            if how == "cause":
                raise Refusal from error
            if how == "context":
                raise Refusal  # noqa: B904  # as Starlette raises ClientDisconnect
            if how == "group":
                raise ExceptionGroup("tasks", [ValueError(), error]) from None
            raise
        raise ERROR

    return application


@pytest.mark.parametrize("how", ["itself", "cause", "context", "group"])
@pytest.mark.parametrize("refused", [True, False])
def test_what_raises_once_all_is_out_leaves_the_response_whole_unless_the_server_has_refused(make, how, refused):
    host = make("BareASGI")
    host.app = asgi.TraceContextMiddleware(from_server(how), **host.options)

    def on_send(message):
        if refused and message["type"] == "http.response.body":
            raise OSError

    assert host.get(on_send=on_send).error is not None
    assert is_incomplete(host) is refused
    assert len(errors_of(host)) == 1


def test_a_server_of_which_nobody_can_tell_may_have_refused(make):
    host = make("BareASGI")
    served = asgi.TraceContextMiddleware(from_server("itself"), **host.options)

    async def behind(scope, receive, send):
        await served(scope, receive, partial(send))

    host.app = behind
    host.get()
    assert is_incomplete(host)


class LateServer:
    """Is what sends, on granian."""

    __module__ = "granian._granian"

    def __init__(self, send):
        self.told = send

    async def send(self, message):
        await self.told(message)


@pytest.mark.parametrize(
    ("body", "late", "status"),
    [(None, True, 500), (b"x", True, 200), (None, False, 200)],
)
@pytest.mark.parametrize("raises", [True, False])
def test_a_server_that_sends_the_head_with_the_body_answers_500_where_there_is_none(make, body, late, status, raises):
    host = make("BareASGI")

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        if body is not None:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        if raises:
            raise ERROR

    served = asgi.TraceContextMiddleware(application, **host.options)

    async def behind(scope, receive, send):
        await served(scope, receive, LateServer(send).send if late else send)

    host.app = behind
    host.get()
    assert status_of(host) == status
    assert is_incomplete(host)
    assert host.server_span.attributes.get("error.type") == (
        "LookupError" if raises else "500" if status == 500 else None
    )


def test_an_endless_chain_of_causes_may_hold_a_refusal():
    error = first = ValueError()
    for _ in range(100):
        error.__context__ = ValueError()
        error = error.__context__
    assert may_be_of(first, from_server)
    first.__context__ = first.__cause__ = None
    assert not may_be_of(first, from_server)


@pytest.mark.parametrize("exceptions", [None, ("of a form",), [LookupError]])
def test_an_exception_may_call_what_it_likes_its_exceptions(exceptions):
    error = ValueError()
    error.exceptions = exceptions
    assert not may_be_of(error, from_server)
    assert not may_be_of(ExceptionGroup("several", [error]), from_server)


@pytest.mark.parametrize("status", ["200", None, b"200"])
@pytest.mark.parametrize("measured", [False, True])
def test_a_status_that_is_no_number_is_the_servers_matter(make, monkeypatch, status, measured):
    monkeypatch.setattr("meshmw._lifecycle.http.SERVER_IS_MEASURED", lambda: measured)
    host = make("BareASGI")

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body"})

    host.app = asgi.TraceContextMiddleware(application, **host.options)
    reply = host.get()
    assert (reply.error, reply.status, reply.sent[1:]) == (None, status, ["http.response.body"])
    assert "http.response.status_code" not in host.server_span.attributes


def test_a_body_before_its_start_is_the_servers_matter(make):
    host = make("BareASGI")

    async def headless(scope, receive, send):
        await send({"type": "http.response.body", "body": b"x", "more_body": True})

    host.app = asgi.TraceContextMiddleware(headless, **host.options)
    assert host.get().error is None
    assert status_of(host) is None
    assert is_incomplete(host)


# WSGI: PEP 3333 leaves much open.


@pytest.fixture
def serve(make):
    """Serves one request of a WSGI application, as a server of this name; keeps what it was told."""

    def call(application, software=None, *, close=True, take=100, check=False, **environ):
        host = make("BareWSGI")
        inner = validator(application) if check else application
        served = wsgi.TraceContextMiddleware(inner, **host.options)
        served = validator(served) if check else served
        told = host.told = []
        environ = host.environ("/items/7", (), **environ) | ({"SERVER_SOFTWARE": software} if software else {})
        host.out = False

        def write(data):
            host.out = True

        def start_response(status, headers, exc_info=None):
            if exc_info is not None and host.out:
                raise exc_info[1]
            told.append(status)
            return write

        host.error, host.chunks = None, []
        try:
            body = served(environ, start_response)
            try:
                for _, chunk in zip(range(take), body, strict=False):
                    host.chunks.append(chunk)
                    host.out = host.out or bool(chunk) or software in HASTY
            finally:
                if close and hasattr(body, "close"):
                    body.close()
        except Exception as error:
            host.error = error
        return host

    return call


def again(start_response):
    try:
        raise ERROR
    except LookupError:
        start_response("503 Busy", [PLAIN], sys.exc_info())


@pytest.mark.parametrize("software", SERVERS)
def test_an_exception_after_an_empty_chunk_is_500_where_nothing_went_out(serve, software):
    def application(environ, start_response):
        start_response("200 OK", [PLAIN])
        return body()

    def body():
        yield b""
        raise ERROR

    host = serve(application, software)
    assert host.error is ERROR
    assert status_of(host) == (200 if software in [*HASTY, "Granian"] else 500)
    assert is_incomplete(host)
    assert errors_of(host) == ["LookupError"]


@pytest.mark.parametrize("software", [*SERVERS, "Cheroot/11.1.2 Server"])
def test_an_exception_of_a_bodys_first_step_is_500(serve, software):
    def application(environ, start_response):
        start_response("200 OK", [PLAIN])
        return body()

    def body():
        raise ERROR
        yield b""

    # Cheroot sends the head also then.
    assert status_of(serve(application, software)) == (
        200 if (software or "").startswith(("Granian", "Cheroot")) else 500
    )


@pytest.mark.parametrize("software", SERVERS)
def test_a_generator_starts_its_response_late(serve, software):
    def application(environ, start_response):
        start_response("404 Not Found", [PLAIN])
        yield b"none"

    host = serve(application, software)
    assert status_of(host) == (200 if software == "Granian" else 404)
    assert not is_incomplete(host)


@pytest.mark.parametrize("software", SERVERS)
def test_a_second_start_counts_where_nothing_went_out(serve, software):
    def application(environ, start_response):
        start_response("200 OK", [PLAIN])
        yield b""
        again(start_response)
        yield b"busy"

    host = serve(application, software)
    assert status_of(host) == (200 if software in [*HASTY, "Granian"] else 503)
    assert errors_of(host) == ([] if software == "Granian" else ["LookupError"])


def test_a_second_start_after_the_first_byte_raises_and_changes_no_status(serve):
    def application(environ, start_response):
        start_response("200 OK", [PLAIN])
        yield b"x"
        again(start_response)

    host = serve(application)
    assert host.error is ERROR
    assert (status_of(host), is_incomplete(host), errors_of(host)) == (200, True, ["LookupError"])


def test_an_application_that_survives_the_refusal_of_a_second_start_goes_on(serve):
    def application(environ, start_response):
        start_response("200 OK", [PLAIN])
        yield b"x"
        try:
            again(start_response)
        except LookupError:
            yield b"sorry"

    host = serve(application)
    assert (status_of(host), is_incomplete(host), errors_of(host)) == (200, False, [])


def test_a_second_start_with_an_error_tells_the_exception(serve):
    def application(environ, start_response):
        start_response("200 OK", [PLAIN])
        again(start_response)
        return [b"busy"]

    host = serve(application, check=True)
    assert (status_of(host), errors_of(host)) == (503, ["LookupError"])
    assert host.server_span.attributes["error.type"] == "LookupError"


def test_an_application_that_answers_an_exception_tells_it(serve):
    def application(environ, start_response):
        try:
            raise ERROR
        except LookupError:
            start_response("500 Sorry", [PLAIN])
            return [b"sorry"]

    host = serve(application, check=True)
    assert (status_of(host), errors_of(host)) == (500, ["LookupError"])

    def in_its_body(environ, start_response):
        try:
            raise ERROR
        except LookupError:
            start_response("500 Sorry", [PLAIN])
        yield b"sorry"

    host = serve(in_its_body)
    assert (status_of(host), errors_of(host)) == (500, ["LookupError"])


def test_an_exception_of_the_servers_own_is_not_the_applications(serve):
    """A server may ask for the next part while it deals with something else."""

    def application(environ, start_response):
        start_response("500 Sorry", [PLAIN])
        yield b"sorry"

    try:
        raise ERROR
    except LookupError:
        host = serve(application)
    assert errors_of(host) == []


@pytest.mark.parametrize("given", ["keywords", "in part", "no keyword"])
def test_a_response_is_started_by_keyword(serve, given):
    def application(environ, start_response):
        if given == "keywords":
            start_response(status="202 Accepted", headers=[PLAIN], exc_info=None)
        elif given == "in part":
            start_response("202 Accepted", headers=[PLAIN])
        else:
            start_response("202 Accepted", [PLAIN], None)
        return [b"later"]

    host = serve(application)
    assert (host.error, host.told, status_of(host)) == (None, ["202 Accepted"], 202)


@pytest.mark.parametrize("data", [b"old style", b""])
def test_what_was_written_went_out(serve, data):
    def application(environ, start_response):
        start_response("200 OK", [PLAIN])(data)
        raise ERROR

    host = serve(application, check=True)
    assert (status_of(host), is_incomplete(host), errors_of(host)) == (200, True, ["LookupError"])


@pytest.mark.parametrize(("software", "status"), [("gunicorn/27", 500), ("waitress", 500), ("Granian", 200)])
@pytest.mark.parametrize("body", [[b"x"], [], (b"x",)])
def test_a_body_without_a_start_is_the_servers_own_answer(serve, software, status, body):
    host = serve(lambda environ, start_response: body, software)
    assert status_of(host) == status


def test_a_server_that_never_asks_for_the_body_gets_no_status(serve):
    host = serve(lambda environ, start_response: iter([b"x"]), take=0)
    assert status_of(host) is None
    assert is_incomplete(host)


FIVE = [PLAIN, ("Content-Length", "5")]


@pytest.mark.parametrize(
    ("method", "status", "headers", "take", "incomplete"),
    [
        ("GET", "200 OK", FIVE, 1, False),
        ("GET", "200 OK", [PLAIN, ("content-length", " 5")], 1, False),
        ("GET", "200 OK", [PLAIN, ("Content-Length", 5)], 1, False),
        ("GET", "200 OK", [PLAIN, ("Content-Length", "6")], 1, True),
        ("GET", "200 OK", [PLAIN, ("Content-Length", "five")], 1, True),
        ("GET", "200 OK", [*FIVE, *FIVE], 1, True),
        ("GET", "200 OK", [PLAIN], 1, True),
        ("GET", "200 OK", FIVE, 0, True),
        ("HEAD", "200 OK", FIVE, 0, False),
        ("HEAD", "200 OK", [PLAIN], 1, False),
        ("GET", "204 No Content", [], 0, False),
        ("GET", "304 Not Modified", [], 1, False),
        # Not so much as was promised: the client waits for the rest, or finds the connection closed.
        ("GET", "200 OK", [PLAIN, ("Content-Length", "20")], 9, True),
        ("HEAD", "200 OK", [PLAIN, ("Content-Length", "20")], 9, False),
    ],
)
def test_a_server_may_leave_a_body_where_it_has_what_was_promised(serve, method, status, headers, take, incomplete):
    def application(environ, start_response):
        start_response(status, list(headers))
        return iter([b"12345", b"6789"])

    host = serve(application, take=take, REQUEST_METHOD=method)
    assert is_incomplete(host) is incomplete


def test_an_exception_after_all_that_was_promised_leaves_the_response_whole(serve):
    def application(environ, start_response):
        start_response("200 OK", list(FIVE))
        yield b"12345"
        raise ERROR

    host = serve(application)
    assert (status_of(host), is_incomplete(host), errors_of(host)) == (200, False, ["LookupError"])


@pytest.mark.parametrize("body", [[b"1", b"2"], [b"12345"]])
def test_granian_gets_a_list_where_the_application_returns_one(make, body):
    """It tells the length of a list, and of nothing else."""
    host = make("BareWSGI")

    def application(environ, start_response):
        start_response("200 OK", [PLAIN])
        return body

    served = wsgi.TraceContextMiddleware(application, **host.options)
    environ = host.environ("/items/7", ()) | {"SERVER_SOFTWARE": "Granian"}
    assert served(environ, lambda *_: None) is body
    assert (status_of(host), is_incomplete(host)) == (200, False)


def test_granians_server_has_nothing_to_write_with(make):
    host = make("BareWSGI")

    def application(environ, start_response):
        start_response("200 OK", [PLAIN])(b"old style")

    served = wsgi.TraceContextMiddleware(application, **host.options)
    with pytest.raises(TypeError, match="not callable"):
        served(host.environ("/items/7", ()) | {"SERVER_SOFTWARE": "Granian"}, lambda *_: None)
    assert status_of(host) == 500


def test_a_file_whose_end_fails_went_out(make, tmp_path):
    host, file = make("BareWSGI"), tmp_path / "file"
    file.write_bytes(b"12345")

    class Failing(io.FileIO):
        def close(self):
            super().close()
            raise ERROR

    def application(environ, start_response):
        start_response("200 OK", [PLAIN, ("Content-Length", "5")])
        return environ["wsgi.file_wrapper"](Failing(file))

    served = wsgi.TraceContextMiddleware(application, **host.options)
    body = served(host.environ("/items/7", ()) | {"wsgi.file_wrapper": FileWrapper}, lambda *_: None)
    assert isinstance(body, FileWrapper)
    with pytest.raises(LookupError):
        body.close()
    assert (status_of(host), is_incomplete(host), errors_of(host)) == (200, False, ["LookupError"])


def test_wsgirefs_own_handler_is_content_on_both_sides(make):
    host, sent = make("BareWSGI"), io.BytesIO()

    def application(environ, start_response):
        start_response("200 OK", [PLAIN])
        return [b"12345"]

    served = validator(wsgi.TraceContextMiddleware(validator(application), **host.options))
    SimpleHandler(io.BytesIO(), sent, io.StringIO(), host.environ("/items/7", ())).run(served)
    assert sent.getvalue().startswith(b"HTTP/1.0 200 OK\r\n")
    assert sent.getvalue().endswith(b"\r\n\r\n12345")
    assert (status_of(host), is_incomplete(host)) == (200, False)
