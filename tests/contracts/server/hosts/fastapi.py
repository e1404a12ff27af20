"""The server contract on FastAPI, with and without its native telemetry."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse
from starlette.websockets import WebSocket

from meshmw import asgi
from tests.contracts.server.asgi_host import ASGIHost
from tests.contracts.server.hosts.starlette import native_telemetry


class FastAPIHost(ASGIHost):
    """meshmw.asgi among FastAPI's middleware, native telemetry off."""

    def telemetry(self) -> dict[str, Any]:
        return {"tracing": False, "metrics": False, "logs": False}

    def build(self) -> Any:
        app = self.bare_app()
        app.add_middleware(asgi.TraceContextMiddleware, **self.options)
        return app

    def bare_app(self) -> FastAPI:
        app = FastAPI(telemetry=self.telemetry())

        @app.get("/items/{item}")
        @app.get("/health")
        async def read_item(request: Request) -> dict[str, str]:
            return self.visit_scope(request.scope).outbound

        @app.get("/sync/{item}")
        def read_item_in_a_thread(request: Request) -> dict[str, str]:
            return self.visit_scope(request.scope).outbound

        @app.get("/stream")
        async def stream(request: Request) -> StreamingResponse:
            return StreamingResponse(self.chunks(request))

        @app.websocket("/ws/{how}")
        async def talk(socket: WebSocket) -> None:
            await self.talk(socket)

        @app.get("/fail")
        async def fail(request: Request) -> None:
            self.visit_scope(request.scope)
            raise self.error

        return app


class NativeFastAPI(FastAPIHost):
    """meshmw.asgi among the middleware of a FastAPI with native telemetry, whose span it adopts."""

    own_span = False

    def telemetry(self) -> dict[str, Any]:
        native_telemetry()
        return {"tracer_provider": self.tracer_provider, "metrics": False, "logs": False, "operation_spans": False}


class AroundNativeFastAPI(NativeFastAPI):
    """meshmw.asgi outermost around a FastAPI with native telemetry, which stands back."""

    own_span = True

    def build(self) -> Any:
        return asgi.TraceContextMiddleware(self.bare_app(), **self.options)


HOSTS = [FastAPIHost, NativeFastAPI, AroundNativeFastAPI]
