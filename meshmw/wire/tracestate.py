"""The `tracestate` header of W3C Trace Context Level 2, section 3.3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from meshmw._regex import compiled_late
from meshmw.errors import InvalidHeaderError
from meshmw.wire.headers import OWS

__all__ = ["MAX_CHARS", "MAX_MEMBERS", "REASONS", "Member", "TraceState"]

# list = list-member 0*31( OWS "," OWS list-member )                                 Section 3.3.1.2
MAX_MEMBERS: Final = 32
# 32 members of 256 + "=" + 256 characters. Twice that leaves the other half to commas, spaces and empty members.
MAX_CHARS: Final = 2 * MAX_MEMBERS * 513

REASONS: Final = {
    "length": f"more than {MAX_CHARS} characters, which no valid list needs",
    "too_many_members": f"more than {MAX_MEMBERS} members",
    "member": "a member without `=`",
    "key": "a key that is empty, too long, or holds a character that keys may not hold",
    "value": "a value that is empty, too long, ends in a space, or holds a character that values may not hold",
}

# key     = ( lcalpha / DIGIT ) 0*255 ( keychar )                                   Section 3.3.1.3.1
# keychar = lcalpha / DIGIT / "_" / "-" / "*" / "/" / "@"
_KEY = r"[a-z0-9][a-z0-9_\-*/@]{0,255}"

# value    = 0*255(chr) nblk-chr                                                    Section 3.3.1.3.2
# nblk-chr = %x21-2B / %x2D-3C / %x3E-7E
# chr      = %x20 / nblk-chr
_NBLK_CHR = r"\x21-\x2b\x2d-\x3c\x3e-\x7e"
_VALUE = rf"[\x20{_NBLK_CHR}]{{0,255}}[{_NBLK_CHR}]"

# list-member = (key "=" value) / OWS                                               Section 3.3.1.2
# What is empty is skipped at once: one after the other, a stranger's 30,000 commas and spaces would take milliseconds.
# Then comes a member, or junk up to the next comma, or the end. No spaces go round the "=": a value may start with one.
_PART = compiled_late(rf"[ \t,]*+(?:({_KEY})=({_VALUE})[ \t]*+(?=,|\Z)|([^,]++))?")
_KEY_ALONE = compiled_late(_KEY)
_VALUE_ALONE = compiled_late(_VALUE)

Member = tuple[str, str]


@dataclass(frozen=True, slots=True)
class TraceState:
    """Holds what the tracing systems that saw a request noted about it, the last one first.

    Attributes:
        members: Up to 32 pairs of key and value, each key once.

    Raises:
        InvalidHeaderError: If `members` could not be written as a header, with one of `REASONS`.
    """

    members: tuple[Member, ...] = ()

    def __post_init__(self) -> None:
        if self.members and _read(str(self)) != self.members:
            raise InvalidHeaderError("tracestate", "member")

    @classmethod
    def parse(cls, lines: str | Sequence[str]) -> TraceState:
        """Read all header lines of one request as one list (section 3.3.1).

        Members that are empty are skipped, and of members with one key the first is kept.

        Args:
            lines: One line, or all of them in order.

        Raises:
            InvalidHeaderError: With one of `REASONS`. One bad member spoils the list, as the W3C test suite asks.
        """
        return cls._matched(_read(lines if isinstance(lines, str) else ",".join(lines)))

    def get(self, key: str) -> str | None:
        """Return the value at a key, or `None`."""
        return next((value for name, value in self.members if name == key), None)

    def insert(self, key: str, value: str) -> TraceState:
        """Return a list with this member at the left, the old one gone, and the right-most one dropped beyond 32.

        Raises:
            InvalidHeaderError: With the reason `key` or `value`.
        """
        if not _KEY_ALONE().fullmatch(key):
            raise InvalidHeaderError("tracestate", "key")
        if not _VALUE_ALONE().fullmatch(value):
            raise InvalidHeaderError("tracestate", "value")
        return self._matched(((key, value), *self.delete(key).members)[:MAX_MEMBERS])

    def delete(self, key: str) -> TraceState:
        """Return a list without this key."""
        return self._matched(tuple(member for member in self.members if member[0] != key))

    def __str__(self) -> str:
        return ",".join([f"{key}={value}" for key, value in self.members])

    @classmethod
    def _matched(cls, members: tuple[Member, ...]) -> TraceState:
        # The constructor would match every member a second time, in as much time again.
        state = object.__new__(cls)
        object.__setattr__(state, "members", members)
        return state


def _read(text: str) -> tuple[Member, ...]:
    if len(text) > MAX_CHARS:
        raise InvalidHeaderError("tracestate", "length", MAX_CHARS)
    members: dict[str, str] = {}
    for count, match in enumerate(_PART().finditer(text)):
        key, value, junk = match.groups()
        if key is not None and count < MAX_MEMBERS:
            members.setdefault(key, value)
        elif junk is not None:
            raise InvalidHeaderError("tracestate", *_fault(junk.rstrip(OWS), match.start(3)))
        elif key is not None:
            raise InvalidHeaderError("tracestate", "too_many_members", match.start(1))
    return tuple(members.items())


def _fault(part: str, at: int) -> tuple[str, int]:
    key, equals, _ = part.partition("=")
    if not equals:
        return "member", at
    if not _KEY_ALONE().fullmatch(key):
        return "key", at
    return "value", at + len(key) + 1


def __dir__() -> list[str]:
    return sorted(__all__)
