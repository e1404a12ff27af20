"""Routes of frameworks that stand within one another: the whole template, whichever of them has our middleware."""

import asyncio
import contextvars
import threading
import warnings

import pytest
import quart
from asgiref.wsgi import WsgiToAsgi
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.test import override_settings
from django.urls import path
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.routing import Mount
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import meshmw.flask
from meshmw import asgi, wsgi
from meshmw._lifecycle import http_conventions

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from starlette.middleware.wsgi import WSGIMiddleware

ERROR = LookupError("out of stock")
QUIET = {"telemetry": {"tracing": False, "metrics": False, "logs": False}}


@pytest.fixture(autouse=True)
def roots(monkeypatch):
    """The root paths that are known so far; none."""
    monkeypatch.setattr(http_conventions, "_roots", set())


@pytest.fixture(autouse=True)
def django_urls():
    with override_settings(ROOT_URLCONF=DjangoItems, MIDDLEWARE=["meshmw.django.route_middleware"]):
        yield


class DjangoItems:
    urlpatterns = (path("items/<int:item>", lambda request, item: HttpResponse("ok")),)


def new_flask(**options):
    app = Flask("shop")
    app.get("/items/<int:item>")(lambda item: "ok")

    @app.get("/fail")
    def fail():
        raise ERROR

    if options:
        meshmw.flask.init_app(app, **options)
    return app


def new_quart(**options):
    app = quart.Quart("shop")

    @app.get("/items/<int:item>")
    @app.websocket("/items/<int:item>")
    async def read_item(item):
        return "ok"

    return asgi.TraceContextMiddleware(app, **options) if options else app


def new_fastapi(**options):
    app = FastAPI(**QUIET)
    app.get("/items/{item}")(lambda item: item)
    return asgi.TraceContextMiddleware(app, **options) if options else app


def new_django(**options):
    return asgi.TraceContextMiddleware(ASGIHandler(), **options) if options else ASGIHandler()


def new_django_wsgi(**options):
    return wsgi.TraceContextMiddleware(WSGIHandler(), **options) if options else WSGIHandler()


class TellingItsScope(WsgiToAsgi):
    """Leaves the scope in the environ, as a2wsgi does."""

    async def __call__(self, scope, receive, send):
        def with_scope(environ, start_response):
            return self.wsgi_application(environ | {"asgi.scope": scope}, start_response)

        await WsgiToAsgi(with_scope)(scope, receive, send)


def copied(app):
    async def middleware(scope, receive, send):
        await app(dict(scope), receive, send)

    return middleware


def in_wsgi(app):
    """Serve an ASGI application as a WSGI one, on a loop in another thread, in the caller's context."""

    def application(environ, start_response):
        sent, incoming = [], [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive():
            return incoming.pop() if incoming else await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": environ["REQUEST_METHOD"],
            "path": environ["SCRIPT_NAME"] + environ["PATH_INFO"],
            "root_path": environ["SCRIPT_NAME"],
            "query_string": b"",
            "http_version": "1.1",
            "scheme": "http",
            "headers": [(b"host", environ["HTTP_HOST"].encode())],
        }
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: context.run(asyncio.run, app(scope, receive, send)))
        thread.start()
        thread.join()
        start_response(f"{sent[0]['status']} OK", [("Content-Type", "text/plain")])
        return [message.get("body", b"") for message in sent[1:]]

    return application


@pytest.fixture
def name_of(make):
    """The name of the one span of a request, `http.route` checked against it."""

    def ask(kind, application, path, *, outer, **changes):
        host = make("BareASGI" if kind is asgi else "BareWSGI")
        made = application(host.options)
        host.app = kind.TraceContextMiddleware(made, **host.options) if outer else made
        assert host.get(path, **changes).status == 200
        name, route = host.server_span.name, host.server_span.attributes.get("http.route")
        assert name.partition(" ")[2] == (route or "")
        return name

    return ask


