"""The server contract on Starlette, with and without its own OpenTelemetryMiddleware."""

from __future__ import annotations

import json
from typing import Any

import pytest
import starlette
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute

from meshmw import asgi
from tests.contracts.server.asgi_host import ASGIHost


def native_telemetry() -> Any:
    """Return Starlette's own OpenTelemetryMiddleware, which the oldest releases lack, and with them FastAPI."""
    if starlette.__version__.startswith("0."):
        pytest.skip("this Starlette has no telemetry of its own")
    from starlette.middleware.opentelemetry import OpenTelemetryMiddleware

    return OpenTelemetryMiddleware


class StarletteHost(ASGIHost):
    """meshmw.asgi among Starlette's middleware."""

    def stack(self) -> list[Middleware]:
        return [self.ours()]

    def ours(self) -> Middleware:
        return Middleware(asgi.TraceContextMiddleware, **self.options)

    def routes(self) -> list[BaseRoute]:
        async def item(request: Request) -> PlainTextResponse:
            return PlainTextResponse(json.dumps(self.visit_scope(request.scope).outbound))

        def sync_item(request: Request) -> PlainTextResponse:
            return PlainTextResponse(json.dumps(self.visit_scope(request.scope).outbound))

        async def stream(request: Request) -> StreamingResponse:
            return StreamingResponse(self.chunks(request))

        async def fail(request: Request) -> PlainTextResponse:
            self.visit_scope(request.scope)
            raise self.error

        return [
            Route("/items/{item}", item),
            Route("/sync/{item}", sync_item),
            Route("/health", item),
            Route("/stream", stream),
            Route("/fail", fail),
            WebSocketRoute("/ws/{how}", self.talk),
        ]

    def build(self) -> Any:
        return Starlette(routes=self.routes(), middleware=self.stack())


class StarletteTelemetryOutside(StarletteHost):
    """meshmw.asgi inside Starlette's own OpenTelemetryMiddleware, whose span it adopts."""

    own_span = False

    def stack(self) -> list[Middleware]:
        return [Middleware(native_telemetry(), tracer_provider=self.tracer_provider), self.ours()]


class StarletteTelemetryInside(StarletteHost):
    """meshmw.asgi outside of Starlette's own OpenTelemetryMiddleware, which stands back."""

    def stack(self) -> list[Middleware]:
        return [self.ours(), Middleware(native_telemetry(), tracer_provider=self.tracer_provider)]


HOSTS = [StarletteHost, StarletteTelemetryOutside, StarletteTelemetryInside]
