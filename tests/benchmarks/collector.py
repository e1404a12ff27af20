"""`python -m tests.benchmarks.collector`: what requests feel of a collector that fails, beside no exporter at all.

Each request goes through the middleware and is recorded; between exporter and collector stands a TCP proxy that fails
in one way. What is printed is the time of a request, one every millisecond, and its ratio to that without an exporter.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, get_args

from meshmw import MeshPropagator, Settings
from meshmw._telemetry.batching import PromptBatchSpanProcessor
from meshmw._telemetry.provider import build_provider
from meshmw.asgi import TraceContextMiddleware
from meshmw.testing import Fault, FaultProxy, OtlpReceiver

FAULTS = get_args(Fault)
NONE, WELL = "no exporter", "well"
HEADERS = [(b"host", b"items.local"), (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
PAUSE_SECONDS = 0.001

Messages = Callable[[MutableMapping[str, Any]], Awaitable[None]]


async def _app(scope: Any, receive: Any, send: Messages) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def _ignore(message: MutableMapping[str, Any]) -> None:
    """Take what the application sends."""


async def _serve(app: Any, requests: int) -> list[float]:
    taken = []
    for number in range(requests):
        scope = {"type": "http", "method": "GET", "scheme": "http", "path": f"/items/{number}", "headers": [*HEADERS]}
        began = time.perf_counter()
        await app(scope, None, _ignore)
        taken.append(time.perf_counter() - began)
        await asyncio.sleep(PAUSE_SECONDS)
    return taken


def run(exporter: str, state: str, requests: int) -> tuple[list[float], int, int]:
    """Return the seconds of each request, the spans that were dropped, and the longest queue."""
    with OtlpReceiver() as receiver:
        upstream = receiver.grpc_endpoint if exporter == "otlp" else receiver.http_endpoint
        with FaultProxy(upstream) as proxy, contextlib.ExitStack() as outage:
            settings = Settings(exporter="none" if state == NONE else exporter, endpoint=proxy.endpoint)  # type: ignore[arg-type]
            provider, processor = build_provider(settings)
            if state in FAULTS:
                outage.enter_context(proxy.outage(state))  # type: ignore[arg-type]
            app = TraceContextMiddleware(_app, tracer_provider=provider, propagator=MeshPropagator())
            asyncio.run(_serve(app, requests // 10))
            taken = asyncio.run(_serve(app, requests))
            dropped = waiting = 0
            if isinstance(processor, PromptBatchSpanProcessor):
                dropped = processor.dropped_full + processor.collector.spans_lost
                waiting = processor.queue_length
                processor.shutdown_seconds = 0.1
            provider.shutdown()
    return taken, dropped, waiting


def main(arguments: list[str] | None = None) -> int:
    """Measure every state of the collector in turn, several times over, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.collector", description=__doc__)
    parser.add_argument("--requests", type=int, default=1500, help="in each round and state")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    os.environ.setdefault("OTEL_BSP_SCHEDULE_DELAY", "200")
    os.environ.setdefault("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
    states = [(exporter, state) for exporter in ("otlp", "otlp-http") for state in (NONE, WELL, *FAULTS)]
    taken: dict[tuple[str, str], list[list[float]]] = {each: [] for each in states}
    lost: dict[tuple[str, str], tuple[int, int]] = {}
    for _ in range(options.rounds):
        for each in states:
            seconds, *lost[each] = run(*each, options.requests)  # type: ignore[assignment]
            taken[each].append(seconds)
    print("| exporter | collector | median, µs | p99, µs | p99 against no exporter | dropped, waiting at the end |")
    print("|---|---|---:|---:|---:|---:|")
    for exporter, state in states:
        row, base = _quantiles(taken[exporter, state]), _quantiles(taken[exporter, NONE])
        dropped, waiting = lost[exporter, state]
        print(f"| {exporter} | {state} | {row[0]:.0f} | {row[1]:.0f} | {row[1] / base[1]:.2f} | {dropped}, {waiting} |")
    return 0


def _quantiles(rounds: list[list[float]]) -> tuple[float, float]:
    """Return median and p99, in microseconds, of the round that the machine disturbed least."""
    tails = [statistics.quantiles(each, n=100)[98] for each in rounds]
    return min(map(statistics.median, rounds)) * 1e6, min(tails) * 1e6


if __name__ == "__main__":
    sys.exit(main())
