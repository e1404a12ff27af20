"""What a SERVER span of ours is called and says: `{method} {route}`, and the stable HTTP conventions."""

from typing import Any

import litestar
import pytest
from fastapi import APIRouter, FastAPI
from flask import Blueprint, Flask
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import meshmw.flask
from meshmw import asgi

OURS_ON_ASGI = [
    "StarletteHost",
    "FastAPIHost",
    "AroundNativeFastAPI",
    "StarletteTelemetryInside",
    "ContribASGIInside",
    "LitestarHost",
]
DJANGO = ["DjangoASGI", "DjangoWSGI"]
OURS_ON_WSGI = ["FlaskHost", "ContribFlask"]


@pytest.mark.parametrize("name", OURS_ON_ASGI)
@pytest.mark.parametrize(("path", "expected"), [("/items/7", "GET /items/{item}"), ("/stream", "GET /stream")])
def test_a_span_is_named_after_the_route_template(make, name, path, expected):
    host = make(name)
    host.get(path)
    assert host.server_span.name == expected
    assert host.server_span.attributes["http.route"] == expected.removeprefix("GET ")
    assert host.server_span.attributes["url.path"] == path


@pytest.mark.parametrize("name", OURS_ON_WSGI)
@pytest.mark.parametrize(("path", "expected"), [("/items/7", "GET /items/<item>"), ("/stream", "GET /stream")])
def test_a_flask_span_is_named_after_the_url_rule(make, name, path, expected):
    host = make(name)
    host.get(path)
    assert host.server_span.name == expected
    assert host.server_span.attributes["http.route"] == expected.removeprefix("GET ")


@pytest.mark.parametrize("name", DJANGO)
@pytest.mark.parametrize(("path", "expected"), [("/items/7", "GET /items/<item>"), ("/fail", "GET /fail")])
def test_a_django_span_is_named_after_the_url_pattern(make, name, path, expected):
    host = make(name)
    host.get(path)
    assert host.server_span.name == expected
    assert host.server_span.attributes["http.route"] == expected.removeprefix("GET ")


@pytest.mark.parametrize(("path", "expected"), [("/items/7", "GET /items/<item>"), ("/stream", "GET /stream")])
def test_a_quart_span_is_named_after_the_url_rule(make, path, expected):
    host = make("QuartHost")
    host.get(path)
    assert host.server_span.name == expected
    assert host.server_span.attributes["http.route"] == expected.removeprefix("GET ")


@pytest.mark.parametrize("name", [*OURS_ON_ASGI, *OURS_ON_WSGI, *DJANGO, "QuartHost", "BareASGI", "BareWSGI"])
def test_without_a_route_a_span_is_named_after_the_method_alone(make, name):
    host = make(name)
    reply = host.get("/no/such/path")
    assert reply.status == 404
    assert host.server_span.name == "GET"
    assert "http.route" not in host.server_span.attributes


@pytest.fixture
def name_of(make):
    """The name of the span of one request to an application of the test's own."""

    def ask(application, path, **scope):
        host = make("BareASGI")
        host.app.app = application
        host.get(path, **scope)
        return host.server_span.name

    return ask


async def plain(request):
    return PlainTextResponse("ok")


ITEM = Route("/items/{item:int}", plain)


@pytest.mark.parametrize("kind", ["mount", "sub-application", "mount in a mount"])
def test_a_mounted_route_is_named_with_its_prefix(name_of, kind):
    shop = {
        "mount": Starlette(routes=[Mount("/shop/v1", routes=[ITEM])]),
        "sub-application": Starlette(routes=[Mount("/shop/v1", Starlette(routes=[ITEM]))]),
        "mount in a mount": Starlette(routes=[Mount("/shop", routes=[Mount("/v1", routes=[ITEM])])]),
    }[kind]
    assert name_of(shop, "/shop/v1/items/7") == "GET /shop/v1/items/{item}"


