"""How `meshmw access-log` prints: each log's routes, and what became of traces from log to log."""

from __future__ import annotations

from meshmw.cli.output import line, table
from meshmw.diagnose.access_log_counts import KINDS, MEANINGS, Place
from meshmw.diagnose.access_log_hops import Crossing
from meshmw.diagnose.access_log_report import AccessLogReport, HopLog, sorted_places


def print_access_logs(report: AccessLogReport, top: int) -> None:
    """Print what logs said, for people.

    Args:
        report: What they said.
        top: How many routes of each.
    """
    for index, hop in enumerate(report.hops):
        if index:
            line("")
        _print_hop(hop, top)
    if report.crossings:
        line("")
        table(
            ["from", "to", "joined", "lost", "trace ids", "arrived", "flipped"],
            [(each.sender, each.receiver, *(f"{n:,}" for n in numbers_of(each))) for each in report.crossings],
            numbers=["joined", "lost", "trace ids", "arrived", "flipped"],
        )
        if report.joined_one_in > 1:
            line(f"(one in {report.joined_one_in} ids was joined)", "dim")


def _print_hop(hop: HopLog, top: int) -> None:
    total = hop.places.total
    line(f"{hop.name}: requests: {total.total:,}, lines: {hop.lines:,}", "bold")
    if not hop.logs_traceparent:
        return
    places = sorted_places(hop.places)
    rows = [(route, upstream, *_cells(place)) for (route, upstream), place in places[:top]]
    if len(places) != 1:
        rows.append((f"all {len(places)}" if len(places) > top else "all", "", *_cells(total)))
    shares = [kind for kind in KINDS if kind in ("valid", "missing") or total.kinds[kind]]
    columns = ["route", "upstream", "requests", *shares]
    kept = [0, 1, 2, *(3 + KINDS.index(kind) for kind in shares)]
    table(columns, [[row[at] for at in kept] for row in rows], numbers=columns[2:])
    for kind in shares[2:]:
        line(f"  {kind}: {MEANINGS[kind]}", "dim")


def numbers_of(crossing: Crossing) -> tuple[int, ...]:
    """Return a crossing's numbers in the order of the table's columns."""
    return crossing.joined, crossing.lost, crossing.traces, crossing.arrived, crossing.flipped


def _cells(place: Place) -> tuple[str, ...]:
    return (f"{place.total:,}", *(f"{place.share(kind):.1%}" for kind in KINDS))
