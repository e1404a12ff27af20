"""How a row of the matrix is written: a function that gets a kit and asserts.

    @row("thread pools", "`ThreadPoolExecutor.submit` from a handler")
    def thread_pool(kit): ...

A file in `tests/matrix/rows` is found by itself. The message of an assertion is what the table says where it fails.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.matrix import rows

Test = Callable[[Any], None]


@dataclass(frozen=True)
class Row:
    """Describes one boundary.

    Attributes:
        name: The test's, unique.
        group: What kind of boundary.
        title: What has to hold at it, for the table.
        test: Is called with a kit, and raises AssertionError.
        needs: What a kit must offer; empty where the test asks for nothing special.
    """

    name: str
    group: str
    title: str
    test: Test
    needs: str


_ROWS: dict[str, Row] = {}


def row(group: str, title: str, *, needs: str = "") -> Callable[[Test], Test]:
    """Make a function a row of the table; a kit whose attribute *needs* is None does not offer it."""

    def add(test: Test) -> Test:
        assert test.__name__ not in _ROWS or _ROWS[test.__name__].title == title, f"two rows {test.__name__}"
        _ROWS[test.__name__] = Row(test.__name__, group, title, test, needs)
        return test

    return add


def all_rows() -> list[Row]:
    """Return every row, in the order of files and of functions in them."""
    for module in sorted(each.name for each in pkgutil.iter_modules(rows.__path__)):
        importlib.import_module(f"{rows.__name__}.{module}")
    return sorted(_ROWS.values(), key=lambda each: each.test.__module__)
