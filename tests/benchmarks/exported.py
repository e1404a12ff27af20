"""Path plus export: what a traced request takes in all threads of its process, until its span has left it.

Each rival runs in a process of its own (`python -m tests.benchmarks.exported GROUP RIVAL REQUESTS ENDPOINT`), in turn
with the others. Its processor time is taken from the kernel. Instructions are counted by valgrind, where it is
installed: those of twice as many requests less those of once as many, C code included.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import shutil
import statistics
import subprocess
import sys
import time
from typing import Final

from meshmw.testing import OtlpReceiver
from tests.benchmarks.measure import Spread
from tests.benchmarks.peers import GROUPS, NEEDS
from tests.benchmarks.traffic import SAMPLED, headers, receive, scope_of, send

ROUNDS: Final = 7
REQUESTS: Final = 2_000
COUNTED: Final = 200
# So many fit into every queue.
BATCH: Final = 500


def run(group: str, rival: str, requests: int, endpoint: str) -> float:
    """Serve requests in this process, and return the microseconds of processor time that each took."""
    app, flush = GROUPS[group][rival](endpoint)
    scope = scope_of(headers(SAMPLED))

    async def serve(times: int) -> None:
        for number in range(1, times + 1):
            await app(dict(scope), receive, send)
            if number % BATCH == 0:
                await asyncio.to_thread(flush)
        await asyncio.to_thread(flush)

    asyncio.run(serve(50))
    began = time.process_time_ns()
    asyncio.run(serve(requests))
    return (time.process_time_ns() - began) / requests / 1_000


def report(rounds: int = ROUNDS, requests: int = REQUESTS, *, count: bool = True) -> str:
    """Return a table of all peers that are installed, and name the others."""
    count = count and shutil.which("valgrind") is not None
    head = "| what serves | traced by | µs over bare | times meshmw's | thousand instructions over bare | times |"
    rows = [head, "|---|---|---:|---:|---:|---:|"]
    missing = [label for label, module in NEEDS.items() if importlib.util.find_spec(module) is None]
    with OtlpReceiver() as receiver:
        for group, rivals in GROUPS.items():
            labels = [label for label in rivals if not label.startswith(tuple(missing))]
            taken: dict[str, list[float]] = {label: [] for label in labels}
            for _ in range(rounds):
                for label in labels:
                    taken[label].append(float(_run(group, label, requests, receiver.grpc_endpoint)))
            counted = {label: _instructions(group, label, receiver.grpc_endpoint) for label in labels if count}
            rows += _rows(group, taken, counted)
    return "\n".join([*rows, *([f"\nNot installed, and so left out: {', '.join(missing)}."] if missing else [])])


def _rows(group: str, taken: dict[str, list[float]], counted: dict[str, float]) -> list[str]:
    bare = taken.pop("bare")
    over = {label: [each - low for each, low in zip(found, bare, strict=True)] for label, found in taken.items()}
    rows = []
    for label, found in over.items():
        times = statistics.median(each / ours for each, ours in zip(found, over["meshmw"], strict=True))
        low, median, high = Spread.of(found)
        row = f"| {group} | {label} | {median:.0f} ({low:.0f}-{high:.0f}) | {times:.2f} |"
        if counted:
            more, ours = (counted[name] - counted["bare"] for name in (label, "meshmw"))
            row += f" {more / 1_000:,.0f} | {more / ours:.2f} |"
        else:
            row += " not counted | |"
        rows.append(row)
    return rows


def _run(group: str, rival: str, requests: int, endpoint: str, *around: str) -> str:
    command = [sys.executable, "-m", "tests.benchmarks.exported", group, rival, str(requests), endpoint]
    done = subprocess.run([*around, *command], capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"{rival}: {done.stderr[-2_000:]}")
    return done.stderr if around else done.stdout.splitlines()[-1]


def _instructions(group: str, rival: str, endpoint: str) -> float:
    around = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
    once, twice = (
        int(re.findall(r"Collected : (\d+)", _run(group, rival, requests, endpoint, *around))[-1])
        for requests in (COUNTED, 2 * COUNTED)
    )
    return (twice - once) / COUNTED


if __name__ == "__main__":
    print(run(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]), flush=True)
    # Some peers wait long for a collector that is not there.
    import os

    os._exit(0)
