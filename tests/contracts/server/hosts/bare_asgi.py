"""The server contract on an ASGI application that no framework has made."""

from __future__ import annotations

import json
from typing import Any

from starlette.websockets import WebSocket

from meshmw import asgi
from tests.contracts.server.asgi_host import ASGIHost


class BareASGI(ASGIHost):
    """meshmw.asgi around a bare ASGI application."""

    async def application(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            return await self.talk(WebSocket(scope, receive, send))

        async def chunk(body: bytes, more: bool) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        if scope["path"] == "/fail":
            self.visit_scope(scope)
            raise self.error
        status = 200 if scope["path"].startswith(("/items/", "/stream", "/health")) else 404
        if scope["path"] == "/stream":
            await send({"type": "http.response.start", "status": status, "headers": []})
            for last in (False, False, True):
                self.visit_scope(scope)
                await chunk(b"chunk", not last)
            return
        seen = self.visit_scope(scope) if status == 200 else None
        await send({"type": "http.response.start", "status": status, "headers": []})
        await chunk(json.dumps(seen.outbound if seen else {}).encode(), False)

    def build(self) -> Any:
        return asgi.TraceContextMiddleware(self.application, **self.options)


HOSTS = [BareASGI]
