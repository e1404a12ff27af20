"""The benchmarks run: each rival once. No time is asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from tests.benchmarks.measure import confidence

ROOT = Path(__file__).parents[2]


def test_every_case_runs_and_is_told_in_the_table_and_the_chart(tmp_path):
    picture = tmp_path / "chart.svg"
    command = [sys.executable, "-m", "tests.benchmarks", "--rounds", "1", "--times", "1", "--svg", str(picture)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    named = [line.split(" | ")[0].removeprefix("| ") for line in done.stdout.splitlines()]
    assert {"ASGI request, sampled", "WSGI request, sampled", "FastAPI request", "extract, all headers"} <= set(named)
    drawn = {text.text for text in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")}
    assert {"meshmw", "contrib"} <= drawn


def test_a_start_an_export_a_pace_and_a_call_have_a_row_for_each_rival():
    program = """
import os
from tests.benchmarks import drops, exported, rpc, startup
from tests.benchmarks.peers import GROUPS, NEEDS

table = startup.report(rounds=1, anew=False)
assert all(f"| {name} |" in table for name in startup.PROGRAMS), table
table = exported.report(rounds=1, requests=5, count=False)
rows, _, missing = table.partition("Not installed, and so left out: ")
for group, rivals in GROUPS.items():
    for label in rivals.keys() - {"bare"}:
        is_missing = any(name in label for name in NEEDS if name in missing)
        assert (f"| {group} | {label} |" in rows) is not is_missing, (label, table)
table = drops.report(rates=(100,), seconds=0.2)
assert all(f"| {rival} |" in table for rival in drops.RIVALS), table
table = rpc.report(rounds=1, times=1)
assert table.count("| gRPC ") == 6, table
# Threads of grpcio may be waiting still.
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)


def test_a_median_lies_within_its_interval_and_that_narrows_with_more_rounds():
    few, many = (confidence(list(range(count))) for count in (10, 100))
    assert few[0] < 4.5 < few[1]
    assert many == (40, 60)
    assert confidence([1.0]) == (1.0, 1.0)


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


def test_the_path_of_each_operation_has_a_row_and_the_files_that_it_enters():
    command = [sys.executable, "-m", "tests.benchmarks", "path"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = dict(line.removeprefix("| ").split(" | ", 1) for line in lines if line.startswith("| "))
    files = dict(line.split(": ") for line in lines if ": " in line and not line.startswith("|"))
    operations = {"ASGI request", "WSGI request", "httpx call", "Kafka message", "gRPC call, server"}
    assert rows.keys() - {"operation"} == files.keys() == operations
    for operation in operations:
        calls, entered, changes = (int(number) for number in rows[operation].removesuffix(" |").split(" | "))
        assert calls > entered > 1, operation
        assert calls > changes >= entered - 1, operation
        assert len(files[operation].split(", ")) == entered, operation


def test_a_path_has_each_call_inside_meshmw_in_order_and_nothing_else():
    program = """
import inspect
from contextlib import nullcontext
from pathlib import Path

import meshmw
from meshmw import asgi, baggage, kafka, wsgi
from meshmw.grpc import TraceContextServerInterceptor
from tests.benchmarks.path import Walk, walk, walks

def file_of(what):
    return str(Path(inspect.getsourcefile(what)).relative_to(Path(meshmw.__file__).parent))

found = walks()
assert found == walks()
assert file_of(asgi.TraceContextMiddleware) == found["ASGI request"].files[0]
assert file_of(wsgi.TraceContextMiddleware) == found["WSGI request"].files[0]
assert file_of(kafka.consumer_span) == found["Kafka message"].files[0]
assert file_of(TraceContextServerInterceptor) == found["gRPC call, server"].files[0]
assert walk(lambda: nullcontext(lambda: inspect.getsourcefile(Walk))) == Walk(())
assert walk(lambda: nullcontext(lambda: baggage.get("tenant"))).files[0] == file_of(baggage.get)

walked = Walk(("a.py", "a.py", "b.py", "a.py"))
assert (walked.files, walked.changes) == (("a.py", "b.py"), 2)
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


def test_the_search_for_the_worst_finds_a_shape_for_each_place_of_each_entrance():
    program = """
from tests.benchmarks.hostile import MOST, Search, Shape, entrances, report
table = report(tries=1, rounds=1, shown=100, repeats=1)
found = entrances()
for name, entrance in found.items():
    assert f"| {name}; a valid one takes" in table, name
    own = table.partition(f"| {name}; ")[2].partition("\\n\\n")[0]
    assert all(f"| `{place}`:" in own for place in entrance.places), own
one, other = (Search(1, found["ASGI"], repeats=1) for _ in range(2))
assert [one._made("baggage") for _ in range(20)] == [other._made("baggage") for _ in range(20)]
shape = one._made("b3")
assert shape.text(1) != shape.text(2)
in_lines = Shape("b3", "", ("a",), "", MOST, 80)
assert MOST * 0.9 < sum(len(f"b3: {in_lines.text(1)}\\r\\n") for _ in range(80)) <= MOST
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=240)
