"""`python -m tests.benchmarks`: times meshmw beside its peers, and prints the table and the chart of docs/speed.md."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

from tests.benchmarks.chart import chart
from tests.benchmarks.measure import Case, measure
from tests.benchmarks.report import details, table, within

MODULES = ("servers", "hosts", "clients", "formats", "threads", "kafka")
# Longer ones, which print tables of their own and are run only when they are asked for.
REPORTS = (
    *(
        "growth",
        "memory",
        "instructions",
        "path",
        "hostile",
        "attack",
        "end_to_end",
        "startup",
        "exported",
        "drops",
        "rpc",
    ),
)
ROUNDS = 41
WHAT = f"of {', '.join(MODULES)}, all of them by default; or of {', '.join(REPORTS)}"


def main(arguments: list[str] | None = None) -> int:
    """Time what the arguments name, and print it."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("what", nargs="*", help=WHAT)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="batches of each rival")
    parser.add_argument("--times", type=int, help="how often the thing is done in a batch, instead of each case's own")
    parser.add_argument("--details", action="store_true", help="a row for each rival, with quartiles and targets")
    parser.add_argument("--page", type=Path, help="whose table to renew: docs/speed.md")
    parser.add_argument("--svg", type=Path, help="where to write the chart: docs/speed.svg")
    options = parser.parse_args(arguments)
    for name in options.what:
        if name in REPORTS:
            print(importlib.import_module(f"tests.benchmarks.{name}").report(), end="\n\n")
    cases = [case for name in options.what or MODULES if name not in REPORTS for case in _cases(name)]
    if not cases:
        return 0
    began = time.monotonic()
    results = []
    for case in cases:
        results.append(measure(case, options.rounds, options.times))
        print(f"{case.name}: done after {time.monotonic() - began:.0f} s", file=sys.stderr)
    print(details(results) if options.details else table(results))
    if options.page:
        text = options.page.read_text(encoding="utf-8")
        options.page.write_text(within(text, table(results)), encoding="utf-8")
    if options.svg:
        options.svg.write_text(chart(results), encoding="utf-8")
    return 0


def _cases(name: str) -> list[Case]:
    path = f"tests.benchmarks.{name}"
    if importlib.util.find_spec(path) is None:
        return []
    return list(importlib.import_module(path).cases())


if __name__ == "__main__":
    sys.exit(main())
