"""The exception of a request is on its span, once, also where the framework answers it itself and raises nothing."""

import asyncio
import sys
from types import SimpleNamespace

import litestar
import pytest
import quart
from asgiref.wsgi import WsgiToAsgi
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import got_request_exception
from django.http import Http404, HttpResponse
from django.test import override_settings
from django.urls import path
from fastapi import FastAPI, HTTPException
from flask import Flask, abort
from litestar.exceptions import NotAuthorizedException
from litestar.middleware import DefineMiddleware
from litestar.response import Stream
from opentelemetry.trace import StatusCode
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

import meshmw.flask
from meshmw import asgi, wsgi

ERROR = LookupError("out of stock")
QUIET = {"telemetry": {"tracing": False, "metrics": False, "logs": False}}


def exceptions_of(span):
    return [event.attributes["exception.type"] for event in span.events if event.name == "exception"]


def assert_recorded(host, status=500, error="LookupError"):
    span = host.server_span
    assert span.attributes["http.response.status_code"] == status
    assert span.attributes["error.type"] == error
    assert span.status.status_code is StatusCode.ERROR
    assert exceptions_of(span) == [error]
    (event,) = span.events
    assert "test_exceptions.py" in event.attributes["exception.stacktrace"]


def assert_not_recorded(host):
    assert exceptions_of(host.server_span) == []
    assert "error.type" not in host.server_span.attributes


@pytest.fixture(params=["BareASGI"])
def host(make, request):
    return make(request.param)


@pytest.fixture
def wsgi_host(make):
    return make("BareWSGI")


