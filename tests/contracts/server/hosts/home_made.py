"""The server contract on servers for which there is no middleware: each request is a block of `meshmw.server_span`."""

from __future__ import annotations

import asyncio
import json
from http.client import HTTPMessage
from typing import Any

from opentelemetry.context import Context

from meshmw.server import TraceContextBoundary
from tests.contracts.server.host import Headers, Host, Reply, attached


class HomeMade(Host):
    """A server of one's own, with its headers as pairs of text."""

    def build(self) -> Any:
        return TraceContextBoundary(**self.options)

    def shaped(self, headers: Headers) -> Any:
        return list(headers)

    def seen_in(self, headers: Any) -> Headers:
        return list(headers)

    def block(self, path: str, headers: Headers) -> Any:
        came = [("Host", "shop.internal:8080"), *headers]
        return self.app.span(
            self.shaped(came), method="GET", target=path, peer=("10.0.0.9", 41000), http_version="HTTP/1.1"
        )

    def get(self, path: str = "/items/7", headers: Headers = (), *, ambient: Context | None = None) -> Reply:
        reply = Reply()
        with attached(ambient):
            try:
                with self.block(path, headers) as span:
                    self.answer(path, span, reply)
            except Exception as error:
                reply.error = error
        return reply

    def answer(self, path: str, span: Any, reply: Reply) -> None:
        if path == "/fail":
            self.visit(self.seen_in(span.headers))
            raise self.error
        reply.status = 200 if path.startswith(("/items/", "/stream", "/health")) else 404
        span.set_status(reply.status)
        for _ in range(3 if path == "/stream" else reply.status == 200):
            seen = self.visit(self.seen_in(span.headers))
            reply.body += b"chunk" if path == "/stream" else json.dumps(seen.outbound).encode()


class HomeMadeInBytes(HomeMade):
    """A server whose headers are a tuple of pairs of bytes, as h11 and hyper-h2 have them."""

    def shaped(self, headers: Headers) -> Any:
        return tuple((name.encode(), value.encode("latin-1")) for name, value in headers)

    def seen_in(self, headers: Any) -> Headers:
        assert isinstance(headers, tuple)
        return [(name.decode(), value.decode("latin-1")) for name, value in headers]


class HomeMadeInLists(HomeMade):
    """A server whose headers are a dictionary of lists, in an `async` function."""

    def shaped(self, headers: Headers) -> Any:
        found: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            found.setdefault(name.title().encode(), []).append(value.encode("latin-1"))
        return found

    def seen_in(self, headers: Any) -> Headers:
        return [(name.decode(), value.decode("latin-1")) for name, values in headers.items() for value in values]

    def get(self, path: str = "/items/7", headers: Headers = (), *, ambient: Context | None = None) -> Reply:
        reply = Reply()

        async def serve() -> None:
            with self.block(path, headers) as span:
                await asyncio.sleep(0)
                self.answer(path, span, reply)

        with attached(ambient):
            try:
                asyncio.run(serve())
            except Exception as error:
                reply.error = error
        return reply


class HomeMadeInParts(HomeMade):
    """A server whose functions each serve a part of a request, with headers as `http.server` has them."""

    def shaped(self, headers: Headers) -> Any:
        message = HTTPMessage()
        for name, value in headers:
            message[name.title()] = value
        return message

    def seen_in(self, headers: Any) -> Headers:
        return list(headers.items())

    def get(self, path: str = "/items/7", headers: Headers = (), *, ambient: Context | None = None) -> Reply:
        reply = Reply()
        with attached(ambient):
            span = self.block(path, headers).begin()
        error: Exception | None = None
        try:
            with span.current():
                self.answer(path, span, reply)
        except Exception as raised:
            error = reply.error = raised
        span.end(error)
        return reply


HOSTS = [HomeMade, HomeMadeInBytes, HomeMadeInLists, HomeMadeInParts]
