"""How many spans a second are exported before the first one is dropped: requests at a pace that rises.

Each step runs in a process of its own (`python -m tests.benchmarks.drops RIVAL RATE SECONDS ENDPOINT`); the collector
counts what arrives. The SDK's processor has the queue, the batch and the interval of `batching="high"`.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from meshmw.testing import OtlpReceiver
from tests.benchmarks.servers import asgi_app
from tests.benchmarks.traffic import SAMPLED, headers, receive, scope_of, send

RATES: Final = (1_000, 2_000, 4_000, 6_000, 8_000, 10_000, 14_000, 20_000, 28_000, 40_000)
SECONDS: Final = 4.0
TICK: Final = 0.01
WARMING: Final = 50


def _ours(endpoint: str) -> tuple[Any, Callable[[], object]]:
    from meshmw import Settings, configure
    from meshmw.asgi import TraceContextMiddleware

    telemetry = configure(Settings(endpoint=endpoint, service_name="items", batching="high", show_log=False))
    return TraceContextMiddleware(asgi_app), lambda: telemetry.shutdown(30.0)


def _sdk(endpoint: str) -> tuple[Any, Callable[[], object]]:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    exporter = OTLPSpanExporter(endpoint, insecure=True)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(
        BatchSpanProcessor(exporter, max_queue_size=8_192, max_export_batch_size=2_048, schedule_delay_millis=1_000)
    )
    trace.set_tracer_provider(provider)
    return OpenTelemetryMiddleware(asgi_app, exclude_spans=["receive", "send"]), provider.shutdown


RIVALS: Final = {"meshmw": _ours, "contrib, one span": _sdk}


def run(rival: str, rate: int, seconds: float, endpoint: str) -> int:
    """Serve requests at a pace, and return how many there were; fewer than asked where the process cannot keep up."""
    app, end = RIVALS[rival](endpoint)
    scope = scope_of(headers(SAMPLED))

    async def serve() -> int:
        served = WARMING
        for _ in range(served):
            await app(dict(scope), receive, send)
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            while served < rate * passed and time.monotonic() - began < seconds:
                await app(dict(scope), receive, send)
                served += 1
            await asyncio.sleep(TICK)
        return served

    served = asyncio.run(serve())
    end()
    return served


def report(rates: tuple[int, ...] = RATES, seconds: float = SECONDS) -> str:
    """Return a table: the highest pace at which all spans arrive, and what happens at the next one."""
    rows = ["| traced by | spans a second, all of which arrive | at the next pace |", "|---|---:|---|"]
    for rival in RIVALS:
        most, then = 0.0, "not tried"
        for rate in rates:
            served, arrived = _step(rival, rate, seconds)
            if arrived < served:
                then = f"{served / seconds:,.0f} a second made, {1 - arrived / served:.1%} of them dropped"
                break
            most = served / seconds
            if served < 0.9 * rate * seconds:
                then = f"{rate:,} a second asked for: the process makes no more than {most:,.0f}"
                break
        rows.append(f"| {rival} | {most:,.0f} | {then} |")
    return "\n".join(rows)


def _step(rival: str, rate: int, seconds: float) -> tuple[int, int]:
    with OtlpReceiver() as receiver:
        command = [sys.executable, "-m", "tests.benchmarks.drops", rival, str(rate), str(seconds)]
        done = subprocess.run([*command, receiver.grpc_endpoint], stdout=subprocess.PIPE, check=True, timeout=120)
        return int(done.stdout), len(receiver.spans)


if __name__ == "__main__":
    print(run(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]), flush=True)
    os._exit(0)
