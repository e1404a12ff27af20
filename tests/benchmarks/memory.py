"""Memory over a million requests, every one with headers that no other has: what is remembered of them is bounded."""

from __future__ import annotations

import logging
import resource
import sys
from pathlib import Path
from typing import Any

from meshmw import asgi
from tests.benchmarks.servers import asgi_app
from tests.benchmarks.traffic import COMMON, loop, provider, receive, scope_of, send

REQUESTS = 1_000_000
LOOKS = 10
PAGE = resource.getpagesize()


def report() -> str:
    """Return the resident memory after each tenth of the requests."""
    provider()
    logging.disable()
    app = asgi.TraceContextMiddleware(asgi_app)
    rows = ["| requests | resident memory, MB |", "|---:|---:|"]
    for look in range(LOOKS + 1):
        if look:
            loop().run_until_complete(_serve(app, (look - 1) * REQUESTS // LOOKS, look * REQUESTS // LOOKS))
        rows.append(f"| {look * REQUESTS // LOOKS:,} | {_resident():.1f} |")
        print(rows[-1], file=sys.stderr)
    return "\n".join(rows)


async def _serve(app: Any, first: int, last: int) -> None:
    scope = scope_of(COMMON)
    for number in range(first, last):
        await app({**scope, "headers": _headers(number)}, receive, send)


def _headers(number: int) -> list[tuple[bytes, bytes]]:
    """Return headers of which every text is new; one in four is sampled, one in eight is refused."""
    trace_id = b"%032x" % (number + 1)
    flags = b"01" if number % 4 == 0 else b"00"
    traceparent = b"00-" + trace_id + b"-00f067aa0ba902b7-" + (b"0x" if number % 8 == 7 else flags)
    return [
        (b"host", b"host-%d.local" % number),
        (b"user-agent", b"client/%d" % number),
        (b"x-request-id", trace_id),
        (b"traceparent", traceparent),
        (b"tracestate", b"a=%d,b=2" % number),
        (b"baggage", b"user=%d,tenant=5;p=%d,pad=" % (number, number) + b"x" * (number % 1000)),
    ]


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6
