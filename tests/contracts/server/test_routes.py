"""A route is a template or it is absent: never a segment that a stranger has chosen, with every mount and the root."""

import random
import uuid
from datetime import date
from pathlib import Path

import litestar
import pytest
from django.test import override_settings
from django.urls import include, path, re_path
from fastapi import APIRouter, FastAPI
from flask import Flask
from litestar.middleware import DefineMiddleware
from litestar.params import FromPath
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

import meshmw.flask
from meshmw import asgi
from meshmw._frameworks import routed_within
from meshmw._lifecycle import http_conventions
from tests.contracts.server.hosts.django import DjangoURLs

QUIET = {"telemetry": {"tracing": False, "metrics": False, "logs": False}}


class Words(Convertor):
    """Is a convertor of the application's own, which makes many texts the same."""

    regex = "[a-zA-Z-]+"

    def convert(self, value):
        return value.lower().replace("-", " ")

    def to_string(self, value):
        return value


register_url_convertor("words", Words())


@pytest.fixture(autouse=True)
def roots(monkeypatch):
    """The root paths that are known so far; none."""
    found = set()
    monkeypatch.setattr(http_conventions, "_roots", found)
    return found


@pytest.fixture
def name_of(make):
    """The name of the span of one request to an ASGI application, its `http.route` checked against it."""
    host = make("BareASGI")

    def ask(application, path, **scope):
        host.exporter.clear()
        host.app = asgi.TraceContextMiddleware(application, **host.options)
        host.get(path, **scope)
        name, route = host.server_span.name, host.server_span.attributes.get("http.route")
        assert name.partition(" ")[2] == (route or "")
        return name

    ask.host = host
    return ask


async def plain(request):
    return PlainTextResponse("ok")


async def missing(request):
    return PlainTextResponse("no such item", 404)


async def talk(socket):
    await socket.accept()
    await socket.close()


ITEM = Route("/items/{item}", plain)


