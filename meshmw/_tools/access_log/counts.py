"""What access logs say, counted: requests by their traceparent, for each route and upstream.

`classify` says what a line shows of a trace, `Places` counts the requests of each route and upstream, and
`AccessLogReport` holds what all logs say. Of routes and upstreams, which strangers choose, a limited number is told
apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from meshmw._tools.access_log.joins import Crossing
from meshmw._tools.access_log.rows import WHOLE_TRACEPARENT, Line
from meshmw.errors import InvalidHeaderError
from meshmw.wire import TraceParent

Kind = Literal["valid", "missing", "empty", "malformed", "refused", "tcp"]
# What requests are; a connection that is not HTTP is none.
KINDS: Final[tuple[Kind, ...]] = ("valid", "missing", "empty", "malformed", "refused")
MEANINGS: Final = {
    "valid": "a traceparent that every W3C reader takes",
    "missing": "no such header (- or null)",
    "empty": "the header with nothing in it",
    "malformed": "a header that strict readers refuse",
    "refused": "the proxy answered 4xx before it read a path: every field is -",
}
OTHER: Final = "(other)"
_NO_VALUE: Final = frozenset({"-", ""})
# A path segment that names one thing: a number, a UUID, a long hexadecimal or mixed id. No alternative looks beyond its
# segment, so that the search takes time in proportion to the path.
_AN_ID: Final = re.compile(rb"/(?:[0-9]+|[0-9a-fA-F-]{16,}|(?=[^/\n]*[0-9])[A-Za-z0-9_-]{20,})(?=[/\n])")
_TRACE_ID_ENDS: Final = 35
_HEXADECIMAL: Final = re.compile(rb"[0-9a-f]++")


class LineTrace(NamedTuple):
    """Says which traceparent a line shows.

    Attributes:
        kind: One of `KINDS`.
        parent: The traceparent, where it is valid.
        reason: The reason code, where it is malformed.
        sampled: Its sampled flag, where it is valid and the line shows that much of it.
    """

    kind: Kind
    parent: TraceParent | None = None
    reason: str = ""
    sampled: bool | None = None


_MISSING: Final = LineTrace("missing")
_EMPTY: Final = LineTrace("empty")
_REFUSED: Final = LineTrace("refused")
_TCP: Final = LineTrace("tcp")
# What a traceparent that is cut off may have gone on with.
_LIKE_ANY: Final = f"00-{'1' * 32}-{'1' * 16}-01"


def classify(line: Line, cut: int = 0) -> LineTrace:
    """Say which traceparent a line shows; `-` is what Envoy writes for a header that is not there.

    Args:
        line: Its fields, or those of equal lines: a `flag` then stands for a valid traceparent.
        cut: The length to which the format cuts the header, 0 where it does not.
    """
    if flag := line.get("flag"):
        return LineTrace("valid", sampled=bool(int(flag, 16) & 1))
    value = line.get("traceparent", line.get("parent"))
    if value is None or value == "-":
        return _without_traceparent(line)
    if _is_cut(value, cut):
        return LineTrace("valid")
    try:
        parent = TraceParent.parse(value)
    except InvalidHeaderError as error:
        return _EMPTY if error.reason == "empty" else LineTrace("malformed", None, error.reason)
    return LineTrace("valid", parent, sampled=parent.sampled)


def _without_traceparent(line: Line) -> LineTrace:
    """Tell a request without the header from one that was never read, and from a connection that is not HTTP."""
    if line.get("type", "").startswith("Tcp"):
        return _TCP
    if any(line.get(name, "-") not in _NO_VALUE for name in ("method", "path")):
        return _MISSING
    if line.get("code") in ("0", "-"):
        return _TCP
    return _REFUSED if line.get("path") == "-" else _MISSING


def _is_cut(value: str, cut: int) -> bool:
    return len(value) == cut < len(_LIKE_ANY) and bool(WHOLE_TRACEPARENT.fullmatch((value + _LIKE_ANY[cut:]).encode()))


def trace_id_of(parent: bytes, own: bytes, cut: int = 0) -> bytes:
    """Return the trace of a line that has no valid traceparent: its trace id in small letters, or nothing.

    Args:
        parent: The traceparent as it was logged; in capitals, and cut off, it still names its trace.
        own: The proxy's own trace, which alone is there where it traces by B3.
        cut: The length to which the format cuts the header, 0 where it does not.
    """
    if len(parent) >= _TRACE_ID_ENDS:
        parent = parent.strip(b" \t")
        whole = parent.lower() + (_LIKE_ANY[cut:].encode() if len(parent) == cut else b"")
        if match := WHOLE_TRACEPARENT.fullmatch(whole):
            return match[1]
    return own.lower().rjust(32, b"0") if len(own) in (16, 32) else b""


def is_another_trace(trace: bytes, own: bytes) -> bool:
    """Say whether the trace that a proxy says it is in is another than the header's, as far as one can tell."""
    digits = own.lower().removeprefix(b"1-").replace(b"-", b"")
    if not trace or len(digits) not in (16, 32) or not _HEXADECIMAL.fullmatch(digits):
        return False
    # Some tracers log the last 64 bits alone.
    return not trace.endswith(digits)


