"""Every HTTP client behind the same verbs, and the server that they all call over a real socket.

The verbs are async; a sync client's are done at once. What httpx alone can be asked is in `conftest.py`.
"""

from __future__ import annotations

import asyncio
import http.server
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import httpx
import httpx2
import requests
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

import meshmw
from meshmw import MeshPropagator
from tests.contracts.client.conftest import ForMany, Lines, answer, by_name, current, result_of


class Server(http.server.BaseHTTPRequestHandler):
    """Answers as `answer` says, and breaks off, waits and streams where it is asked to."""

    protocol_version = "HTTP/1.1"
    got: list[tuple[str, Lines]]
    goes_on: threading.Event

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.got.append((self.path, [(name.lower(), value) for name, value in self.headers.items()]))
        path, _, query = self.path.partition("?")
        if path == "/stuck":
            self.goes_on.wait(60)
        if path == "/stream":
            self.chunks(b"a", b"b")
        elif path == "/slow":
            self.chunks(b"a", None, b"b")
        elif path == "/broken":
            self.head(200, {"content-length": "9"})
            self.wfile.write(b"a")
            self.close_connection = True
        elif path == "/to":
            self.head(307, {"location": query, "content-length": "0"})
        elif path == "/flaky":
            self.reply(503 if len(self.got) < 3 else 200, {}, b"")
        elif path == "/digest" and "authorization" not in self.headers:
            self.reply(401, {"www-authenticate": 'Digest realm="a", nonce="b", qop="auth"'}, b"")
        else:
            self.reply(*answer(path))

    do_POST = do_BREW = do_HEAD = do_GET

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.head(status, headers | {"content-length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def chunks(self, *chunks: bytes | None) -> None:
        self.head(200, {"transfer-encoding": "chunked"})
        for chunk in chunks:
            if chunk is None:
                self.goes_on.wait(60)
            else:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Listening(ForMany):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Some clients of these tests leave early."""


class Client(ABC):
    """Calls the server with one client of ours; a subclass for each library says how.

    Attributes:
        error: What every error of the library is.
        refused: What it raises where nobody listens.
    """

    library: Any
    is_async = False
    error: type[BaseException]
    refused: type[BaseException]
    # What the span says of a wait that took too long.
    timeout_type: str

    def __init__(self, address: str) -> None:
        self.address = address
        self.exporter = InMemorySpanExporter()
        self.provider: Any = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("application")
        self.propagator: MeshPropagator | None = MeshPropagator()

    @property
    def options(self) -> dict[str, Any]:
        return {"propagator": self.propagator, "tracer_provider": self.provider}

    # What each library does in its own way.

    @abstractmethod
    def ours(self) -> Any:
        """Return a client of the drop-in class, with the options."""

    @abstractmethod
    def plain(self) -> Any:
        """Return the library's own client, with ours as its transport, adapter or middleware."""

    @abstractmethod
    async def send(self, client: Any, path: str, method: str, headers: Any, wait: float, redirects: bool) -> Any:
        """Return a response whose body is still to be read."""

    def status(self, response: Any) -> int:
        return response.status_code

    @abstractmethod
    async def read(self, response: Any) -> bytes:
        """Return the body of a response."""

    @abstractmethod
    def chunks(self, response: Any) -> AsyncIterator[bytes]:
        """Yield the body of a response as it comes."""

    async def close(self, response: Any) -> None:
        response.close()

    async def close_client(self, client: Any) -> None:
        client.close()

    # What the contract asks.

    def run(self, use: Callable[[Any], Any], *, within: Any = None, client: Any = None) -> Any:
        """Use a client, within a context that must be current again afterwards."""

        async def whole() -> Any:
            with current(within):
                made = (client or self.ours)()
                try:
                    return await use(made)
                finally:
                    await self.close_client(made)

        return asyncio.run(whole())

    async def open(
        self,
        client: Any,
        path: str = "/items/7",
        method: str = "GET",
        headers: Any = None,
        wait: float = 60,
        **more: Any,
    ) -> Any:
        url = path if path.startswith("http") else f"{self.address}{path}"
        return await self.send(client, url, method, headers or {}, wait, more.get("redirects", True))

    def call(
        self, path: str = "/items/7", *, within: Any = None, client: Any = None, **options: Any
    ) -> tuple[int, bytes]:
        """Return status and body of a call."""

        async def use(made: Any) -> tuple[int, bytes]:
            response = await self.open(made, path, **options)
            return self.status(response), await self.read(response)

        return self.run(use, within=within, client=client)

    @property
    def sent(self) -> dict[str, list[str]]:
        """The header lines of the only request that reached the server."""
        ((_, only),) = Server.got
        return by_name(only)

    @property
    def spans(self) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.kind is SpanKind.CLIENT]

    @property
    def span(self) -> ReadableSpan:
        (only,) = self.spans
        return only


class HttpxClient(Client):
    library = httpx

    @property
    def error(self) -> Any:
        return self.library.HTTPError

    @property
    def refused(self) -> Any:
        return self.library.ConnectError

    @property
    def timeout_type(self) -> str:
        return f"{self.library.__name__}.ReadTimeout"

    def transport(self) -> Any:
        ours = getattr(meshmw, self.library.__name__)
        if self.is_async:
            return ours.AsyncTraceContextTransport(self.library.AsyncHTTPTransport(), **self.options)
        return ours.TraceContextTransport(self.library.HTTPTransport(), **self.options)

    def ours(self) -> Any:
        module = getattr(meshmw, self.library.__name__)
        return (module.AsyncClient if self.is_async else module.Client)(transport=self.transport(), trust_env=False)

    def plain(self) -> Any:
        kind = self.library.AsyncClient if self.is_async else self.library.Client
        return kind(transport=self.transport(), trust_env=False)

    async def send(self, client: Any, path: str, method: str, headers: Any, wait: float, redirects: bool) -> Any:
        request = client.build_request(method, path, headers=headers, timeout=wait)
        return await result_of(client.send(request, stream=True, follow_redirects=redirects))

    async def read(self, response: Any) -> bytes:
        return await result_of(response.aread() if self.is_async else response.read())

    async def chunks(self, response: Any) -> AsyncIterator[bytes]:
        if self.is_async:
            async for chunk in response.aiter_raw():
                yield chunk
        else:
            for chunk in response.iter_raw():
                yield chunk

    async def close(self, response: Any) -> None:
        await result_of(response.aclose() if self.is_async else response.close())

    async def close_client(self, client: Any) -> None:
        await result_of(client.aclose() if self.is_async else client.close())


class AsyncHttpxClient(HttpxClient):
    is_async = True


class Httpx2Client(HttpxClient):
    library = httpx2


class AsyncHttpx2Client(AsyncHttpxClient):
    library = httpx2


class RequestsClient(Client):
    library = requests
    error = requests.RequestException
    refused = requests.ConnectionError
    timeout_type = "requests.exceptions.ReadTimeout"

    def mounted(self, session: Any) -> Any:
        session.trust_env = False
        session.mount("http://", meshmw.requests.TraceContextAdapter(**self.options))
        return session

    def ours(self) -> Any:
        return self.mounted(meshmw.requests.Session())

    def plain(self) -> Any:
        return self.mounted(requests.Session())

    async def send(self, client: Any, path: str, method: str, headers: Any, wait: float, redirects: bool) -> Any:
        return client.request(method, path, headers=headers, timeout=wait, allow_redirects=redirects, stream=True)

    async def read(self, response: Any) -> bytes:
        return response.content

    async def chunks(self, response: Any) -> AsyncIterator[bytes]:
        for chunk in response.iter_content(1):
            yield chunk


class AiohttpClient(Client):
    library = aiohttp
    is_async = True
    error = aiohttp.ClientError
    refused = aiohttp.ClientConnectorError
    timeout_type = "TimeoutError"

    def middleware(self) -> Any:
        return meshmw.aiohttp.TraceContextClientMiddleware(**self.options)

    def ours(self) -> Any:
        return meshmw.aiohttp.ClientSession(middlewares=(self.middleware(),))

    def plain(self) -> Any:
        return aiohttp.ClientSession(middlewares=(self.middleware(),))

    async def send(self, client: Any, path: str, method: str, headers: Any, wait: float, redirects: bool) -> Any:
        limit = aiohttp.ClientTimeout(total=wait)
        return await client.request(method, path, headers=headers, timeout=limit, allow_redirects=redirects)

    def status(self, response: Any) -> int:
        return response.status

    async def read(self, response: Any) -> bytes:
        return await response.read()

    async def chunks(self, response: Any) -> AsyncIterator[bytes]:
        async for chunk in response.content.iter_chunked(1):
            yield chunk

    async def close_client(self, client: Any) -> None:
        await client.close()


CLIENTS = {
    "httpx": HttpxClient,
    "httpx-async": AsyncHttpxClient,
    "httpx2": Httpx2Client,
    "httpx2-async": AsyncHttpx2Client,
    "requests": RequestsClient,
    "aiohttp": AiohttpClient,
}
