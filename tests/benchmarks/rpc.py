"""gRPC calls, client and server in one process: what a call, a stream and a message of a stream cost.

`python -m tests.benchmarks rpc` asks often enough to tell rivals apart, and says how sure that is. Knows grpcio and
contrib's interceptors.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import grpc.aio
from opentelemetry.instrumentation import grpc as contrib
from opentelemetry.instrumentation.grpc import grpcext
from opentelemetry.sdk.trace import TracerProvider

from meshmw import MeshPropagator
from meshmw.grpc import (
    AsyncTraceContextServerInterceptor,
    TraceContextClientInterceptor,
    TraceContextServerInterceptor,
    client_interceptors,
)
from tests.benchmarks.measure import Batch, Case, measure

RIVALS = ("bare", "meshmw", "contrib")
ROUNDS = 101
# Spans are made and sampled, and go nowhere: what an exporter costs is no business of an interceptor.
PROVIDER = TracerProvider(shutdown_on_exit=False)
OURS: dict[str, Any] = {"propagator": MeshPropagator(), "tracer_provider": PROVIDER}


def echo(request: bytes, _context: Any) -> bytes:
    return request


def echo_all(requests: Iterator[bytes], _context: Any) -> Iterator[bytes]:
    yield from requests


async def async_echo(request: bytes, _context: Any) -> bytes:
    return request


async def async_echo_all(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


def handlers(one: Any, many: Any) -> tuple[Any, ...]:
    made = {"one": grpc.unary_unary_rpc_method_handler(one), "many": grpc.stream_stream_rpc_method_handler(many)}
    return (grpc.method_handlers_generic_handler("lab.S", made),)


class Threads:
    """A server and a channel of one rival, in threads."""

    def __init__(self, rival: str) -> None:
        server_side = {
            "meshmw": lambda: [TraceContextServerInterceptor(**OURS)],
            "contrib": lambda: [contrib.server_interceptor(tracer_provider=PROVIDER)],
        }.get(rival, list)()
        self.server = grpc.server(futures.ThreadPoolExecutor(4), interceptors=server_side)
        self.server.add_generic_rpc_handlers(handlers(echo, echo_all))
        target = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()
        channel = grpc.insecure_channel(target)
        if rival == "meshmw":
            channel = grpc.intercept_channel(channel, TraceContextClientInterceptor(target, **OURS))
        if rival == "contrib":
            channel = grpcext.intercept_channel(channel, contrib.client_interceptor(tracer_provider=PROVIDER))
        self.one, self.many = channel.unary_unary("/lab.S/one"), channel.stream_stream("/lab.S/many")

    def calls(self, times: int) -> None:
        for _ in range(times):
            self.one(b"x")

    def streams(self, times: int) -> None:
        for _ in range(times):
            for _answer in self.many(iter([b"x"])):
                pass

    def messages(self, times: int) -> None:
        for _answer in self.many(iter([b"x"] * times)):
            pass


class Asyncio:
    """A server and a channel of one rival, in an event loop of their own."""

    def __init__(self, rival: str) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self._wait(self._start(rival))

    async def _start(self, rival: str) -> None:
        server_side = {
            "meshmw": lambda: [AsyncTraceContextServerInterceptor(**OURS)],
            "contrib": lambda: [contrib.aio_server_interceptor(tracer_provider=PROVIDER)],
        }.get(rival, list)()
        self.server = grpc.aio.server(interceptors=server_side)
        self.server.add_generic_rpc_handlers(handlers(async_echo, async_echo_all))
        target = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()
        client_side = {
            "meshmw": lambda: client_interceptors(target, **OURS),
            "contrib": lambda: contrib.aio_client_interceptors(tracer_provider=PROVIDER),
        }.get(rival, list)()
        channel = grpc.aio.insecure_channel(target, interceptors=client_side)
        self.one, self.many = channel.unary_unary("/lab.S/one"), channel.stream_stream("/lab.S/many")

    def _wait(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def calls(self, times: int) -> None:
        async def calls() -> None:
            for _ in range(times):
                await self.one(b"x")

        self._wait(calls())

    def streams(self, times: int) -> None:
        async def streams() -> None:
            for _ in range(times):
                async for _answer in self.many(iter([b"x"])):
                    pass

        self._wait(streams())

    def messages(self, times: int) -> None:
        async def messages() -> None:
            async for _answer in self.many(iter([b"x"] * times)):
                pass

        self._wait(messages())


def cases() -> list[Case]:
    """Return the cases of this file; the floor is grpcio alone, with no interceptor."""
    found = []
    kinds: dict[str, Callable[[str], Any]] = {"threads": Threads, "asyncio": Asyncio}
    for style, kind in kinds.items():
        rivals = {label: kind(label) for label in RIVALS}
        for what, times in (("call", 100), ("stream", 50), ("message", 500)):
            batches: dict[str, Batch] = {label: getattr(rival, _METHODS[what]) for label, rival in rivals.items()}
            found.append(Case(f"gRPC {what}, {style}", batches, floor="bare", times=times))
    return found


_METHODS = {"call": "calls", "stream": "streams", "message": "messages"}


def report(rounds: int = ROUNDS, times: int | None = None) -> str:
    """Return a table of what contrib takes of our time, and between which bounds that lies."""
    head = "| what | meshmw, µs over grpcio | contrib, µs | contrib / meshmw | with 95 % |\n|---|---:|---:|---:|---|"
    rows = [head]
    for case in cases():
        result = measure(case, rounds, times)
        ours, theirs = (result.costs[label].median for label in ("meshmw", "contrib"))
        low, high = result.intervals["contrib"]
        verdict = "" if low <= 1 <= high else ", a difference"
        rows.append(
            f"| {case.name} | {ours:.0f} | {theirs:.0f} | {result.ratios['contrib'].median:.2f} "
            f"| {low:.2f} to {high:.2f}{verdict} |"
        )
    return "\n".join(rows)