@dataclass(slots=True)
class Place:
    """Counts the requests of one route to one upstream.

    Attributes:
        kinds: How many of each of `KINDS`.
        unsampled: How many of the valid ones had the sampled flag cleared.
        stripped: How many came without traceparent, but with tracestate or baggage.
        b3: How many came without traceparent, but with B3.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    unsampled: int = 0
    stripped: int = 0
    b3: int = 0

    @property
    def total(self) -> int:
        """Return how many requests there were."""
        return self.kinds.total()

    def share(self, kind: Kind) -> float:
        """Return which part of the requests was of a kind, from 0 to 1."""
        return self.kinds[kind] / self.total if self.total else 0.0

    def add(self, trace: LineTrace, line: Line, number: int = 1) -> None:
        """Count requests that are alike."""
        self.kinds[trace.kind] += number
        if trace.sampled is False:
            self.unsampled += number
        elif trace.kind == "missing":
            self.stripped += number * _has_any(line, "tracestate", "baggage")
            self.b3 += number * _has_any(line, "b3", "x_b3_traceid")

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain JSON values."""
        shares = {kind: round(self.share(kind), 6) for kind in KINDS}
        return {
            "requests": self.total,
            **{str(kind): self.kinds[kind] for kind in KINDS},
            "shares": shares,
            "unsampled": self.unsampled,
            "stripped": self.stripped,
            "b3": self.b3,
        }


def _has_any(line: Line, *names: str) -> bool:
    return any(line.get(name, "-") not in _NO_VALUE for name in names)


class Places:
    """Counts by route and upstream.

    Args:
        limit: How many pairs are told apart; what comes after that is counted together, as `(other)`.
    """

    def __init__(self, limit: int = 1000) -> None:
        self._limit = limit
        self.places: dict[tuple[str, str], Place] = {}
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, trace: LineTrace, line: Line, number: int = 1) -> None:
        """Count requests that are alike where they belong."""
        key = (route_of(line), upstream_of(line))
        place = self.places.get(key)
        if place is None:
            if len(self.places) >= self._limit:
                key = (OTHER, OTHER)
            place = self.places.setdefault(key, Place())
        place.add(trace, line, number)
        if trace.reason:
            self.reasons[trace.reason] += number
            value = line.get("traceparent") or line["parent"]
            self.examples.setdefault(trace.reason, value[:60])

    @property
    def total(self) -> Place:
        """Return the counts of all requests together."""
        kinds: Counter[str] = Counter()
        for place in self.places.values():
            kinds.update(place.kinds)
        places = self.places.values()
        return Place(kinds, *(sum(getattr(each, name) for each in places) for name in ("unsampled", "stripped", "b3")))


