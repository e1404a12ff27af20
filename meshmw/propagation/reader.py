"""Inbound: reads all headers of one request, and says what is believed of them.

Knows the formats and the policy. Must not know carriers, frameworks or a span's life.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Final

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


def _parse(lines: tuple[str, ...], members: int, size: int) -> tuple[dict[str, BaggageValue], tuple[str, ...]]:
    return parse_baggage(lines, max_members=members, max_bytes=size)


_parse_repeated: Final = lru_cache(maxsize=_CACHE_ENTRIES)(_parse)


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
            tuple(reading.refused),
            reading.rejected,
        )

    def _is_stripped(self, lines: Lines, baggage: dict[str, BaggageValue]) -> bool:
        beside = baggage or any(lines.get("tracestate", ()))
        return bool(beside) and self._trace.reads_w3c and "traceparent" not in lines

    def _read_baggage(self, reading: Reading) -> dict[str, BaggageValue]:
        found = reading.lines["baggage"]
        length = len(found[0]) if len(found) == 1 else sum(map(len, found))
        read = _parse_repeated if length <= _CACHED_CHARACTERS else _parse
        members, reasons = read(tuple(found), self._max_members, self._max_bytes)
        kept = members if self._keys.are_all else self._keys.permitted(members)
        for reason in reasons:
            reading.refuse("baggage", reason, "- the members concerned are dropped, the others kept")
        # Blanks and commas are refused by no rule, and count for the next proxy all the same.
        if reasons or len(kept) < len(members) or length > self._max_bytes:
            reading.rewrites["baggage"] = ",".join(value.raw for value in kept.values()) or None
        if not reasons:
            reading.accept("baggage")
        return kept

    def _read_passthrough(self, lines: Lines) -> dict[str, str]:
        carried = {}
        for name in self._passthrough:
            text = ",".join(lines[name]) if name in lines else None
            if text and len(text) <= PASSTHROUGH_MAX_CHARACTERS and text.isascii() and text.isprintable():
                carried[name] = text
        return carried
