"""Path patterns, for requests that are left out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate


class PathPatterns:
    """Matches request paths: `/health` is that path and all below it; a pattern with `*` or `?` is a glob.

    Args:
        patterns: Such as `/health`, `/metrics`, `/api/*/status`.

    Raises:
        ValueError: A pattern begins neither with `/` nor with `*`, and would never match.

    Attributes:
        are_none: Whether there is no pattern at all, so that nobody need ask for each path.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        for pattern in patterns:
            if not pattern.startswith(("/", "*")):
                raise ValueError(f"{pattern!r} is no pattern of paths: they begin with /")
        self._regex = re.compile("|".join(_expression(each) for each in patterns)) if patterns else None
        self.are_none = not patterns

    def match(self, path: str) -> bool:
        """Say whether a path is meant by one of the patterns."""
        return self._regex is not None and self._regex.match(path) is not None


def _expression(pattern: str) -> str:
    if any(character in pattern for character in "*?["):
        return translate(pattern)
    return rf"{re.escape(pattern.rstrip('/'))}(?:/.*)?\Z"
