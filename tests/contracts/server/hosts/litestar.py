"""The server contract on Litestar."""

from __future__ import annotations

from typing import Any

from litestar import Litestar, Request, WebSocket, get, websocket
from litestar.response import Stream

from meshmw import asgi
from tests.contracts.server.asgi_host import ASGIHost


class LitestarHost(ASGIHost):
    """meshmw.asgi around a Litestar application, which answers exceptions itself."""

    raises = False

    def build(self) -> Any:
        @get(["/items/{item:str}", "/health"])
        async def item(request: Request) -> dict[str, str]:
            return self.visit_scope(request.scope).outbound

        @get("/sync/{item:str}", sync_to_thread=True)
        def sync_item(request: Request) -> dict[str, str]:
            return self.visit_scope(request.scope).outbound

        @get("/stream")
        async def stream(request: Request) -> Stream:
            return Stream(self.chunks(request))

        @get("/fail")
        async def fail(request: Request) -> None:
            self.visit_scope(request.scope)
            raise self.error

        @websocket("/ws/{how:str}")
        async def talk(socket: WebSocket) -> None:
            await self.talk_in_litestar(socket)

        app = Litestar([item, sync_item, stream, fail, talk], openapi_config=None, logging_config=None)
        return asgi.TraceContextMiddleware(app, **self.options)

    async def talk_in_litestar(self, socket: Any) -> None:
        self.visit_scope(socket.scope)
        match socket.scope["path"]:
            case "/ws/deny":
                await socket.close()
            case "/ws/reject":
                # It has no words of its own for this.
                await socket.send({"type": "websocket.http.response.start", "status": 401, "headers": []})
                await socket.send({"type": "websocket.http.response.body", "body": b"who are you?"})
            case "/ws/fail":
                raise self.error
            case _:
                await socket.accept()
                self.visit_scope(socket.scope)
                await socket.send_text("hello")
                await socket.close()


HOSTS = [LitestarHost]
