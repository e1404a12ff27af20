"""The server contract on Quart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from quart import Quart, abort, request, websocket

from meshmw import asgi
from tests.contracts.server.asgi_host import ASGIHost


class QuartHost(ASGIHost):
    """meshmw.asgi in a Quart application, around its `asgi_app` as Quart documents."""

    def build(self) -> Any:
        app = Quart("shop")
        app.config["PROPAGATE_EXCEPTIONS"] = True

        @app.get("/items/<item>")
        @app.get("/health")
        async def read_item(item: str = "") -> dict[str, str]:
            return self.visit_scope(request.scope).outbound

        @app.get("/sync/<item>")
        def read_item_in_a_thread(item: str) -> dict[str, str]:
            return self.visit_scope(request.scope).outbound

        @app.get("/stream")
        async def stream() -> Any:
            return app.response_class(self.chunks(SimpleNamespace(scope=request.scope)))

        @app.get("/fail")
        async def fail() -> None:
            self.visit_scope(request.scope)
            raise self.error

        @app.websocket("/ws/<how>")
        async def talk(how: str) -> None:
            self.visit_scope(websocket.scope)
            match how:
                case "deny":
                    await websocket.close(1000)
                case "reject":
                    abort(401)
                case "fail":
                    raise self.error
                case _:
                    await websocket.accept()
                    self.visit_scope(websocket.scope)
                    await websocket.send("hello")
                    await websocket.close(1000)

        app.asgi_app = asgi.TraceContextMiddleware(app.asgi_app, **self.options)
        return app


HOSTS = [QuartHost]
