"""The server contract on Django, over ASGI and over WSGI, with the middleware that knows its routes."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

import django
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse, StreamingHttpResponse
from django.urls import path

from meshmw import asgi, wsgi
from tests.contracts.server.asgi_host import ASGIHost
from tests.contracts.server.host import Visit
from tests.contracts.server.wsgi_host import WSGIHost

DJANGO_HOST = "tests.host"


class DjangoASGI(ASGIHost):
    """meshmw.asgi around a Django application, with the middleware that knows Django's routes."""

    has_websockets = False

    def build(self) -> Any:
        app = ClosingHandler()

        async def of_this_host(scope: Any, receive: Any, send: Any) -> None:
            scope[DJANGO_HOST] = self
            try:
                await app(scope, receive, send)
            finally:
                del scope[DJANGO_HOST]

        return asgi.TraceContextMiddleware(of_this_host, **self.options)


class DjangoWSGI(WSGIHost):
    """meshmw.wsgi around a Django application, with the middleware that knows Django's routes."""

    def build(self) -> Any:
        app = get_wsgi_application()

        def of_this_host(environ: dict[str, Any], start_response: Any) -> Any:
            return app(environ | {DJANGO_HOST: self}, start_response)

        return wsgi.TraceContextMiddleware(of_this_host, **self.options)


class ClosingHandler(ASGIHandler):
    """Closes the file with a request's body, which Django leaves open where a view raises or a request is cancelled."""

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        opened = []
        create_request = self.create_request

        def remember(scope: Any, body_file: Any) -> Any:
            opened.append(body_file)
            return create_request(scope, body_file)

        handler = copy(self)
        handler.create_request = remember
        try:
            await super(ClosingHandler, handler).handle(scope, receive, send)
        finally:
            for file in opened:
                file.close()


def django_visit(request: Any) -> Visit:
    if hasattr(request, "scope"):
        return request.scope[DJANGO_HOST].visit_scope(request.scope)
    return request.META[DJANGO_HOST].visit_environ(request.META)


class DjangoURLs:
    """Django has one table of routes in a process; the views find their host by the request."""

    @staticmethod
    async def item(request: Any, item: str = "") -> JsonResponse:
        return JsonResponse(django_visit(request).outbound)

    @staticmethod
    def sync_item(request: Any, item: str = "") -> JsonResponse:
        return JsonResponse(django_visit(request).outbound)

    @staticmethod
    def stream(request: Any) -> StreamingHttpResponse:
        async def chunks() -> Any:
            for _ in range(3):
                django_visit(request)
                yield b"chunk"

        def sync_chunks() -> Iterator[bytes]:
            for _ in range(3):
                django_visit(request)
                yield b"chunk"

        return StreamingHttpResponse(chunks() if hasattr(request, "scope") else sync_chunks())

    @staticmethod
    def fail(request: Any) -> None:
        django_visit(request)
        host = request.scope[DJANGO_HOST] if hasattr(request, "scope") else request.META[DJANGO_HOST]
        raise host.error


DjangoURLs.urlpatterns = (
    path("items/<item>", DjangoURLs.item),
    path("sync/<item>", DjangoURLs.sync_item),
    path("health", DjangoURLs.sync_item),
    path("stream", DjangoURLs.stream),
    path("fail", DjangoURLs.fail),
)
settings.configure(
    ALLOWED_HOSTS=["*"],
    DEBUG_PROPAGATE_EXCEPTIONS=True,
    LOGGING_CONFIG=None,
    MIDDLEWARE=["meshmw.django.route_middleware"],
    ROOT_URLCONF=DjangoURLs,
    SECRET_KEY="tests",
)
django.setup()

HOSTS = [DjangoASGI, DjangoWSGI]
