"""The `baggage` header of W3C Baggage: all its lines as one list, within limits, in both directions.

What arrives is passed on as it arrived, byte for byte, as long as nobody gives the key another value: a `BaggageValue`
is the decoded text for the application, and carries the raw text, properties and all, for the next header.
"""

from __future__ import annotations

import re
from binascii import a2b_qp
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, wraps
from itertools import chain
from typing import Any, Final, TypeAlias, cast
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
MEMBER: Final = compiled_late(f"({_KEY}){_EQUALS}({_VALUE})(?:{_PROPERTY})*+{_OWS}")
_KEY_ALONE = compiled_late(_KEY)
_KEY_IN_MEMBER = compiled_late(f"{_KEY}{_OWS}")
_VALUE_IN_MEMBER = compiled_late(f"{_OWS}{_VALUE}{_OWS}")

# Every baggage-octet but `%`, which would be read as the start of an encoded one, and `+`: the W3C's is a plus sign,
# but peers that decode as forms do read a space there, and every peer reads `%2B` as a plus.
_READABLE: Final = "!#$&'()*/:<=>?@[]^`{|}"
_NEEDS_NO_ENCODING = compiled_late(r"[\x21\x23\x24\x26-\x2a\x2d-\x3a\x3c-\x5b\x5d-\x7e]*+")

# How many times `max_bytes` is looked at, so that spaces and bad members do not cost the good ones their place.
_WINDOW: Final = 4
_PIECE: Final = 8192
# What is empty is skipped at once. Then comes a member, or else what is none; behind the last there may be nothing.
_PART: Final = compiled_late(rf"[ \t,]*+(?:(({_KEY}){_EQUALS}{_VALUE}(?:{_PROPERTY})*+){_OWS}(?:,|\Z)|([^,]++))?")
_PART_WITHOUT_PROPERTIES: Final = compiled_late(rf"[ \t,]*+(?:(({_KEY}){_EQUALS}{_VALUE}){_OWS}(?:,|\Z)|([^,]++))?")
# What is bad costs time too, and counts for no limit: after so many bad members no further one is looked at. A long one
# counts once more for each so many characters.
MOST_BAD: Final = 16
_LONG: Final = 128
# Members' properties have no limit but the bytes, and 4,000 of them cost as much as three requests. Once a header has
# had more than this, only members without any are taken.
_MOST_PROPERTIES: Final = 256
# As sixteen times sixteen, and one: `re` takes longer to go round than to go on.
_TOO_MANY_PROPERTIES: Final = compiled_late(f"(?:{'[^;]*+;' * 16}){{{_MOST_PROPERTIES // 16}}}[^;]*+;")
# "The percent code point (U+0025) MUST be percent-encoded." Where it is not, escapes are told from what is none one by
# one; once a header has had more of them than this, such a value is refused instead. It counts for the limits: it is
# found out when all members are looked at together.
_MOST_ESCAPES: Final = 64
_EACH_STRAY: Final = 3
# Of so few none can be one too many, be each of them in a value of its own.
_FEW_SIGNS: Final = _MOST_ESCAPES // (_EACH_STRAY + 1)
# Up to so many it is faster to look at each of them than to decode all.
_SPARSE_SIGNS: Final = 256
_STRAY: Final = compiled_late("%(?![0-9A-Fa-f]{2})")

# The same members pass through a service with every request.
_CACHED_MEMBERS: Final = 1024
_CACHED_CHARACTERS: Final = 256

_LIMITS: Final = frozenset({"too_many_members", "too_many_bytes"})
# What `_PART` finds: a member as it arrived and its key; or what is none.
Member: TypeAlias = tuple[Any, ...]
_GROUPS: Final = re.Match.groups


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
    kept, reasons = read_members([lines] if isinstance(lines, str) else lines, max_members, max_bytes)
    return Members(kept).copy(), reasons


def read_members(lines: Sequence[str], max_members: int, max_bytes: int) -> tuple[list[Member], tuple[str, ...]]:
    """Read as `parse_baggage` does, but return what `Members` takes."""
    text, was_cut = whole_members(lines, _WINDOW * max_bytes)
    kept, dropped = _kept(text, max_members, max_bytes)
    if was_cut and _LIMITS.isdisjoint(dropped):
        dropped["too_many_bytes"] = None
    together = ",".join([member[0] for member in kept])
    if "%" in together and _may_be_refused(together):
        kept = _without_refused(kept, dropped)
    return kept, tuple(dropped)


