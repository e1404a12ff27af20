"""The `meshmw` command, which `python -m meshmw` runs as well. Its work is done in `meshmw._tools.commands`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from meshmw._version import __version__
from meshmw.errors import MissingExtraError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 for something found, 2 for misuse, 130 after Ctrl-C.

    Without the extra `cli` it prints its version, and for anything else says which extra to install.

    Args:
        arguments: What stands behind `meshmw` on the command line; that of this process if None.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        print(f"meshmw {__version__}")
        return 0
    try:
        from meshmw._tools.commands import run
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        print(f"meshmw: {MissingExtraError('the command line', 'cli')}", file=sys.stderr)
        return 2
    return run(given)


if __name__ == "__main__":
    sys.exit(main())
