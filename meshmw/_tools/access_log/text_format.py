"""`TextFormat`: reads lines that Envoy wrote with a format string, and lets no text in a line pass for another field.

Envoy escapes nothing in text formats: a path, a user agent or a tracestate may hold quotes, spaces, or a whole
` traceparent=...` of its own. A line is therefore believed only where it can be read in exactly one way:

- A strict pattern, in which no field holds the characters that separate fields, matches in one way at most. Where it
  matches, every such character of the line belongs to the format, so no other reading exists.
- Any other line is looked at from both ends: the places where a field may end, reached from the left and from the
  right. One place for each is one reading. More is ambiguous, and the line is counted, not guessed.

Both take time in proportion to the line.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

# The fields that are looked at, by the operator that prints them.
FIELDS: Final = {
    "%ACCESS_LOG_TYPE%": "type",
    "%REQ(:METHOD)%": "method",
    "%REQ(:PATH)%": "path",
    "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%": "path",
    "%REQ(:AUTHORITY)%": "authority",
    "%REQ(USER-AGENT)%": "user_agent",
    "%REQ(X-REQUEST-ID)%": "request_id",
    "%REQ(TRACEPARENT)%": "traceparent",
    "%REQ(TRACESTATE)%": "tracestate",
    "%REQ(BAGGAGE)%": "baggage",
    "%REQ(B3)%": "b3",
    "%REQ(X-B3-TRACEID)%": "x_b3_traceid",
    "%RESPONSE_CODE%": "code",
    "%RESPONSE_CODE_DETAILS%": "details",
    "%ROUTE_NAME%": "route",
    "%TRACE_ID%": "trace_id",
    "%UPSTREAM_CLUSTER%": "cluster",
    "%UPSTREAM_CLUSTER_RAW%": "cluster",
    "%UPSTREAM_HOST%": "upstream",
}
# What values look like that neither a client nor a server can choose freely.
_TIGHT: Final = {
    "PROTOCOL": r"HTTP/[0-9.]+|-",
    "RESPONSE_CODE": r"[0-9]+|-",
    "RESPONSE_FLAGS": r"[A-Za-z0-9_,]+|-",
    "BYTES_RECEIVED": r"[0-9]+|-",
    "BYTES_SENT": r"[0-9]+|-",
    "DURATION": r"[0-9]+|-",
    "UPSTREAM_HOST": r'[^ "]+',
    "TRACE_ID": r"[0-9a-f]+|-",
    "ACCESS_LOG_TYPE": r"[A-Za-z]+|-",
}
# The argument is bounded: from each operator without its ")" the search would go on to the end of the format.
_OPERATOR: Final = re.compile(r"%([A-Z_0-9]+)(\([^)]{0,1024}\))?(:[0-9]+)?%|%%")
# Beyond these a line that the strict pattern does not match costs more than it is worth.
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
    _fields: tuple[_Field, ...]
    _strict: re.Pattern[str] | None
    _strict_names: tuple[str, ...]

    @classmethod
    def compile(cls, source: str) -> TextFormat:
        r"""Make a reader of a format string; a `\n` at its end is left out.

        Raises:
            ValueError: It prints no field that is looked at, or two fields with nothing between them.
        """
        literals, fields = _parse_format(source.removesuffix("\\n").rstrip("\n"))
        names = tuple(field.name for field in fields if field.name)
        if not names:
            raise ValueError("the format prints none of: " + " ".join(FIELDS))
        if any(not literal for literal in literals[1:-1]):
            raise ValueError("the format prints two fields with nothing between them, which nobody can tell apart")
        strict, captured = _build_strict_pattern(literals, fields)
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
        self, line: str, starts: list[int], field: _Field, index: int, places: dict[str, list[int]]
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


class _Field(NamedTuple):
    """Describes one operator of a format string.

    Attributes:
        name: What it prints, of `FIELDS`; empty for what is not looked at.
        tight: What its value looks like, where nobody can choose that freely.
    """

    name: str
    tight: re.Pattern[str] | None


def _parse_format(source: str) -> tuple[tuple[str, ...], tuple[_Field, ...]]:
    """Return the texts of a format string, and the operators between each two of them."""
    literals, fields, at = [""], [], 0
    for match in _OPERATOR.finditer(source):
        literals[-1] += source[at : match.start()]
        at = match.end()
        if match[1] is None:
            literals[-1] += "%"
            continue
        operator = "REQ" if match[1] == "REQUEST_HEADER" else match[1]
        name = FIELDS.get(f"%{operator}{(match[2] or '').upper()}%", "")
        # A value that is cut to a length may look like anything.
        tight = None if match[3] else _tight_pattern(operator, source[at : at + 1])
        fields.append(_Field(name, tight))
        literals.append("")
    literals[-1] += source[at:]
    return tuple(literals), tuple(fields)


def _tight_pattern(operator: str, following: str) -> re.Pattern[str] | None:
    if operator not in _TIGHT:
        return None
    pattern = re.compile(f"(?>{_TIGHT[operator]})")
    # Where the text behind the value may belong to the value, its look does not say where it ends.
    return None if following and pattern.match(following) else pattern


def _build_strict_pattern(
    literals: tuple[str, ...], fields: tuple[_Field, ...]
) -> tuple[re.Pattern[str] | None, tuple[str, ...]]:
    """Return a pattern that matches in one way at most, and the fields it captures; None where there can be none."""
    pieces, names = [re.escape(literals[0])], []
    for index, field in enumerate(fields):
        separators = _separators(literals, index)
        if separators is None:
            return None, ()
        # Nothing is gained by giving back characters where a separator follows.
        possessive = "+" if literals[index + 1][:1] in separators else ""
        characters = "[^{}]*{}".format("".join(map(re.escape, sorted(separators))), possessive)
        body = field.tight.pattern if field.tight is not None else characters
        if field.name and field.name not in names:
            names.append(field.name)
            body = f"({body})"
        pieces += [body, re.escape(literals[index + 1])]
    return re.compile("".join(pieces)), tuple(names)


def _separators(literals: tuple[str, ...], index: int) -> set[str] | None:
    """Return the characters that a field must not hold, for the pattern to be the only reading.

    A quote separates wherever the format has one. Between two quotes, spaces separate the fields that share the place.
    """
    quoted = any('"' in literal for literal in literals)
    left = index
    while left > 0 and '"' not in literals[left]:
        left -= 1
    right = index + 1
    while right < len(literals) - 1 and '"' not in literals[right]:
        right += 1
    inner = literals[left + 1 : right]
    if any(" " not in literal for literal in inner):
        return None
    # The parts of the outer literals that face this place hold separators as well.
    facing = literals[left].rpartition('"')[2] + literals[right].partition('"')[0]
    spaces = {" "} if inner or " " in facing else set()
    separators = ({'"'} if quoted else set()) | spaces
    return separators or {"\n"}
