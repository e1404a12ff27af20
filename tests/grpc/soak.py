"""Many bidirectional streams at once, with everything that ends a stream early: `python -m tests.grpc.soak`.

Each stream has a trace of its own and says in each message what its handler sees. At the end every span must be in its
own trace and have ended once, no log may tell of a failed detach, and threads and memory must be flat.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import logging
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from opentelemetry import baggage, trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider

from meshmw import MeshPropagator
from meshmw.baggage import using
from meshmw.grpc import (
    AsyncTraceContextServerInterceptor,
    TraceContextClientInterceptor,
    TraceContextServerInterceptor,
    client_interceptors,
    message_scope,
)

ENDS = ("whole", "cancel", "error", "deadline", "disconnect")
# A run that is this much larger at its end than when it was warm has kept something for each stream.
GROWTH_MB = 24
GRACE_SECONDS = 60


class Census(SpanProcessor):
    """Counts spans that begin and end, by trace, and how often each ends."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open: set[int] = set()
        self.ended = 0
        self.faults: list[str] = []
        self.codes: Counter[str] = Counter()

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        with self.lock:
            self.open.add(span.context.span_id)

    def on_end(self, span: ReadableSpan) -> None:
        with self.lock:
            self.ended += 1
            if span.context.span_id not in self.open:
                self.faults.append(f"{span.name} ended twice")
            self.open.discard(span.context.span_id)
            if span.kind is trace.SpanKind.SERVER:
                self.codes[str((span.attributes or {}).get("rpc.status_code"))] += 1
                if span.parent is None or span.parent.trace_id != span.context.trace_id:
                    self.faults.append(f"a SERVER span of {span.context.trace_id:032x} has no parent")


class Complaints(logging.Handler):
    """Keeps what logs and finalizers say of contexts."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage() + (str(record.exc_info[1]) if record.exc_info else "")
        if "detach" in text or "already entered" in text or "ended span" in text:
            self.said.append(text)


def answer(request: bytes) -> bytes:
    """Tell what is current, in a message's own scope; fail where the message asks for it."""
    if request == b"error":
        raise LookupError("as you asked")
    with message_scope({"message": request.decode()}):
        current = trace.get_current_span().get_span_context()
        members = baggage.get_all()
        return json.dumps([f"{current.trace_id:032x}", members.get("stream"), members.get("message")]).encode()


def threads_talk(requests: Iterator[bytes], _context: Any) -> Iterator[bytes]:
    for request in requests:
        yield answer(request)


