"""The commands, put together.

Knows which commands there are. Must not know what they do.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from meshmw.cli.access_log import access_log
from meshmw.cli.demo import demo
from meshmw.cli.doctor import doctor
from meshmw.cli.inspect import inspect
from meshmw.cli.mesh_config import mesh_config
from meshmw.cli.output import EXIT_CODES
from meshmw.cli.settings import settings
from meshmw.cli.verify import verify
from meshmw.version import __version__

app = typer.Typer(
    name="meshmw",
    help="Keeps one trace one trace through sidecar proxies: shows where it breaks, and why.",
    epilog=f"{EXIT_CODES} Every command takes --json. NO_COLOR is honoured.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (inspect, doctor, access_log, verify, mesh_config, demo, settings):
    app.command(epilog=EXIT_CODES, no_args_is_help=_command in (inspect, verify))(_command)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"meshmw {__version__}")
        raise typer.Exit


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    if sys.stdout is None:  # closed, as `>&-` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open to the end
    for stream in (sys.stdout, sys.stderr):
        # A terminal may lack a character that a log holds.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(arguments, prog_name="meshmw")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0  # pragma: no cover - Typer always ends by SystemExit