def test_a_miss_within_a_mount_is_named_after_the_mount_and_not_the_path(name_of):
    app = Starlette(routes=[Mount("/shop", routes=[ITEM])])
    assert name_of(app, "/shop/secret-path") == "GET /shop"
    assert name_of(Starlette(routes=[Mount("/", routes=[ITEM])]), "/secret-path") == "GET"


def test_a_mount_of_something_else_is_named_after_the_mount(name_of):
    app = Starlette(routes=[Mount("/static", PlainTextResponse("body {}"))])
    assert name_of(app, "/static/site.css") == "GET /static"


def test_a_mount_with_a_parameter_keeps_the_parameters_name(name_of):
    tenants = Starlette(routes=[Mount("/tenants/{tenant}", routes=[ITEM])])
    assert name_of(tenants, "/tenants/acme/items/7") == "GET /tenants/{tenant}/items/{item}"
    assert name_of(tenants, "/tenants/acme/no/such") == "GET /tenants/{tenant}"


def test_the_root_path_that_the_server_strips_is_part_of_the_route(name_of):
    app = Starlette(routes=[ITEM])
    assert name_of(app, "/api/items/7", root_path="/api") == "GET /api/items/{item}"


def test_the_root_route_is_a_slash(name_of):
    assert name_of(Starlette(routes=[Route("/", plain)]), "/") == "GET /"


def test_the_wrong_method_on_a_known_route_is_named_after_the_route(name_of):
    assert name_of(Starlette(routes=[ITEM]), "/items/7", method="DELETE") == "DELETE /items/{item}"


def test_an_unknown_method_is_not_taken_into_the_name(name_of):
    assert name_of(Starlette(routes=[ITEM]), "/items/7", method="BREW") == "HTTP /items/{item}"


@pytest.fixture
def fastapi_app():
    app = FastAPI(telemetry={"tracing": False})
    inner, outer = APIRouter(), APIRouter()

    @inner.get("/{item}")
    def read(item: int) -> int:
        return item

    outer.include_router(inner, prefix="/items")
    app.include_router(outer, prefix="/shop/{area}")
    admin = FastAPI()
    admin.include_router(inner, prefix="/stock")
    app.mount("/admin", admin)
    return app


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/shop/north/items/7", "GET /shop/{area}/items/{item}"),
        ("/shop/north/items/x", "GET /shop/{area}/items/{item}"),
        ("/admin/stock/7", "GET /admin/stock/{item}"),
        ("/shop/north/none", "GET"),
        ("/admin/none", "GET"),
    ],
)
def test_a_route_of_an_included_router_is_named_with_every_prefix(name_of, fastapi_app, path, expected):
    assert name_of(fastapi_app, path) == expected


