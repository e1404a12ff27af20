"""Which baggage keys may cross a boundary.

Pure, and the standard library alone. Must not know values, nor which boundary it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate
from typing import Final, TypeVar

# A key is a token (RFC 9110, section 5.6.2), which may hold a `*`; to that comes `?`.
_PATTERN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z?]+")

Value = TypeVar("Value")


class BaggageKeys:
    """Says which keys are let through: those that a pattern of *allow* means, less those that one of *deny* means.

    In a pattern `*` is any text and `?` is one character. Case matters, as it does in baggage.

    Args:
        allow: Patterns of keys that pass; none let every key pass.
        deny: Patterns of keys that do not pass, whatever *allow* says.

    Raises:
        ValueError: A pattern holds a character that no key can hold; it is named.

    Attributes:
        are_all: Whether every key passes, so that nobody need ask for each.
    """

    def __init__(self, allow: Sequence[str] = (), deny: Sequence[str] = ()) -> None:
        self._allow = _compiled(allow)
        self._deny = _compiled(deny)
        self.are_all = self._allow is None and self._deny is None

    def permits(self, key: str) -> bool:
        """Say whether a key passes."""
        if self._deny is not None and self._deny.match(key):
            return False
        return self._allow is None or self._allow.match(key) is not None

    def permitted(self, members: dict[str, Value]) -> dict[str, Value]:
        """Return the members whose keys pass, in their order."""
        return members if self.are_all else {key: value for key, value in members.items() if self.permits(key)}


def _compiled(patterns: Sequence[str]) -> re.Pattern[str] | None:
    for pattern in patterns:
        if not _PATTERN.fullmatch(pattern):
            raise ValueError(f"{pattern!r} is no pattern of baggage keys")
    return re.compile("|".join(translate(pattern) for pattern in patterns)) if patterns else None
