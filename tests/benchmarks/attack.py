"""What strangers' large spans do to other spans and to memory: `python -m tests.benchmarks attack`.

Each attack runs in a process of its own, as large requests among small ones. Small spans are to arrive, all of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from opentelemetry import trace

from meshmw import Settings, configure
from meshmw.asgi import TraceContextMiddleware
from meshmw.testing import OtlpReceiver
from tests.benchmarks.traffic import COMMON, receive, scope_of, send

# How many large requests, with one small one after every ninth: an attack's name, its share of silent collectors.
LARGE: Final = 630
EVERY: Final = 9
ATTACKS: Final = ("query", "headers", "tracestate", "exception", "own exception", "events", "sequence", "bytes", "name")
_QUERY: Final = b"q=" + b"a" * 9_000
_BODY: Final = "b" * 256_000


async def _app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    attack = scope["attack"]
    span = trace.get_current_span()
    if attack == "exception":
        raise ValueError(_BODY)
    if attack == "own exception":
        with trace.get_tracer("app").start_as_current_span("own"):
            raise ValueError(_BODY)
    if attack == "events":
        for _ in range(128):
            span.add_event("e" * 10_000, {"body": _BODY})
    if attack == "sequence":
        span.set_attribute("bodies", ["b" * 1_000] * 2_000)
    if attack == "bytes":
        span.set_attribute("body", _BODY.encode())
    if attack == "name":
        span.update_name(_BODY)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def run(attack: str, endpoint: str, exporter: str, patience: str) -> dict[str, Any]:
    """Attack in this process; return the memory and the time it took until it waited for what was still queued."""
    telemetry = configure(Settings(exporter=exporter, endpoint=endpoint, service_name="attacked"))
    app = TraceContextMiddleware(_app)
    began, before = time.monotonic(), _resident()
    asyncio.run(_serve(app, attack))
    seconds, after = time.monotonic() - began, max(_resident(), before)
    telemetry.shutdown(float(patience))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_000
    return {"seconds": round(seconds, 2), "grown": round(after - before, 1), "peak": round(peak - before, 1)}


async def _serve(app: Any, attack: str) -> None:
    for number in range(LARGE):
        scope = {**scope_of(COMMON), "attack": attack, "path": "/large"}
        if attack == "query":
            scope["query_string"] = _QUERY
        if attack == "headers":
            scope["headers"] = [*scope["headers"], (b"user-agent", b"u" * 60_000)]
        if attack == "tracestate":
            parent = b"00-%032x-00f067aa0ba902b7-01" % (number + 1)
            state = b",".join(b"k%d=" % each + b"v" * 250 for each in range(32))
            scope["headers"] = [*scope["headers"], (b"traceparent", parent), (b"tracestate", state)]
        await _request(app, scope)
        if number % EVERY == 0:
            await _request(app, {**scope_of(COMMON), "attack": "", "path": f"/small/{number}"})
        await asyncio.sleep(0.001)


async def _request(app: Any, scope: dict[str, Any]) -> None:
    with suppress(ValueError):
        await app(scope, receive, send)


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


@contextmanager
def silent() -> Iterator[str]:
    """Yield the address of a collector that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def attacked(attack: str, endpoint: str, exporter: str = "otlp", patience: float = 10.0) -> tuple[dict[str, Any], str]:
    """Attack in a process of its own; return what it measured and what it logged.

    Args:
        attack: Which.
        endpoint: Where spans go.
        exporter: As in `Settings`.
        patience: How long the process waits at its end until they have arrived. At a silent collector none do.
    """
    environ = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-m", "tests.benchmarks.attack", attack, endpoint, exporter, str(patience)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout), done.stderr


def arrived(receiver: OtlpReceiver) -> int:
    """Return how many small spans have arrived."""
    return sum(str(span.attributes.get("url.path", "")).startswith("/small/") for span in receiver.spans)


def report() -> str:
    """Return a table: for each attack the small spans that arrive, and the memory with a collector that is silent."""
    rows = [
        "| attack | small spans that arrive | MB grown | MB grown, silent collector | longest text |",
        "|---|---:|---:|---:|---:|",
    ]
    small = len(range(0, LARGE, EVERY))
    for attack in ATTACKS:
        with OtlpReceiver() as receiver, silent() as address:
            measured, _ = attacked(attack, receiver.grpc_endpoint)
            without, _ = attacked(attack, address, patience=0.1)
            texts = [str(value) for span in receiver.spans for value in (span.name, *span.attributes.values())]
            longest = max(map(len, texts), default=0)
            row = (attack, f"{arrived(receiver)} of {small}", measured["grown"], without["grown"], f"{longest:,}")
        rows.append("| " + " | ".join(map(str, row)) + " |")
        print(rows[-1], file=sys.stderr)
    return "\n".join(rows)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    print(json.dumps(run(*sys.argv[1:])))
