"""`meshmw access-log`: what access logs say of traces."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn

from meshmw._notices import shown
from meshmw._tools.access_log import Analysis
from meshmw._tools.access_log.counts import KINDS, MEANINGS, AccessLogReport, HopLog, Place, Seen, sorted_places
from meshmw._tools.access_log.formats import Line
from meshmw._tools.access_log.hops import Crossing
from meshmw._tools.access_log.judge import judge_access_logs
from meshmw._tools.access_log.lines import Format, Source, format_of, open_source
from meshmw._tools.output import (
    FOUND,
    OK,
    CannotRunError,
    answers,
    err,
    line,
    named_file,
    print_findings,
    print_json,
    progress,
    table,
    unusable_is_said,
)

# How `meshmw access-log` prints: each log's routes, and what became of traces from log to log.


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


@answers
def access_log(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]FILE...",
            help="Logs, also gzipped, in the order of the way that requests take; - or nothing is standard input.",
        ),
    ] = None,
    log_format: Annotated[
        str,
        typer.Option("--format", "-f", help="auto, json, envoy, istio, or the proxy's own format string."),
    ] = "auto",
    fields: Annotated[
        list[str] | None,
        typer.Option("--field", metavar="FIELD=KEY", help="Where JSON holds a field: traceparent=labels.tp"),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-F", help="Go on as the log grows, and say what is new, until Ctrl-C.")
    ] = False,
    top: Annotated[int, typer.Option("--top", min=1, help="Routes to print for each log.")] = 20,
    max_missing: Annotated[
        float, typer.Option("--max-missing", min=0, max=100, help="Percent without traceparent that is no fault.")
    ] = 100.0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Count, for each route and upstream, which requests came with a valid, missing, empty or malformed traceparent.

    Given the logs of several hops, name the first place where traces are lost, and where the sampled flag is cleared.

    Envoy's and Istio's default formats, what is often appended to them, and JSON are recognised. A line that can be
    read in several ways, because a header in it holds quotes or spaces, is counted as ambiguous and not believed.

    Memory is constant: 1,000 pairs of route and upstream are told apart in each log, the rest is (other); 50,000
    request and trace ids are joined across logs, of more a share that is the same in every log.
    """
    given = files or ["-"]
    if follow and len(given) != 1:
        raise CannotRunError("--follow takes one log")
    reader = _format(log_format, fields or [])
    analysis = Analysis(on_line=_Teller() if follow else None)
    _read_all(analysis, given, reader, follow)
    report = analysis.report()
    findings = judge_access_logs(report, max_missing / 100)
    if json:
        print_json({**report.to_json(), "findings": [finding.to_json() for finding in findings]})
    else:
        print_access_logs(report, top)
        print_findings(findings)
    return FOUND if any(finding.is_fault for finding in findings) else OK


def _format(log_format: str, fields: list[str]) -> Format | None:
    keys = {}
    for field in fields:
        name, equals, key = field.partition("=")
        if not (equals and key):
            raise CannotRunError(f"--field takes FIELD=KEY, not {shown(field)!r}")
        keys[name] = key
    try:
        return format_of(log_format, keys)
    except ValueError as error:
        raise CannotRunError(str(error)) from error


def _read_all(analysis: Analysis, given: list[str], reader: Format | None, follow: bool) -> None:
    with progress(
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    ) as display:
        for each in given:
            source = _source(each)
            task = display.add_task(shown(source.name, 40), total=source.size or None)

            def advance(source: Source = source, task: object = task) -> None:
                display.update(task, completed=source.position)  # type: ignore[arg-type]

            try:
                with _until_interrupt(follow) as more:
                    analysis.read(source, reader, more, advance)
            except ValueError as error:
                raise CannotRunError(str(error)) from error
            finally:
                source.close()


def _source(given: str) -> Source:
    if given == "-":
        return Source("stdin", sys.stdin.buffer)
    name, path = named_file(given)
    with unusable_is_said(path):
        return open_source(path, name or None)


@contextmanager
def _until_interrupt(follow: bool) -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C end the reading and not the command, so that what was counted is printed."""
    if not follow:
        yield lambda: False
        return
    stopped: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        stopped.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: not stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Teller:
    """Says a request that is not valid while it is followed, each kind and route once a minute."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], float] = {}

    def __call__(self, hop: str, fields: Line, seen: Seen) -> None:
        if seen.kind in ("valid", "refused"):
            return
        key, now = (seen.kind + seen.reason, fields.get("path", "-").partition("?")[0][:100]), time.monotonic()
        if now - self._said.get(key, -60.0) < 60:
            return
        if len(self._said) >= 10_000:
            self._said.clear()
        self._said[key] = now
        what = f"{seen.kind} ({seen.reason})" if seen.reason else seen.kind
        err().print(f"{hop}: {what}  {shown(fields.get('method', '-'), 20)} {shown(key[1])}", soft_wrap=True)
