"""The formats of access logs: which one a log is in, and how its lines are read.

`format_of` takes what a user names, and `detect` finds a format out from a log's first lines. In both kinds of format,
no text in a line may pass for another field. `json_lines` reads JSON.

Envoy escapes nothing in text formats: a path, a user agent or a tracestate may hold quotes, spaces, or a whole
` traceparent=...` of its own. So `TextFormat` takes only lines that can be read in exactly one way:

- A strict pattern, in which no field holds the characters that separate fields, matches in one way at most. Where it
  matches, every such character of the line belongs to the format, so no other reading exists. Its `Shape` is the same
  pattern for many lines at once.
- Any other line is looked at from both ends: the places where a field may end, reached from the left and from the
  right. One place for each is one reading. More is ambiguous, and the line is counted, not guessed.

Both take time in proportion to the line.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import ClassVar, Final, NamedTuple, TypeAlias

from meshmw._policy.words import one_of
from meshmw._tools.access_log.json_lines import JsonFormat
from meshmw._tools.access_log.rows import ALONE, COUNTED, Block, Line, Refusal, Shape, captured, column_of

# The fields that are looked at, by the operator that prints them.
FIELDS: Final = {
    "%ACCESS_LOG_TYPE%": "type",
    "%REQ(:METHOD)%": "method",
    "%REQ(:PATH)%": "path",
    "%REQ(X-ENVOY-ORIGINAL-PATH)%": "path",
    "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%": "path",
    "%PATH%": "path",
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
    "UPSTREAM_HOST": r'[^ "\r\n]+',
    "TRACE_ID": r"[0-9a-f-]+",
    "ACCESS_LOG_TYPE": r"[A-Za-z]+|-",
    "TIME_LOCAL": r'[^]"\r\n]+',
}
# The argument is bounded: from each operator without its ")" the search would go on to the end of the format.
_OPERATOR: Final = re.compile(r"%([A-Z_0-9]+)(\([^)]{0,1024}\))?(:[0-9]{1,6})?%|%%")
# Expressions of Envoy's formatter `cel` that print what another operator prints.
_CEL_HEADER: Final = re.compile(r"""request\.headers\[['"]([^'"]*+)['"]\]""")
_CEL: Final = {
    "request.host": ":AUTHORITY",
    "request.id": "X-REQUEST-ID",
    "request.method": ":METHOD",
    "request.path": ":PATH",
    "request.url_path": ":PATH",
    "request.useragent": "USER-AGENT",
}
# Beyond these limits, a line that the strict pattern does not match would cost more than it is worth.
# A traceparent that is cut before the end of its trace id says nothing.
_SHORTEST: Final = 35
_MAX_LOOSE_CHARS: Final = 32_768
_MAX_ENDS: Final = 64

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
# nginx, Apache and what writes like them; ingress-nginx; Traefik.
_COMMON: Final = '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent'
_COMBINED: Final = f'{_COMMON} "$http_referer" "$http_user_agent"'
_UPSTREAM: Final = "$upstream_addr $upstream_response_length $upstream_response_time $upstream_status $req_id"
_OTHERS: Final = (
    _COMMON,
    _COMBINED,
    f'{_COMBINED} "$http_x_forwarded_for"',
    f'{_COMBINED} "$http_traceparent"',
    f"{_COMBINED} $request_length $request_time [$proxy_upstream_name] [$proxy_alternative_upstream_name] {_UPSTREAM}",
    f'{_COMBINED} $request_count "$router_name" "$service_url" ${{duration}}ms',
)
# The operator that prints what one of nginx's variables prints; of `$http_NAME` it is clear.
_VARIABLES: Final = {
    "host": "%REQ(:AUTHORITY)%",
    "http_host": "%REQ(:AUTHORITY)%",
    "otel_trace_id": "%TRACE_ID%",
    "proxy_upstream_name": "%UPSTREAM_CLUSTER%",
    "req_id": "%REQ(X-REQUEST-ID)%",
    "request": "%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "request_method": "%REQ(:METHOD)%",
    "request_uri": "%REQ(:PATH)%",
    "router_name": "%ROUTE_NAME%",
    "service_url": "%UPSTREAM_HOST%",
    "status": "%RESPONSE_CODE%",
    "time_local": "%TIME_LOCAL%",
    "uri": "%REQ(:PATH)%",
}
_VARIABLE: Final = re.compile(r"\$(?:([a-z][a-z0-9_]*+)|\{([a-z][a-z0-9_]*+)\})")
KNOWN_FORMATS: Final = (*(base + tail for tail in _TAILS for base in (ISTIO_DEFAULT, ENVOY_DEFAULT)), *_OTHERS, _SHORT)
_NAMED: Final = {"envoy": ENVOY_DEFAULT, "istio": ISTIO_DEFAULT}
_WORDS: Final = ("auto", "json", *_NAMED)
# So many lines make a good guess, even where other programs write to the same log.
FIRST_LINES: Final = 200
_FLAG: Final = COUNTED.index("flag")


def format_of(wanted: str, keys: Mapping[str, str] | None = None) -> Format | None:
    """Return the format that a user names; None for `auto`, which is found out from the lines.

    Args:
        wanted: `auto`, `json`, `envoy`, `istio`, or a format string of Envoy or nginx.
        keys: Where JSON holds a field, such as `{"traceparent": "labels.tp"}`.

    Raises:
        ValueError: It is none of these, or keys are given for text.
    """
    if wanted == "auto" and not keys:
        return None
    if wanted in ("auto", "json"):
        return JsonFormat(keys)
    if keys:
        raise ValueError("a field has a key in JSON alone, and this format is text")
    if wanted not in _NAMED and not {"%", "$"} & set(wanted):
        one_of(_WORDS, wanted, "format", "an Envoy format string")
    return TextFormat.compile(_NAMED.get(wanted, wanted))


def detect(lines: Iterable[str]) -> Format | None:
    """Return the format that reads the most of some lines, the longest one where several do; None if none does."""
    sample = [line.encode("utf-8", "surrogateescape") for line in lines]
    found = best_of(known_formats(), sample)
    return None if found is None else found[1]


def best_of(candidates: Iterable[Format], lines: Iterable[bytes]) -> tuple[int, Format] | None:
    """Return the format that reads the most of the first lines, the longest one where several do, and how many."""
    sample = b"\n".join([line for line in lines if line.strip()][:FIRST_LINES])
    # What the strict patterns read is enough to tell formats apart; to read lines one by one takes long.
    known = list(candidates)
    for find in (_find_strictly, lambda reader, text: reader.read_block(text)):
        ranked = [(*_rank(find(each, sample)), len(each.source), each) for each in known]
        most, *_, best = max(ranked, key=lambda rank: rank[:3])
        if most:
            return most, best
    return None


def _find_strictly(reader: Format, text: bytes) -> Block:
    if isinstance(reader, JsonFormat):
        return reader.read_block(text)
    found = Block()
    found.add(reader.shape, reader.shape.find(text)[0], reader.names)
    return found


def _rank(block: Block) -> tuple[int, int]:
    """Return how many lines were read, and in how many a traceparent stands where one should."""
    # Of JSON in which no field was found, such as what a runtime has wrapped around a line, nothing was read.
    flags = [shape.counted(row)[_FLAG] for shape, rows in block.rows for row in rows if block.names]
    return len(flags), sum(map(bool, flags))


@dataclass(frozen=True)
class TextFormat:
    """Reads lines that Envoy wrote with one format string.

    Attributes:
        source: The format string; `names`: the fields of `FIELDS` that it prints, in their order.
        cut: The length to which it cuts traceparent, 0 where it does not.
    """

    keys: ClassVar[dict[str, str]] = {}
    source: str
    names: tuple[str, ...]
    cut: int
    _literals: tuple[str, ...]
    _fields: tuple[_Field, ...]

    @classmethod
    def compile(cls, source: str) -> TextFormat:
        r"""Make a reader of a format string; a `\n` at its end is left out.

        Raises:
            ValueError: It prints no field that is looked at, or two fields with nothing between them.
        """
        text = source.removesuffix("\\n").rstrip("\n")
        literals, fields = _parse_format(text if "%" in text else _VARIABLE.sub(_operator_of, text))
        names = tuple(dict.fromkeys(field.name for field in fields if field.name))
        if not names:
            raise ValueError("the format prints none of: " + " ".join(FIELDS))
        if any(not literal for literal in literals[1:-1]):
            raise ValueError("the format prints two fields with nothing between them, which nobody can tell apart")
        return cls(source, names, max(field.cut for field in fields), literals, fields)

    @cached_property
    def shape(self) -> Shape:
        """Return what reads many lines at once; no line, where no strict pattern exists."""
        body = _strict_pattern(self._literals, self._fields, in_bulk=True)
        return ALONE if body is None else Shape(body.encode())

    @cached_property
    def _strict(self) -> re.Pattern[str] | None:
        body = _strict_pattern(self._literals, self._fields)
        return None if body is None else re.compile(body)

    def read_block(self, text: bytes) -> Block:
        """Return what many lines hold, as rows."""
        found = Block()
        rows, others = self.shape.find(text)
        found.add(self.shape, rows, self.names)
        found.add_alone(self.read, others)
        return found

    def read(self, line: str) -> Line | Refusal:
        """Return the fields of a line, by name, or why it cannot be read."""
        if self._strict is not None and (match := self._strict.fullmatch(line)):
            return match.groupdict()
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
        cut: The length to which a traceparent is cut, 0 where it is not.
    """

    name: str
    tight: re.Pattern[str] | None
    cut: int