async def aio_talk(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        with message_scope({"outer": "1"}):
            # Parked in here when the client goes.
            yield answer(request)


class Soak:
    """One run against one kind of server.

    Args:
        kind: `threads` or `asyncio`, for server and client both.
        streams: How many talk at once.
        messages: How many each sends where nothing ends it early.
        rounds: How often all of them talk.
        seed: Decides what ends which stream.
    """

    def __init__(self, kind: str, streams: int, messages: int, rounds: int, seed: int) -> None:
        self.kind, self.streams, self.messages, self.rounds = kind, streams, messages, rounds
        self.random = random.Random(seed)
        self.census = Census()
        provider = TracerProvider()
        provider.add_span_processor(self.census)
        self.tracer = provider.get_tracer("soak")
        self.options: dict[str, Any] = {"propagator": MeshPropagator(), "tracer_provider": provider}
        self.exchanged = 0
        self.faults: list[str] = []
        self.ends: Counter[str] = Counter()

    # what a stream does

    def plan(self) -> tuple[str, int]:
        """Return what ends a stream, and after how many messages; it is counted among the ends."""
        end, last = self.random.choice(ENDS), self.random.randrange(1, self.messages)
        self.ends[end] += 1
        return end, last

    def check(self, found: bytes, trace_id: str, stream: str, message: int) -> None:
        self.exchanged += 1
        if json.loads(found) != [trace_id, stream, str(message)]:
            self.faults.append(f"message {message} of stream {stream} in {trace_id} saw {found!r}")

    def talk(self, channel: grpc.Channel, number: int, end: str, last: int) -> None:
        """Talk over one stream in this thread."""
        stream = f"{number}"
        with self.tracer.start_as_current_span("talk") as span, using(stream=stream):
            trace_id = f"{span.get_span_context().trace_id:032x}"
            turn = threading.Semaphore(0)
            over = threading.Event()

            def requests() -> Iterator[bytes]:
                for message in range(self.messages):
                    turn.acquire()
                    if over.is_set():
                        return
                    yield b"error" if end == "error" and message == last else str(message).encode()

            timeout = self.random.uniform(0.05, 0.5) if end == "deadline" else 600
            call = channel.stream_stream("/lab.S/talk")(requests(), timeout=timeout)
            try:
                for message in range(self.messages):
                    turn.release()
                    self.check(next(call), trace_id, stream, message)
                    if end == "cancel" and message == last:
                        call.cancel()
                    if end == "disconnect" and message == last:
                        channel.close()
            except (grpc.RpcError, StopIteration, ValueError):
                pass
            finally:
                over.set()
                turn.release()
                call.cancel()

    async def atalk(self, channel: grpc.aio.Channel, number: int, end: str, last: int) -> None:
        """Talk over one stream in this task."""
        stream = f"{number}"
        with self.tracer.start_as_current_span("talk") as span, using(stream=stream):
            trace_id = f"{span.get_span_context().trace_id:032x}"
            timeout = self.random.uniform(0.05, 0.5) if end == "deadline" else 600
            call = channel.stream_stream("/lab.S/talk")(timeout=timeout)
            with contextlib.suppress(grpc.RpcError, asyncio.CancelledError, asyncio.InvalidStateError):
                for message in range(self.messages):
                    await call.write(b"error" if end == "error" and message == last else str(message).encode())
                    found = await call.read()
                    if found is grpc.aio.EOF:
                        break
                    self.check(found, trace_id, stream, message)
                    if end == "cancel" and message == last:
                        call.cancel()
                    if end == "disconnect" and message == last:
                        await channel.close()
            call.cancel()

    # rounds

    def round(self, stop_early: bool) -> None:
        serving = futures.ThreadPoolExecutor(self.streams * 2)
        server = grpc.server(serving, interceptors=[TraceContextServerInterceptor(**self.options)])
        server.add_generic_rpc_handlers(handlers(threads_talk))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        target = f"127.0.0.1:{port}"

        def channel() -> grpc.Channel:
            plain = grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])
            return grpc.intercept_channel(plain, TraceContextClientInterceptor(target, **self.options))

        shared = channel()
        own: list[grpc.Channel] = []
        with futures.ThreadPoolExecutor(self.streams) as pool:
            talks = []
            for number in range(self.streams):
                end, last = self.plan()
                if end == "disconnect":
                    own.append(channel())
                talks.append(pool.submit(self.talk, own[-1] if end == "disconnect" else shared, number, end, last))
            if stop_early:
                for _ in zip(range(self.streams // 2), futures.as_completed(talks), strict=False):
                    pass
                server.stop(0).wait(GRACE_SECONDS)
            for talk in talks:
                talk.result(GRACE_SECONDS * 10)
        for each in (shared, *own):
            each.close()
        server.stop(1).wait(GRACE_SECONDS)
        # It waits for each handler to come to its end.
        serving.shutdown()

    async def around(self, stop_early: bool) -> None:
        server = grpc.aio.server(interceptors=[AsyncTraceContextServerInterceptor(**self.options)])
        server.add_generic_rpc_handlers(handlers(aio_talk))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        target = f"127.0.0.1:{port}"

        def channel() -> grpc.aio.Channel:
            local = [("grpc.use_local_subchannel_pool", 1)]
            interceptors = client_interceptors(target, **self.options)
            return grpc.aio.insecure_channel(target, options=local, interceptors=interceptors)

        shared = channel()
        own: list[grpc.aio.Channel] = []
        talks = []
        for number in range(self.streams):
            end, last = self.plan()
            if end == "disconnect":
                own.append(channel())
            talk = self.atalk(own[-1] if end == "disconnect" else shared, number, end, last)
            talks.append(asyncio.create_task(talk))
        if stop_early:
            for done in itertools.islice(asyncio.as_completed(talks), self.streams // 2):
                await done
            await server.stop(0)
        await asyncio.gather(*talks)
        for each in (shared, *own):
            await each.close()
        await server.stop(1)

    def run(self) -> dict[str, Any]:
        """Talk for all rounds, the last with a server that stops in mid-stream, and return what was found."""
        complaints = Complaints()
        logging.getLogger().addHandler(complaints)
        # grpcio tells of each of the errors that were asked for.
        logging.getLogger("grpc").setLevel(logging.CRITICAL)
        unraisable: list[str] = []
        hook, sys.unraisablehook = sys.unraisablehook, lambda fault: unraisable.append(repr(fault.exc_value))
        begun, warm = time.monotonic(), (0.0, 0)
        try:
            for number in range(self.rounds + 1):
                stop_early = number == self.rounds
                asyncio.run(self.around(stop_early)) if self.kind == "asyncio" else self.round(stop_early)
                warm = warm if number else _memory_and_threads()
            deadline = time.monotonic() + GRACE_SECONDS
            while self.census.open and time.monotonic() < deadline:
                gc.collect()
                time.sleep(0.05)
            now = _memory_and_threads(warm[1])
        finally:
            sys.unraisablehook = hook
            logging.getLogger().removeHandler(complaints)
        faults = [
            *self.faults,
            *self.census.faults,
            *complaints.said,
            *(each for each in unraisable if "detach" in each),
        ]
        summary: dict[str, Any] = {
            "server and client": self.kind,
            "streams": self.streams * (self.rounds + 1),
            "messages": self.exchanged,
            "seconds": round(time.monotonic() - begun, 1),
            "ended by": dict(self.ends),
            "codes": dict(self.census.codes),
            "spans ended": self.census.ended,
            "spans open": len(self.census.open),
            "threads warm, at the end": (warm[1], now[1]),
            "MB warm, at the end": (round(warm[0], 1), round(now[0], 1)),
            "faults": len(faults),
            "first faults": faults[:5],
        }
        summary["ok"] = not (faults or self.census.open) and now[1] <= warm[1] and now[0] - warm[0] < GROWTH_MB
        return summary


def handlers(talk: Any) -> tuple[Any, ...]:
    made = {"talk": grpc.stream_stream_rpc_method_handler(talk)}
    return (grpc.method_handlers_generic_handler("lab.S", made),)


def _memory_and_threads(threads: int = 0) -> tuple[float, int]:
    """Return resident memory in MB and the number of threads, once grpcio's own have ended."""
    deadline = time.monotonic() + GRACE_SECONDS
    while threading.active_count() > max(threads, 2) and time.monotonic() < deadline and threads:
        time.sleep(0.05)
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20, threading.active_count()


def main() -> int:
    """Soak threads and asyncio, print what was found, and return 0 if all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.grpc.soak", description=__doc__)
    parser.add_argument("--streams", type=int, default=64, help="that talk at once")
    parser.add_argument("--messages", type=int, default=1000, help="of each stream that nothing ends")
    parser.add_argument("--rounds", type=int, default=7, help="and one more, in which the server stops")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one line of JSON for each kind of server")
    options = parser.parse_args()
    is_well = True
    for kind in ("threads", "asyncio"):
        summary = Soak(kind, options.streams, options.messages, options.rounds, options.seed).run()
        is_well = is_well and summary["ok"]
        if options.json:
            print(json.dumps(summary), flush=True)
        else:
            print("\n".join(f"{name:>28}  {found}" for name, found in summary.items()), flush=True)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
