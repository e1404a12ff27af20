"""The `traceparent` header of W3C Trace Context Level 2, section 3.2."""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple, get_args

from meshmw._regex import compiled_late
from meshmw.errors import InvalidHeaderError
from meshmw.wire.headers import HEXDIGLC, NOT_PRINTABLE_ASCII, trimmed

__all__ = [
    "FLAG_RANDOM",
    "FLAG_SAMPLED",
    "KNOWN_FLAGS",
    "REASONS",
    "TraceParent",
    "TraceParentPolicy",
    "format_traceparent",
    "read_traceparent",
]

FLAG_SAMPLED: Final = 0x01
FLAG_RANDOM: Final = 0x02
# Of all other flags: "Vendors MUST set those to zero."                               Section 3.2.2.5.3
KNOWN_FLAGS: Final = FLAG_SAMPLED | FLAG_RANDOM

REASONS: Final = {
    "empty": "there is nothing but spaces",
    "duplicate": "there is a comma: a server has joined two header lines",
    "control": "a control character or one outside ASCII",
    "case": "it would be valid in lower case",
    "length": "a field, or the whole, is too short or too long",
    "hex": "something else than a lower-case hexadecimal digit in a field",
    "separator": "something else than a hyphen between two fields",
    "zero_trace_id": "the trace-id is all zeros",
    "zero_parent_id": "the parent-id is all zeros",
    "version_ff": "version ff, which is forbidden",
    "trailing": "more text after the flags than the version allows",
    "version": "well-formed, but of another version than 00; the policy `w3c` reads it",
}

# version-format = trace-id "-" parent-id "-" trace-flags                                      Section 3.2.2.2
# trace-id       = 32HEXDIGLC  ; 16 bytes array identifier. All zeroes forbidden
# parent-id      = 16HEXDIGLC  ; 8 bytes array identifier. All zeroes forbidden
# trace-flags    = 2HEXDIGLC   ; 8 bit flags.
_FIELDS = f"-(?!0{{32}})({HEXDIGLC}{{32}})-(?!0{{16}})({HEXDIGLC}{{16}})-({HEXDIGLC}{{2}})"

# value = version "-" version-format                                                           Section 3.2.2
# Version 00 is these four fields and nothing after them. The groups are the last three.
VERSION_00: Final = re.compile(f"00{_FIELDS}")

# Of a higher version, the first four fields are read as those of version 00. "Vendors MUST check that the 2 characters
# [of the flags] are either at the end of the string or followed by a dash."                 Section 3.2.4
# A comma is left out of what may follow: WSGI servers join two lines with one, and the second line would hide there.
_LATER_VERSION = compiled_late(rf"(?!00|ff)({HEXDIGLC}{{2}}){_FIELDS}(?:-[\x20-\x2b\x2d-\x7e]*+)?")

_ANY_IDS = compiled_late(f"{HEXDIGLC}{{2}}-{HEXDIGLC}{{32}}-{HEXDIGLC}{{16}}-{HEXDIGLC}{{2}}")
_LENGTH: Final = 55
# A later version may say more than version 00; to find a fault beyond this is not worth a stranger's 60 KB.
_LOOKED_AT: Final = 512
_SEPARATORS: Final = frozenset({2, 35, 52})
_TRACE_ID: Final = slice(3, 35)
_PARENT_ID: Final = slice(36, 52)

TraceParentPolicy = Literal["strict", "w3c"]
_POLICIES: Final[tuple[TraceParentPolicy, ...]] = get_args(TraceParentPolicy)
DEFAULT_TRACEPARENT_POLICY: Final[TraceParentPolicy] = "strict"


