"""How what tracing adds to a request grows with the request: its headers, its baggage, its chunks, its neighbours."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware as ContribASGI
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware as ContribWSGI

from meshmw import asgi, wsgi
from tests.benchmarks.measure import Batch, Case, measure
from tests.benchmarks.servers import asgi_app
from tests.benchmarks.traffic import (
    COMMON,
    SAMPLED,
    Headers,
    asgi_batch,
    flush,
    headers,
    loop,
    provider,
    receive,
    scope_of,
    send,
    wsgi_batch,
)

ROUNDS = 7
TIMES = 100
AT_A_TIME = "requests at a time"
Rivals = dict[str, Batch]


def report() -> str:
    """Return a table for each thing that grows; microseconds of processor time over the bare application."""
    provider()
    # OpenTelemetry's own propagator logs refused baggage whole, each time.
    logging.disable()
    return "\n\n".join(
        [
            _table("headers of the request", (10, 20, 40, 70, 100), _with_headers),
            _table("bytes of baggage", (0, 512, 1024, 2048, 4096, 8192), _with_baggage),
            _table("bytes of baggage, never the same twice", (512, 1024, 2048, 4096, 8192), _with_new_baggage),
            _table("bytes of a malformed traceparent", (55, 7_500, 15_000, 30_000, 60_000), _with_malformed),
            _table("bytes of a tracestate that is refused", (7_500, 15_000, 30_000, 60_000), _with_tracestate),
            _table("bytes of baggage over the limit", (8_192, 15_000, 30_000, 60_000), _with_too_much),
            _table("chunks of the response, ASGI", (1, 10, 100, 1000), _streamed, each=True),
            _table("chunks of the response, WSGI", (1, 10, 100, 1000), _streamed_wsgi, each=True),
            _table(AT_A_TIME, (1, 10, 100, 1000), _concurrent),
        ]
    )


def _table(what: str, sizes: Sequence[int], rivals_at: Callable[[int], Rivals], *, each: bool = False) -> str:
    rows = []
    for size in sizes:
        times = max(10, min(200, 4000 // size)) if each else max(TIMES, size if what == AT_A_TIME else 0)
        result = measure(Case(what, rivals_at(size), floor="bare", times=times, between=flush), ROUNDS)
        costs = {label: cost.median for label, cost in result.costs.items()}
        cells = [f"{cost:.1f}" + (f" ({cost / size:.2f} each)" if each else "") for cost in costs.values()]
        if not rows:
            rows = [f"| {what} | {' | '.join(costs)} |", "|---:|" + "---:|" * len(costs)]
        rows.append(f"| {size:,} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _served(lines: Headers, app: Callable[..., Awaitable[None]] = asgi_app) -> Rivals:
    wrapped = {"bare": app, "meshmw": asgi.TraceContextMiddleware(app), "contrib": ContribASGI(app)}
    return {label: asgi_batch(each, lines) for label, each in wrapped.items()}


def _with_headers(count: int) -> Rivals:
    own = headers(SAMPLED)
    return _served([*own, *((f"x-other-{number}", "value") for number in range(count - len(own)))])


def _with_baggage(size: int) -> Rivals:
    return _served([*COMMON, ("traceparent", SAMPLED), *([("baggage", _members(size))] if size else [])])


def _members(size: int) -> str:
    count = min(64, max(1, size // 40))
    room = (size - count + 1) // count
    members = ",".join(f"k{number:02}={'v' * (room - 4)}" for number in range(count))
    return members + "v" * (size - len(members))


def _with_new_baggage(size: int) -> Rivals:
    """Give each request baggage of its own, so that nothing read before helps."""
    numbers = iter(range(1 << 60))
    members = _members(size - 11)

    def renewed(app: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def serve(scope: dict[str, Any], receive: Any, send: Any) -> None:
            number = f"n={next(numbers):08},".encode()
            scope["headers"] = [*scope["headers"][:-1], (b"baggage", number + scope["headers"][-1][1])]
            await app(scope, receive, send)

        return serve

    lines = [*COMMON, ("traceparent", SAMPLED), ("baggage", members)]
    wrapped = {"bare": asgi_app, "meshmw": asgi.TraceContextMiddleware(asgi_app), "contrib": ContribASGI(asgi_app)}
    return {label: asgi_batch(renewed(app), lines) for label, app in wrapped.items()}


def _with_malformed(size: int) -> Rivals:
    return _served([*COMMON, ("traceparent", SAMPLED[:-1] + "0" * (size - len(SAMPLED)) + "g")])


def _with_tracestate(size: int) -> Rivals:
    return _served([*COMMON, ("traceparent", SAMPLED), ("tracestate", "a=" + "b" * (size - 2))])


def _with_too_much(size: int) -> Rivals:
    return _served([*COMMON, ("traceparent", SAMPLED), ("baggage", ",".join(f"k{n:04}=v" for n in range(size // 8)))])


def _streamed(chunks: int) -> Rivals:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(chunks - 1):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body", "body": b"x"})

    return _served(headers(SAMPLED), app)


def _streamed_wsgi(chunks: int) -> Rivals:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return (b"x" for _ in range(chunks))

    wrapped = {"bare": app, "meshmw": wsgi.TraceContextMiddleware(app), "contrib": ContribWSGI(app)}
    return {label: wsgi_batch(each, headers(SAMPLED)) for label, each in wrapped.items()}


def _concurrent(count: int) -> Rivals:
    """Serve that many requests at a time, each of which gives the others a turn twice."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)
        await asgi_app(scope, receive, send)
        await asyncio.sleep(0)

    def batch(each: Callable[..., Awaitable[None]]) -> Batch:
        scope = scope_of(headers(SAMPLED))

        async def serve(times: int) -> None:
            for begun in range(0, times, count):
                now = min(count, times - begun)
                await asyncio.gather(*(each(dict(scope), receive, send) for _ in range(now)))

        return lambda times: loop().run_until_complete(serve(times))

    wrapped = {"bare": app, "meshmw": asgi.TraceContextMiddleware(app), "contrib": ContribASGI(app)}
    return {label: batch(each) for label, each in wrapped.items()}
