"""`python -m tests.matrix`: every boundary, with meshmw and with the contrib packages, by the same tests."""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.matrix.kits import KITS
from tests.matrix.row import Row, all_rows
from tests.programs import clean_environment

ROOT = Path(__file__).parents[2]
PASSES, NOT_OFFERED = "✓", "not offered"
TIMEOUT = 300


def run(kit_name: str, only: Sequence[str] = ()) -> dict[str, str]:
    """Run every row, or those that are named, with one kit, in this process; return what the table says of each."""
    kit = KITS[kit_name]()
    outcome: dict[str, str] = {}
    for row in all_rows():
        if not only or row.name in only:
            kit.forget()
            begun = time.monotonic()
            # A thread of its own: what a row leaves current ends with it.
            thread = threading.Thread(target=_run_row, args=(row, kit, outcome))
            thread.start()
            thread.join()
            print(f"{kit_name} {row.name} {outcome[row.name]} {time.monotonic() - begun:.2f} s", file=sys.stderr)
    return outcome


def _run_row(row: Row, kit: Any, outcome: dict[str, str]) -> None:
    if row.needs and getattr(kit, row.needs) is None:
        outcome[row.name] = NOT_OFFERED
        return
    try:
        row.test(kit)
        outcome[row.name] = PASSES
    except AssertionError as fault:
        outcome[row.name] = f"✗ {str(fault).splitlines()[0]}"
    except Exception as error:
        outcome[row.name] = f"✗ {type(error).__name__}: {error}"


def run_all(only: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """Run every row with every kit, each in a process of its own because both set globals."""
    clean = clean_environment()
    command = [sys.executable, "-m", "tests.matrix", "--only", ",".join(only), "--kit"]
    processes = {
        name: subprocess.Popen([*command, name], cwd=ROOT, env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for name in KITS
    }
    with contextlib.ExitStack() as stack:
        for process in processes.values():
            stack.callback(process.kill)
        said = {name: process.communicate(timeout=TIMEOUT) for name, process in processes.items()}
    for name, (answer, errors) in said.items():
        if processes[name].returncode:
            raise RuntimeError(f"{name} did not get through:\n{errors.decode()}")
        said[name] = json.loads(answer)
    return said  # type: ignore[return-value]  # each was replaced


def table(results: dict[str, dict[str, str]]) -> str:
    """Return the table in Markdown."""
    lines = ["| boundary | meshmw | contrib | test |", "|---|---|---|---|"]
    group = ""
    for row in (row for row in all_rows() if all(row.name in outcome for outcome in results.values())):
        if row.group != group:
            group = row.group
            lines.append(f"| **{group}** | | | |")
        cells = " | ".join(results[kit][row.name] for kit in KITS)
        lines.append(f"| {row.title} | {cells} | `{row.name}` |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or what one kit makes of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("--kit", choices=KITS, help="run with this one, and print JSON")
    parser.add_argument("--only", default="", help="rows by their tests' names, with commas between them")
    parser.add_argument("--write", action="store_true", help="put the table into docs/comparison.md")
    options = parser.parse_args()
    only = [name for name in options.only.split(",") if name]
    if options.kit:
        print(json.dumps(run(options.kit, only)))
        return
    made = table(run_all(only))
    print(made)
    if options.write and not only:
        page = ROOT / "docs" / "comparison.md"
        before, _, rest = page.read_text(encoding="utf-8").partition("<!-- matrix -->\n")
        after = rest.partition("<!-- /matrix -->")[2]
        page.write_text(f"{before}<!-- matrix -->\n\n{made}\n\n<!-- /matrix -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