class TraceParent(NamedTuple):
    """Identifies the caller's span in a trace.

    Attributes:
        version: The version that was read, 0 to 254. Version 0 is what `str()` writes.
        trace_id: 128 bits, not zero.
        parent_id: 64 bits, not zero.
        trace_flags: `FLAG_SAMPLED` and `FLAG_RANDOM`; parsing clears every other bit.
    """

    version: int
    trace_id: int
    parent_id: int
    trace_flags: int

    @classmethod
    def parse(cls, text: str, policy: TraceParentPolicy = DEFAULT_TRACEPARENT_POLICY) -> TraceParent:
        """Read one header line (Trace Context Level 2, sections 3.2.2 and 3.2.4).

        Args:
            text: The header's value. Spaces and tabs at its ends are ignored.
            policy: `strict` reads version 00 alone; `w3c` also reads 01 to fe as far as version 00 goes.

        Raises:
            InvalidHeaderError: With one of `REASONS`.
            ValueError: The policy is none of the two.
        """
        return cls(*read_traceparent(text, policy))

    @property
    def sampled(self) -> bool:
        """Say whether the caller may have recorded its span."""
        return bool(self.trace_flags & FLAG_SAMPLED)

    @property
    def random(self) -> bool:
        """Say whether the trace-id's right-most 7 bytes are random (Level 2, section 3.2.2.5.2)."""
        return bool(self.trace_flags & FLAG_RANDOM)

    def __str__(self) -> str:
        return format_traceparent(self.trace_id, self.parent_id, self.trace_flags)


def read_traceparent(text: str, policy: TraceParentPolicy = DEFAULT_TRACEPARENT_POLICY) -> tuple[int, int, int, int]:
    """Read one header line as `TraceParent.parse` does, into version, trace-id, parent-id and known trace-flags.

    Raises:
        InvalidHeaderError: With one of `REASONS`.
        ValueError: The policy is none of the two.
    """
    # In these words, and not by `one_of`: the formats import nothing that stands above them.
    if policy not in _POLICIES:
        raise ValueError(f"policy takes {' or '.join(_POLICIES)}, not {policy!r}")
    text = trimmed(text)
    if match := VERSION_00.fullmatch(text):
        return _numbers("00", *match.groups())
    if policy == "w3c" and (match := _LATER_VERSION().fullmatch(text)):
        return _numbers(*match.groups())
    raise InvalidHeaderError("traceparent", *_fault(text, policy))


def format_traceparent(trace_id: int, parent_id: int, trace_flags: int) -> str:
    """Write the header of version 00; flags that it does not know are cleared."""
    # In this way, since an f-string takes half as much time again for numbers of this size.
    return "00-%032x-%016x-%02x" % (trace_id, parent_id, trace_flags & KNOWN_FLAGS)  # noqa: UP031


def _numbers(version: str, trace_id: str, parent_id: str, flags: str) -> tuple[int, int, int, int]:
    return int(version, 16), int(trace_id, 16), int(parent_id, 16), int(flags, 16) & KNOWN_FLAGS


def _fault(text: str, policy: TraceParentPolicy) -> tuple[str, int]:
    if not text:
        return "empty", 0
    if (comma := text.find(",")) >= 0:
        return "duplicate", comma
    text = text[:_LOOKED_AT]
    if control := NOT_PRINTABLE_ASCII.search(text):
        return "control", control.start()
    lower = text.lower()
    if VERSION_00.fullmatch(lower) or (policy == "w3c" and _LATER_VERSION().fullmatch(lower)):
        return "case", next(at for at, char in enumerate(text) if char.isupper())
    if not _ANY_IDS().match(text):
        return _fault_of_shape(text)
    return _fault_of_meaning(text)


def _fault_of_shape(text: str) -> tuple[str, int]:
    for at, char in enumerate(text[:_LENGTH]):
        is_hex = char in "0123456789abcdef"
        if at in _SEPARATORS and char != "-":
            return "length" if is_hex else "separator", at
        if at not in _SEPARATORS and not is_hex:
            return "length" if char == "-" else "hex", at
    return "length", len(text)


def _fault_of_meaning(text: str) -> tuple[str, int]:
    if not text[_TRACE_ID].strip("0"):
        return "zero_trace_id", _TRACE_ID.start
    if not text[_PARENT_ID].strip("0"):
        return "zero_parent_id", _PARENT_ID.start
    if text.startswith("ff"):
        return "version_ff", 0
    if len(text) > _LENGTH and (text.startswith("00") or text[_LENGTH] != "-"):
        return "trailing", _LENGTH
    return "version", 0


def __dir__() -> list[str]:
    return sorted(__all__)
