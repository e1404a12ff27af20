"""Whole servers: requests per second through uvicorn, asked by wrk, with tracing and without."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from meshmw.testing import free_port
from tests.benchmarks.served import GROUPS
from tests.benchmarks.traffic import SAMPLED, headers

ROUNDS = 5
SECONDS = 2
CONNECTIONS = 16


def report() -> str:
    """Return a table of requests per second; the servers are up together, and asked in turn."""
    if shutil.which("wrk") is None:
        return "wrk is not installed: whole servers are not compared"
    rows = ["| uvicorn serves | traced by | requests/s | of the bare one's |", "|---|---|---:|---:|"]
    for group, rivals in GROUPS.items():
        with contextlib.ExitStack() as stack:
            ports = {label: stack.enter_context(_uvicorn(make.__name__)) for label, make in rivals.items()}
            rates: dict[str, list[float]] = {label: [] for label in ports}
            for _ in range(ROUNDS):
                for label, port in ports.items():
                    rates[label].append(_ask(port))
        for label, found in rates.items():
            parts = [rate / bare for rate, bare in zip(found, rates["bare"], strict=True)]
            rows.append(f"| {group} | {label} | {statistics.median(found):,.0f} | {statistics.median(parts):.0%} |")
    return "\n".join(rows)


def _ask(port: int) -> float:
    lines = [part for name, value in headers(SAMPLED) for part in ("-H", f"{name}: {value}")]
    url = f"http://127.0.0.1:{port}/items/1?page=1"
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", *lines, url]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    if "Non-2xx" in said:
        raise RuntimeError(said)
    return float(re.findall(r"Requests/sec:\s+([0-9.]+)", said)[0])


@contextlib.contextmanager
def _uvicorn(name: str) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", f"tests.benchmarks.served:{name}", "--port", str(port)]
    server = subprocess.Popen([*command, "--no-access-log", "--log-level", "warning"])
    try:
        _wait_for(server, port)
        yield port
    finally:
        server.terminate()
        server.wait(timeout=10)


def _wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
    raise RuntimeError("uvicorn did not start")
