"""Files that commands are given: their names, and what is said of one that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meshmw.cli.output import CannotRunError


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
