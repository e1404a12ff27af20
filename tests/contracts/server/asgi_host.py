"""Drives an ASGI application, whatever its framework, as a server would."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from opentelemetry.context import Context
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket

from tests.contracts.server.host import Headers, Host, Reply, Visit, attached


def latin(text: str) -> bytes:
    return text.encode("latin-1")


class ASGIHost(Host):
    """Drives an ASGI application as a server would."""

    has_websockets = True

    def scope(self, path: str, headers: Headers, **more: Any) -> dict[str, Any]:
        found = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": latin(path),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"shop.internal:8080")]
            + [(latin(name).lower(), latin(value)) for name, value in headers],
            "client": ("10.0.0.9", 41000),
            "server": ("10.0.0.1", 8080),
        } | more
        if found["type"] == "websocket":
            del found["method"]  # Litestar minds one, and the protocol has none
        return found

    async def serve(
        self,
        path: str = "/items/7",
        headers: Headers = (),
        *,
        ambient: Context | None = None,
        on_send: Callable[[dict[str, Any]], Any] | None = None,
        incoming: Sequence[dict[str, Any]] = ({"type": "http.request", "body": b"", "more_body": False},),
        changes: Mapping[str, Any] = MappingProxyType({}),
        **scope: Any,
    ) -> Reply:
        reply = Reply()
        waiting = list(incoming)
        answered = asyncio.Event()
        kind = scope.get("type", "http")

        async def receive() -> dict[str, Any]:
            if waiting:
                return waiting.pop(0)
            await answered.wait()
            return {"type": f"{kind}.disconnect"}

        async def send(message: Any) -> None:
            reply.sent.append(message["type"])
            if on_send is not None:
                on_send(message)
            if message["type"].endswith("http.response.start"):
                reply.status = message["status"]
            reply.body += message.get("body", b"")
            last = message["type"].endswith("http.response.body") and not message.get("more_body")
            if last or message["type"] == "websocket.close":
                answered.set()

        with attached(ambient):
            try:
                await self.app(self.scope(path, headers, **scope) | changes, receive, send)
            except Exception as error:
                reply.error = error
        return reply

    def get(self, path: str = "/items/7", headers: Headers = (), **options: Any) -> Reply:
        return asyncio.run(self.serve(path, headers, **options))

    def visit_scope(self, scope: Any) -> Visit:
        return self.visit([(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]])

    async def chunks(self, request: Any) -> Any:
        for _ in range(3):
            self.visit_scope(request.scope)
            yield b"chunk"

    async def talk(self, socket: WebSocket) -> None:
        """Answer a handshake in the way that the path names, where the framework's WebSocket is Starlette's."""
        self.visit_scope(socket.scope)
        match socket.scope["path"]:
            case "/ws/deny":
                await socket.close()
            case "/ws/reject":
                await socket.send_denial_response(PlainTextResponse("who are you?", 401))
            case "/ws/fail":
                raise self.error
            case _:
                await socket.accept()
                self.visit_scope(socket.scope)
                await socket.send_text("hello")
                await socket.close()
