"""Where a trace is lost between the hops whose logs are given, in bounded memory.

Requests are joined by `x-request-id`, which proxies keep, and by trace id. Where there are more ids than room, one in
two, four, eight ... of them is kept. The id's hash chooses, so that every hop keeps the same ones, and what is joined
stays whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Generic, TypeVar

# The log's place in the order given, the listener's in its log, and 0 for what came in or 1 for what went out.
Station = tuple[int, int, int]
# A request that is tried again may begin a trace each time; of some hundred tries the first few are enough.
_TRACES_PER_REQUEST: Final = 4

V = TypeVar("V")


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
        """Return what became of traces between each two stations in a row.

        Args:
            names: What each log and listener is called.
        """
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
        # A proxy's listeners may have nothing to do with each other, but for what comes in by the first and goes out.
        in_line = sender[0] != receiver[0] or sender[1] == receiver[1] or sender[1] == 0
        return Crossing(
            labels[sender], labels[receiver], joined, lost, len(flags), len(arrived), flipped, example, in_line
        )


def _label(station: Station, names: Mapping[tuple[int, int], str], stations: Counter[Station]) -> str:
    log, listener, side = station
    name = names[log, listener]
    return f"{name} ({'out' if side else 'in'})" if (log, listener, 1 - side) in stations else name


class Sample(Generic[V]):
    """Holds values by id, for all ids or for a share of them that each sample of a process chooses alike.

    Args:
        limit: How many ids are held at most.
    """

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
        # Python keys its hash anew in each process: with a checksum, strangers could choose ids that are all held.
        return not hash(key) & self._mask

    def put(self, key: str, value: V) -> None:
        """Hold a value, and halve the share while there are too many."""
        self.values[key] = value
        while len(self.values) > self._limit:
            self._mask = 2 * self._mask + 1
            self.values = {held: kept for held, kept in self.values.items() if self.takes(held)}
