"""`FaultProxy`: stands between exporters and a collector, and fails on demand as networks and collectors do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit

from meshmw.testing._processes import check_word, free_port

T = TypeVar("T")
Fault: TypeAlias = Literal["refuse", "hang", "slow", "reset", "unavailable", "garbage", "flood"]

_AT_ONCE: Final = 65_536
_SLOW_SECONDS: Final = 0.05
# Of asyncio's loop, between taking a connection and the first step of the task that serves it, with one to spare.
_ROUNDS_BEFORE_SERVED: Final = 5
# What the Collector's memory limiter says (internal/memorylimiter), without a word on when to come again.
_REFUSAL: Final = b"data refused due to high memory usage"
_HTTP_1_ANSWER: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_REFUSAL), _REFUSAL)
)
_LINGER_0: Final = struct.pack("ii", 1, 0)

# HTTP/2 (RFC 9113), as much as it takes to refuse calls of gRPC.
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _SETTINGS, _PING, _WINDOW_UPDATE = 1, 4, 6, 8
_ACK, _END_STREAM, _END_HEADERS = 1, 1, 4
_WIDEST_WINDOW: Final = (2**31 - 1 - 65_535).to_bytes(4, "big")
_UNAVAILABLE: Final = b"14"  # gRPC's status


class FaultProxy:
    """Passes connections on to a collector, or fails as an `outage` says; a context manager.

    Exporters send to its `endpoint`. Loopback and a free port only.

    Args:
        upstream: The collector, such as `http://127.0.0.1:4317`.

    Attributes:
        connections: How many connections it has accepted so far.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = parts.hostname, parts.port
        self._port = free_port()
        self._fault: Fault | None = None
        self._open: set[asyncio.Task[Any]] = set()
        self.connections = 0

    def __enter__(self) -> FaultProxy:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        try:
            self._run(self._listen())
        except BaseException:
            self._end_loop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._run(self._become("refuse"))
        self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def endpoint(self) -> str:
        """Return where exporters send to, such as `http://127.0.0.1:20001`."""
        return f"http://127.0.0.1:{self._port}"

    @contextlib.contextmanager
    def outage(self, fault: Fault = "refuse") -> Iterator[None]:
        """Fail in one way during the block. Connections that are open break when it begins and when it ends.

        Args:
            fault: `refuse` (nobody listens), `hang` (connections are taken, and nothing comes back), `slow` (all
                takes longer), `reset` (connections are reset), `unavailable` (HTTP 503 or gRPC's UNAVAILABLE, as a
                Collector whose memory is full), `garbage` (an answer in no known protocol), `flood` (an answer without
                an end).

        Raises:
            MeshError: There is no such fault.
        """
        check_word(Fault, fault, "fault")
        before = self._fault
        self._run(self._become(fault))
        try:
            yield
        finally:
            self._run(self._become(before))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, limit=_AT_ONCE)

    async def _become(self, fault: Fault | None) -> None:
        was, self._fault = self._fault, fault
        if fault == "refuse":
            # Before the connections break, or a client would come again at once.
            await self._stop_listening()
        elif was == "refuse":
            await self._listen()
        for each in self._open:
            each.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        # What they have aborted is closed in the next round.
        await asyncio.sleep(0)

    async def _stop_listening(self) -> None:
        loop = asyncio.get_running_loop()
        for listener in self._server.sockets:
            # Windows' loop has no readers.
            with contextlib.suppress(NotImplementedError):
                loop.remove_reader(listener)
        # A server that is closed now would lose, unclosed, what it has just taken.
        for _ in range(_ROUNDS_BEFORE_SERVED):
            await asyncio.sleep(0)
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.connections += 1
        # The client goes away, the collector is not there, or an outage begins or ends.
        with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            await (_FAULTS[self._fault](reader, writer) if self._fault in _FAULTS else self._pass_on(reader, writer))
        writer.transport.abort()
        self._open.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        delay = _SLOW_SECONDS if self._fault == "slow" else 0.0
        answers, requests = await asyncio.open_connection(*self._upstream)
        try:
            await asyncio.gather(_pump(reader, requests, delay), _pump(answers, writer, delay))
        finally:
            requests.transport.abort()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, delay: float) -> None:
    # Where one side breaks off, the other gets an end.
    with contextlib.suppress(OSError):
        while data := await source.read(_AT_ONCE):
            await asyncio.sleep(delay)
            target.write(data)
            await target.drain()
        target.write_eof()


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Do nothing: the connection was taken before the listener was closed, and is aborted next."""


async def _hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.get_running_loop().create_future()


async def _reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)


async def _garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x16\x00\xff\r\n" * 100)
    await _close(reader, writer)


async def _flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * _AT_ONCE)
        await writer.drain()


async def _unavailable(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if await reader.readexactly(len(_PREFACE)) != _PREFACE:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_HTTP_1_ANSWER)
        await _close(reader, writer)
        return
    writer.write(_frame(_SETTINGS) + _frame(_WINDOW_UPDATE, payload=_WIDEST_WINDOW))
    while True:
        head = await reader.readexactly(9)
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        if kind == _HEADERS:
            writer.write(_frame(_HEADERS, _END_STREAM | _END_HEADERS, stream, _TRAILERS))
        elif kind in (_SETTINGS, _PING) and not flags & _ACK:
            writer.write(_frame(kind, _ACK, payload=payload if kind == _PING else b""))


async def _close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # To close with something unread would reset the connection, and the client might not see the answer.
    writer.write_eof()
    while await reader.read(_AT_ONCE):
        pass


def _frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _field(name: bytes, value: bytes) -> bytes:
    # A literal that is not indexed, without Huffman's code (RFC 7541, 6.2.2).
    return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value


# `:status: 200` has an index of its own (RFC 7541, appendix A).
_TRAILERS: Final = b"\x88" + b"".join(
    _field(*each)
    for each in (
        (b"content-type", b"application/grpc"),
        (b"grpc-status", _UNAVAILABLE),
        (b"grpc-message", _REFUSAL),
    )
)

_FAULTS: Final[
    Mapping[Fault | None, Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]]
] = {
    "refuse": _refuse,
    "hang": _hang,
    "reset": _reset,
    "unavailable": _unavailable,
    "garbage": _garbage,
    "flood": _flood,
}
