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


def test_the_instructions_of_a_request_are_counted_by_part_and_are_the_same_each_time():
    program = """
from meshmw import asgi
from tests.benchmarks.floor_served import served_in_one_function
from tests.benchmarks.instructions import PARTS, instructions, report
from tests.benchmarks.servers import asgi_app
from tests.benchmarks.traffic import SAMPLED, headers

ours, again, one = (
    instructions(make(asgi_app), headers(SAMPLED))
    for make in (asgi.TraceContextMiddleware, asgi.TraceContextMiddleware, served_in_one_function)
)
assert ours == again, (ours, again)
own = [part for part in PARTS if part.startswith("meshmw")]
assert all(0 < ours[part][1] < ours[part][0] for part in own), ours
assert sum(one[part][0] for part in (*own, "all of it in one function")) < sum(ours[part][0] for part in own)
assert report().count("| all |") == 2
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)


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