INNER = {
    "Flask, by asgiref": lambda **options: WsgiToAsgi(new_flask(**options)),
    "Flask, by Starlette": lambda **options: WSGIMiddleware(new_flask(**options)),
    "Flask, by a2wsgi": lambda **options: TellingItsScope(new_flask(**options)),
    "Django of WSGI, by a2wsgi": lambda **options: TellingItsScope(new_django_wsgi(**options)),
    "Django": new_django,
    "Quart": new_quart,
}
# These do not say in whose scope they stand, so the application within knows its root alone.
MUTE = {"Flask, by asgiref", "Flask, by Starlette"}


def test_a_route_further_out_that_raises_when_asked_again_costs_the_name_alone(make):
    asked = []

    class Moody(Mount):
        def matches(self, scope):
            asked.append(scope)
            if len(asked) > 1:
                raise LookupError
            return super().matches(scope)

    host = make("BareASGI")
    host.app = Starlette(routes=[Moody("/in", INNER["Flask, by a2wsgi"](**host.options))])
    assert host.get("/in/items/7").status == 200
    assert (host.server_span.name, len(asked)) == ("GET", 2)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("around", [lambda app: app, copied], ids=["alone", "copied"])
@pytest.mark.parametrize("who", ["outer", "inner", "both"])
def test_within_a_mount_of_starlettes(name_of, inner, around, who):
    def build(options):
        return around(Starlette(routes=[Mount("/t/{t:int}", INNER[inner](**({} if who == "outer" else options)))]))

    if who != "inner" or inner not in MUTE:
        assert name_of(asgi, build, "/t/007/items/7", outer=who != "inner") == "GET /t/{t}/items/<int:item>"


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("who", ["outer", "inner", "both"])
def test_within_a_server_of_another_protocol_or_none(name_of, inner, who):
    def build(options):
        return INNER[inner](**({} if who == "outer" else options))

    assert name_of(asgi, build, "/items/7", outer=who != "inner") == "GET /items/<int:item>"
    assert name_of(asgi, build, "/api/items/7", outer=who != "inner", root_path="/api") == "GET /api/items/<int:item>"


def test_a_root_beyond_the_first_64_is_no_label(name_of):
    def build(options):
        return WSGIMiddleware(new_flask())

    names = {name_of(asgi, build, f"/{turn}/items/7", outer=True, root_path=f"/{turn}") for turn in range(70)}
    assert len(names) == 65


@pytest.mark.parametrize("inner", ["Quart", "Django"])
def test_within_a_dispatcher_of_ones_own(name_of, inner):
    def build(options):
        app = INNER[inner]()

        async def dispatch(scope, receive, send):
            await app({**scope, "root_path": "/shop"}, receive, send)

        return dispatch

    assert name_of(asgi, build, "/shop/items/7", outer=True) == "GET /shop/items/<int:item>"


def test_flask_in_flask(name_of):
    def build(options):
        return DispatcherMiddleware(new_flask(**options), {"/shop": new_flask(**options)})

    assert name_of(wsgi, build, "/shop/items/7", outer=True) == "GET /shop/items/<int:item>"
    assert name_of(wsgi, build, "/items/7", outer=False) == "GET /items/<int:item>"


@pytest.mark.parametrize("who", ["inner", "both"])
@pytest.mark.parametrize("new", [new_fastapi, new_quart])
def test_an_asgi_application_in_flask(name_of, who, new):
    template = "{item}" if new is new_fastapi else "<int:item>"

    def build(options):
        return DispatcherMiddleware(new_flask(), {"/shop": in_wsgi(new(**options))})

    assert name_of(wsgi, build, "/shop/items/7", outer=who != "inner") == f"GET /shop/items/{template}"


