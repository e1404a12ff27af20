"""A message's headers, whatever the broker: which of them are ours to write, and how those that repeat are read.

Knows headers as text. Must not know a broker's client, nor in what shape it hands headers out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from meshmw.propagation.extraction import PROPAGATION_HEADERS, SENT_HEADER

# Whatever a message's headers hold of these was written for another message.
OWNED_HEADERS: Final = PROPAGATION_HEADERS | {SENT_HEADER}
# Of all others only one line counts.
_LISTS: Final = frozenset({"baggage", "tracestate"})


def joined(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return message headers as lines: the last line of each name, and all lines of those that are lists by nature."""
    lines: dict[str, list[str]] = {}
    for name, line in pairs:
        if name in _LISTS:
            lines.setdefault(name, []).append(line)
        else:
            lines[name] = [line]
    return lines
