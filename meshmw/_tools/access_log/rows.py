"""Lines in bulk: one regular expression finds what is looked at in all lines of a block, in one call.

A `Shape` is such an expression for lines of one make. Each line that it does not match is found as a whole, for its
format to read it alone; `row_of` puts what that found into the same columns. So everything that counts takes rows, and
does not know how a line was read.

The columns are what counts need, and no more, because equal rows are counted together: of tracestate, baggage and B3
the first character, of a code whether it is zero, of a valid traceparent its trace id and its last digit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final, Literal

Line = dict[str, str]
Refusal = Literal["broken", "ambiguous"]
Row = tuple[bytes, ...]

# What rows are counted by, beside the path: `parent` is a traceparent that is not valid at first sight.
COUNTED: Final = (
    *("type", "listener", "method", "route", "cluster", "authority", "upstream", "code"),
    *("flag", "parent", "tracestate", "baggage", "b3", "x_b3_traceid"),
)
# What rows of several logs are joined by; `own` is the trace that the proxy itself says.
PLACE: Final = ("type", "listener", "cluster")
JOINED: Final = (*PLACE, "request_id", "trace", "flag", "parent", "own")
COLUMNS: Final = tuple(dict.fromkeys((*COUNTED, *JOINED, "path")))
# The column of a field, where it has another name.
_COLUMN: Final = {"traceparent": "parent", "trace_id": "own"}
_PRESENCE: Final = frozenset({"tracestate", "baggage", "b3", "x_b3_traceid"})
_PATH: Final = 300

_VALID: Final = rb"00-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f](?P<flag>[0-9a-f])"
WHOLE_TRACEPARENT: Final = re.compile(_VALID)


def column_of(name: str) -> str | None:
    """Return the column that a field goes to; None if it is not looked at in bulk."""
    column = _COLUMN.get(name, name)
    return column if column in COLUMNS else None


def captured(column: str, one: str, value: str, after: str, more: str = "") -> str:
    """Return what matches and captures a field in bulk.

    Args:
        column: Where it goes.
        one: A class of characters, `[^...]`, of which the value consists.
        value: What matches the value.
        after: What matches the beginning of what follows it.
        more: `+` where none of the characters can follow the value.
    """
    found = f"(?P<{column}>{value})"
    if column == "parent":
        found = f"(?:{_VALID.decode()}(?={after})|(?P<parent>{one}+{more}))"
    elif column == "path":
        found = f"(?P<path>{one[:-1]}?]{{0,{_PATH}}}{more}){value}"
    elif column == "code":
        found = f"(?:(?P<code>[0-])(?={after})|{value})"
    elif column in _PRESENCE:
        found = f"(?P<{column}>{one}?{more}){value}"
    return found


def row_of(fields: Mapping[str, str]) -> Row:
    """Return what a line that was read alone holds, in the order of `COLUMNS`."""
    found = {column: _bytes(fields[name]) for name in fields if (column := column_of(name))}
    found["path"] = found.get("path", b"").partition(b"?")[0][:_PATH].replace(b"\n", b" ")
    if whole := WHOLE_TRACEPARENT.fullmatch(found.get("parent", b"")):
        found |= {**whole.groupdict(), "parent": b""}
    elif "parent" in found:
        # Spaces alone are an empty header, and nothing is one that is not there.
        found["parent"] = found["parent"] or b" "
    for column in _PRESENCE:
        found[column] = found.get(column, b"")[:1]
    if found.get("code") not in (b"0", b"-"):
        found["code"] = b""
    return tuple(found.get(column, b"") for column in COLUMNS)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


class Shape:
    """Finds the rows of a block of lines.

    Args:
        body: What matches one line, in one way at most, and captures columns by their names. It matches no line end.

    Attributes:
        counted: Takes what `COUNTED` names out of a row.
        joined: Takes what `JOINED` names out of a row.
        place: Takes what `PLACE` names out of a row.
        path: Takes the path out of a row.
        own: Takes the two trace ids out of a row, where both are there.
    """

    def __init__(self, body: bytes | None = None) -> None:
        captures: Mapping[str, int] = dict(zip(COLUMNS, range(1, len(COLUMNS) + 1), strict=True))
        self.pattern: re.Pattern[bytes] | None = None
        if body is not None:
            held = re.compile(body).groupindex
            absent = "".join(f"(?P<{column}>)" for column in COLUMNS if column not in held).encode()
            self.pattern = re.compile(b"^" + body + rb"\r?$" + absent + rb"|^(?P<line>[^\n]++)$", re.MULTILINE)
            captures = self.pattern.groupindex
        taken = {column: captures[column] - 1 for column in COLUMNS}
        self.counted: Callable[[Row], Row] = itemgetter(*(taken[column] for column in COUNTED))
        self.joined: Callable[[Row], Row] = itemgetter(*(taken[column] for column in JOINED))
        self.place: Callable[[Row], Row] = itemgetter(*(taken[column] for column in PLACE))
        self.path: Callable[[Row], bytes] = itemgetter(taken["path"])
        both = body is None or (b"<own>" in body and b"<trace>" in body)
        self.own: Callable[[Row], Row] | None = itemgetter(taken["trace"], taken["own"]) if both else None
        self._line = captures["line"] - 1 if self.pattern else 0

    def find(self, text: bytes) -> tuple[list[Row], list[bytes]]:
        """Return the rows of lines, and the lines that it does not match; empty lines are left out."""
        if self.pattern is None:
            return [], text.split(b"\n")
        at, found = self._line, self.pattern.findall(text)
        unread = [row[at] for row in found if row[at]]
        return ([row for row in found if not row[at]], unread) if unread else (found, unread)


ALONE: Final = Shape()


@dataclass
class Block:
    """Holds what a block of lines holds.

    Attributes:
        rows: The rows, by their shape.
        names: The fields that lines had, with a value or without one.
        refused: How many lines could not be read, by why.
    """

    rows: list[tuple[Shape, list[Row]]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)

    def add(self, shape: Shape, rows: list[Row], names: Iterable[str]) -> None:
        """Take rows, where there are any."""
        if rows:
            self.rows.append((shape, rows))
            self.names.update(names)

    def add_alone(self, read: Callable[[str], Line | Refusal], lines: Iterable[bytes]) -> None:
        """Take lines that have to be read one by one."""
        rows = []
        for line in lines:
            text = line.decode("utf-8", "surrogateescape").removesuffix("\r")
            if not text.strip():
                continue
            fields = read(text)
            if isinstance(fields, str):
                self.refused[fields] += 1
            else:
                rows.append(row_of(fields))
                self.names.update(fields)
        self.add(ALONE, rows, ())

    @property
    def lines(self) -> int:
        """Return how many lines there were."""
        return sum(len(rows) for _, rows in self.rows) + self.refused.total()
