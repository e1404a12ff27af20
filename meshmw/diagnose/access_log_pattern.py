"""A format string taken apart: the fields that it prints, what stands between them, and the expression for its lines.

Knows Envoy's operators, and which characters a field must not hold for the expression to match in one way at most. Must
not know what is done with a line that it does not match.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

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
# Values that neither a client nor a server can choose freely, and what they look like.
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
_OPERATOR: Final = re.compile(r"%([A-Z_0-9]+)(\([^)]*\))?(:[0-9]+)?%|%%")


class FormatField(NamedTuple):
    """Is one operator of a format string.

    Attributes:
        name: What it prints, of `FIELDS`; empty for what is not looked at.
        operator: Such as `REQ`.
        tight: What its value looks like, where nobody can choose that freely.
    """

    name: str
    operator: str
    tight: re.Pattern[str] | None


def taken_apart(source: str) -> tuple[tuple[str, ...], tuple[FormatField, ...]]:
    """Return the texts of a format string, and the operators between each two of them."""
    literals, fields, at = [""], [], 0
    for match in _OPERATOR.finditer(source):
        literals[-1] += source[at : match.start()]
        at = match.end()
        if match[1] is None:
            literals[-1] += "%"
            continue
        operator = match[1].replace("REQUEST_HEADER", "REQ") if match[1] == "REQUEST_HEADER" else match[1]
        name = FIELDS.get(f"%{operator}{(match[2] or '').upper()}%", "")
        following = source[at : at + 1]
        tight = None if match[3] else _TIGHT.get(operator)
        pattern = re.compile(f"(?>{tight})") if tight else None
        if pattern is not None and following and pattern.match("1" + following, 1):
            pattern = None
        fields.append(FormatField(name, operator, pattern))
        literals.append("")
    literals[-1] += source[at:]
    return tuple(literals), tuple(fields)


def strict_of(
    literals: tuple[str, ...], fields: tuple[FormatField, ...]
) -> tuple[re.Pattern[str] | None, tuple[str, ...]]:
    """Build the expression that matches in one way at most; None where the format does not allow one."""
    pieces, names = [re.escape(literals[0])], []
    for index, field in enumerate(fields):
        separators = _separators(literals, index)
        if separators is None:
            return None, ()
        # Nothing is gained by giving back characters where a separator follows.
        possessive = "+" if literals[index + 1][:1] in separators else ""
        characters = "[^{}]*{}".format("".join(map(re.escape, sorted(separators))), possessive)
        first_of_name = field.name and field.name not in names
        if first_of_name:
            names.append(field.name)
        body = field.tight.pattern if field.tight is not None else characters
        pieces.append(f"({body})" if first_of_name else body)
        pieces.append(re.escape(literals[index + 1]))
    return re.compile("".join(pieces)), tuple(names)


def _separators(literals: tuple[str, ...], index: int) -> set[str] | None:
    """Return the characters that a field must not hold, for the expression to be the only reading.

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
