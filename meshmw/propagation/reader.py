"""Inbound: reads all headers of one request, and says what is believed of them.

Knows the formats and the policy. Must not know carriers, frameworks or a span's life.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Final, NamedTuple

from meshmw.policy.baggage_keys import BaggageKeys
from meshmw.propagation.extraction import Extraction
from meshmw.propagation.reading import Lines, Reading
from meshmw.propagation.trace_reader import TraceReader
from meshmw.rejections import Rejections
from meshmw.wire import BaggageValue, parse_baggage

STRIPPED: Final = (
    "- tracestate or baggage came without it, as if a proxy had stripped it; the request starts a new trace"
)
PASSTHROUGH_MAX_CHARACTERS: Final = 1024
# Peers repeat the same baggage on many requests. What is read of it is shared, and nobody changes it.
_CACHE_ENTRIES: Final = 256
_CACHED_CHARACTERS: Final = 8192


# What a header may hold that is carried on as it came.
_PASSABLE: Final = re.compile(rf"[\x20-\x7e]{{1,{PASSTHROUGH_MAX_CHARACTERS}}}")


class ReadBaggage(NamedTuple):
    """Is what baggage says, and what is to be done about its header.

    Attributes:
        members: What is let in.
        reasons: Why others were left out.
        must_change: Whether the header must not stay as it came.
    """

    members: dict[str, BaggageValue]
    reasons: tuple[str, ...]
    must_change: bool


class HeaderReader:
    """Turns the header lines of one request into an `Extraction`. Nothing in the lines can make it raise.

    Args:
        trace: Reads the parent.
        baggage: Whether baggage is read.
        baggage_keys: Which keys are let in.
        baggage_max_members: Members kept, all lines together.
        baggage_max_bytes: Bytes kept, all lines together, commas included.
        passthrough: Names, in lower case, of headers to carry on.
        rejections: Counts and warns.
    """

    def __init__(
        self,
        *,
        trace: TraceReader,
        baggage: bool,
        baggage_keys: BaggageKeys,
        baggage_max_members: int,
        baggage_max_bytes: int,
        passthrough: Collection[str],
        rejections: Rejections,
    ) -> None:
        self._trace = trace
        self._baggage = baggage
        self._keys = baggage_keys
        self._max_members = baggage_max_members
        self._max_bytes = baggage_max_bytes
        self._passthrough = tuple(passthrough)
        self._rejections = rejections
        self._parse_repeated = lru_cache(maxsize=_CACHE_ENTRIES)(self._parse)

    def read(self, lines: Lines) -> Extraction:
        """Return what the lines say; refused ones are counted, warned of and listed."""
        reading = Reading(lines, self._rejections)
        parent, b3 = self._trace.read(reading)
        baggage = self._read_baggage(reading) if "baggage" in lines and self._baggage else {}
        if parent is None and self._is_stripped(lines, baggage):
            reading.refuse("traceparent", "missing", STRIPPED)
        return Extraction(
            parent,
            baggage,
            b3,
            self._read_passthrough(lines) if self._passthrough else {},
            reading.rewrites,
            reading.refused,
            reading.rejected,
        )

    def _is_stripped(self, lines: Lines, baggage: dict[str, BaggageValue]) -> bool:
        beside = baggage or any(lines.get("tracestate", ()))
        return bool(beside) and self._trace.reads_w3c and "traceparent" not in lines

    def _read_baggage(self, reading: Reading) -> dict[str, BaggageValue]:
        text = ",".join(reading.lines["baggage"])
        read = self._parse_repeated if len(text) <= _CACHED_CHARACTERS else self._parse
        members, reasons, must_change = read(text)
        if must_change:
            reading.rewrites["baggage"] = ",".join(value.raw for value in members.values()) or None
        for reason in reasons:
            reading.refuse("baggage", reason, "- the members concerned are dropped, the others kept")
        if not reasons:
            reading.accept("baggage")
        return members

    def _parse(self, text: str) -> ReadBaggage:
        read, reasons = parse_baggage(text, max_members=self._max_members, max_bytes=self._max_bytes)
        members = self._keys.permitted(read)
        # Blanks and commas are refused by no rule, and count for the next proxy all the same.
        must_change = bool(reasons) or len(members) < len(read) or len(text) > self._max_bytes
        return ReadBaggage(members, reasons, must_change)

    def _read_passthrough(self, lines: Lines) -> dict[str, str]:
        carried = {}
        for name in self._passthrough:
            if name in lines and _PASSABLE.fullmatch(text := ",".join(lines[name])):
                carried[name] = text
        return carried
