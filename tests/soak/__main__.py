"""`python -m tests.soak`: 200,000 mixed requests at concurrency 50 against a real uvicorn and a real gunicorn."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import sys
import time
from typing import Any

from tests.soak.server import Server
from tests.soak.spans import read
from tests.soak.traffic import Traffic, report
from tests.soak.verdict import strays

_SAMPLES = 40
_START_SECONDS = 60
_QUIET_SECONDS = 60
# How much more the server may hold at the end than once it was warm. CPython gives pages back when it likes.
_GROWTH_BYTES = 24 << 20
# asyncio keeps up to a hundred timers that were cancelled, with the contexts in which they were set; uvicorn sets one
# for each kept connection. What grew with the number of requests would be far beyond.
_ALIVE = 250


async def _started(server: Server) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            await report(server.port)
            return
        except (OSError, ValueError):
            if server.has_ended or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{server.log}") from None
            await asyncio.sleep(0.1)


async def _quiet(port: int) -> dict[str, Any]:
    """Wait until nothing is under way any more, and take a thorough look."""
    deadline = time.monotonic() + _QUIET_SECONDS
    while (await report(port))["open"] and time.monotonic() < deadline:  # noqa: ASYNC110 - it is another process
        await asyncio.sleep(0.1)
    return await report(port, "thorough")


async def _sample(server: Server, traffic: Traffic, into: list[tuple[int, int]]) -> None:
    step = max(traffic.count // _SAMPLES, 1)
    while True:
        if len(traffic.asked) >= step * len(into):
            into.append((len(traffic.asked), server.resident_bytes()))
        await asyncio.sleep(0.05)


async def _soak(interface: str, count: int, concurrency: int, seed: int) -> dict[str, Any]:
    warm_up = Traffic(interface, seed + 1, max(count // 10, 200), concurrency)
    traffic, memory = Traffic(interface, seed, count, concurrency), []
    with Server(interface) as server:
        await _started(server)
        await warm_up.run(server.port)
        before = await _quiet(server.port)
        skipped = sum(1 for _ in read(server.spans))
        sampler = asyncio.create_task(_sample(server, traffic, memory))
        begun = time.monotonic()
        await traffic.run(server.port)
        seconds = time.monotonic() - begun
        sampler.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sampler
        after = await _quiet(server.port)
        spans = list(itertools.islice(read(server.spans), skipped, None))
        faults = list(strays(traffic, spans))
        grown = [of_warm for _, of_warm in memory[:5]], [at_end for _, at_end in memory[-5:]]
        told = {
            "interface": interface,
            "requests": len(traffic.asked),
            "seconds": round(seconds, 1),
            "spans": len(spans),
            "strays": len(faults),
            "contexts left": after["left"],
            "begun in another's context by the server": after["inherited"] - before["inherited"],
            "detach errors": after["detach"] + server.log.count("Failed to detach"),
            "asyncio errors": after["asyncio"],
            "operations alive": after["operations"],
            "spans alive": after["spans"],
            "objects grown by": after["objects"] - before["objects"],
            "MB when warm": round(max(grown[0]) / 2**20, 1),
            "MB at the end": round(max(grown[1]) / 2**20, 1),
        }
        told["faults"] = faults[:10] + [after["first"]] * bool(after["first"]) + server.log[-2000:].splitlines()
        told["ok"] = not (faults or after["left"] or told["detach errors"] or after["asyncio"] or after["open"])
        told["ok"] &= after["operations"] < _ALIVE and max(grown[1]) - max(grown[0]) < _GROWTH_BYTES
    return told


def main() -> int:
    """Soak both servers, print what was found, and return 0 if all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=200_000, help="of them a third to gunicorn")
    parser.add_argument("--concurrency", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one line of JSON for each server")
    options = parser.parse_args()
    shares = {"asgi": options.requests - options.requests // 3, "wsgi": options.requests // 3}
    is_well = True
    for interface, share in shares.items():
        told = asyncio.run(_soak(interface, share, options.concurrency, options.seed))
        is_well = is_well and told["ok"]
        if options.json:
            print(json.dumps(told), flush=True)
        else:
            print("\n".join(f"{name:>42}  {found}" for name, found in told.items()), flush=True)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
