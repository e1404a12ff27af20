"""`meshmw inspect`: what trace headers say, or why they say nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Annotated

import typer
from rich.text import Text

from meshmw.cli.output import FOUND, MISUSE, OK, answers, err, out, print_json, table
from meshmw.diagnose.inspect import inspect as read
from meshmw.diagnose.inspection import Inspection

_CHUNK = 60


@answers
def inspect(
    headers: Annotated[
        list[str],
        typer.Argument(metavar="HEADER...", help="'name: value', or a value alone; - reads lines from standard input."),
    ],
    header: Annotated[
        str, typer.Option("--header", "-H", metavar="NAME", help="The name of values that are given alone.")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Say what traceparent, tracestate, baggage and B3 headers mean, field by field, or why they are malformed.

    Ends with 1 if one of them is.
    """
    found = [read(text, header or None) for text in _texts(headers)]
    if not found:
        err().print("meshmw: there is no header to inspect")
        return MISUSE
    if json:
        print_json([inspection.to_json() for inspection in found])
    else:
        _print(found)
    return OK if all(inspection.valid for inspection in found) else FOUND


def _texts(headers: Iterable[str]) -> Iterator[str]:
    for text in headers:
        if text == "-":
            lines = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").split("\n")
            yield from (line.rstrip("\r") for line in lines if line.strip())
        else:
            yield text


def _print(found: Iterable[Inspection]) -> None:
    console = out()
    for index, inspection in enumerate(found):
        if index:
            console.print()
        word, style = ("valid", "bold green") if inspection.valid else ("malformed", "bold red")
        console.print(Text.assemble((inspection.header, "bold"), ": ", (word, style)))
        _print_text(inspection)
        if inspection.fields:
            table(["field", "value", "meaning"], [(each.name, each.value, each.meaning) for each in inspection.fields])
        console.print(Text(f"It {inspection.consequence}."))


def _print_text(inspection: Inspection) -> None:
    """Print the header in pieces that fit any terminal, each fault with a caret under its place."""
    console = out()
    width = max(20, min(console.width, 120) - 4)
    faults = {fault.column: fault for fault in inspection.faults if fault.column is not None}
    for start in range(0, max(1, len(inspection.shown)), width):
        console.print(Text(f"  {inspection.shown[start : start + width]}"), soft_wrap=True)
        # A fault at the very end belongs to the last piece.
        last = start + width >= len(inspection.shown)
        for column, fault in sorted(faults.items()):
            if start <= column < start + width or (last and column == start + width):
                caret = Text(" " * (2 + column - start) + "^ ", style="red")
                console.print(caret.append(fault.reason, style="bold red").append(f": {fault.meaning}"), soft_wrap=True)
    for fault in inspection.faults:
        if fault.column is None:
            console.print(Text.assemble("  ", (fault.reason, "bold red"), f": {fault.meaning}"), soft_wrap=True)
