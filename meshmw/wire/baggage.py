"""The `baggage` header of W3C Baggage: all its lines as one list, within limits, in both directions.

What arrives is passed on as it arrived, byte for byte, as long as nobody gives the key another value: a `BaggageValue`
is the decoded text for the application, and carries the raw text, properties and all, for the next header.
"""

from __future__ import annotations

import re
from binascii import a2b_qp
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from meshmw._regex import compiled_late
from meshmw.errors import InvalidHeaderError
from meshmw.wire.headers import OWS

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

REASONS: Final = {
    "member": "a member without `=`",
    "key": "a key that is not a token",
    "value": "a value that holds a character that must be percent-encoded, or an object that has no text",
    "property": "something else than a property after a `;`",
    "too_many_members": "members beyond the limit",
    "too_many_bytes": "members beyond the limit in bytes",
}

# What every platform must be able to pass on, counted over all header lines together.    Section "Limits"
# The grammar's `0*179` would allow 180 members; the stated limit is the one that receivers keep to.
MAX_MEMBERS: Final = 64
MAX_BYTES: Final = 8192

# key           = token ; as defined in RFC 7230, Section 3.2.6                          Section "Definition"
# value         = *baggage-octet
# baggage-octet = %x21 / %x23-2B / %x2D-3A / %x3C-5B / %x5D-7E
# Every repetition is possessive: with a choice of where spaces end, a hostile member could cost exponential time.
_KEY = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_VALUE = r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*+"
_OWS = r"[ \t]*+"
# Spaces after the sign belong to it only where a value follows: else they stand behind the member.
_EQUALS = rf"{_OWS}=(?:[ \t]++(?=[^;,]))?+"

# property    = key OWS "=" OWS value / key OWS
# list-member = key OWS "=" OWS value *( OWS ";" OWS property )
_PROPERTY = f"{_OWS};{_OWS}{_KEY}(?:{_EQUALS}{_VALUE})?+"
_MEMBER = f"(({_KEY}){_EQUALS}({_VALUE})(?:{_PROPERTY})*+){_OWS}"
MEMBER: Final = compiled_late(_MEMBER)
_KEY_ALONE = compiled_late(_KEY)
_KEY_IN_MEMBER = compiled_late(f"{_KEY}{_OWS}")
_VALUE_IN_MEMBER = compiled_late(f"{_OWS}{_VALUE}{_OWS}")

# Every baggage-octet but `%`, which would be read as the start of an encoded one, and `+`: the W3C's is a plus sign,
# but peers that decode as forms do read a space there, and every peer reads `%2B` as a plus.
_READABLE: Final = "!#$&'()*/:<=>?@[]^`{|}"
_NEEDS_NO_ENCODING = compiled_late(r"[\x21\x23\x24\x26-\x2a\x2d-\x3a\x3c-\x5b\x5d-\x7e]*+")

# How many times `max_bytes` is looked at, so that spaces and bad members do not cost the good ones their place.
_WINDOW: Final = 4
# What is empty is skipped at once. Then comes a member, or else what is none; behind the last there may be nothing.
_PART: Final = compiled_late(rf"[ \t,]*+(?:{_MEMBER}(?=,|\Z)|([^,]++))?")
_PART_WITHOUT_PROPERTIES: Final = compiled_late(rf"[ \t,]*+(?:(({_KEY}){_EQUALS}({_VALUE})){_OWS}(?=,|\Z)|([^,]++))?")
# What is bad costs time too, and counts for no limit: after so many bad members no further one is looked at. A long one
# counts once more for each so many characters.
MOST_BAD: Final = 16
_LONG: Final = 128
# Members' properties have no limit but the bytes, and 4,000 of them cost as much as three requests. Once a header has
# had more than this, only members without any are taken.
_MOST_PROPERTIES: Final = 256
_TOO_MANY_PROPERTIES: Final = compiled_late(rf"(?:[^;]*+;){{{_MOST_PROPERTIES + 1}}}")
# "The percent code point (U+0025) MUST be percent-encoded." Where it is not, escapes are told from what is none one by
# one; once a header has had more of them than this, such a value is refused instead. It counts for the limits: it is
# found out when all values are decoded together.
_MOST_ESCAPES: Final = 64
_EACH_STRAY: Final = 3
_STRAY: Final = compiled_late("%(?![0-9A-Fa-f]{2})")