def route_of(line: Line) -> str:
    """Return a route's name, or its method and path with ids taken out of it."""
    name = line.get("route", "-")
    if name not in ("-", "", "default"):
        return name[:200]
    (path,) = generalized([line.get("path", "-")[:300].partition("?")[0].encode("utf-8", "surrogateescape")])
    return f"{line.get('method', '')} {path.decode('utf-8', 'surrogateescape')}".strip()[:200]


def generalized(paths: list[bytes]) -> list[bytes]:
    """Return paths with `*` in the place of each id: all in one go, for which none may hold a line end."""
    return _AN_ID.sub(b"/*", b"\n".join([*paths, b""])).split(b"\n")[:-1]


def upstream_of(line: Line) -> str:
    """Return the cluster that a request went to, or the authority that was asked, or the address."""
    for name in ("cluster", "authority", "upstream"):
        value = line.get(name, "-")
        if value not in _NO_VALUE:
            return value[:200]
    return "-"


@dataclass
class HopLog:
    """Holds what one log says.

    Attributes:
        name: The hop.
        lines: Lines that were read.
        broken: Lines that are not in the format.
        ambiguous: Lines that can be read in several ways, because some text in them holds quotes or spaces.
        places: Requests by route and upstream.
        names: The fields that its lines have, with a value or without one.
        tcp: Connections that are not HTTP; they are no requests.
        other_traces: Requests whose traceparent is of another trace than the proxy says it is in.
        other_example: The two traces of one of them.
        source: The format.
        keys: The keys that a user has named for fields of JSON.
        fault: Why reading ended early; empty if it did not.
    """

    name: str
    lines: int = 0
    broken: int = 0
    ambiguous: int = 0
    places: Places = field(default_factory=Places)
    names: set[str] = field(default_factory=set)
    tcp: int = 0
    other_traces: int = 0
    other_example: tuple[str, ...] = ()
    source: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)
    fault: str = ""

    @property
    def logs_traceparent(self) -> bool:
        """Says whether any line has the header, or a place for it."""
        return "traceparent" in self.names


@dataclass(frozen=True, slots=True)
class AccessLogReport:
    """Holds what all logs say together.

    Attributes:
        hops: What each log says.
        crossings: What became of traces from each station to the next.
        joined_one_in: Of how many ids one was joined.
    """

    hops: tuple[HopLog, ...]
    crossings: tuple[Crossing, ...] = ()
    joined_one_in: int = 1

    @property
    def first_loss(self) -> Crossing | None:
        """Return the first place where traces are lost, on the way from the first log to the last."""
        return next((crossing for crossing in self.crossings if crossing.loses), None)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "hops": [_hop_json(hop) for hop in self.hops],
            "crossings": [crossing.to_json() for crossing in self.crossings],
            "first_loss": None if self.first_loss is None else self.first_loss.to_json(),
            "joined_one_in": self.joined_one_in,
        }


def _hop_json(hop: HopLog) -> dict[str, Any]:
    return {
        "name": hop.name,
        "lines": hop.lines,
        "broken": hop.broken,
        "ambiguous": hop.ambiguous,
        "fault": hop.fault,
        "logs_traceparent": hop.logs_traceparent,
        "tcp": hop.tcp,
        "other_traces": hop.other_traces,
        "total": hop.places.total.to_json(),
        "reasons": dict(hop.places.reasons),
        "examples": dict(hop.places.examples),
        "routes": [
            {"route": route, "upstream": upstream, **place.to_json()}
            for (route, upstream), place in sorted_places(hop.places)
        ],
    }


def sorted_places(places: Places) -> list[tuple[tuple[str, str], Place]]:
    """Return routes and upstreams, those with the most requests that are not valid first."""
    return sorted(
        places.places.items(), key=lambda item: (item[1].kinds["valid"] - item[1].total, -item[1].total, item[0])
    )
