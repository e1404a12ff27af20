"""The formats of access logs: which one a log is in, and how a line of it is read.

`format_of` takes what a user names, and `detect` finds a format out from a log's first lines. In both kinds of format,
no text in a line may pass for another field.

Envoy escapes every value in JSON. Where a key comes twice, the line can only be of a text format that looks like JSON,
and `JsonFormat` refuses it.

Envoy escapes nothing in text formats: a path, a user agent or a tracestate may hold quotes, spaces, or a whole
` traceparent=...` of its own. So `TextFormat` takes only lines that can be read in exactly one way:

- A strict pattern, in which no field holds the characters that separate fields, matches in one way at most. Where it
  matches, every such character of the line belongs to the format, so no other reading exists.
- Any other line is looked at from both ends: the places where a field may end, reached from the left and from the
  right. One place for each is one reading. More is ambiguous, and the line is counted, not guessed.

Both take time in proportion to the line.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from meshmw._policy.words import one_of

# The fields that are looked at, by the operator that prints them.
FIELDS: Final = {
    "%ACCESS_LOG_TYPE%": "type",
    "%REQ(:METHOD)%": "method",
    "%REQ(:PATH)%": "path",
    "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%": "path",
    "%REQ(:AUTHORITY)%": "authority",
    "%REQ(USER-AGENT)%": "user_agent",
    "%REQ(X-REQUEST-ID)%": "request_id",
    "%REQ(TRACEPARENT)%": "traceparent",
    "%REQ(TRACESTATE)%": "tracestate",
    "%REQ(BAGGAGE)%": "baggage",
    "%REQ(B3)%": "b3",
    "%REQ(X-B3-TRACEID)%": "x_b3_traceid",
    "%RESPONSE_CODE%": "code",
    "%RESPONSE_CODE_DETAILS%": "details",
    "%ROUTE_NAME%": "route",
    "%TRACE_ID%": "trace_id",
    "%UPSTREAM_CLUSTER%": "cluster",
    "%UPSTREAM_CLUSTER_RAW%": "cluster",
    "%UPSTREAM_HOST%": "upstream",
}
# What the value of an operator looks like, where neither a client nor a server can choose it freely.
_TIGHT: Final = {
    "PROTOCOL": r"HTTP/[0-9.]+|-",
    "RESPONSE_CODE": r"[0-9]+|-",
    "RESPONSE_FLAGS": r"[A-Za-z0-9_,]+|-",
    "BYTES_RECEIVED": r"[0-9]+|-",
    "BYTES_SENT": r"[0-9]+|-",
    "DURATION": r"[0-9]+|-",
    "UPSTREAM_HOST": r'[^ "]+',
    "TRACE_ID": r"[0-9a-f]+|-",
    "ACCESS_LOG_TYPE": r"[A-Za-z]+|-",
}
# The argument is bounded: from each operator without its ")" the search would go on to the end of the format.
_OPERATOR: Final = re.compile(r"%([A-Z_0-9]+)(\([^)]{0,1024}\))?(:[0-9]+)?%|%%")
# Beyond these limits, a line that the strict pattern does not match would cost more than it is worth.
_MAX_LOOSE_CHARS: Final = 32_768
_MAX_ENDS: Final = 64

Line = dict[str, str]
Refusal = Literal["broken", "ambiguous"]

ENVOY_DEFAULT: Final = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% '
    '%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" '
    '"%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%"'
)
ISTIO_DEFAULT: Final = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% '
    '%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% '
    '%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" '
    '"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% '
    "%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%"
)
# What people append to a default format.
_TAILS: Final = (
    "",
    " traceparent=%REQ(TRACEPARENT)%",
    " traceparent=%REQ(TRACEPARENT)% tracestate=%REQ(TRACESTATE)%",
    " trace_id=%TRACE_ID% traceparent=%REQ(TRACEPARENT)%",
    " traceparent=%REQ(TRACEPARENT)% trace_id=%TRACE_ID%",
    " traceparent=%REQ(TRACEPARENT)% tracestate=%REQ(TRACESTATE)% trace_id=%TRACE_ID%",
    ' "%REQ(TRACEPARENT)%"',
    ' "%REQ(TRACEPARENT)%" "%REQ(TRACESTATE)%"',
    " %TRACE_ID%",
)
_SHORT: Final = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%" %RESPONSE_CODE% '
    "traceparent=%REQ(TRACEPARENT)% tracestate=%REQ(TRACESTATE)%"
)
KNOWN_FORMATS: Final = (*(base + tail for tail in _TAILS for base in (ISTIO_DEFAULT, ENVOY_DEFAULT)), _SHORT)
_NAMED: Final = {"envoy": ENVOY_DEFAULT, "istio": ISTIO_DEFAULT}
_WORDS: Final = ("auto", "json", *_NAMED)
# So many lines make a good guess, even where other programs write to the same log.
FIRST_LINES: Final = 200

# The fields by the keys that JSON logs have: Istio's own, those of Envoy's documentation, and what people write.
ALIASES: Final = {
    **{name: name for name in FIELDS.values()},
    "access_log_type": "type",
    "listener": "listener",
    "listener_name": "listener",
    "log_type": "type",
    ":authority": "authority",
    "host": "authority",
    ":method": "method",
    ":path": "path",
    "original_path": "path",
    "user-agent": "user_agent",
    "x-request-id": "request_id",
    "x_request_id": "request_id",
    "trace_parent": "traceparent",
    "tp": "traceparent",
    "trace_state": "tracestate",
    "ts": "tracestate",
    "response_code": "code",
    "status": "code",
    "response_code_details": "details",
    "route_name": "route",
    "start_time": "start_time",
    "upstream_cluster": "cluster",
    "upstream_host": "upstream",
    "x-b3-traceid": "x_b3_traceid",
}


def format_of(wanted: str, keys: Mapping[str, str] | None = None) -> Format | None:
    """Return the format that a user names; None for `auto`, which is found out from the lines.

    Args:
        wanted: `auto`, `json`, `envoy`, `istio`, or an Envoy format string.
        keys: Where JSON holds a field, such as `{"traceparent": "labels.tp"}`.

    Raises:
        ValueError: It is none of these.
    """
    if wanted == "auto" and not keys:
        return None
    if wanted == "json" or (wanted == "auto" and keys):
        return JsonFormat(keys)
    if wanted not in _NAMED and "%" not in wanted:
        one_of(_WORDS, wanted, "format", "an Envoy format string")
    return TextFormat.compile(_NAMED.get(wanted, wanted))


def detect(lines: Iterable[str]) -> Format | None:
    """Return the format that reads the most of some lines, the longest one where several do; None if none does."""
    sample = [line for line in lines if line.strip()][:FIRST_LINES]
    best: tuple[int, int, Format] | None = None
    for candidate in _candidates(sample):
        count = sum(not isinstance(candidate.read(line), str) for line in sample)
        rank = (count, len(candidate.source))
        if count and (best is None or rank > best[:2]):
            best = (*rank, candidate)
    return None if best is None else best[2]


def _candidates(sample: Sequence[str]) -> list[Format]:
    if any(line.startswith("{") for line in sample):
        return [JsonFormat(), *_TEXT_FORMATS]
    return list(_TEXT_FORMATS)


@dataclass(frozen=True, slots=True)
class TextFormat:
    """Reads lines that Envoy wrote with one format string.

    Attributes:
        source: The format string.
        names: The fields of `FIELDS` that it prints, in their order.
    """

    source: str
    names: tuple[str, ...]
    _literals: tuple[str, ...]
    _fields: tuple[_Field, ...]
    _strict: re.Pattern[str] | None
    _strict_names: tuple[str, ...]

    @classmethod
    def compile(cls, source: str) -> TextFormat:
        r"""Make a reader of a format string; a `\n` at its end is left out.

        Raises:
            ValueError: It prints no field that is looked at, or two fields with nothing between them.
        """
        literals, fields = _parse_format(source.removesuffix("\\n").rstrip("\n"))
        names = tuple(field.name for field in fields if field.name)
        if not names:
            raise ValueError("the format prints none of: " + " ".join(FIELDS))
        if any(not literal for literal in literals[1:-1]):
            raise ValueError("the format prints two fields with nothing between them, which nobody can tell apart")
        strict, captured = _build_strict_pattern(literals, fields)
        return cls(source, tuple(dict.fromkeys(names)), literals, fields, strict, captured)

    def read(self, line: str) -> Line | Refusal:
        """Return the fields of a line, by name, or why it cannot be read."""
        if self._strict is not None and (match := self._strict.fullmatch(line)):
            return dict(zip(self._strict_names, match.groups(), strict=True))
        if len(line) > _MAX_LOOSE_CHARS:
            return "broken"
        return self._read_loosely(line)

    def _read_loosely(self, line: str) -> Line | Refusal:
        """Look for the one reading of a line in which fields hold separators."""
        if not line.startswith(self._literals[0]):
            return "broken"
        places: dict[str, list[int]] = {}
        starts = [len(self._literals[0])]
        reached = [starts]
        for index, field in enumerate(self._fields, 1):
            ends = self._ends(line, starts, field, index, places)
            if not ends:
                return "broken"
            if len(ends) > _MAX_ENDS:
                return "ambiguous"
            width = len(self._literals[index])
            starts = [end + width for end in ends]
            reached.append(starts)
        return self._only_path(line, reached)

    def _ends(
        self, line: str, starts: list[int], field: _Field, index: int, places: dict[str, list[int]]
    ) -> Sequence[int]:
        """Return where a field may end that begins at one of these places, the literal of this index following."""
        literal = self._literals[index]
        last = len(line) - len(literal) if index == len(self._literals) - 1 else None
        if field.tight is not None:
            matches = [field.tight.match(line, start) for start in starts]
            ends = {match.end() for match in matches if match and line.startswith(literal, match.end())}
            return sorted(ends if last is None else ends & {last})
        if last is not None:
            return [last] if line.endswith(literal) and last >= starts[0] else []
        if (found := places.get(literal)) is None:
            found = places[literal] = _places_of(literal, line, starts[0])
        return found[bisect_left(found, starts[0]) :]

    def _only_path(self, line: str, reached: list[list[int]]) -> Line | Refusal:
        """Go back from the end, where the last literal stands alone, and keep the places from which it is reached."""
        found: Line = {}
        (after,) = reached[-1]
        for index in range(len(self._fields) - 1, -1, -1):
            field, end = self._fields[index], after - len(self._literals[index + 1])
            starts = reached[index][: bisect_right(reached[index], end)]
            if field.tight is not None and len(starts) > 1:
                starts = [start for start in starts if field.tight.fullmatch(line, start, end)]
            if len(starts) > 1:
                return "ambiguous"
            (after,) = starts  # every end was reached from some start
            if field.name:
                found[field.name] = line[after:end]
        return found


def _places_of(literal: str, line: str, at: int) -> list[int]:
    """Return where a text stands in a line from there on, also where it overlaps itself: all places, or too many."""
    found: list[int] = []
    while (at := line.find(literal, at)) >= 0 and len(found) <= _MAX_ENDS:
        found.append(at)
        at += 1
    return found


class _Field(NamedTuple):
    """Describes one operator of a format string.

    Attributes:
        name: What it prints, of `FIELDS`; empty for what is not looked at.
        tight: What its value looks like, where nobody can choose that freely.
    """

    name: str
    tight: re.Pattern[str] | None


def _parse_format(source: str) -> tuple[tuple[str, ...], tuple[_Field, ...]]:
    """Return the texts of a format string, and the operators between each two of them."""
    literals, fields, at = [""], [], 0
    for match in _OPERATOR.finditer(source):
        literals[-1] += source[at : match.start()]
        at = match.end()
        if match[1] is None:
            literals[-1] += "%"
            continue
        operator = "REQ" if match[1] == "REQUEST_HEADER" else match[1]
        name = FIELDS.get(f"%{operator}{(match[2] or '').upper()}%", "")
        # A value that is cut to a length may look like anything.
        tight = None if match[3] else _tight_pattern(operator, source[at : at + 1])
        fields.append(_Field(name, tight))
        literals.append("")
    literals[-1] += source[at:]
    return tuple(literals), tuple(fields)


def _tight_pattern(operator: str, following: str) -> re.Pattern[str] | None:
    if operator not in _TIGHT:
        return None
    pattern = re.compile(f"(?>{_TIGHT[operator]})")
    # Where the next character could belong to the value as well, the pattern does not find the value's end.
    return None if following and pattern.match(following) else pattern


def _build_strict_pattern(
    literals: tuple[str, ...], fields: tuple[_Field, ...]
) -> tuple[re.Pattern[str] | None, tuple[str, ...]]:
    """Return a pattern that matches in one way at most, and the fields it captures; None where there can be none."""
    pieces, names = [re.escape(literals[0])], []
    for index, field in enumerate(fields):
        separators = _separators(literals, index)
        if separators is None:
            return None, ()
        # Nothing is gained by giving back characters where a separator follows.
        possessive = "+" if literals[index + 1][:1] in separators else ""
        characters = "[^{}]*{}".format("".join(map(re.escape, sorted(separators))), possessive)
        body = field.tight.pattern if field.tight is not None else characters
        if field.name and field.name not in names:
            names.append(field.name)
            body = f"({body})"
        pieces += [body, re.escape(literals[index + 1])]
    return re.compile("".join(pieces)), tuple(names)


def _separators(literals: tuple[str, ...], index: int) -> set[str] | None:
    """Return the characters that a field must not hold, for the pattern to be the only reading.

    A quote separates wherever the format has one. Between two quotes, spaces separate the fields that share the place.
    """
    quoted = any('"' in literal for literal in literals)
    left = index
    while left > 0 and '"' not in literals[left]:
        left -= 1
    right = index + 1
    while right < len(literals) - 1 and '"' not in literals[right]:
        right += 1
    inner = literals[left + 1 : right]
    if any(" " not in literal for literal in inner):
        return None
    # The parts of the outer literals that face this place hold separators as well.
    facing = literals[left].rpartition('"')[2] + literals[right].partition('"')[0]
    spaces = {" "} if inner or " " in facing else set()
    separators = ({'"'} if quoted else set()) | spaces
    return separators or {"\n"}


class JsonFormat:
    """Reads lines that are one JSON object each.

    Args:
        keys: Further keys, such as `{"traceparent": "labels.tp"}`: a dot goes into a nested object.

    Raises:
        ValueError: A field is none of those that are looked at.
    """

    names: tuple[str, ...] = tuple(dict.fromkeys(ALIASES.values()))
    source = "json"

    def __init__(self, keys: Mapping[str, str] | None = None) -> None:
        wanted = dict(keys or {})
        unknown = sorted(set(wanted) - set(self.names))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no such field; there are {', '.join(self.names)}")
        self._names = {key: name for key, name in ALIASES.items() if name not in wanted}
        self._names |= {key: name for name, key in wanted.items() if "." not in key}
        self._paths = {name: key.split(".") for name, key in wanted.items() if "." in key}

    def read(self, line: str) -> Line | Refusal:
        """Return the fields of a line, by name, or why it cannot be read; a null is left out."""
        try:
            found = _DECODER.decode(line)
        except _RepeatedKeyError:
            return "ambiguous"
        except (ValueError, RecursionError):
            return "broken"
        if not isinstance(found, dict):
            return "broken"
        names = self._names
        fields = {names[key]: value for key, value in found.items() if key in names and value is not None}
        for name, path in self._paths.items():
            if (value := _nested(found, path)) is not None:
                fields[name] = value
        return {name: value if isinstance(value, str) else str(value) for name, value in fields.items()}


class _RepeatedKeyError(ValueError):
    pass


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _RepeatedKeyError
    return found


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_without_repeated_keys)


def _nested(found: Any, path: list[str]) -> Any:
    for key in path:
        if not isinstance(found, dict):
            return None
        found = found.get(key)
    return found


Format: TypeAlias = TextFormat | JsonFormat
_TEXT_FORMATS: Final = tuple(map(TextFormat.compile, KNOWN_FORMATS))