# The same members pass through a service with every request.
_CACHED_MEMBERS: Final = 1024
_CACHED_CHARACTERS: Final = 256


_LIMITS: Final = frozenset({"too_many_members", "too_many_bytes"})
# What `_PART` finds: a member as it arrived, its key and its value, which is still encoded; or what is none.
_Member: TypeAlias = tuple[Any, ...]


class BaggageValue(str):
    """Holds a value that arrived from outside, decoded, with the raw text to pass on.

    Attributes:
        raw: The members of this key as they arrived, `key=value;properties`, joined with commas if there are several.
    """

    __slots__ = ("raw",)

    raw: str

    def __new__(cls, value: str, raw: str) -> BaggageValue:
        """Join a decoded value to its raw text."""
        self = str.__new__(cls, value)
        self.raw = raw
        return self

    def __reduce__(self) -> tuple[type[BaggageValue], tuple[str, str]]:
        return type(self), (str(self), self.raw)

    @property
    def properties(self) -> str:
        """Return the raw text of the properties, such as `a;b=1`, or an empty text."""
        return self.raw.rpartition(",")[2].partition(";")[2].strip(OWS)


def parse_baggage(
    lines: str | Sequence[str], *, max_members: int = MAX_MEMBERS, max_bytes: int = MAX_BYTES
) -> tuple[dict[str, BaggageValue], tuple[str, ...]]:
    """Read all header lines of one request as one list, and leave out only what is bad or too much.

    Of members with one key, the mapping has the last one's value, and its `raw` has them all.

    Args:
        lines: One line, or all of them in order.
        max_members: How many members to keep, from the left.
        max_bytes: How long the header may be that is made of them.

    Returns:
        The values by key, and the `REASONS` why others were left out, each once. Nothing is raised.
    """
    text, was_cut = whole_members([lines] if isinstance(lines, str) else lines, _WINDOW * max_bytes)
    kept, dropped = _kept(text, max_members, max_bytes)
    if was_cut and _LIMITS.isdisjoint(dropped):
        dropped["too_many_bytes"] = None
    return _by_key(kept, dropped), tuple(dropped)


def _kept(text: str, max_members: int, max_bytes: int) -> tuple[list[_Member], dict[str, None]]:
    """Return the members to keep, and the reasons why others are left out."""
    kept: list[_Member] = []
    dropped: dict[str, None] = {}
    bad, size = 0, -1
    for found in _parts(text):
        member = raw, _, _, junk = found.groups()
        if raw is None and junk is None:
            continue
        if bad > MOST_BAD or (len(kept) == max_members and junk is None):
            dropped["too_many_members"] = None
            break
        if raw is None:
            dropped[_fault(junk)[0]] = None
            bad += 1 + len(junk) // _LONG
            continue
        size += len(raw) + 1
        if size > max_bytes:
            dropped["too_many_bytes"] = None
            break
        kept.append(member)
    return kept, dropped


def _by_key(kept: list[_Member], dropped: dict[str, None]) -> dict[str, BaggageValue]:
    """Return the decoded values by key; one that is refused for its percent signs is noted as dropped."""
    values: dict[str, BaggageValue] = {}
    repeated: dict[str, list[str]] = {}
    decoded = _decode_each([member[2] for member in kept])
    for (raw, key, _, _), text in zip(kept, decoded, strict=True):
        if text is None:
            dropped["value"] = None
            continue
        if key in values:
            repeated.setdefault(key, [values[key].raw]).append(raw)
        # What calling the type does, in half the time.
        values[key] = value = str.__new__(BaggageValue, text)
        value.raw = raw
    for key, raws in repeated.items():
        values[key].raw = ",".join(raws)
    return values


def _parts(text: str) -> Iterator[re.Match[str]]:
    """Find what stands between commas: a member with its key and its value, or what is none."""
    # To look for one is faster than to count none.
    many = _TOO_MANY_PROPERTIES().match(text) if ";" in text and text.count(";") > _MOST_PROPERTIES else None
    if many is None:
        return _PART().finditer(text)
    end = text.rfind(",", 0, many.end()) + 1
    return chain(_PART().finditer(text, 0, end), _PART_WITHOUT_PROPERTIES().finditer(text, end))


