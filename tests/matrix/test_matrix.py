"""Every boundary holds with meshmw, and the table of docs/comparison.md is what the rows say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.matrix.__main__ import PASSES, ROOT, run_all, table
from tests.matrix.row import all_rows

PAGE = Path(ROOT, "docs", "comparison.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def results(request):
    items = [item for item in request.session.items if "results" in getattr(item, "fixturenames", ())]
    params = [item.callspec.params["row"].name for item in items if hasattr(item, "callspec")]
    return run_all(params if len(params) == len(items) else ())


@pytest.mark.parametrize("row", all_rows(), ids=lambda row: row.name)
def test_row(row, results):
    assert results["meshmw"][row.name] == PASSES


def without_reasons(lines):
    return [line.split(" ✗ ")[0] + " ✗ " + line.rpartition(" | ")[2] if " ✗ " in line else line for line in lines]


def test_the_page_shows_what_the_rows_say_of_both(results):
    shown = PAGE.partition("<!-- matrix -->")[2].partition("<!-- /matrix -->")[0].strip()
    made = table(results)
    assert without_reasons(shown.splitlines()) == without_reasons(made.splitlines()), (
        f"run  python -m tests.matrix --write  if this is right:\n{made}"
    )
