"""How frameworks that keep their route to themselves name the SERVER span: alone, or by a line of the user's."""

from __future__ import annotations

import asyncio
import sys
import warnings
from types import ModuleType
from typing import Any

import blacksheep
import bottle
import falcon.asgi
import pytest
import sanic

import meshmw
from meshmw import asgi
from tests.contracts.server.hosts.bare_asgi import BareASGI
from tests.contracts.server.hosts.bare_wsgi import BareWSGI

with warnings.catch_warnings():
    # They use what other packages have deprecated.
    warnings.simplefilter("ignore")
    import connexion
    from pyramid.config import Configurator
    from pyramid.events import ContextFound
    from pyramid.response import Response


def ask(host: Any, app: Any, path: str, **more: Any) -> Any:
    host.app.app = app
    return host.get(path, **more)


def name_of(host: Any, app: Any, path: str, **more: Any) -> str:
    reply = ask(host, app, path, **more)
    assert reply.error is None
    span = host.server_span
    assert span.attributes.get("http.route", "") == span.name.partition(" ")[2]
    return span.name


class NameFalcons:
    def process_resource(self, req, resp, resource, params):
        meshmw.set_route(req.uri_template)

    async def process_resource_async(self, req, resp, resource, params):
        meshmw.set_route(req.uri_template)


class Stock:
    def on_get(self, req, resp, item):
        resp.media = {"item": item}


class AsyncStock:
    async def on_get(self, req, resp, item):
        resp.media = {"item": item}


@pytest.mark.parametrize(("path", "expected"), [("/stock/teapot", "GET /stock/{item}"), ("/secret", "GET")])
def test_falcon_by_a_middleware(path, expected):
    app = falcon.App(middleware=[NameFalcons()])
    app.add_route("/stock/{item}", Stock())
    assert name_of(BareWSGI(), app, path) == expected
    app = falcon.asgi.App(middleware=[NameFalcons()])
    app.add_route("/stock/{item}", AsyncStock())
    assert name_of(BareASGI(), app, path) == expected


@pytest.fixture
def bottled():
    app = bottle.Bottle()
    app.get("/stock/<item:int>")(lambda item: {"item": item})
    app.get("/fail")(lambda: 1 / 0)
    return app


BOTTLES = [("/stock/7", "GET /stock/<item:int>"), ("/fail", "GET /fail"), ("/secret", "GET"), ("/stock/x", "GET")]


@pytest.mark.parametrize(("path", "expected"), BOTTLES)
@pytest.mark.parametrize("catchall", [True, False])
def test_bottle_by_itself(bottled, path, expected, catchall):
    bottled.catchall = catchall
    host = BareWSGI()
    reply = ask(host, bottled, path)
    assert (reply.error is None) == (catchall or path != "/fail")
    assert host.server_span.name == expected


@pytest.mark.parametrize("how", ["merged", "as any WSGI application"])
@pytest.mark.parametrize(("path", "expected"), BOTTLES)
def test_bottle_in_bottle(bottled, path, expected, how):
    outer = bottle.Bottle()
    if how == "merged":
        outer.mount("/shop/", bottled)
    else:
        outer._mount_wsgi("/shop", bottled)
    assert name_of(BareWSGI(), outer, f"/shop{path}") == expected.replace(" /", " /shop/")


def test_bottle_below_a_root_or_in_an_application_that_is_not_known(bottled):
    assert name_of(BareWSGI(), bottled, "/stock/7", SCRIPT_NAME="/shop") == "GET /shop/stock/<item:int>"
    outer = bottle.Bottle()
    outer._mount_wsgi("/other", bottle.Bottle())

    def application(environ, start_response):
        return bottled(environ, start_response)

    application.app = outer
    assert name_of(BareWSGI(), application, "/stock/7") == "GET"


def test_what_bottle_leaves_may_be_anything():
    def application(environ, start_response):
        environ["bottle.route"] = None
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    assert name_of(BareWSGI(), application, "/stock/7") == "GET"


@pytest.mark.parametrize(("path", "expected"), [("/stock/teapot", "GET /stock/{item}"), ("/secret", "GET")])
def test_pyramid_by_a_subscriber(path, expected):
    def name(event):
        route = event.request.matched_route
        meshmw.set_route(route and route.pattern)

    with Configurator() as config:
        config.add_subscriber(name, ContextFound)
        config.add_route("stock", "/stock/{item}")
        config.add_view(lambda request: Response("ok"), route_name="stock")
        app = config.make_wsgi_app()
    assert name_of(BareWSGI(), app, path) == expected


SPECIFICATION = {
    "openapi": "3.0.0",
    "info": {"title": "shop", "version": "1"},
    "servers": [{"url": "/api"}],
    "paths": {
        "/stock/{item}": {
            "get": {
                "operationId": "shop_of_the_test.stock",
                "parameters": [{"name": "item", "in": "path", "required": True, "schema": {"type": "string"}}],
                "responses": {"200": {"description": "ok"}},
            }
        }
    },
}


@pytest.mark.parametrize("kind", [connexion.AsyncApp, connexion.FlaskApp])
@pytest.mark.parametrize(("path", "expected"), [("/api/stock/teapot", "GET /api/stock/{item}"), ("/api/secret", "GET")])
def test_connexion_by_itself(monkeypatch, kind, path, expected):
    module = ModuleType("shop_of_the_test")
    module.stock = lambda item: {"item": item}
    monkeypatch.setitem(sys.modules, "shop_of_the_test", module)
    app = kind("shop")
    app.add_api(SPECIFICATION)
    assert name_of(BareASGI(), app, path) == expected


def test_connexion_without_its_router_has_no_route(monkeypatch):
    app = connexion.AsyncApp("shop", middlewares=[])
    app.add_url_rule("/stock/{item}", "stock", lambda request: None)
    host = BareASGI()
    ask(host, app, "/secret")
    assert host.server_span.name == "GET"


@pytest.mark.parametrize(("path", "expected"), [("/stock/teapot", "GET /stock/{item}"), ("/secret", "GET")])
def test_blacksheep_by_a_middleware(path, expected):
    app = blacksheep.Application(router=blacksheep.Router())

    @app.router.get("/stock/{item}")
    async def stock(item: str):
        return {"item": item}

    @app.middlewares.append
    async def name(request, handler):
        template = app.router.get_match(request).pattern.decode()
        meshmw.set_route(template if template != "*" else None)
        return await handler(request)

    host = BareASGI()
    host.app.app = app

    async def serve():
        await app.start()
        return await host.serve(path)

    asyncio.run(serve())
    assert host.server_span.name == expected


@pytest.mark.parametrize(("path", "expected"), [("/stock/teapot", "GET /stock/<item:str>"), ("/secret", "GET")])
def test_sanic_by_a_middleware_where_another_server_serves_it(path, expected):
    app = sanic.Sanic("shop", configure_logging=False)
    app.config.TOUCHUP = False  # it rewrites Sanic's own code, once in a process

    @app.get("/stock/<item>")
    async def stock(request, item):
        return sanic.json({"item": item})

    @app.on_request
    async def name(request):
        meshmw.set_route(request.uri_template)

    host = BareASGI()
    host.app.app = app

    async def serve():
        waiting = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

        async def receive():
            return waiting.pop(0)

        async def send(message):
            assert message["type"].endswith(".complete")

        await app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
        return await host.serve(path)

    try:
        asyncio.run(serve())
    finally:
        sanic.Sanic._app_registry.clear()
    assert host.server_span.name == expected
    assert isinstance(host.app, asgi.TraceContextMiddleware)