class Members(dict[str, BaggageValue]):
    """Holds what a header says by key, and decodes its values when somebody first looks at one.

    To decode 64 values takes nearly as long as a request, and a stranger may send others each time. The keys are there
    from the beginning and never change, so several threads may look at once: each of them decodes the same.
    """

    __slots__ = ("_undecoded",)

    def __init__(self, kept: list[Member]) -> None:
        raws = {member[1]: member[0] for member in kept}
        if len(raws) < len(kept):
            raws = _joined_by_key(kept)
        # What a value is made of stands in its place until then.
        super().__init__(cast(dict[str, BaggageValue], raws))
        self._undecoded: dict[str, str] | None = raws

    def joined(self) -> str:
        """Return the header that is made of all raw texts."""
        raws = self._undecoded
        return ",".join([value.raw for value in self.values()] if raws is None else raws.values())

    def decode(self) -> None:
        """Decode all values, if nobody has done so."""
        raws = self._undecoded
        if raws is None:
            return
        decoded = {}
        values = [_value_of(raw.rpartition(",")[2]) for raw in raws.values()]
        for (key, raw), text in zip(raws.items(), _decode_each(values), strict=True):
            # What calling the type does, in half the time.
            decoded[key] = value = str.__new__(BaggageValue, text)
            value.raw = raw
        super().update(decoded)
        self._undecoded = None

    def __iter__(self) -> Iterator[str]:
        # Where this is not the dictionary's own, the interpreter asks for each value when it makes a copy.
        return super().__iter__()

    def __reduce__(self) -> tuple[type[dict[str, BaggageValue]], tuple[dict[str, BaggageValue]]]:
        return dict, (self.copy(),)


def _after_decoding(name: str) -> Any:
    """Return a method of dictionaries that has the values decoded first."""
    method = getattr(dict, name)

    @wraps(method)
    def look(self: Members, *args: Any) -> Any:
        for each in (self, *args):
            if isinstance(each, Members):
                each.decode()
        return method(self, *args)

    return look


for _name in ("__eq__", "__getitem__", "__ne__", "__or__", "__repr__", "__ror__", "copy", "get", "items", "values"):
    setattr(Members, _name, _after_decoding(_name))


def _joined_by_key(kept: list[Member]) -> dict[str, str]:
    """Return the raw texts of each key's members, joined with commas."""
    raws: dict[str, list[str]] = {}
    for raw, key, _ in kept:
        raws.setdefault(key, []).append(raw)
    return {key: ",".join(each) for key, each in raws.items()}


def _kept(text: str, max_members: int, max_bytes: int) -> tuple[list[Member], dict[str, None]]:
    """Return the members to keep, and the reasons why others are left out."""
    kept: list[Member] = []
    dropped: dict[str, None] = {}
    bad, size = 0, -1
    for member in map(_GROUPS, chain.from_iterable(_parts(text))):
        raw, _, junk = member
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


def _may_be_refused(together: str) -> bool:
    """Say whether one of these members may have to be refused for its percent signs."""
    signs = together.count("%")
    if signs <= _SPARSE_SIGNS:
        return signs > _FEW_SIGNS and _STRAY().search(together) is not None
    # Every escape makes one byte of three.
    return len(a2b_qp(together.replace("=", "-").replace("%", "="))) > len(together) - 2 * signs


def _without_refused(kept: list[Member], dropped: dict[str, None]) -> list[Member]:
    """Return members without those that are refused for their percent signs, which are noted as dropped."""
    decoded = _decode_each([_value_of(member[0]) for member in kept])
    if None in decoded:
        dropped["value"] = None
    return [member for member, text in zip(kept, decoded, strict=True) if text is not None]


def _value_of(raw: str) -> str:
    """Return the value of a member that follows the grammar, still encoded."""
    return raw.partition("=")[2].partition(";")[0].strip(OWS)


def _parts(text: str) -> Iterator[Iterator[re.Match[str]]]:
    """Find what stands between commas, piece by piece: a member and its key, or what is none."""
    begin, pattern, properties = 0, _PART, 0
    has_properties = ";" in text
    while begin < len(text):
        # Nearly always a limit is reached in the first piece, and nobody asks for the next one.
        end = text.rfind(",", begin, begin + _PIECE) + 1 if len(text) - begin > _PIECE else len(text)
        end = end or text.find(",", begin) + 1 or len(text)
        properties += has_properties and text.count(";", begin, end)
        many = _TOO_MANY_PROPERTIES().match(text) if properties > _MOST_PROPERTIES and pattern is _PART else None
        if many is not None:
            middle = text.rfind(",", 0, many.end()) + 1
            yield _PART().finditer(text, begin, middle)
            begin, pattern = middle, _PART_WITHOUT_PROPERTIES
        yield (pattern if properties else _PART_WITHOUT_PROPERTIES)().finditer(text, begin, end)
        begin = end


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
    return match[1], BaggageValue(_decode(match[2]), text)


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
    return all(match is not None and match[1] == key for match in matches)


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
