"""What the formats share: the names of their headers, and the characters that more than one of them is made of.

Every header is matched once, whole, with `fullmatch`, and every repetition without an end is possessive, so that no
text makes a match go back. What made a header fail is worked out only then, on a path that a valid one never takes.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = [
    "B3_HEADERS",
    "HEXDIGLC",
    "NOT_HEXDIGLC",
    "NOT_PRINTABLE_ASCII",
    "OWS",
    "PROPAGATION_HEADERS",
    "SENT_HEADER",
    "TRACE_HEADERS",
    "trimmed",
]

TRACE_HEADERS: Final = frozenset({"traceparent", "tracestate"})
B3_HEADERS: Final = frozenset({"b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags"})
PROPAGATION_HEADERS: Final = TRACE_HEADERS | B3_HEADERS | {"baggage"}
# Our client tells our server which span and flags it sent, as the end of its traceparent: on arrival that says what
# proxies between have changed, and what they have left alone.
SENT_HEADER: Final = "x-meshmw-sent"

# OWS = *( SP / HTAB )                                                              RFC 9110, section 5.6.3
# Not str.strip() without arguments: that also takes off CR, LF and Unicode spaces, and so lets a bad header pass.
OWS: Final = " \t"
# No grammar of one value takes more, and to trim 60,000 spaces takes as long as three requests.
_TRIMMED: Final = 4_096

# HEXDIGLC = DIGIT / "a" / "b" / "c" / "d" / "e" / "f"                              Trace Context 2, section 3.2.1
HEXDIGLC: Final = "[0-9a-f]"
NOT_HEXDIGLC: Final = re.compile("[^0-9a-f]")

# No format here has a use for anything else. HTTP servers decode raw bytes as latin-1, so those arrive as 0x80 to 0xff.
NOT_PRINTABLE_ASCII: Final = re.compile(r"[^\x20-\x7e]")


def trimmed(text: str) -> str:
    """Return a header's text without OWS at its ends, or as it is where it has more than 4,096 characters."""
    return text.strip(OWS) if len(text) <= _TRIMMED else text


def __dir__() -> list[str]:
    return sorted(__all__)
