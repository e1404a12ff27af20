"""The server contract on aiohttp's own server, whose parser the headers do not pass here: it would refuse some of them.

`tests/contracts/frameworks/test_own_servers.py` asks it over a socket.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict
from opentelemetry.context import Context

from meshmw.aiohttp import TraceContextMiddleware
from tests.contracts.server.host import Headers, Host, Reply, attached


class AiohttpHost(Host):
    """meshmw.aiohttp in an application of aiohttp's."""

    def build(self) -> Any:
        app = web.Application(middlewares=[TraceContextMiddleware(**self.options)])
        app.router.add_get("/items/{item}", self.read_item)
        app.router.add_get("/health", self.read_item)
        app.router.add_get("/health/", self.read_item)
        app.router.add_get("/stream", self.stream)
        app.router.add_get("/fail", self.fail)
        return app

    async def read_item(self, request: web.Request) -> web.Response:
        return web.json_response(self.visit_request(request).outbound)

    async def stream(self, request: web.Request) -> web.Response:
        body = b""
        for _ in range(3):
            self.visit_request(request)
            await asyncio.sleep(0)
            body += b"chunk"
        return web.Response(body=body)

    async def fail(self, request: web.Request) -> web.Response:
        self.visit_request(request)
        raise self.error

    def visit_request(self, request: web.Request) -> Any:
        return self.visit(list(request.headers.items()))

    def get(self, path: str = "/items/7", headers: Headers = (), *, ambient: Context | None = None) -> Reply:
        reply = Reply()
        came = CIMultiDict([("Host", "shop.internal:8080"), *headers])

        async def serve() -> None:
            request = make_mocked_request("GET", path, came)
            # As `Application` does, which has no public name for it.
            request._match_info = match = await self.app.router.resolve(request)
            try:
                response = await self.app.middlewares[0](request, match.handler)
                reply.status, reply.body = response.status, response.body
            except web.HTTPException as answer:
                reply.status = answer.status
            except Exception as error:
                reply.error = error

        with attached(ambient):
            asyncio.run(serve())
        return reply


HOSTS = [AiohttpHost]
