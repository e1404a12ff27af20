"""How a line of Envoy's access log is read: formats, and why no text in a line can pass for another field.

Envoy escapes nothing in text formats: a path, a user agent or a tracestate may hold quotes, spaces, or a whole
` traceparent=...` of its own. A line is therefore believed only where it can be read in exactly one way:

- A strict expression, in which no field holds the characters that separate fields, matches in one way at most; and
  where it matches, every such character of the line belongs to the format, so no other reading exists.
- Any other line is looked at from both ends: the places where a field may end, reached from the left and from the
  right. One place for each is one reading. More is ambiguous, and the line is counted, not guessed.

Knows Envoy's format strings. Must not know what is done with the fields.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from meshmw.diagnose.access_log_pattern import FIELDS, FormatField, strict_of, taken_apart

# Beyond these a line that is not strict costs more than it is worth.
_MAX_LOOSE_CHARS: Final = 32_768
_MAX_ENDS: Final = 64

Line = dict[str, str]
Refusal = Literal["broken", "ambiguous"]


@dataclass(frozen=True, slots=True)
class TextFormat:
    """Reads lines that Envoy wrote with one format string.

    Attributes:
        source: The format string.
        names: The fields of `FIELDS` that it prints, in their order.
    """

    source: str
    names: tuple[str, ...]
    _literals: tuple[str, ...]
    _fields: tuple[FormatField, ...]
    _strict: re.Pattern[str] | None
    _strict_names: tuple[str, ...]

    @classmethod
    def compile(cls, source: str) -> TextFormat:
        r"""Make a reader of a format string; a `\n` at its end is left out.

        Raises:
            ValueError: It prints no field that is looked at, or two fields with nothing between them.
        """
        literals, fields = taken_apart(source.removesuffix("\\n").rstrip("\n"))
        names = tuple(field.name for field in fields if field.name)
        if not names:
            raise ValueError("the format prints none of: " + " ".join(FIELDS))
        if any(not literal for literal in literals[1:-1]):
            raise ValueError("the format prints two fields with nothing between them, which nobody can tell apart")
        strict, captured = strict_of(literals, fields)
        return cls(source, tuple(dict.fromkeys(names)), literals, fields, strict, captured)

    def read(self, line: str) -> Line | Refusal:
        """Return the fields of a line, by name, or why it cannot be read."""
        if self._strict is not None and (match := self._strict.fullmatch(line)):
            return dict(zip(self._strict_names, match.groups(), strict=True))
        if len(line) > _MAX_LOOSE_CHARS:
            return "broken"
        return self._read_loosely(line)

    def _read_loosely(self, line: str) -> Line | Refusal:
        """Look for the one reading of a line in which fields hold separators."""
        if not line.startswith(self._literals[0]):
            return "broken"
        places: dict[str, list[int]] = {}
        starts = [len(self._literals[0])]
        reached = [starts]
        for index, field in enumerate(self._fields, 1):
            ends = self._ends(line, starts, field, index, places)
            if not ends:
                return "broken"
            if len(ends) > _MAX_ENDS:
                return "ambiguous"
            width = len(self._literals[index])
            starts = [end + width for end in ends]
            reached.append(starts)
        return self._only_path(line, reached)

    def _ends(
        self, line: str, starts: list[int], field: FormatField, index: int, places: dict[str, list[int]]
    ) -> Sequence[int]:
        """Return where a field may end that begins at one of these places, the literal of this index following."""
        literal = self._literals[index]
        last = len(line) - len(literal) if index == len(self._literals) - 1 else None
        if field.tight is not None:
            matches = [field.tight.match(line, start) for start in starts]
            ends = {match.end() for match in matches if match and line.startswith(literal, match.end())}
            return sorted(ends if last is None else ends & {last})
        if last is not None:
            return [last] if line.endswith(literal) and last >= starts[0] else []
        if (found := places.get(literal)) is None:
            found = places[literal] = _places_of(literal, line, starts[0])
        return found[bisect_left(found, starts[0]) :]

    def _only_path(self, line: str, reached: list[list[int]]) -> Line | Refusal:
        """Go back from the end, where the last literal stands alone, and keep the places from which it is reached."""
        found: Line = {}
        (after,) = reached[-1]
        for index in range(len(self._fields) - 1, -1, -1):
            field, end = self._fields[index], after - len(self._literals[index + 1])
            starts = reached[index][: bisect_right(reached[index], end)]
            if field.tight is not None and len(starts) > 1:
                starts = [start for start in starts if field.tight.fullmatch(line, start, end)]
            if len(starts) > 1:
                return "ambiguous"
            (after,) = starts  # every end was reached from some start
            if field.name:
                found[field.name] = line[after:end]
        return found


def _places_of(literal: str, line: str, at: int) -> list[int]:
    """Return where a text stands in a line from there on, also where it overlaps itself: all places, or too many."""
    found: list[int] = []
    while (at := line.find(literal, at)) >= 0 and len(found) <= _MAX_ENDS:
        found.append(at)
        at += 1
    return found
