"""The benchmarks run: each rival once. No time is asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]


def test_every_case_runs_and_is_told_in_the_table_and_the_chart(tmp_path):
    picture = tmp_path / "chart.svg"
    command = [sys.executable, "-m", "tests.benchmarks", "--rounds", "2", "--times", "2", "--svg", str(picture)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    named = [line.split(" | ")[0].removeprefix("| ") for line in done.stdout.splitlines()]
    assert {"ASGI request, sampled", "WSGI request, sampled", "FastAPI request", "extract, all headers"} <= set(named)
    drawn = {text.text for text in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")}
    assert {"meshmw", "contrib"} <= drawn


def test_the_instructions_of_a_request_are_counted_by_part():
    command = [sys.executable, "-m", "tests.benchmarks", "instructions"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    rows = [row.split(" | ") for row in done.stdout.splitlines() if row.startswith("| meshmw: headers read")]
    # Of a sampled and of an unsampled request: ours, one function's, and none where the SDK is alone.
    assert [bool(cell.strip(" |")) for row in rows for cell in row[1:]] == [True, True, False] * 2


def test_a_server_answers_every_rival_of_the_end_to_end_runs():
    program = """
import asyncio
from tests.benchmarks.served import GROUPS
from tests.benchmarks.traffic import headers, receive, scope_of

async def ask(app):
    said = []
    async def send(message):
        said.append(message)
    await app(scope_of(headers()), receive, send)
    return said[0]["status"]

for group in GROUPS.values():
    for make in group.values():
        assert asyncio.run(ask(make())) == 200, make
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)