class Through(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        return await call_next(request)


def hiding(app):
    async def middleware(scope, receive, send):
        await app(dict(scope), receive, send)

    return middleware


AROUND = {"alone": lambda app: app, "wrapped": hiding, "through": Through}


@pytest.fixture(params=AROUND)
def around(request):
    return AROUND[request.param]


# Flask.


def new_flask(**config):
    app = Flask("shop")
    app.config.update(config)

    @app.get("/fail")
    def fail():
        raise ERROR

    app.get("/abort")(lambda: abort(404))

    @app.get("/stream")
    def stream():
        def chunks():
            yield b"x"
            raise ERROR

        return app.response_class(chunks())

    return app


@pytest.mark.parametrize("how", ["init_app", "middleware", "middleware around a middleware"])
@pytest.mark.parametrize("propagate", [False, True, None])
def test_flask(wsgi_host, how, propagate):
    app = wsgi_host.app = new_flask(PROPAGATE_EXCEPTIONS=propagate)
    if how == "init_app":
        meshmw.flask.init_app(app, **wsgi_host.options)
    elif how == "middleware":
        app.wsgi_app = wsgi.TraceContextMiddleware(app.wsgi_app, **wsgi_host.options)
    else:
        wsgi_host.app = wsgi.TraceContextMiddleware(lambda *given: app(*given), **wsgi_host.options)
    reply = wsgi_host.get("/fail")
    assert reply.error is (ERROR if propagate else None)
    assert_recorded(wsgi_host)


def test_flask_with_a_handler_for_500(wsgi_host):
    app = wsgi_host.app = new_flask()
    app.errorhandler(500)(lambda error: ("sorry", 500))
    meshmw.flask.init_app(app, **wsgi_host.options)
    assert wsgi_host.get("/fail").body == b"sorry"
    assert_recorded(wsgi_host)


@pytest.mark.parametrize(
    ("answer", "status"),
    [(("sorry", 500), 500), (({"sorry": True}, 503, {"x": "y"}), 503), ("fine", 200), (("gone", 404), 404)],
)
@pytest.mark.parametrize("around", [lambda app: app, WsgiToAsgi], ids=["alone", "in ASGI"])
def test_flask_with_a_handler_for_every_exception(make, answer, status, around):
    is_alone = around is not WsgiToAsgi
    host = make("BareWSGI" if is_alone else "BareASGI")
    app = new_flask()
    app.errorhandler(Exception)(lambda error: answer)
    meshmw.flask.init_app(app, **host.options)
    meshmw.flask.init_app(app, **host.options)
    host.app = app if is_alone else asgi.TraceContextMiddleware(WsgiToAsgi(app), **host.options)
    assert host.get("/fail").status == status
    if status >= 500:
        assert_recorded(host, status)
    else:
        assert_not_recorded(host)


def test_a_handler_of_flasks_that_answers_nothing_is_the_exception(wsgi_host):
    app = wsgi_host.app = new_flask()
    app.errorhandler(LookupError)(lambda error: None)
    meshmw.flask.init_app(app, **wsgi_host.options)
    assert wsgi_host.get("/fail").status == 500
    assert exceptions_of(wsgi_host.server_span) == ["TypeError"]


def test_flask_that_gives_up_by_a_status(wsgi_host):
    app = wsgi_host.app = new_flask()
    app.get("/busy", endpoint="busy")(lambda: abort(503))
    meshmw.flask.init_app(app, **wsgi_host.options)
    assert wsgi_host.get("/busy").status == 503
    assert exceptions_of(wsgi_host.server_span) == ["werkzeug.exceptions.ServiceUnavailable"]


def test_an_answer_of_flasks_is_no_exception(wsgi_host):
    app = wsgi_host.app = new_flask()
    meshmw.flask.init_app(app, **wsgi_host.options)
    assert wsgi_host.get("/abort").status == 404
    assert_not_recorded(wsgi_host)


def test_a_stream_of_flasks(wsgi_host):
    app = wsgi_host.app = new_flask()
    meshmw.flask.init_app(app, **wsgi_host.options)
    assert wsgi_host.get("/stream").error is ERROR
    assert_recorded(wsgi_host, status=200)


def test_a_handler_that_raises_leaves_both_exceptions(wsgi_host):
    app = wsgi_host.app = new_flask()
    meshmw.flask.init_app(app, **wsgi_host.options)

    @app.errorhandler(500)
    def worse(error):
        raise ValueError("worse")

    wsgi_host.get("/fail")
    assert exceptions_of(wsgi_host.server_span) == ["LookupError", "ValueError"]
    assert wsgi_host.server_span.attributes["error.type"] == "ValueError"


@pytest.mark.parametrize("within", [False, True])
def test_flask_in_an_asgi_application(host, within):
    app = new_flask()
    if within:
        meshmw.flask.init_app(app, **host.options)
    host.app = asgi.TraceContextMiddleware(WsgiToAsgi(app), **host.options)
    assert host.get("/fail").status == 500
    assert_recorded(host)


def test_a_flask_request_that_is_none_of_ours_is_left_alone(wsgi_host):
    wsgi_host.app = new_flask()
    assert wsgi_host.get("/fail").status == 500
    assert wsgi_host.spans == ()


# Quart.


def new_quart(**config):
    app = quart.Quart("shop")
    app.config.update(config)

    @app.get("/fail")
    @app.websocket("/fail")
    async def fail():
        raise ERROR

    @app.get("/abort")
    async def none():
        quart.abort(404)

    @app.get("/stream")
    async def stream():
        async def chunks():
            yield b"x"
            raise ERROR

        return app.response_class(chunks())

    @app.get("/background")
    async def background():
        async def task():
            raise ERROR

        app.add_background_task(task)
        return "ok"

    return app


@pytest.mark.parametrize("propagate", [False, True])
def test_quart(host, around, propagate):
    app = new_quart(PROPAGATE_EXCEPTIONS=propagate)
    host.app = asgi.TraceContextMiddleware(around(app.asgi_app), **host.options)
    assert host.get("/fail").error is (ERROR if propagate else None)
    assert_recorded(host)


def test_quart_around_its_asgi_app(host):
    host.app = app = new_quart()
    app.asgi_app = asgi.TraceContextMiddleware(app.asgi_app, **host.options)
    app.errorhandler(500)(lambda error: ("sorry", 500))
    assert host.get("/fail").body == b"sorry"
    assert_recorded(host)
    host.exporter.clear()
    assert host.get("/abort").status == 404
    assert_not_recorded(host)


@pytest.mark.parametrize("extension", [{}, {"websocket.http.response": {}}])
def test_a_websocket_of_quarts(host, extension):
    host.app = asgi.TraceContextMiddleware(new_quart(), **host.options)
    handshake = {"type": "websocket", "scheme": "ws", "subprotocols": [], "extensions": extension}
    host.get("/fail", incoming=[{"type": "websocket.connect"}], **handshake)
    assert_recorded(host, status=500 if extension else 403)


def test_a_stream_of_quarts(host):
    host.app = asgi.TraceContextMiddleware(new_quart(), **host.options)
    assert host.get("/stream").error is ERROR
    assert_recorded(host, status=200)


def test_a_background_task_of_quarts_is_no_part_of_the_request(host):
    host.app = asgi.TraceContextMiddleware(new_quart(), **host.options)
    assert host.get("/background").status in (200, 201)
    assert_not_recorded(host)


# Litestar.


@litestar.get("/fail")
async def litestar_fails() -> None:
    raise ERROR


@litestar.get("/refused")
async def litestar_refuses() -> None:
    raise NotAuthorizedException


@litestar.get("/stream")
async def litestar_streams() -> Stream:
    async def chunks():
        yield b"x"
        raise ERROR

    return Stream(chunks())


@litestar.websocket("/talk")
async def litestar_talks(socket: litestar.WebSocket) -> None:
    raise ERROR


def new_litestar(**options):
    handlers = [litestar_fails, litestar_refuses, litestar_streams, litestar_talks]
    return litestar.Litestar(handlers, openapi_config=None, logging_config=None, **options)


def sorry(request, error):
    return litestar.Response("sorry", status_code=500)


@pytest.mark.parametrize("options", [{}, {"exception_handlers": {LookupError: sorry}}, {"debug": True}])
def test_litestar(host, options):
    host.app = asgi.TraceContextMiddleware(new_litestar(**options), **host.options)
    assert host.get("/fail").status == 500
    assert_recorded(host)


def test_litestar_with_the_middleware_among_its_own(host):
    host.app = new_litestar(middleware=[DefineMiddleware(asgi.TraceContextMiddleware, **host.options)])
    assert host.get("/fail").status == 500
    assert_recorded(host)
    assert host.server_span.name == "GET /fail"


def test_an_answer_of_litestars_is_no_exception(host):
    host.app = asgi.TraceContextMiddleware(new_litestar(), **host.options)
    assert host.get("/refused").status == 401
    assert_not_recorded(host)


def test_a_stream_of_litestars(host):
    host.app = asgi.TraceContextMiddleware(new_litestar(), **host.options)
    host.get("/stream")
    span = host.server_span
    assert span.attributes["http.response.status_code"] == 200
    assert len(exceptions_of(span)) == 1


def test_a_websocket_of_litestars(host):
    host.app = asgi.TraceContextMiddleware(new_litestar(), **host.options)
    handshake = {"type": "websocket", "scheme": "ws", "subprotocols": []}
    assert host.get("/talk", incoming=[{"type": "websocket.connect"}], **handshake).sent == ["websocket.close"]
    assert_recorded(host, status=403)


# Starlette and FastAPI, where a handler of the application's own answers one exception.


async def fails(request):
    raise ERROR


async def says_sorry(request, error):
    return PlainTextResponse("sorry", 503)


def new_starlette():
    return Starlette(routes=[Route("/fail", fails)], exception_handlers={LookupError: says_sorry})


def new_fastapi():
    app = FastAPI(**QUIET)
    app.get("/fail")(fails_in_fastapi)
    app.exception_handler(LookupError)(says_sorry)
    return app


async def fails_in_fastapi():
    raise ERROR


@pytest.mark.parametrize("new", [new_starlette, new_fastapi])
@pytest.mark.parametrize("among", [False, True])
def test_a_handler_for_one_exception(host, new, among):
    host.app = new()
    if among:
        host.app.add_middleware(asgi.TraceContextMiddleware, **host.options)
    else:
        host.app = asgi.TraceContextMiddleware(host.app, **host.options)
    assert host.get("/fail").status == 503
    assert_recorded(host, status=503)


@pytest.mark.parametrize("among", [False, True])
def test_a_handler_for_every_exception(host, among):
    app = host.app = FastAPI(**QUIET)
    app.get("/fail")(fails_in_fastapi)
    app.exception_handler(Exception)(says_sorry)
    if among:
        app.add_middleware(asgi.TraceContextMiddleware, **host.options)
    else:
        host.app = asgi.TraceContextMiddleware(app, **host.options)
    assert host.get("/fail").error is ERROR
    assert_recorded(host, status=500 if among else 503)


@pytest.mark.parametrize(("status", "is_error"), [(404, False), (503, True)])
def test_an_exception_that_says_its_status_is_recorded_where_that_is_an_error(host, status, is_error):
    app = FastAPI(**QUIET)

    @app.get("/fail")
    async def fail():
        raise HTTPException(status)

    host.app = asgi.TraceContextMiddleware(app, **host.options)
    assert host.get("/fail").status == status
    assert exceptions_of(host.server_span) == (["fastapi.exceptions.HTTPException"] if is_error else [])


@pytest.mark.parametrize("new", [new_starlette, new_fastapi])
def test_a_background_task_fails_after_the_request(host, new):
    app = new()

    async def task():
        raise ValueError("too late")

    app.router.routes.append(Route("/task", lambda request: PlainTextResponse("ok", background=BackgroundTask(task))))
    host.app = asgi.TraceContextMiddleware(app, **host.options)
    assert isinstance(host.get("/task").error, ValueError)
    assert_not_recorded(host)


def test_a_stream_of_starlettes(host):
    async def chunks():
        yield b"x"
        raise ERROR

    async def stream(request):
        return StreamingResponse(chunks())

    host.app = asgi.TraceContextMiddleware(Starlette(routes=[Route("/stream", stream)]), **host.options)
    assert host.get("/stream").error is ERROR
    assert_recorded(host, status=200)


# Nobody else's exception.


def test_an_exception_that_is_handled_further_out_is_not_this_requests(host):
    """Such as that of an application in whose place this one is asked."""

    async def busy(scope, receive, send):
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body"})

    served = asgi.TraceContextMiddleware(busy, **host.options)

    async def in_its_place(scope, receive, send):
        try:
            raise ERROR
        except LookupError:
            await served(scope, receive, send)

    host.app = in_its_place
    host.get()
    assert exceptions_of(host.server_span) == []
    assert host.server_span.attributes["error.type"] == "503"
    host.exporter.clear()

    async def in_a_task(scope, receive, send):
        await asyncio.create_task(busy(scope, receive, send))

    served.app = in_a_task
    host.get()
    assert exceptions_of(host.server_span) == []


def test_an_exception_that_is_handled_with_another_answer_is_none(host):
    async def recovers(scope, receive, send):
        try:
            raise ERROR
        except LookupError:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body"})

    host.app = asgi.TraceContextMiddleware(recovers, **host.options)
    host.get()
    assert_not_recorded(host)


def test_a_cancellation_that_is_answered_is_no_exception(host):
    async def stops(scope, receive, send):
        try:
            raise asyncio.CancelledError
        except asyncio.CancelledError:
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body"})

    host.app = asgi.TraceContextMiddleware(stops, **host.options)
    host.get()
    assert exceptions_of(host.server_span) == []


# Django.


class Views:
    @staticmethod
    def fail(request):
        raise ERROR

    @staticmethod
    async def async_fail(request):
        raise ERROR

    @staticmethod
    def none(request):
        raise Http404


Views.urlpatterns = (path("fail", Views.fail), path("async", Views.async_fail), path("none", Views.none))


def failing_middleware(get_response):
    def middleware(request):
        raise ERROR

    return middleware


def plain_middleware(get_response):
    return lambda request: HttpResponse("ok")


@pytest.fixture
def django_host(make):
    """Serves Django's own answers, with the route middleware or without."""

    def build(kind, *middleware):
        host = make("BareASGI" if kind == "asgi" else "BareWSGI")
        with override_settings(
            ROOT_URLCONF=Views, DEBUG_PROPAGATE_EXCEPTIONS=False, MIDDLEWARE=list(middleware), ALLOWED_HOSTS=["*"]
        ):
            handler = ASGIHandler() if kind == "asgi" else WSGIHandler()
        adapter = asgi if kind == "asgi" else wsgi
        host.app = adapter.TraceContextMiddleware(handler, **host.options)
        return host

    with override_settings(ROOT_URLCONF=Views, DEBUG_PROPAGATE_EXCEPTIONS=False, ALLOWED_HOSTS=["*"]):
        yield build


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
@pytest.mark.parametrize("route_middleware", [(), ("meshmw.django.route_middleware",)])
@pytest.mark.parametrize("asked", ["/fail", "/async"])
def test_django(django_host, kind, route_middleware, asked):
    host = django_host(kind, *route_middleware)
    assert host.get(asked).status == 500
    assert_recorded(host)
    assert host.server_span.name == (f"GET {asked}" if route_middleware else "GET")


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_djangos_middleware_fails(django_host, kind):
    host = django_host(kind, f"{__name__}.failing_middleware")
    assert host.get("/fail").status == 500
    assert_recorded(host)


class Answering:
    """Is a middleware that answers what a view raises."""

    status = 503

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        return self.get_response(request)

    def process_exception(self, request, exception):
        return HttpResponse("sorry", status=self.status)


class Forgiving(Answering):
    status = 200


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
@pytest.mark.parametrize("asked", ["/fail", "/async"])
def test_a_middleware_of_djangos_answers_what_a_view_raises(django_host, kind, asked):
    host = django_host(kind, f"{__name__}.Answering", "meshmw.django.route_middleware")
    assert host.get(asked).status == 503
    assert_recorded(host, 503)


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_a_middleware_of_djangos_forgives_what_a_view_raises(django_host, kind):
    host = django_host(kind, f"{__name__}.Forgiving", "meshmw.django.route_middleware")
    assert host.get("/fail").status == 200
    assert_not_recorded(host)


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_an_exception_of_djangos_that_is_propagated_is_recorded_once(django_host, kind):
    host = django_host(kind, "meshmw.django.route_middleware")
    with override_settings(DEBUG_PROPAGATE_EXCEPTIONS=True):
        assert host.get("/fail").error is ERROR
    assert_recorded(host)


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_an_answer_of_djangos_is_no_exception(django_host, kind):
    host = django_host(kind, "meshmw.django.route_middleware")
    assert host.get("/none").status == 404
    assert_not_recorded(host)


def test_djangos_signal_may_tell_of_no_exception_and_of_no_request():
    asgi.TraceContextMiddleware(plain_middleware)
    got_request_exception.send(sender=None)
    try:
        raise ERROR
    except LookupError:
        got_request_exception.send(sender=None)


# The metric says the same.


def test_what_was_raised_is_the_metrics_error_too(monkeypatch):
    from meshmw._lifecycle import http_conventions as conventions

    measured = SimpleNamespace(record=lambda *_: None)
    attributes = {"http.request.method": "GET"}
    for first_told in ("status", "error"):
        measurement = conventions.Measurement(measured, attributes)
        if first_told == "status":
            measurement.status(500, 500)
        measurement.fail(ERROR)
        measurement.status(500, 500)
        assert measurement.labels["error.type"] == "LookupError"


@pytest.mark.parametrize("kind", [asgi, wsgi])
def test_frameworks_that_are_not_there_are_not_asked(monkeypatch, kind):
    for name in ("flask", "quart", "django"):
        monkeypatch.setitem(sys.modules, name, None)
    kind.TraceContextMiddleware(lambda *_: None)
