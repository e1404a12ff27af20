"""How commands run and print: tables for people, JSON for programs, one line for what went wrong.

Text from outside is never read as markup, and reaches a terminal only escaped.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Final, ParamSpec

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

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
LogFormatOption = Annotated[
    str, typer.Option("--format", "-f", help="The logs' format: auto, json, envoy, istio, or a format string.")
]
ReportOption = Annotated[Path | None, typer.Option("--report", metavar="FILE", help="Write an HTML report as well.")]

# Characters of what is folded into a column: rich takes half a minute for a megabyte.
_LONGEST: Final = 8192
_STYLES: Final = {"error": "bold red", "warning": "yellow", "note": "cyan"}

P = ParamSpec("P")


class CannotRunError(MeshmwError):
    """Says in one line why a command cannot do what it was asked."""


def as_command(function: Callable[P, int]) -> Callable[P, None]:
    """Turn a function that returns an exit code into a command, which says in one line what stopped it."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = function(*args, **kwargs)
            sys.stdout.flush()
        except MeshmwError as error:
            _print_error(error)
            code = MISUSE
        except KeyboardInterrupt:
            error_console().print("stopped")
            code = INTERRUPTED
        except BrokenPipeError:
            # The reader of the pipe has closed it, as `| head` does.
            _silence_output()
            code = OK
        except OSError as error:
            _silence_output()
            _print_error(error)
            code = MISUSE
        raise typer.Exit(code)

    return run


def _print_error(error: Exception) -> None:
    # Settings that cannot be used are a line each.
    text = "\n".join(shown(line, None) for line in str(error).strip().split("\n"))
    error_console().print(Text(f"meshmw: {text}"), soft_wrap=True)


def _silence_output() -> None:
    # The interpreter flushes standard output when it ends, and would print an error for what it cannot write.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console(width: int | None = None) -> Console:
    """Return what prints to standard output; made anew, because a test or a pager may have replaced it.

    Args:
        width: Columns to print to; those of the terminal if None.
    """
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)


def error_console() -> Console:
    """Return what prints to standard error."""
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False)


def progress_display(*columns: str | ProgressColumn) -> Progress:
    """Return a progress display on standard error, which is silent where that is no terminal."""
    errors = error_console()
    # A display of rich before 14.3 ends with an empty line, even where it shows nothing.
    errors.quiet = not errors.is_terminal
    return Progress(*columns, console=errors, transient=True, disable=errors.quiet)


def print_json(value: Any) -> None:
    """Print one JSON document, in ASCII."""
    print(json.dumps(value, indent=2, ensure_ascii=True))


def print_line(text: str, style: str = "") -> None:
    """Print one line as it is, however narrow the terminal."""
    console().print(Text(shown(text, None), style=style), soft_wrap=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """Print a table; a cell that has no room is folded, never cut. The columns *numbers* are aligned to the right."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(shown(cell, _LONGEST)) for cell in row))
    console().print(grid)


def print_findings(findings: Iterable[Finding]) -> None:
    """Print each finding: what is the case, why that breaks traces, what to do."""
    printer = console()
    for finding in findings:
        printer.print()
        head = Text.assemble((finding.severity.upper(), _STYLES[finding.severity]), f"  {shown(finding.where, 120)}")
        head.append(f"  [{finding.code}]", style="dim")
        printer.print(head)
        for label, text in (("", finding.what), ("why  ", finding.why), ("fix  ", finding.fix)):
            body = Table.grid(padding=(0, 0))
            body.add_column(width=len(label) + 2, no_wrap=True)
            body.add_column(overflow="fold")
            body.add_row(Text(f"  {label}", style="dim"), Text(shown(text, _LONGEST)))
            printer.print(body)


@contextlib.contextmanager
def signals_handled(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let *handle* take Ctrl-C and SIGTERM within the block."""
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def split_named_file(given: str) -> tuple[str | None, Path]:
    """Return the name and the path of `NAME=FILE`; the name is None where there is none."""
    name, equals, path = given.partition("=")
    # A file may have a "=" in its own name.
    if not equals or Path(given).exists():
        return None, Path(given)
    return name, Path(path)


@contextlib.contextmanager
def value_error_as_cannot_run() -> Iterator[None]:
    """Say in one line what a ValueError of the block says of an argument.

    Raises:
        CannotRunError: In place of the ValueError.
    """
    try:
        yield
    except ValueError as error:
        raise CannotRunError(str(error)) from error


@contextlib.contextmanager
def os_error_as_cannot_run(path: Path) -> Iterator[None]:
    """Say in one line what an OSError of the block says of a file.

    Raises:
        CannotRunError: In place of the OSError.
    """
    try:
        yield
    except OSError as error:
        raise CannotRunError(f"{path}: {error.strerror or error}") from error