class Copying:
    """Is a middleware that hands on a copy of the scope, and so keeps from all further out what is written there."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        await self.app(dict(scope), receive, send)


def copying(app):
    """The same as a function."""

    async def middleware(scope, receive, send):
        await app({**scope}, receive, send)

    return middleware


class Through(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        return await call_next(request)


AROUND = {"alone": lambda app: app, "copied": Copying, "copied by a function": copying, "through": Through}


@pytest.fixture(params=AROUND)
def around(request):
    """Puts a middleware around an application."""
    return AROUND[request.param]


# Mounts.


@pytest.mark.parametrize(
    ("template", "segment"),
    [
        ("/{t:int}", "/007"),
        ("/{t:int}", "/7"),
        ("/{t:float}", "/1.50"),
        ("/{t:float}", "/1"),
        ("/{t:uuid}", "/0AF76519-16CD-43DD-8448-EB211C80319C"),
        ("/{t:path}/end", "/a/b%2Fc//d/end"),
        ("/{t:path}/end", "/end/end/end"),
        ("/{t:words}", "/Two-Words"),
        ("/{t}", "/caf\u00e9"),
        ("/{t}", "/{t}"),
        ("/{t}", "/items"),
        ("/shop/{t}", "/shop/shop"),
    ],
)
@pytest.mark.parametrize("mounted", ["routes", "application"])
def test_a_mounts_parameter_keeps_its_name_whatever_its_convertor(name_of, around, template, segment, mounted):
    inner = {"routes": [ITEM]} if mounted == "routes" else {"app": Starlette(routes=[ITEM])}
    app = around(Starlette(routes=[Mount(template, **inner)]))
    shown = template.partition(":")[0] + "}" + template.partition("}")[2] if ":" in template else template
    assert name_of(app, f"{segment}/items/7") == f"GET {shown}/items/{{item}}"


SHADOWS = Starlette(
    routes=[
        Mount("/a/{item}", routes=[ITEM, Mount("/{item}", routes=[ITEM])]),
        Mount("/b/{t:int}", Starlette(routes=[Mount("/{u:float}", routes=[Mount("/c", routes=[ITEM])])])),
        Mount("/b", routes=[ITEM]),
    ]
)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        # The same name in a mount and in a route within.
        ("/a/1/items/2", "GET /a/{item}/items/{item}"),
        ("/a/1/1/items/1", "GET /a/{item}/{item}/items/{item}"),
        ("/b/07/1.50/c/items/7", "GET /b/{t}/{u}/c/items/{item}"),
        ("/b/items/7", "GET /b/items/{item}"),
        # Starlette goes into the first mount that fits, and does not come back.
        ("/b/07/items/7", "GET /b/{t}"),
    ],
)
def test_mounts_within_mounts_and_names_that_shadow_one_another(name_of, path, expected):
    assert name_of(SHADOWS, path) == expected


def test_a_mount_behind_a_host_route_is_found(name_of, around):
    shop = Router([Mount("/t/{t:int}", routes=[ITEM])])
    app = around(Starlette(routes=[Host("{area}.shop.internal", Router([])), Host("shop.internal", shop), ITEM]))
    assert name_of(app, "/t/007/items/1") == "GET /t/{t}/items/{item}"
    elsewhere = {"headers": [(b"host", b"north.shop.internal")]}
    assert name_of(app, "/t/007/items/1", changes=elsewhere) == "GET"


def new_fastapi():
    """A FastAPI with routers within routers, mounts in them, and applications of other kinds in those."""
    app, inner, outer = FastAPI(**QUIET), APIRouter(), APIRouter()
    inner.get("/{item}")(lambda item: item)
    inner.add_route("/plain/{item:int}", plain)
    inner.mount("/t/{t:int}", Starlette(routes=[ITEM]))
    inner.mount("/files/{folder}", PlainTextResponse("body {}"))
    outer.include_router(inner, prefix="/stock")
    outer.add_websocket_route("/talk/{room:int}", talk)
    app.include_router(outer, prefix="/shop/{area}")
    admin = FastAPI(**QUIET)
    admin.include_router(inner, prefix="/stock")
    app.mount("/admin/{who:int}", admin)
    app.mount("/static/{version:float}", PlainTextResponse("body {}"))
    app.mount("/star/{t:int}", Starlette(routes=[ITEM]))
    return app


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/shop/north/stock/7", "GET /shop/{area}/stock/{item}"),
        ("/shop/north/stock/plain/007", "GET /shop/{area}/stock/plain/{item}"),
        ("/shop/north/stock/t/007/items/7", "GET /shop/{area}/stock/t/{t}/items/{item}"),
        ("/shop/north/stock/files/secret/x", "GET /shop/{area}/stock/files/{folder}"),
        ("/admin/007/stock/7", "GET /admin/{who}/stock/{item}"),
        ("/admin/007/stock/t/08/items/7", "GET /admin/{who}/stock/t/{t}/items/{item}"),
        ("/static/1.50/site.css", "GET /static/{version}"),
        ("/star/007/items/7", "GET /star/{t}/items/{item}"),
        ("/shop/north/none", "GET"),
        ("/admin/007/none", "GET"),
        ("/none", "GET"),
    ],
)
def test_fastapis_included_routers_mounts_and_what_is_mounted_in_them(name_of, around, path, expected):
    assert name_of(around(new_fastapi()), path) == expected


def test_a_websocket_within_an_included_router(name_of, around):
    handshake = {"type": "websocket", "scheme": "ws", "subprotocols": [], "incoming": [{"type": "websocket.connect"}]}
    assert name_of(around(new_fastapi()), "/shop/north/talk/007", **handshake) == "GET /shop/{area}/talk/{room}"
    app = around(Starlette(routes=[Mount("/t/{t:int}", routes=[WebSocketRoute("/talk", talk)])]))
    assert name_of(app, "/t/007/talk", **handshake) == "GET /t/{t}/talk"


@pytest.mark.parametrize("kind", [Copying, copying])
def test_a_copy_of_the_scope_hides_no_route_wherever_it_is_made(name_of, kind):
    within = Starlette(routes=[Mount("/t/{t:int}", kind(Starlette(routes=[ITEM])))])
    assert name_of(within, "/t/007/items/7") == "GET /t/{t}/items/{item}"
    assert name_of(kind(kind(within)), "/t/007/items/7") == "GET /t/{t}/items/{item}"
    among = Starlette(routes=[ITEM])
    among.add_middleware(kind)
    assert name_of(among, "/items/7") == "GET /items/{item}"
    of_the_route = Starlette(routes=[Mount("/t/{t:int}", kind(Router([Mount("/u", Router([ITEM]))])))])
    assert name_of(of_the_route, "/t/007/u/items/7") == "GET /t/{t}/u/items/{item}"


@pytest.mark.parametrize("kind", [Copying, copying])
def test_a_copy_of_the_scope_among_the_applications_own_middleware_hides_no_route(name_of, kind):
    app = Starlette(routes=[ITEM])
    app.add_middleware(kind)
    app.add_middleware(asgi.TraceContextMiddleware, **name_of.host.options)
    name_of.host.app = app
    name_of.host.get("/items/7")
    assert name_of.host.server_span.name == "GET /items/{item}"


def test_a_copy_hides_neither_the_wrong_method_nor_an_item_that_is_missing(name_of):
    app = Copying(Starlette(routes=[Route("/items/{item}", missing), Route("/items/{item}", plain, methods=["PUT"])]))
    assert name_of(app, "/items/7") == "GET /items/{item}"
    assert name_of(app, "/items/7", method="DELETE") == "DELETE /items/{item}"
    assert name_of(app, "/none/7") == "GET"


def test_a_copy_hides_no_route_of_an_application_that_knows_its_root(name_of):
    app, outer = FastAPI(**QUIET), FastAPI(**QUIET)
    app.get("/items/{item}")(lambda item: item)
    app.root_path = outer.root_path = "/api"  # its argument is deprecated, and works
    for asked in ("/api/items/7", "/items/7"):
        assert name_of(app, asked) == "GET /api/items/{item}"
        assert name_of(Copying(app), asked) == "GET /api/items/{item}"
    app.root_path = ""
    outer.mount("/t/{t:int}", app)
    assert name_of(outer, "/api/t/007/items/7") == "GET /api/t/{t}/items/{item}"
    assert name_of(Copying(outer), "/api/t/007/items/7") == "GET /api/t/{t}/items/{item}"


def test_redirects_and_other_methods_within_a_mount_tell_no_segment(name_of, around):
    app = around(Starlette(routes=[Mount("/t/{t:int}", routes=[ITEM])]))
    assert name_of(app, "/t/007/items/7/") == "GET /t/{t}"
    assert name_of(app, "/t/007") == "GET"
    assert name_of(app, "/t/007/items/7", method="DELETE") == "DELETE /t/{t}/items/{item}"


def test_where_two_applications_might_have_served_nobody_guesses(name_of):
    one, other = Starlette(routes=[ITEM]), Starlette(routes=[Route("/items/{other}", plain)])

    async def either(scope, receive, send):
        await (one if scope["path"].endswith("1") else other)(dict(scope), receive, send)

    assert name_of(either, "/items/1") == "GET"


def test_a_route_that_a_middleware_further_in_has_rewritten_is_absent(name_of):
    """It went to a path that nobody outside of that middleware knows."""

    class Rewriting:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            await self.app(scope | {"path": "/items/7"}, receive, send)

    assert name_of(Rewriting(Starlette(routes=[ITEM])), "/v1/7") == "GET"


def test_layers_that_lead_to_themselves_end():
    class Layer:
        pass

    first, second = Layer(), Layer()
    first.app, second.app = second, first
    assert routed_within(first) is None

    def outer():
        async def middleware(scope, receive, send):
            await app(scope, receive, send)

        if not middleware:
            app = None
        return middleware

    assert routed_within(outer()) is None


# Litestar, in and around others.


@litestar.get("/items/{item:int}")
async def read_item(item: FromPath[int]) -> int:
    return item


def new_litestar(*handlers, **options):
    return litestar.Litestar([read_item, *handlers], openapi_config=None, logging_config=None, **options)


def test_litestar_within_a_mount_of_starlette(name_of):
    app = Starlette(routes=[Mount("/t/{t:int}", new_litestar())])
    assert name_of(app, "/t/007/items/08") == "GET /t/{t}/items/{item}"


@litestar.get("/items/special")
async def read_special() -> str:
    return "ok"


@litestar.get("/files/{name:path}")
async def read_file(name: FromPath[Path]) -> str:
    return "ok"


@litestar.get("/{area:str}/by/{day:date}")
async def read_day(area: FromPath[str], day: FromPath[date]) -> str:
    return "ok"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/items/007", "GET /items/{item}"),
        ("/items/7/", "GET /items/{item}"),
        ("/items/special", "GET /items/special"),
        ("/files/a/b.txt", "GET /files/{name}"),
        ("/north/by/2026-11-29", "GET /{area}/by/{day}"),
        ("/", "GET"),
        ("/none", "GET"),
        ("/items/7/more", "GET"),
    ],
)
@pytest.mark.parametrize("root", ["", "/api"])
def test_a_copy_of_the_scope_hides_no_route_of_litestars(name_of, around, path, expected, root):
    app = around(new_litestar(read_special, read_file, read_day))
    named = name_of(app, f"{root}{path}", root_path=root)
    assert named == (expected.replace(" ", f" {root}") if " " in expected else expected)
    mounted = around(Starlette(routes=[Mount("/t/{t:int}", around(new_litestar(read_special, read_file, read_day)))]))
    within = name_of(mounted, f"{root}/t/007{path}", root_path=root)
    assert within.replace("/t/{t}", "") == named or (within, named) == (f"GET {root}/t/{{t}}", "GET")


def test_litestar_tells_its_route_to_its_own_middleware(make):
    host = make("BareASGI")
    host.app = new_litestar(middleware=[DefineMiddleware(asgi.TraceContextMiddleware, **host.options)])
    host.get("/items/007")
    assert host.server_span.name == "GET /items/{item}"


# However many paths are asked for.


def hostile_path(chance):
    """Return a path that is likely to fit something, with segments that nobody has asked for before."""
    segment = chance.choice(
        [
            lambda: f"{chance.randrange(10**6):07}",
            lambda: f"{chance.random():.9f}",
            lambda: str(uuid.UUID(int=chance.getrandbits(128))).upper(),
            lambda: "".join(chance.choices("abXYZ-_.~%{}:;@'\"", k=12)),
            lambda: "caf\u00e9" + chr(chance.randrange(0xC0, 0x100)),
        ]
    )
    words = ["items", "t", "u", "shop", "stock", "plain", "files", "admin", "static", "star", "end", "a", "b", "c", ""]
    return "/" + "/".join(segment() if chance.random() < 0.5 else chance.choice(words) for _ in range(6))


def test_300_paths_that_nobody_has_asked_for_make_few_names(name_of, around):
    chance = random.Random(15)
    tenants = Mount(
        "/t/{t:int}",
        routes=[ITEM, Mount("/u/{u:uuid}", routes=[ITEM]), Mount("/{p:path}/end", routes=[ITEM, Mount("/a", plain)])],
    )
    apps = [around(Starlette(routes=[tenants, ITEM, *SHADOWS.routes])), around(new_fastapi())]
    fitting = ["/t/{}/items/1", "/t/{}/u/x", "/shop/{}/stock/t/{}/items/1", "/star/{}/items/1", "/admin/{}/none"]
    names = set()
    for turn in range(300):
        tried = hostile_path(chance)
        if turn % 2:
            number = f"{chance.randrange(10**6):07}"
            tried = chance.choice(fitting).format(number, number)
        method = chance.choice(["GET", "DELETE", f"X{turn}"])
        names.add(name_of(apps[turn % len(apps)], tried, method=method, root_path=chance.choice(["", "/api"])))
    assert not any(digit in name for name in names for digit in "0123456789"), names
    assert len(names) < 60, names


# Root paths.


def test_a_root_path_beyond_the_first_64_leaves_the_route_absent(name_of, roots):
    app = Starlette(routes=[ITEM])
    names = {name_of(app, f"/root{turn}/items/7", root_path=f"/root{turn}") for turn in range(100)}
    assert len(names) == 65
    assert "GET" in names
    assert name_of(app, "/items/7") == "GET /items/{item}"
    assert name_of(app, "/root1/items/7", root_path="/root1") == "GET /root1/items/{item}"


def test_a_root_path_of_any_length_is_no_label(name_of):
    root = "/" + "x" * 8000
    assert name_of(Starlette(routes=[ITEM]), f"{root}/items/7", root_path=root) == "GET"


# WSGI.


@pytest.fixture
def flask_name_of(make):
    """The name of the span of one request to a Flask application, behind what a function puts around it."""

    def ask(path, around=lambda app: app, *, outside=False, **environ):
        host = make("FlaskHost")
        app = Flask("shop")
        app.get("/items/<int:item>")(lambda item: "ok")
        if outside:
            app.wsgi_app = around(app.wsgi_app)
        meshmw.flask.init_app(app, **host.options)
        host.app = app if outside else around(app)
        assert host.get(path, **environ).error is None
        return host.server_span.name

    return ask


def test_flask_is_named_with_where_it_is_mounted(flask_name_of):
    assert flask_name_of("/items/7", SCRIPT_NAME="/api") == "GET /api/items/<int:item>"
    mounted = lambda app: DispatcherMiddleware(Flask("other"), {"/shop": app})  # noqa: E731
    assert flask_name_of("/shop/items/7", mounted) == "GET /shop/items/<int:item>"
    assert flask_name_of("/shop/items/7", mounted, SCRIPT_NAME="/api") == "GET /api/shop/items/<int:item>"
    assert flask_name_of("/items/7", SCRIPT_NAME="/caf\xc3\xa9") == "GET /caf\u00e9/items/<int:item>"
    assert flask_name_of("/shop/none", mounted) == "GET"


@pytest.mark.parametrize("outside", [False, True])
def test_a_prefix_that_a_header_may_choose_makes_few_names(flask_name_of, outside):
    behind_a_proxy = lambda app: ProxyFix(app, x_prefix=1)  # noqa: E731
    asked = (
        flask_name_of("/items/7", behind_a_proxy, outside=outside, HTTP_X_FORWARDED_PREFIX=f"/{turn}")
        for turn in range(300)
    )
    assert len(set(asked)) == 65


class Included:
    urlpatterns = (
        path("shop/<slug:area>/", include([path("items/<int:item>", DjangoURLs.sync_item)])),
        re_path(r"^old/(?P<area>\w+)/", include([re_path(r"^(?P<item>\d+)/$", DjangoURLs.sync_item)])),
        path("", DjangoURLs.sync_item),
    )


@pytest.mark.parametrize("name", ["DjangoASGI", "DjangoWSGI"])
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/shop/north/items/007", "GET {}/shop/<slug:area>/items/<int:item>"),
        ("/old/north/7/", r"GET {}/old/(?P<area>\w+)/(?P<item>\d+)/$"),
        ("/", "GET {}/"),
        ("/none", "GET"),
    ],
)
@pytest.mark.parametrize("root", ["", "/api"])
def test_django_is_named_with_every_include_and_the_root(make, name, path, expected, root):
    host = make(name)
    with override_settings(ROOT_URLCONF=Included):
        if name == "DjangoASGI":
            host.get(root + path, root_path=root)
        else:
            host.get(path, SCRIPT_NAME=root)
    assert host.server_span.name.replace("^", "") == expected.format(root)


def test_djangos_routes_are_absent_below_the_65th_root(make, roots):
    host = make("DjangoWSGI")
    roots.update(f"/root{turn}" for turn in range(64))
    host.get("/items/7", SCRIPT_NAME="/root64")
    host.get("/items/7", SCRIPT_NAME="/root63")
    assert [span.name for span in host.server_spans] == ["GET", "GET /root63/items/<item>"]


@pytest.mark.parametrize("is_copied", [False, True])
def test_300_requests_below_a_mount_with_a_parameter_are_few_series(monkeypatch, name_of, is_copied):
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    histogram = provider.get_meter("test").create_histogram("http.server.request.duration")
    monkeypatch.setattr("meshmw._lifecycle.http.SERVER", histogram)
    monkeypatch.setattr("meshmw._lifecycle.http.SERVER_IS_MEASURED", lambda: True)
    app = Starlette(routes=[Mount("/t/{t:int}", routes=[ITEM]), Mount("/f/{f:float}", plain)])
    app = Copying(app) if is_copied else app
    for turn in range(300):
        asked = f"/t/{turn:07}/items/{turn}" if turn % 2 else f"/t/{turn:07}/none/{turn}"
        name_of(app, asked, method=f"X{turn}", scheme=f"s{turn}", http_version=f"{turn}.9")
    (resource,) = reader.get_metrics_data().resource_metrics
    points = [
        point for scope in resource.scope_metrics for metric in scope.metrics for point in metric.data.data_points
    ]
    provider.shutdown()
    expected = {"/t/{t}/items/{item}", None if is_copied else "/t/{t}"}
    assert {point.attributes.get("http.route") for point in points} == expected
    assert [point.count for point in points] == [150, 150]
