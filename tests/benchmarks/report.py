"""Results as a table for docs/speed.md."""

from __future__ import annotations

from collections.abc import Sequence

from tests.benchmarks.measure import Result, Spread

BEGIN, END = "<!-- speed -->", "<!-- /speed -->"
HEAD = "| what | meshmw, µs | what others take of that |\n|---|---:|---|"
DETAILS = "| what | rival | µs | times meshmw's | target |\n|---|---|---:|---:|---|"


def table(results: Sequence[Result]) -> str:
    """Return all results as one Markdown table: our median with its quartiles, and how many times that others take."""
    rows = []
    for result in results:
        others = "; ".join(f"{label} {ratio.median:.2g} ×" for label, ratio in result.ratios.items())  # noqa: RUF001
        rows.append(f"| {result.case.name} | {shown(result.costs['meshmw'])} | {others} |")
    return "\n".join([HEAD, *rows])


def within(page: str, shown: str) -> str:
    """Return a page with another table between the marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{shown}\n\n{END}{after}"


def details(results: Sequence[Result]) -> str:
    """Return all results as one Markdown table with a row for each rival, and the targets."""
    return "\n".join([DETAILS, *(row for result in results for row in _rows(result))])


def _rows(result: Result) -> list[str]:
    over = "" if result.floor is None else f" (over {result.floor.median:.1f})"
    rows = [f"| **{result.case.name}**{over} | meshmw | {shown(result.costs['meshmw'])} | | |"]
    for label, ratio in result.ratios.items():
        rows.append(f"| | {label} | {shown(result.costs[label])} | {shown(ratio)} | {verdict(result, label)} |")
    return rows


def shown(spread: Spread) -> str:
    """Return a median with its quartiles, in as many digits as they are worth."""
    digits = 2 if spread.median < 10 else 0 if spread.median >= 100 else 1
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f}-{spread.high:.{digits}f})"


def verdict(result: Result, label: str) -> str:
    """Return what part of a rival's time ours was to take at most, and whether it does."""
    target = result.case.target.get(label)
    if target is None:
        return ""
    wanted = f"1/{1 / target:.3g}" if target < 1 else f"{target:.3g}"
    part = 1 / result.ratios[label].median
    return f"≤ {wanted}: {'met' if part <= target else f'{part:.2f}'}"
