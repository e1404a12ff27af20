"""How far one operation walks inside meshmw: its calls, the files that they enter, and how often the file changes.

A call is counted each time a function of meshmw begins or a generator of it goes on; before Python 3.12 comprehensions
count too. The file changes where a call is in another file than the call before it. All is the same in every run.
"""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, Final

import grpc
import httpx

import meshmw
from meshmw import asgi, kafka, wsgi
from meshmw.grpc import TraceContextServerInterceptor
from meshmw.httpx import Client
from tests.benchmarks.traffic import SAMPLED, STATE, asgi_batch, headers, wsgi_batch

# A block in which the operation can be done, again and again.
Operation = Callable[[], AbstractContextManager[Callable[[], object]]]

HOME: Final = f"{Path(meshmw.__file__).parent}/"
WARMING: Final = 3
TRACE: Final = (("traceparent", SAMPLED), *STATE)


@dataclass(frozen=True)
class Walk:
    """Holds the file of each call that one operation makes, in the order of calls."""

    calls: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Return each file once, in the order in which they are entered."""
        return tuple(dict.fromkeys(self.calls))

    @property
    def changes(self) -> int:
        """Return how often a call is in another file than the one before it."""
        return sum(before != after for before, after in itertools.pairwise(self.calls))


def report() -> str:
    """Return a table of all operations, and the files of each below it, in the order in which they are entered."""
    # In a process of its own: `configure()` sets OpenTelemetry's globals, and the other reports set them otherwise.
    command = [sys.executable, "-m", "tests.benchmarks.path"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.rstrip()


def main() -> None:
    """Print what `report` returns."""
    found = walks()
    print("| operation | calls inside meshmw | files | changes of file |\n|---|---:|---:|---:|")
    for name, each in found.items():
        print(f"| {name} | {len(each.calls)} | {len(each.files)} | {each.changes} |")
    for name, each in found.items():
        print(f"\n{name}: {', '.join(each.files)}")


def walks() -> dict[str, Walk]:
    """Configure meshmw as a service does, and return the walk of each operation."""
    meshmw.configure(meshmw.Settings(exporter="none"))
    return {name: walk(operation) for name, operation in OPERATIONS.items()}


def walk(operation: Operation) -> Walk:
    """Return the calls that a warm operation makes inside meshmw, in this thread and in those that it starts."""
    calls: list[str] = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(HOME):
            calls.append(file.removeprefix(HOME))

    # We have the garbage collector call us, and it may run at any time.
    gc.disable()
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        with operation() as once:
            for _ in range(WARMING):
                once()
            calls.clear()
            once()
            return Walk(tuple(calls))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        gc.enable()


@contextmanager
def _asgi_request() -> Iterator[Callable[[], object]]:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    serve = asgi_batch(asgi.TraceContextMiddleware(app), headers())
    yield lambda: serve(1)


@contextmanager
def _wsgi_request() -> Iterator[Callable[[], object]]:
    def app(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"ok"]

    serve = wsgi_batch(wsgi.TraceContextMiddleware(app), headers())
    yield lambda: serve(1)


@contextmanager
def _httpx_call() -> Iterator[Callable[[], object]]:
    """Send a request that begins a trace. `get` reads the response and closes it."""
    answers = httpx.MockTransport(lambda request: httpx.Response(200, content=b"ok"))
    with Client(transport=answers) as client:
        yield lambda: client.get("http://items.local:8000/items/1?page=1")


@contextmanager
def _kafka_message() -> Iterator[Callable[[], object]]:
    sent = [(name, value.encode()) for name, value in TRACE]
    record = SimpleNamespace(topic="orders", partition=0, offset=7, key=None, value=b"teapot", headers=sent)

    def process() -> None:
        with kafka.consumer_span(record):
            pass

    yield process


@contextmanager
def _grpc_call() -> Iterator[Callable[[], object]]:
    """Call a server on loopback. The client is grpcio alone, so every call inside meshmw is the server's.

    The interceptor ends the span before grpcio sends the response: when the client has it, all has been counted.
    """
    one = grpc.unary_unary_rpc_method_handler(lambda request, _context: request)
    server = grpc.server(ThreadPoolExecutor(1), interceptors=[TraceContextServerInterceptor()])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lab.S", {"one": one}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/lab.S/one")
        yield lambda: call(b"x", metadata=TRACE, timeout=10)
    server.stop(None).wait()


OPERATIONS: Final[dict[str, Operation]] = {
    "ASGI request": _asgi_request,
    "WSGI request": _wsgi_request,
    "httpx call": _httpx_call,
    "Kafka message": _kafka_message,
    "gRPC call, server": _grpc_call,
}


if __name__ == "__main__":
    main()
