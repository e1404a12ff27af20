"""What access logs say, counted: requests by their traceparent, and traces that are lost between the hops.

`Places` counts the requests of each route and upstream. `JoinedLogs` joins what several logs hold of the same request,
by `x-request-id`, which proxies keep, and by trace id. `AccessLogReport` holds both.

Memory is bounded. Of routes and upstreams, which strangers choose, a limited number is told apart. Where there are more
ids than room, one in two, four, eight ... of them is kept. The id's hash chooses, so that every log keeps the same
ones, and what is joined stays whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

from meshmw._tools.access_log.formats import Line
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
# The log's place in the order given, the listener's in its log, and 0 for what came in or 1 for what went out.
Station = tuple[int, int, int]
# Each retry of a request may begin a trace; the first few are enough.
_TRACES_PER_REQUEST: Final = 4

V = TypeVar("V")


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


@dataclass(frozen=True, slots=True)
class Crossing:
    """Says what became of traces from one station to the next.

    Attributes:
        sender: The station that they left, by its label.
        receiver: The station where they should have arrived.
        joined: Requests that were seen at both, by their request id.
        lost: Those whose trace id at the receiver is another, or missing.
        traces: Trace ids seen at the sender.
        arrived: Those of them that were seen at the receiver.
        flipped: Those that were sampled at the sender, and at the receiver only unsampled.
        example: A trace id that was lost, and what arrived instead, with the request id; empty if none was.
        in_line: Whether what leaves the sender has to arrive at the receiver, which is not so for two listeners of one
            proxy.
    """

    sender: str
    receiver: str
    joined: int
    lost: int
    traces: int
    arrived: int
    flipped: int
    example: tuple[str, ...] = ()
    in_line: bool = True

    @property
    def loses(self) -> bool:
        """Says whether traces are lost here: some requests prove it, or no trace id of many arrives."""
        return self.lost > 0 or (self.in_line and self.joined == 0 and self.traces > 0 and self.arrived == 0)

    def to_json(self) -> dict[str, Any]:
        """Return the crossing as plain JSON values."""
        return {
            "sender": self.sender,
            "receiver": self.receiver,
            "joined_by_request_id": self.joined,
            "lost": self.lost,
            "trace_ids": self.traces,
            "trace_ids_arrived": self.arrived,
            "flipped": self.flipped,
            "example": list(self.example),
            "loses": self.loses,
        }


class JoinedLogs:
    """Joins what several logs hold of the same requests and the same traces.

    Args:
        limit: How many request ids, and how many trace ids, are held.
    """

    def __init__(self, limit: int = 50_000) -> None:
        self._requests: Sample[dict[Station, tuple[str, ...]]] = Sample(limit)
        self._traces: Sample[dict[Station, bool]] = Sample(limit)
        self.stations: Counter[Station] = Counter()

    @property
    def one_in(self) -> int:
        """Return of how many ids one was joined."""
        return max(self._requests.one_in, self._traces.one_in)

    def add(self, station: Station, request_id: str, trace_id: str, sampled: bool) -> None:
        """Take one request; the trace id is empty where there was none that counts."""
        self.stations[station] += 1
        if trace_id and self._traces.takes(trace_id):
            flags = self._traces.values.get(trace_id)
            if flags is None:
                self._traces.put(trace_id, {station: sampled})
            else:
                flags[station] = sampled or flags.get(station, False)
        if request_id and self._requests.takes(request_id):
            self._add_request(station, request_id, trace_id)

    def _add_request(self, station: Station, request_id: str, trace_id: str) -> None:
        traces = self._requests.values.get(request_id)
        if traces is None:
            self._requests.put(request_id, {station: (trace_id,)})
            return
        known = traces.get(station, ())
        if trace_id not in known and len(known) < _TRACES_PER_REQUEST:
            traces[station] = (*known, trace_id)

    def crossings(self, names: Mapping[tuple[int, int], str]) -> tuple[Crossing, ...]:
        """Return what became of traces between each two stations in a row; *names* are those of logs and listeners."""
        ordered = sorted(self.stations)
        labels = {station: _label(station, names, self.stations) for station in ordered}
        return tuple(self._crossing(sender, receiver, labels) for sender, receiver in pairwise(ordered))

    def _crossing(self, sender: Station, receiver: Station, labels: dict[Station, str]) -> Crossing:
        joined = lost = 0
        example: tuple[str, ...] = ()
        for request_id, traces in self._requests.values.items():
            here, there = [trace for trace in traces.get(sender, ()) if trace], traces.get(receiver)
            if not here or there is None:
                continue
            joined += 1
            if not set(here) & set(there):
                lost += 1
                example = example or (here[0], there[0] or "nothing", request_id)
        flags = [sampled for sampled in self._traces.values.values() if sender in sampled]
        arrived = [sampled for sampled in flags if receiver in sampled]
        flipped = sum(sampled[sender] and not sampled[receiver] for sampled in arrived)
        # Two listeners of one proxy need not serve the same request, unless the first is the inbound one.
        in_line = sender[0] != receiver[0] or sender[1] == receiver[1] or sender[1] == 0
        return Crossing(
            labels[sender], labels[receiver], joined, lost, len(flags), len(arrived), flipped, example, in_line
        )


def _label(station: Station, names: Mapping[tuple[int, int], str], stations: Counter[Station]) -> str:
    log, listener, side = station
    name = names[log, listener]
    return f"{name} ({'out' if side else 'in'})" if (log, listener, 1 - side) in stations else name


class Sample(Generic[V]):
    """Holds values by id, for all ids or for a share of them that each sample of a process chooses alike."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._mask = 0
        self.values: dict[str, V] = {}

    @property
    def one_in(self) -> int:
        """Return of how many ids one is held."""
        return self._mask + 1

    def takes(self, key: str) -> bool:
        """Say whether an id is among those that are held."""
        # Python's hash has a new key in each process. With a checksum, strangers could choose ids that are all held.
        return not hash(key) & self._mask

    def put(self, key: str, value: V) -> None:
        """Hold a value, and halve the share while there are too many."""
        self.values[key] = value
        while len(self.values) > self._limit:
            self._mask = 2 * self._mask + 1
            self.values = {held: kept for held, kept in self.values.items() if self.takes(held)}


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
