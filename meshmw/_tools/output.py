"""How commands print: tables for people, JSON for programs, messages for neither.

 Text from outside is never read as markup, and never reaches a terminal
unescaped.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, ParamSpec

import typer
from rich.console import Console
from rich.progress import Progress, ProgressColumn
from rich.table import Table
from rich.text import Text

from meshmw._notices import shown
from meshmw._tools import Finding
from meshmw.errors import MeshmwError

OK: Final = 0
FOUND: Final = 1
MISUSE: Final = 2
INTERRUPTED: Final = 130
EXIT_CODES: Final = "Exit codes: 0 nothing is wrong, 1 something was found, 2 it could not be run, 130 Ctrl-C."
STYLES: Final = {"error": "bold red", "warning": "yellow", "note": "cyan"}

P = ParamSpec("P")


class CannotRunError(MeshmwError):
    """Says in one line why a command cannot do what it was asked."""


def out(width: int | None = None) -> Console:
    """Return what prints to standard output; made anew, because a test or a pager may have replaced it.

    Args:
        width: Columns to print to; those of the terminal if None.
    """
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)


def err() -> Console:
    """Return what prints to standard error."""
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False)


def progress(*columns: str | ProgressColumn) -> Progress:
    """Return a progress display on standard error, which is silent where that is no terminal."""
    console = err()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def print_json(value: Any) -> None:
    """Print one JSON document, in ASCII."""
    print(json.dumps(value, indent=2, ensure_ascii=True))


def line(text: str, style: str = "") -> None:
    """Print one line as it is, however narrow the terminal."""
    out().print(Text(shown(text, None), style=style), soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """Print a table; a cell that has no room is folded, never cut.

    Args:
        columns: Their headings.
        rows: A cell for each column.
        numbers: The headings of those that stand at the right.
    """
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(shown(cell, None)) for cell in row))
    out().print(grid)


def print_findings(findings: Iterable[Finding]) -> None:
    """Print each finding: what, why it breaks traces, the fix."""
    console = out()
    for finding in findings:
        console.print()
        head = Text.assemble((finding.severity.upper(), STYLES[finding.severity]), f"  {shown(finding.where, 120)}")
        head.append(f"  [{finding.code}]", style="dim")
        console.print(head)
        for label, text in (("", finding.what), ("why  ", finding.why), ("fix  ", finding.fix)):
            body = Table.grid(padding=(0, 0))
            body.add_column(width=len(label) + 2, no_wrap=True)
            body.add_column(overflow="fold")
            body.add_row(Text(f"  {label}", style="dim"), Text(shown(text, None)))
            console.print(body)


def answers(command: Callable[P, int]) -> Callable[P, None]:
    """Turn a function that returns an exit code into a command, with what stops it said in one line."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = command(*args, **kwargs)
            sys.stdout.flush()
        except MeshmwError as error:
            err().print(Text(f"meshmw: {shown(str(error).strip(), None)}"), soft_wrap=True)
            code = MISUSE
        except KeyboardInterrupt:
            err().print("stopped")
            code = INTERRUPTED
        except BrokenPipeError:
            # Whoever read has enough, as `| head` does.
            _print_no_more()
            code = OK
        except OSError as error:
            _print_no_more()
            err().print(Text(f"meshmw: {shown(str(error), None)}"), soft_wrap=True)
            code = MISUSE
        raise typer.Exit(code)

    return run


def _print_no_more() -> None:
    """Let the interpreter not complain at its end of what could not be printed."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# Files that commands are given: their names, and what is said of one that cannot be used.


def named_file(given: str) -> tuple[str | None, Path]:
    """Return the name and the path of `NAME=FILE`; the name is None where there is none."""
    name, equals, path = given.partition("=")
    # A file may have a "=" in its own name.
    if not equals or Path(given).exists():
        return None, Path(given)
    return name, Path(path)


@contextmanager
def unusable_is_said(path: Path) -> Iterator[None]:
    """Return a block whose OSError is said in one line.

    Raises:
        CannotRunError: In its place.
    """
    try:
        yield
    except OSError as error:
        raise CannotRunError(f"{path}: {error.strerror or error}") from error