@pytest.mark.parametrize(
    ("path", "scope", "expected"),
    [
        ("/shop/v1/items/7", {}, "GET /shop/v1/items/{item}"),
        ("/api/shop/v1/items/7", {"root_path": "/api"}, "GET /api/shop/v1/items/{item}"),
        # Of a mounted application Litestar tells nothing.
        ("/static/any/file", {}, "GET"),
        ("/", {}, "GET /"),
        ("/none", {}, "GET"),
    ],
)
def test_a_litestar_route_is_named_with_the_paths_of_its_routers(name_of, path, scope, expected):
    @litestar.get(["/items/{item:int}"])
    async def read() -> str:
        return ""

    @litestar.get("/")
    async def root() -> str:
        return ""

    @litestar.asgi("/static", is_mount=True, copy_scope=True)
    async def static(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("x")(scope, receive, send)

    shop = litestar.Router("/shop", route_handlers=[litestar.Router("/v1", route_handlers=[read])])
    app = litestar.Litestar([shop, root, static], openapi_config=None, logging_config=None)
    assert name_of(app, path, **scope) == expected


@pytest.mark.parametrize("template", [7, None, ""])
def test_something_else_under_litestars_key_leaves_the_method_alone(name_of, template):
    async def application(scope, receive, send):
        scope["path_template"] = template
        await PlainTextResponse("ok")(scope, receive, send)

    assert name_of(application, "/items/7") == "GET"


def test_middleware_within_a_sub_application_opens_no_second_span(make):
    host = make("BareASGI")
    inner = Starlette(routes=[ITEM])
    inner.add_middleware(asgi.TraceContextMiddleware, **host.options)
    host.app.app = Starlette(routes=[Mount("/shop", inner)])
    host.get("/shop/items/7")
    assert host.server_span.name == "GET /shop/items/{item}"


def test_middleware_within_a_sub_application_alone_names_the_whole_route(make):
    host = make("BareASGI")
    inner = Starlette(routes=[ITEM])
    inner.add_middleware(asgi.TraceContextMiddleware, **host.options)
    host.app = Starlette(routes=[Mount("/shop", inner)])
    host.get("/shop/items/7")
    assert host.server_span.name == "GET /shop/items/{item}"


@pytest.mark.parametrize(
    "scope",
    [{"route": None}, {"route": object()}, {"route": "/items"}, {"endpoint": plain}],
    ids=["none", "object", "text", "endpoint"],
)
def test_a_framework_of_another_kind_leaves_the_method_alone(make, scope):
    host = make("BareASGI")

    async def application(found, receive, send):
        found.update(scope)
        await host.application(found, receive, send)

    host.app.app = application
    host.get()
    assert host.server_span.name == "GET"


def test_a_flask_blueprint_is_named_with_its_prefix(make):
    host = make("FlaskHost")
    app, shop = Flask("shop"), Blueprint("shop", "shop")
    shop.get("/items/<int:item>")(lambda item: "ok")
    app.register_blueprint(shop, url_prefix="/shop/v1")
    meshmw.flask.init_app(app, **host.options)
    host.app = app
    host.get("/shop/v1/items/7")
    assert host.server_span.name == "GET /shop/v1/items/<int:item>"
    assert host.server_span.attributes["http.route"] == "/shop/v1/items/<int:item>"


def test_init_app_twice_changes_nothing(make):
    host = make("FlaskHost")
    wrapped = host.app.wsgi_app
    meshmw.flask.init_app(host.app, **host.options)
    assert host.app.wsgi_app is wrapped
    host.get()
    assert host.server_span.name == "GET /items/<item>"


def test_a_flask_error_handler_keeps_the_name_and_no_error(make):
    host = make("FlaskHost")
    host.app.errorhandler(LookupError)(lambda error: ("gone", 410))
    assert host.get("/fail").status == 410
    assert host.server_span.name == "GET /fail"
    assert "error.type" not in host.server_span.attributes


def test_a_flask_request_without_the_middleware_is_left_alone(make):
    host = make("FlaskHost")
    host.app.wsgi_app = host.app.wsgi_app.app
    assert host.get().status == 200
    assert host.spans == ()


@pytest.mark.parametrize("name", DJANGO)
def test_a_django_request_without_the_middleware_is_left_alone(make, name):
    host = make(name)
    host.app = host.app.app
    assert host.get().status == 200
    assert host.spans == ()


# What a span says.

COMMON = {
    "http.request.method": "GET",
    "http.response.status_code": 200,
    "url.path": "/items/7",
    "url.scheme": "http",
    "server.address": "shop.internal",
    "server.port": 8080,
    "client.address": "10.0.0.9",
    "network.peer.address": "10.0.0.9",
    "network.peer.port": 41000,
    "network.protocol.version": "1.1",
}


@pytest.mark.parametrize("headers", [[], [("traceparent", f"00-{'1' * 32}-{'2' * 16}-01")]], ids=["root", "sampled"])
@pytest.mark.parametrize("name", ["BareASGI", "BareWSGI"])
def test_a_span_says_what_the_stable_conventions_ask(make, name, headers):
    host = make(name)
    host.get(headers=headers)
    assert dict(host.server_span.attributes) == COMMON


@pytest.mark.parametrize("name", ["BareASGI", "BareWSGI"])
def test_the_user_agent_is_said(make, name):
    host = make(name)
    host.get(headers=[("user-agent", "probe/1")])
    assert host.server_span.attributes["user_agent.original"] == "probe/1"


@pytest.mark.parametrize(
    ("name", "query"), [("BareASGI", {"query_string": b"q=1&sig=x"}), ("BareWSGI", {"QUERY_STRING": "q=1&sig=x"})]
)
def test_secret_query_values_are_redacted(make, name, query):
    host = make(name)
    host.get(**query)
    assert host.server_span.attributes["url.query"] == "q=1&sig=REDACTED"


@pytest.mark.parametrize(
    ("scope", "absent"),
    [
        ({"client": None}, {"client.address", "network.peer.address", "network.peer.port"}),
        ({"client": ("/run/app.sock", 0)}, {"network.peer.address"}),
        ({"client": ("/run/app.sock", None)}, {"network.peer.address"}),
        ({"client": ("10.0.0.9", 41000, 0, 0)}, set()),
        ({"client": ()}, {"client.address", "network.peer.address", "network.peer.port"}),
        ({"scheme": None}, set()),
        ({"client": ["10.0.0.9", 41000], "server": None}, set()),
        ({"headers": [], "server": None}, {"server.address", "server.port"}),
        ({"headers": [], "server": ("/run/app.sock", None)}, {"server.address"}),
        ({"headers": [(b"host", b"[::1")]}, {"server.address"}),
        ({"headers": [(b"host", b"a/b@c")]}, {"server.address"}),
        ({"headers": [(b"host", b"shop:none")]}, {"server.address"}),
    ],
)
def test_what_is_not_known_is_not_said(make, scope, absent):
    host = make("BareASGI")
    reply = host.get(changes=scope)
    assert reply.error is None
    assert absent.isdisjoint(host.server_span.attributes)


def test_the_servers_own_address_stands_in_for_a_host_header(make):
    host = make("BareASGI")
    host.get(changes={"headers": []})
    assert host.server_span.attributes["server.address"] == "10.0.0.1"
    wsgi_host = make("BareWSGI")
    environ = wsgi_host.environ("/items/7", ())
    del environ["HTTP_HOST"]
    wsgi_host.app(environ, lambda *_: lambda data: None).close()
    assert wsgi_host.server_span.attributes["server.address"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("server", "address"), [(("::1", 8080), "::1"), (["fe80::1%eth0", 8080, 0, 2], "fe80::1%eth0")]
)
def test_the_servers_own_address_may_be_one_of_ipv6(make, server, address):
    host = make("BareASGI")
    host.get(changes={"headers": [], "server": server})
    found = host.server_span.attributes
    assert (found["server.address"], found["server.port"]) == (address, 8080)


@pytest.mark.parametrize(
    "environ",
    [
        {"REMOTE_PORT": "none"},
        {"REMOTE_PORT": ""},
        {"REMOTE_ADDR": ""},
        {"SERVER_PROTOCOL": ""},
        {"SERVER_PROTOCOL": "HTTP/2.0"},
        {"PATH_INFO": "/items/\xff\xfe"},
        {"PATH_INFO": "/items/\xe2\x82\xac"},
    ],
)
def test_an_odd_environ_hurts_nobody(make, environ):
    host = make("BareWSGI")
    reply = host.get(**environ)
    assert reply.error is None
    assert host.server_span.attributes["http.response.status_code"] == 200


def test_a_wsgi_path_is_said_as_it_was_asked_for(make):
    host = make("BareWSGI")
    host.get(SCRIPT_NAME="/shop", PATH_INFO="/items/\xe2\x82\xac")
    assert host.server_span.attributes["url.path"] == "/shop/items/\u20ac"
