"""The `baggage` header of W3C Baggage as a list: all its lines together, within limits, in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from meshmw.errors import InvalidHeaderError
from meshmw.wire.baggage_member import (
    MEMBER,
    REASONS,
    BaggageValue,
    decode,
    fault_of_member,
    format_member,
    is_raw_of,
    parse_member,
)
from meshmw.wire.grammar import OWS

__all__ = [
    "MAX_BYTES",
    "MAX_MEMBERS",
    "REASONS",
    "BaggageValue",
    "format_baggage",
    "format_member",
    "parse_baggage",
    "parse_member",
]

# What every platform must be able to pass on, counted over all header lines together.    Section "Limits"
# The grammar's `0*179` would allow 180 members; the stated limit is the one that receivers keep to.
MAX_MEMBERS: Final = 64
MAX_BYTES: Final = 8192
# How many times `max_bytes` is looked at, so that spaces and bad members do not cost the good ones their place.
_WINDOW: Final = 4
# One after the other: of thousands of members, the limit lets only the first be looked at. What is empty is skipped.
_PART: Final = re.compile(r"[^ \t,][^,]*+")


def parse_baggage(
    lines: str | Sequence[str], *, max_members: int = MAX_MEMBERS, max_bytes: int = MAX_BYTES
) -> tuple[dict[str, BaggageValue], tuple[str, ...]]:
    """Reads all header lines of one request as one list, and leaves out only what is bad or too much.

    Of members with one key, the mapping has the last one's value, and its `raw` has them all.

    Args:
        lines: One line, or all of them in order.
        max_members: How many members to keep, from the left.
        max_bytes: How long the header may be that is made of them.

    Returns:
        The values by key, and the `REASONS` why others were left out, each once. Nothing is raised.
    """
    kept: dict[str, BaggageValue] = {}
    text, was_cut = _window([lines] if isinstance(lines, str) else lines, _WINDOW * max_bytes)
    dropped: dict[str, None] = {}
    count, size = 0, -1
    for part in _PART.finditer(text):
        raw = part[0].rstrip(OWS)
        match = MEMBER.fullmatch(raw)
        if match is None:
            dropped[fault_of_member(raw)[0]] = None
            continue
        count += 1
        size += len(raw) + 1
        if count > max_members or size > max_bytes:
            dropped["too_many_members" if count > max_members else "too_many_bytes"] = None
            break
        key, value = match.groups()
        if "%" in value:
            value = decode(value)
        kept[key] = BaggageValue(value, f"{kept[key].raw},{raw}" if key in kept else raw)
    else:
        if was_cut:
            dropped["too_many_bytes"] = None
    return kept, tuple(dropped)


def format_baggage(
    items: Mapping[str, object], *, max_members: int = MAX_MEMBERS, max_bytes: int = MAX_BYTES
) -> tuple[str, tuple[str, ...]]:
    """Writes the header, what arrived as it arrived and the rest encoded, and leaves out what is unusable or too much.

    A member that does not fit is left out and later ones are still tried, so that one huge value costs only itself.

    Args:
        items: By key: a `BaggageValue`, or any object that `str()` gives the text of.
        max_members: How many members to write, in the mapping's order.
        max_bytes: How long the header may be.

    Returns:
        The header's text, empty if nothing is left, and the `REASONS` why members were left out, each once.
    """
    kept: list[str] = []
    dropped: dict[str, None] = {}
    count, size = 0, -1
    for key, value in items.items():
        # An application may copy a value to another key, and then the raw text would write the old one.
        if isinstance(value, BaggageValue) and is_raw_of(key, value.raw):
            raw = value.raw
        else:
            try:
                raw = _outgoing(key, value, max_bytes)
            except InvalidHeaderError as error:
                dropped[error.reason] = None
                continue
        more, longer = count + raw.count(",") + 1, size + len(raw) + 1
        if more > max_members or longer > max_bytes:
            dropped["too_many_members" if more > max_members else "too_many_bytes"] = None
            continue
        count, size = more, longer
        kept.append(raw)
    return ",".join(kept), tuple(dropped)


def _outgoing(key: object, value: object, max_bytes: int) -> str:
    if not isinstance(key, str):
        raise InvalidHeaderError("baggage", "key")
    try:
        text = str(value)
    except Exception as error:  # It is the application's object, and no request may fail for it.
        raise InvalidHeaderError("baggage", "value") from error
    if len(text) > max_bytes:
        raise InvalidHeaderError("baggage", "too_many_bytes")
    return format_member(key, text)


def _window(lines: Sequence[str], room: int) -> tuple[str, bool]:
    """Return what is looked at of all lines, as one, and whether that is not all."""
    taken: list[str] = []
    for line in lines:
        taken.append(line[: room + 1])
        room -= len(line) + 1
        if room < -1:
            # The last member may have been cut short.
            return ",".join(taken).rpartition(",")[0], True
    return ",".join(taken), False
