"""How many requests came with which traceparent: for each route and upstream, each log, and all logs together.

Memory is bounded: of routes and upstreams, which strangers choose, `Places` tells a limited number apart.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

from meshmw._tools.access_log.crossings import Crossing
from meshmw._tools.access_log.text_format import Line
from meshmw.errors import InvalidHeaderError
from meshmw.wire import TraceParent

Kind = Literal["valid", "missing", "empty", "malformed", "refused"]
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
_AN_ID: Final = re.compile(r"/(?:\d+|[0-9a-fA-F-]{16,}|(?=[^/]*\d)[A-Za-z0-9_-]{20,})(?=/|$)")


class LineTrace(NamedTuple):
    """Says which traceparent a line shows.

    Attributes:
        kind: One of `KINDS`.
        parent: The traceparent, where it is valid.
        reason: The reason code, where it is malformed.
    """

    kind: Kind
    parent: TraceParent | None = None
    reason: str = ""


_MISSING: Final = LineTrace("missing")
_EMPTY: Final = LineTrace("empty")
_REFUSED: Final = LineTrace("refused")


def classify(line: Line) -> LineTrace:
    """Say which traceparent a line shows; `-` is what Envoy writes for a header that is not there."""
    value = line.get("traceparent")
    if value is None or value == "-":
        return _REFUSED if line.get("path") == "-" and line.get("method", "-") == "-" else _MISSING
    try:
        return LineTrace("valid", TraceParent.parse(value))
    except InvalidHeaderError as error:
        return _EMPTY if error.reason == "empty" else LineTrace("malformed", None, error.reason)


@dataclass(slots=True)
class Place:
    """Counts the requests of one route to one upstream.

    Attributes:
        kinds: How many of each of `KINDS`.
        unsampled: How many of the valid ones had the sampled flag cleared.
        stripped: How many came without traceparent, but with tracestate or baggage.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    unsampled: int = 0
    stripped: int = 0

    @property
    def total(self) -> int:
        """Return how many requests there were."""
        return self.kinds.total()

    def share(self, kind: Kind) -> float:
        """Return which part of the requests was of a kind, from 0 to 1."""
        return self.kinds[kind] / self.total if self.total else 0.0

    def add(self, trace: LineTrace, line: Line) -> None:
        """Count one request."""
        self.kinds[trace.kind] += 1
        if trace.parent is not None:
            self.unsampled += not trace.parent.sampled
        elif trace.kind == "missing":
            self.stripped += any(line.get(name, "-") not in _NO_VALUE for name in ("tracestate", "baggage"))

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain JSON values."""
        shares = {kind: round(self.share(kind), 6) for kind in KINDS}
        return {
            "requests": self.total,
            **{str(kind): self.kinds[kind] for kind in KINDS},
            "shares": shares,
            "unsampled": self.unsampled,
            "stripped": self.stripped,
        }


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

    def add(self, trace: LineTrace, line: Line) -> None:
        """Count one request where it belongs."""
        key = (route_of(line), upstream_of(line))
        place = self.places.get(key)
        if place is None:
            if len(self.places) >= self._limit:
                key = (OTHER, OTHER)
            place = self.places.setdefault(key, Place())
        place.add(trace, line)
        if trace.reason:
            self.reasons[trace.reason] += 1
            self.examples.setdefault(trace.reason, line["traceparent"][:60])

    @property
    def total(self) -> Place:
        """Return the counts of all requests together."""
        kinds: Counter[str] = Counter()
        for place in self.places.values():
            kinds.update(place.kinds)
        places = self.places.values()
        return Place(kinds, sum(each.unsampled for each in places), sum(each.stripped for each in places))


def route_of(line: Line) -> str:
    """Return a route's name, or its method and path with ids taken out of it."""
    name = line.get("route", "-")
    if name not in ("-", "", "default"):
        return name[:200]
    return _route(line.get("method", ""), line.get("path", "-")[:300].partition("?")[0])


@lru_cache(maxsize=4096)
def _route(method: str, path: str) -> str:
    return f"{method} {_AN_ID.sub('/*', path)}".strip()[:200]


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
        logs_traceparent: Whether the format prints it at all.
        fault: Why reading ended early; empty if it did not.
    """

    name: str
    lines: int = 0
    broken: int = 0
    ambiguous: int = 0
    places: Places = field(default_factory=Places)
    logs_traceparent: bool = True
    fault: str = ""


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