def _parse_format(source: str) -> tuple[tuple[str, ...], tuple[_Field, ...]]:
    """Return the texts of a format string, and the operators between each two of them."""
    literals, fields, at = [""], [], 0
    for match in _OPERATOR.finditer(source):
        literals[-1] += source[at : match.start()]
        at = match.end()
        if match[1] is None:
            literals[-1] += "%"
            continue
        name = _field_name(match[1], (match[2] or "")[1:-1])
        if match[3] and name == "traceparent" and int(match[3][1:]) < _SHORTEST:
            name = ""
        # A value that is cut to a length may look like anything.
        tight = None if match[3] else _tight_pattern(match[1], source[at : at + 1])
        cut = int(match[3][1:]) if match[3] and name == "traceparent" else 0
        fields.append(_Field(name, tight, cut))
        literals.append("")
    literals[-1] += source[at:]
    return tuple(literals), tuple(fields)


def _field_name(operator: str, argument: str) -> str:
    """Return the field that an operator prints, for a header with an alternative the first that is looked at."""
    if operator == "CEL":
        found = _CEL_HEADER.fullmatch(argument)
        operator, argument = ("REQ", found[1]) if found else ("REQ", _CEL.get(argument, ""))
    if operator in ("REQUEST_HEADER", "REQ_WITHOUT_QUERY"):
        operator = "REQ"
    # `%PATH(NQ:ORIG)%` and the like say only which path, and whether with its query.
    arguments = argument.upper().split("?") if operator == "REQ" else []
    printed = [f"%{operator}({each})%" for each in arguments] or [f"%{operator}%"]
    return next((FIELDS[each] for each in printed if each in FIELDS), "")


