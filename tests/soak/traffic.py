"""What is asked of a soaked server: mixed requests over kept connections, byte for byte, with clients that go away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from websockets.asyncio.client import connect

from meshmw import MeshPropagator, frames

# Large enough for uvicorn to begin the connection's next request in this one's context.
_BODY: Final = b"x" * 100_000
_MESSAGES: Final = 4
_PATIENCE: Final = 120

Sent = Literal["valid", "none", "malformed", "twice"]
Act = Literal["get", "post", "gone", "reset", "half", "ws"]

# What is asked, how, and how often.
ROUTES: Final[dict[str, dict[str, tuple[Act, int]]]] = {
    "asgi": {
        "plain": ("get", 30), "sync": ("get", 8), "body": ("post", 4), "threads": ("get", 6), "tasks": ("get", 8),
        "cancelled": ("get", 6), "fail": ("get", 4), "stream": ("get", 8), "sync-stream": ("get", 3),
        "stream-fail": ("get", 3), "stream-gone": ("gone", 2), "stream-gone?": ("reset", 2), "dropped": ("get", 3),
        "file": ("get", 3), "background": ("get", 5), "apart": ("get", 4), "half": ("half", 1), "ws": ("ws", 2),
    },
    "wsgi": {
        "plain": ("get", 40), "body": ("post", 4), "threads": ("get", 10), "fail": ("get", 5), "stream": ("get", 12),
        "with-context": ("get", 8), "stream-fail": ("get", 5), "stream-gone": ("gone", 3),
        "stream-gone?": ("reset", 3), "file": ("get", 6), "apart": ("get", 6), "half": ("half", 1),
    },
}  # fmt: skip
_SENT: Final[dict[Sent, int]] = {"valid": 80, "none": 8, "malformed": 8, "twice": 4}


@dataclass(slots=True)
class Ask:
    """Holds one request: what is asked, and what came of it."""

    number: int
    route: str
    act: Act
    sent: Sent
    status: int = 0
    whole: bool = False


@dataclass
class Traffic:
    """Asks one server; every request's trace follows from its number.

    Args:
        interface: `asgi` or `wsgi`.
        seed: Tells the traces of one soak from those of others, 1 to 4,294,967,295.
        count: How many requests.
        concurrency: How many at the same time.
    """

    interface: str
    seed: int
    count: int
    concurrency: int = 50
    asked: list[Ask] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def trace(self, number: int, message: int = 0) -> bytes:
        """Return the trace id of a request, or of one of the messages on its connection."""
        return self.seed.to_bytes(4, "big") + number.to_bytes(8, "big") + message.to_bytes(4, "big")

    def parent(self, number: int, message: int = 0) -> bytes:
        """Return the span id that a request or message names as its parent."""
        return (number * 16 + message + 1).to_bytes(8, "big")

    async def run(self, port: int) -> None:
        """Ask everything."""
        asks = self._asks()
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self.concurrency, self.count)):
                group.create_task(self._one_after_the_other(port, asks))

    def _asks(self) -> Iterator[Ask]:
        chance, routes = random.Random(self.seed), ROUTES[self.interface]
        names, weights = list(routes), [weight for _, weight in routes.values()]
        for number in range(self.count):
            name = names[number] if number < len(names) else chance.choices(names, weights)[0]
            sent = chance.choices(list(_SENT), list(_SENT.values()))[0]
            yield Ask(number, name.rstrip("?"), routes[name][0], sent)

    async def _one_after_the_other(self, port: int, asks: Iterator[Ask]) -> None:
        connection = Connection(port)
        for ask in asks:
            self.asked.append(ask)
            async with asyncio.timeout(_PATIENCE):
                await getattr(self, f"_{ask.act}")(connection, ask)
        connection.close()

    async def _get(self, connection: Connection, ask: Ask, body: bytes = b"") -> None:
        ask.status, ask.whole = await connection.exchange(self._head(ask, len(body)) + body)

    async def _post(self, connection: Connection, ask: Ask) -> None:
        await self._get(connection, ask, _BODY)

    async def _gone(self, connection: Connection, ask: Ask) -> None:
        """Read the beginning of a long response, and hang up."""
        await connection.begin(self._head(ask))
        connection.close()

    async def _reset(self, connection: Connection, ask: Ask) -> None:
        """Read the beginning of a long response, and break the connection."""
        await connection.begin(self._head(ask))
        connection.reset()

    async def _half(self, connection: Connection, ask: Ask) -> None:
        """Promise a body, send some of it, and hang up."""
        ask.route = "body"
        await connection.send(self._head(ask, 1000) + b"not all of it")
        connection.close()

    async def _ws(self, connection: Connection, ask: Ask) -> None:
        """Talk on a WebSocket: several messages under way at once, each with a trace of its own."""
        lines = self._lines(ask)
        async with connect(
            f"ws://127.0.0.1:{connection.port}/ws?n={ask.number}", additional_headers=lines, compression=None
        ) as talk:
            for message in range(1, _MESSAGES + 1):
                await talk.send(self._frame(ask.number, message) + str(message).encode())
            for _ in range(_MESSAGES):
                self._check_answer(ask.number, await talk.recv())
        ask.status, ask.whole = 101, True

    def _frame(self, number: int, message: int) -> bytes:
        parent = SpanContext(
            int.from_bytes(self.trace(number, message)),
            int.from_bytes(self.parent(number, message)),
            True,
            TraceFlags(1),
        )
        return frames.encode(trace.set_span_in_context(NonRecordingSpan(parent)), propagator=_PROPAGATOR)

    def _check_answer(self, number: int, answer: Any) -> None:
        context, rest = frames.decode(answer, propagator=_PROPAGATOR)
        got = trace.get_current_span(context).get_span_context().trace_id
        if got != int.from_bytes(self.trace(number, int(rest))):
            self.wrong.append(f"message {bytes(rest)!r} of {number} was answered in trace {got:032x}")

    def _lines(self, ask: Ask) -> list[tuple[str, str]]:
        valid = f"00-{self.trace(ask.number).hex()}-{self.parent(ask.number).hex()}-01"
        texts = {"valid": [valid], "none": [], "malformed": [valid.replace("-", "_")], "twice": [valid, valid]}
        return [("traceparent", text) for text in texts[ask.sent]]

    def _head(self, ask: Ask, length: int = 0) -> bytes:
        method = "POST" if length else "GET"
        lines = [f"{method} /{ask.route}?n={ask.number} HTTP/1.1", "Host: soak.test"]
        lines += [f"{name}: {text}" for name, text in self._lines(ask)]
        return "\r\n".join([*lines, *([f"Content-Length: {length}"] if length else []), "", ""]).encode()


_PROPAGATOR: Final = MeshPropagator()


class Connection:
    """Keeps one connection, opened anew whenever the last one has gone."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, request: bytes) -> asyncio.StreamReader:
        """Send a request, or as much of one as there is."""
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writer.write(request)
        await self._writer.drain()
        return self._reader

    async def exchange(self, request: bytes) -> tuple[int, bool]:
        """Return a response's status, 0 without one, and whether all of it came."""
        for _ in range(3):
            fresh = self._reader is None
            try:
                reader = await self.send(request)
                head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                self.close()
                # A server may close a kept connection at any time, also while the next request is on its way.
                if fresh or getattr(error, "partial", b""):
                    return 0, False
                continue
            return int(head.split(b" ", 2)[1]), await self._body(reader, head.lower())
        return 0, False

    async def _body(self, reader: asyncio.StreamReader, head: bytes) -> bool:
        try:
            if b"\r\ntransfer-encoding: chunked" in head:
                while size := int(await reader.readline() or b"", 16):
                    await reader.readexactly(size + 2)
                await reader.readline()
            elif b"\r\ncontent-length:" in head:
                await reader.readexactly(int(head.split(b"\r\ncontent-length:")[1].split(b"\r\n")[0]))
            else:
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            self.close()
            return False
        if b"\r\nconnection: close" in head:
            self.close()
        return True

    async def begin(self, request: bytes) -> None:
        """Send a request and read the first bytes of its response."""
        for _ in range(3):
            with contextlib.suppress(ConnectionError):
                if await (await self.send(request)).read(2000):
                    return
            self.close()

    def close(self) -> None:
        """Hang up."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    def reset(self) -> None:
        """Break the connection with a RST."""
        if self._writer is not None:
            raw = self._writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self._writer.transport.abort()
        self._reader = self._writer = None


async def report(port: int, query: str = "") -> dict[str, Any]:
    """Ask the server for its own counts."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /report?{query} HTTP/1.1\r\nHost: soak.test\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found