def test_quart_in_flask_tells_its_route_without_a_middleware_of_its_own(name_of):
    def build(options):
        return DispatcherMiddleware(new_flask(), {"/shop": in_wsgi(new_quart())})

    assert name_of(wsgi, build, "/shop/items/7", outer=True) == "GET /shop/items/<int:item>"


def test_a_websocket_of_quarts(make):
    host = make("BareASGI")
    host.app = new_quart(**host.options)
    handshake = {"type": "websocket", "scheme": "ws", "subprotocols": [], "incoming": [{"type": "websocket.connect"}]}
    host.get("/items/7", **handshake)
    assert host.server_span.name == "GET /items/<int:item>"


def test_where_none_of_ours_serves_nothing_is_told(make):
    host = make("BareASGI")
    asgi.TraceContextMiddleware(new_flask())
    for app in (new_quart(), new_django(), WsgiToAsgi(new_flask())):
        host.app = app
        assert host.get("/items/7").status == 200
    host.app = WsgiToAsgi(new_flask())
    assert host.get("/fail").status == 500
    assert host.spans == ()


@pytest.mark.parametrize("outer", ["asgi", "wsgi", "nested"])
def test_another_application_that_is_called_meanwhile_names_nothing(make, outer):
    """Neither its route nor its exception is the request's."""
    host = make("BareWSGI" if outer == "wsgi" else "BareASGI")
    other, other_quart, app = new_flask(), new_quart(), Flask("front")

    @app.get("/front")
    def front():
        assert other.test_client().get("/fail").status_code == 500
        assert other.test_client().get("/items/7").status_code == 200
        return "ok"

    async def front_of_asgi(scope, receive, send):
        assert (await other_quart.test_client().get("/items/7")).status_code == 200
        assert other.test_client().get("/fail").status_code == 500
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    served = {"asgi": front_of_asgi, "wsgi": app, "nested": WsgiToAsgi(app)}[outer]
    adapter = wsgi if outer == "wsgi" else asgi
    host.app = adapter.TraceContextMiddleware(served, **host.options)
    host.get("/front")
    assert host.server_span.name == ("GET" if outer == "asgi" else "GET /front")
    assert [event.name for event in host.server_span.events] == []


def test_a_span_that_is_not_recorded_is_told_nothing(make):
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    host = make("BareASGI", tracer_provider=TracerProvider(sampler=ALWAYS_OFF))
    host.app = new_quart(**host.options)
    seen = []

    async def keep(scope, receive, send, inner=host.app):
        seen.append(scope)
        await inner(scope, receive, send)

    host.app = keep
    assert host.get("/items/7").status == 200
    assert not [key for key in seen[0] if key.startswith("meshmw")]


@pytest.mark.parametrize("stops", ["once it has what was promised", "half-way"])
def test_a_span_ends_where_the_server_drops_the_body_unclosed(make, stops):
    """asgiref's WsgiToAsgi asks for no more than Content-Length, and closes nothing."""
    host = make("BareWSGI")

    def application(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
        yield b"ab"
        yield b"cd"

    body = wsgi.TraceContextMiddleware(application, **host.options)(host.environ("/items/7", ()), lambda *_: None)
    next(body)
    if stops != "half-way":
        next(body)
    assert host.spans == ()
    del body
    assert host.server_span.attributes.get("meshmw.response.incomplete", False) is (stops == "half-way")


def test_a_route_that_is_set_within_names_the_span_further_out(make):
    inner = Flask("shop")

    @inner.get("/raw/<path:rest>")
    def raw(rest):
        meshmw.set_route("/raw/{rest}")
        return "ok"

    host = make("BareASGI")
    inner.wsgi_app = wsgi.TraceContextMiddleware(inner.wsgi_app, **host.options)
    host.app = asgi.TraceContextMiddleware(WsgiToAsgi(inner), **host.options)
    assert host.get("/raw/7").status == 200
    assert (host.server_span.name, host.server_span.attributes["http.route"]) == ("GET /raw/{rest}", "/raw/{rest}")