def _operator_of(variable: re.Match[str]) -> str:
    name = variable[1] or variable[2]
    header = name.removeprefix("http_")
    return _VARIABLES.get(name, "%OTHER%" if header == name else f"%REQ({header.upper().replace('_', '-')})%")


def _tight_pattern(operator: str, following: str) -> re.Pattern[str] | None:
    if operator not in _TIGHT:
        return None
    pattern = re.compile(f"(?>{_TIGHT[operator]})")
    # Where the next character could belong to the value as well, the pattern does not find the value's end.
    return None if following and pattern.match(following) else pattern


def _strict_pattern(literals: tuple[str, ...], fields: tuple[_Field, ...], *, in_bulk: bool = False) -> str | None:
    """Return a pattern that matches in one way at most, and captures the fields by name; None where there can be none.

    In bulk it captures what a `Shape` is to find, and matches no line end.
    """
    pieces, names = [re.escape(literals[0])], set[str]()
    for index, field in enumerate(fields):
        separators = _separators(literals, index)
        if separators is None:
            return None
        # Nothing is gained by giving back characters where a separator follows.
        more = "+" if literals[index + 1][:1] in separators else ""
        ends = "\r\n" if in_bulk else ""
        one = "[^{}{}]".format("".join(map(re.escape, sorted(separators - {"\n"}))), ends or "\n")
        body = field.tight.pattern if field.tight is not None else f"{one}*{more}"
        column = column_of(field.name) if in_bulk else field.name
        if column and column not in names:
            names.add(column)
            after = re.escape(literals[index + 1][:1]) or r"\r?$"
            body = captured(column, one, body, after, more) if in_bulk else f"(?P<{column}>{body})"
        pieces += [body, re.escape(literals[index + 1])]
    return "".join(pieces)


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


Format: TypeAlias = TextFormat | JsonFormat


def known_formats() -> tuple[Format, ...]:
    """Return the formats that are recognised."""
    return (JsonFormat(), *_text_formats())


@cache
def _text_formats() -> tuple[TextFormat, ...]:
    # Made when a log is to be recognised: most commands read none.
    return tuple(map(TextFormat.compile, KNOWN_FORMATS))
