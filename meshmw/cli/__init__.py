"""The `meshmw` command: thin over `meshmw.diagnose`.

Knows arguments, a terminal and exit codes. Must not know what is right or wrong: everything that it prints comes as a
value from below. Nothing but the standard library is imported before a command is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from meshmw.errors import MissingExtraError
from meshmw.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code: 0, 1 for something found, 2 for misuse, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        print(f"meshmw {__version__}")
        return 0
    try:
        from meshmw.cli.commands import run
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        print(f"meshmw: {MissingExtraError('the command line', 'cli')}", file=sys.stderr)
        return 2
    return run(given)