def format_baggage(
    items: Mapping[str, object], *, max_members: int = MAX_MEMBERS, max_bytes: int = MAX_BYTES
) -> tuple[str, tuple[str, ...]]:
    """Write the header: what arrived as it arrived, the rest encoded, without what is unusable or too much.

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


def parse_member(text: str) -> tuple[str, BaggageValue]:
    """Read one list-member into its key, which is never decoded, and its value (section "Definition").

    Raises:
        InvalidHeaderError: With the reason `member`, `key`, `value` or `property`.
    """
    text = text.strip(OWS)
    match = None if "," in text else MEMBER().fullmatch(text)
    if match is None:
        raise InvalidHeaderError("baggage", *_fault(text))
    return match[2], BaggageValue(_decode(match[3]), text)


def format_member(key: str, value: str) -> str:
    """Write one list-member, its value percent-encoded where that is necessary (section "value").

    Raises:
        InvalidHeaderError: With the reason `key`.
    """
    if not _KEY_ALONE().fullmatch(key):
        raise InvalidHeaderError("baggage", "key")
    if not _NEEDS_NO_ENCODING().fullmatch(value):
        value = quote(value, safe=_READABLE, errors="replace")
    return f"{key}={value}"


def is_raw_of(key: str, raw: str) -> bool:
    """Say whether a raw text is one or more well-formed members of this key, and so may be written as it is."""
    return _is_repeated_raw_of(key, raw) if len(raw) <= _CACHED_CHARACTERS else _is_raw_of(key, raw)


def _is_raw_of(key: str, raw: str) -> bool:
    matches = [MEMBER().fullmatch(part) for part in raw.split(",")]
    return all(match is not None and match[2] == key for match in matches)


_is_repeated_raw_of: Final = lru_cache(maxsize=_CACHED_MEMBERS)(_is_raw_of)


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


def whole_members(lines: Sequence[str], room: int) -> tuple[str, bool]:
    """Return all lines as one, or the whole members of so many characters, and whether those are not all."""
    taken: list[str] = []
    for line in lines:
        taken.append(line[: room + 1])
        room -= len(line) + 1
        if room < -1:
            # The last member may have been cut short.
            return ",".join(taken).rpartition(",")[0], True
    return ",".join(taken), False


def _decode_each(values: list[str]) -> Sequence[str | None]:
    """Decode values as `_decode` does; None stands for one that is refused for its percent signs."""
    together = ",".join(values)
    if "%" not in together:
        return values
    quoted = _as_quoted(together)
    decoded = _unquoted(quoted)
    parts = [] if decoded is None else decoded.split(",")
    # There are more of them where a comma was encoded, and none where a percent sign begins no escape.
    return parts if len(parts) == len(values) else _decode_one_by_one(values, quoted.split(","))


def _decode_one_by_one(values: list[str], quoted: list[str]) -> list[str | None]:
    decoded = [_unquoted(text) for text in quoted]
    escapes = 0
    for index, value in enumerate(values):
        if decoded[index] is None:
            escapes += _EACH_STRAY + value.count("%")
            if escapes <= _MOST_ESCAPES:
                decoded[index] = _decode(value)
    return decoded


def _decode(value: str) -> str:
    """Decode percent-encoding; bytes that are not UTF-8 become U+FFFD, `+` stays (section "value")."""
    return _unquoted(_as_quoted(_STRAY().sub("%25", value))) or ""


def _as_quoted(value: str) -> str:
    """Return percent-encoding as quoted-printable, which is decoded in C, in a tenth of `unquote`'s time."""
    return value.replace("=", "=3D").replace("%", "=")


def _unquoted(quoted: str) -> str | None:
    """Decode quoted-printable, or return None where a sign begins no escape."""
    decoded = a2b_qp(quoted)
    # Every escape makes one byte of three.
    return decoded.decode("utf-8", "replace") if len(decoded) == len(quoted) - 2 * quoted.count("=") else None


def _fault(member: str) -> tuple[str, int]:
    key, equals, rest = member.partition("=")
    if not equals:
        return "member", len(member)
    if not _KEY_IN_MEMBER().fullmatch(key):
        return "key", 0
    value, semicolon, _ = rest[:MAX_BYTES].partition(";")
    # Where no property follows, nothing else can be at fault. What is longer than a header is not looked at twice.
    if not semicolon or not _VALUE_IN_MEMBER().fullmatch(value):
        return "value", len(key) + 1
    return "property", len(key) + 1 + len(value)


def __dir__() -> list[str]:
    return sorted(__all__)
