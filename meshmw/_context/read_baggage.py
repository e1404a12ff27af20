"""Inbound: what the baggage of one request says within limits, and whether its header may stay as it came."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from meshmw._context.carriers import one_line
from meshmw._notices import Rejections
from meshmw._policy.patterns import BaggageKeys
from meshmw._policy.words import limit_of
from meshmw.wire.baggage import MOST_BAD, Members, read_members, whole_members

# Peers repeat the same baggage on many requests. What is read of it is shared, and nobody changes it.
REPEATED_BAGGAGE: Final = 8192
_CACHE_ENTRIES: Final = 256
_LIMITS: Final = frozenset({"too_many_members", "too_many_bytes"})
MEMBERS_DROPPED: Final = "- the members concerned are dropped, the others kept"


class ReadBaggage(NamedTuple):
    """Holds what baggage says, and what is to be done about its header.

    Attributes:
        members: What is let in.
        reasons: Why others were left out.
        must_change: Whether the header must not stay as it came; so it is wherever there are reasons.
    """

    members: Members
    reasons: tuple[str, ...]
    must_change: bool

    @property
    def rewrite(self) -> str | None:
        """Return the line to put in the header's place, or None where nothing of it is left."""
        return self.members.joined() or None


class BaggageReader:
    """Reads baggage within limits, and remembers what it has read.

    Args:
        keys: Which keys are let in.
        max_members: Members kept, all lines together.
        max_bytes: Bytes kept, all lines together, commas included.

    Attributes:
        repeated: Reads one line of at most `REPEATED_BAGGAGE` characters as `read` does.
    """

    def __init__(self, keys: BaggageKeys, max_members: int, max_bytes: int) -> None:
        self._keys = keys
        self._max_members = max_members
        # Of so many members, good ones and bad ones, the last is beyond a limit.
        self._too_many = min(max_members, REPEATED_BAGGAGE) + MOST_BAD + 2
        self._max_bytes = max_bytes
        self.repeated = lru_cache(maxsize=_CACHE_ENTRIES)(self._read)

    def read(self, lines: Sequence[str]) -> ReadBaggage:
        """Return what all lines say together; nobody may change it."""
        line = one_line(lines)
        return self.repeated(line) if len(line) <= REPEATED_BAGGAGE else self.read_long(line)

    def read_long(self, line: str) -> ReadBaggage:
        """Return what `read` does of one line that is longer than what `repeated` takes."""
        beginning, _ = whole_members([line], REPEATED_BAGGAGE)
        # Where a limit is reached in the beginning, that alone is read, once for all that begin so.
        if self._max_bytes < REPEATED_BAGGAGE or self._has_too_many(beginning):
            read = self.repeated(beginning)
            if not _LIMITS.isdisjoint(read.reasons):
                return read
        return self._read(line)

    def _has_too_many(self, beginning: str) -> bool:
        # What has empty ones among the first may have too many all the same, and is read each time anew.
        parts = beginning.split(",", self._too_many)
        return len(parts) > self._too_many and all(map(str.strip, parts))

    def _read(self, line: str) -> ReadBaggage:
        found, reasons = read_members([line], self._max_members, self._max_bytes)
        permitted = found if self._keys.are_all else [member for member in found if self._keys.permits(member[1])]
        # Blanks and commas are refused by no rule, and count for the next proxy all the same.
        must_change = bool(reasons) or len(permitted) < len(found) or len(line) > self._max_bytes
        return ReadBaggage(Members(permitted), reasons, must_change)


class BaggageLimit:
    """Cuts baggage to limits for a service that does nothing else with it, and warns of what it drops.

    Args:
        max_members: Members kept, all lines together.
        max_bytes: Bytes kept, all lines together, commas included.
        warn_window: Seconds between two warnings of the same reason.

    Raises:
        ValueError: A limit is no whole number, or one below 0.
    """

    def __init__(self, max_members: int, max_bytes: int, warn_window: float) -> None:
        self._reader = BaggageReader(
            BaggageKeys(), limit_of(max_members, "max_members"), limit_of(max_bytes, "max_bytes")
        )
        self._rejections = Rejections(warn_window)

    def rewrites(self, lines: Sequence[str]) -> dict[str, str | None]:
        """Return what to put in the place of the header, None to remove it; nothing where it may stay."""
        read = self._reader.read(lines)
        for reason in read.reasons:
            self._rejections.record("baggage", reason, MEMBERS_DROPPED)
        return {"baggage": read.rewrite} if read.must_change else {}
