"""Regular expressions that are compiled when they are first used, and not while the package is imported."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial


def compiled_late(expression: str, flags: int = 0) -> Callable[[], re.Pattern[str]]:
    """Return a function that compiles an expression when it is first called, and returns the same pattern each time.

    To compile all of the package's expressions takes longer than to load all of its modules, and a service meets few of
    what they are for. What every request meets is compiled by `re.compile` all the same.
    """
    return cache(partial(re.compile, expression, flags))
