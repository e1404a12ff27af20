"""The servers that the gRPC contract runs on: every style in which grpcio lets a handler be written.

A contract test is written once. A request names in JSON what its handler is to do; the handler notes what it saw.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry import baggage, propagate, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from meshmw import MeshPropagator
from meshmw.grpc import AsyncTraceContextServerInterceptor, TraceContextServerInterceptor

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
DEADLINE = 60.0


def until(is_so: Callable[[], Any], what: str = "it") -> Any:
    """Wait until something is so, and return what it was."""
    deadline = time.monotonic() + DEADLINE
    while not (found := is_so()):
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.005)
    return found


def is_rpc(task: asyncio.Task[Any]) -> bool:
    """Say whether a task serves a call."""
    return getattr(task.get_coro(), "__qualname__", "") == "_handle_exceptions"


@dataclass(frozen=True)
class Visit:
    """What was current where a handler, a callback or an iterator looked."""

    where: str
    trace_id: str
    span_id: str
    baggage: dict[str, object]


@dataclass
class Host:
    """A server with four methods of one style, `/lab.S/unary_unary` and so on, and what they saw."""

    style: str = ""
    visits: list[Visit] = field(default_factory=list)
    metadata: list[tuple[str, Any]] = field(default_factory=list)
    error: Exception = field(default_factory=lambda: LookupError("no such item"))
    waiting: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)
    inside: Sequence[Any] = ()
    outside: Sequence[Any] = ()

    def __post_init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.propagator = MeshPropagator(warn_window=0)

    # what handlers do

    def visit(self, where: str = "handler") -> Visit:
        current = trace.get_current_span().get_span_context()
        visit = Visit(where, f"{current.trace_id:032x}", f"{current.span_id:016x}", dict(baggage.get_all()))
        self.visits.append(visit)
        return visit

    def note(self, context: Any, order: dict[str, Any]) -> bytes:
        """Do what every style can do at once; return the answer."""
        self.metadata = [(key, value) for key, value in context.invocation_metadata()]
        if "code" in order:
            context.set_code(grpc.StatusCode[order["code"]])
        if order.get("fail"):
            raise self.error
        if order.get("callback"):
            if hasattr(context, "add_done_callback"):
                context.add_done_callback(lambda over: self.visit(f"callback {type(over).__name__}"))
            else:
                context.add_callback(partial(self.visit, "callback"))
        return json.dumps(self.visit().__dict__).encode()

    def sync(self, request: bytes, context: Any) -> bytes:
        order = json.loads(request)
        answer = self.note(context, order)
        if "abort" in order:
            context.abort(grpc.StatusCode[order["abort"]], "as you asked")
        if order.get("wait"):
            self.wait(context)
        return answer

    def wait(self, context: Any) -> None:
        """Block until the call is over."""
        self.waiting.set()
        if hasattr(context, "is_active"):
            until(lambda: not context.is_active(), "the end of the call")
        else:
            self.finished.wait(DEADLINE)
            # grpcio waits for ever for somebody to take what a generator yields now.
            raise grpc.RpcError("released")

    async def asynchronous(self, request: bytes, context: Any) -> bytes:
        order = json.loads(request)
        answer = self.note(context, order)
        if "abort" in order:
            await context.abort(grpc.StatusCode[order["abort"]], "as you asked")
        if order.get("block"):
            while context.time_remaining() > 0:
                time.sleep(0.01)  # noqa: ASYNC251  # it shall not hear that its time is up
        if order.get("wait"):
            self.waiting.set()
            try:
                await asyncio.sleep(DEADLINE)
            finally:
                await asyncio.sleep(0)
                self.visit("finally")
        return answer

    # methods, by style

    def methods(self) -> dict[str, Callable[..., Any]]:
        return {"async": self.coroutines, "reader_writer": self.readers, "non_blocking": self.senders}.get(
            self.style, self.generators
        )()

    def generators(self) -> dict[str, Callable[..., Any]]:
        def unary_unary(request: bytes, context: Any) -> bytes:
            return self.sync(request, context)

        def unary_stream(request: bytes, context: Any) -> Iterator[bytes]:
            try:
                for _ in range(3):
                    yield self.sync(request, context)
            finally:
                self.visit("finally")

        def stream_unary(requests: Iterator[bytes], context: Any) -> bytes:
            return [self.sync(request, context) for request in requests][-1]

        def stream_stream(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            for request in requests:
                yield self.sync(request, context)

        return dict(zip(KINDS, (unary_unary, unary_stream, stream_unary, stream_stream), strict=True))

    def senders(self) -> dict[str, Callable[..., Any]]:
        def unary_stream(request: bytes, context: Any, send: Callable[[Any], None]) -> None:
            answers = [self.sync(request, context) for _ in range(3)]
            threading.Thread(target=lambda: [send(answer) for answer in [*answers, None]]).start()

        unary_stream.experimental_non_blocking = True  # type: ignore[attr-defined]

        def stream_stream(requests: Iterator[bytes], context: Any, send: Callable[[Any], None]) -> None:
            for request in requests:
                send(self.sync(request, context))
            send(None)

        stream_stream.experimental_non_blocking = True  # type: ignore[attr-defined]
        return self.generators() | {"unary_stream": unary_stream, "stream_stream": stream_stream}

    def coroutines(self) -> dict[str, Callable[..., Any]]:
        async def unary_unary(request: bytes, context: Any) -> bytes:
            return await self.asynchronous(request, context)

        async def unary_stream(request: bytes, context: Any) -> Any:
            try:
                for _ in range(3):
                    yield await self.asynchronous(request, context)
            finally:
                self.visit("finally")

        async def stream_unary(requests: Any, context: Any) -> bytes:
            return [await self.asynchronous(request, context) async for request in requests][-1]

        async def stream_stream(requests: Any, context: Any) -> Any:
            async for request in requests:
                yield await self.asynchronous(request, context)

        return dict(zip(KINDS, (unary_unary, unary_stream, stream_unary, stream_stream), strict=True))

    def readers(self) -> dict[str, Callable[..., Any]]:
        async def unary_stream(request: bytes, context: Any) -> None:
            for _ in range(3):
                await context.write(await self.asynchronous(request, context))

        async def stream_unary(_requests: Any, context: Any) -> bytes:
            answer = b""
            while (request := await context.read()) is not grpc.aio.EOF:
                answer = await self.asynchronous(request, context)
            return answer

        async def stream_stream(_requests: Any, context: Any) -> None:
            while (request := await context.read()) is not grpc.aio.EOF:
                await context.write(await self.asynchronous(request, context))

        return self.coroutines() | dict(zip(KINDS[1:], (unary_stream, stream_unary, stream_stream), strict=True))

    def handlers(self) -> tuple[Any, ...]:
        made = {name: getattr(grpc, f"{name}_rpc_method_handler")(call) for name, call in self.methods().items()}
        return (grpc.method_handlers_generic_handler("lab.S", made),)

    until = staticmethod(until)

    # the server

    @property
    def is_aio(self) -> bool:
        return self.style in ("async", "reader_writer", "sync_on_aio")

    def interceptors(self, options: dict[str, Any]) -> list[Any]:
        kind = AsyncTraceContextServerInterceptor if self.is_aio else TraceContextServerInterceptor
        ours = kind(**{"propagator": self.propagator, "tracer_provider": self.tracer_provider} | options)
        return [*self.outside, ours, *self.inside]

    def start(self, more: Sequence[Any] = (), **options: Any) -> None:
        self._start_aio(more, options) if self.is_aio else self._start(more, options)

    def _start(self, more: Sequence[Any], options: dict[str, Any]) -> None:
        self.server = grpc.server(futures.ThreadPoolExecutor(32), interceptors=self.interceptors(options))
        self.server.add_generic_rpc_handlers((*self.handlers(), *more))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def _start_aio(self, more: Sequence[Any], options: dict[str, Any]) -> None:
        started: futures.Future[int] = futures.Future()

        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            pool = futures.ThreadPoolExecutor(32)
            self.server = grpc.aio.server(pool, interceptors=self.interceptors(options))
            self.server.add_generic_rpc_handlers((*self.handlers(), *more))
            port = self.server.add_insecure_port("127.0.0.1:0")
            await self.server.start()
            self.stopping = asyncio.Event()
            started.set_result(port)
            await self.stopping.wait()
            await self.server.stop(self.grace)
            # grpcio's threads need the loop to their end.
            await self.loop.run_in_executor(None, pool.shutdown)

        self.thread = threading.Thread(target=lambda: asyncio.run(serve()))
        self.thread.start()
        self.port = started.result(DEADLINE)

    def release(self) -> None:
        """Let sync handlers on an aio server go on once their calls are over, which nobody tells them."""
        if self.style == "sync_on_aio":
            until(lambda: not any(is_rpc(task) for task in asyncio.all_tasks(self.loop)), "the end of the call")
        self.finished.set()

    def stop(self, grace: float = 0) -> None:
        self.grace = grace
        if not self.is_aio:
            self.server.stop(grace).wait(DEADLINE)
        elif self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.stopping.set)
            self.release()
            self.thread.join(DEADLINE)
            assert not self.thread.is_alive()

    # the client

    def call(
        self, kind: str = "unary_unary", *orders: dict[str, Any], metadata: Any = (), timeout: float = DEADLINE
    ) -> list[dict[str, Any]]:
        """Call a method of a kind with a plain channel, and return the answers."""
        requests = [json.dumps(order).encode() for order in orders or ({},)]
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            method = getattr(channel, kind)(f"/lab.S/{kind}")
            given = iter(requests) if kind.startswith("stream") else requests[0]
            found = method(given, timeout=timeout, metadata=tuple(metadata))
            return [json.loads(each) for each in (found if kind.endswith("stream") else [found])]

    # what came out

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    @property
    def server_spans(self) -> list[ReadableSpan]:
        return [span for span in self.spans if span.kind is SpanKind.SERVER]

    @property
    def server_span(self) -> ReadableSpan:
        (span,) = until(lambda: self.server_spans, "a SERVER span")
        return span


STYLES = ("threads", "non_blocking", "async", "reader_writer", "sync_on_aio")


@pytest.fixture
def make_host() -> Iterator[Callable[..., Host]]:
    """Starts servers of the test's choice, and stops them; frameworks read with their propagator."""
    before = propagate.get_global_textmap()
    hosts: list[Host] = []

    def make(style: str, *, more: Sequence[Any] = (), host: Host | None = None, **options: Any) -> Host:
        made = host or Host(style)
        propagate.set_global_textmap(options.get("propagator", made.propagator))
        made.start(more, **options)
        hosts.append(made)
        return made

    try:
        yield make
    finally:
        for each in hosts:
            each.stop()
        propagate.set_global_textmap(before)


@pytest.fixture(params=STYLES)
def new_host(request: pytest.FixtureRequest, make_host: Callable[..., Host]) -> Callable[..., Host]:
    return partial(make_host, request.param)


@pytest.fixture
def host(new_host: Callable[..., Host]) -> Host:
    return new_host()


@pytest.fixture(autouse=True)
def no_detach_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Law 5, in every test of this folder."""
    caplog.set_level(logging.WARNING)
    yield
    for when in ("setup", "call", "teardown"):
        said = [record.getMessage() for record in caplog.get_records(when)]
        assert not [line for line in said if "detach" in line], said
