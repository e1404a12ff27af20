"""What several logs hold of the same requests and the same traces, and where between two of them traces are lost.

Requests are joined by `x-request-id`, which proxies keep, and traces by their id.

Memory is bounded. Where there are more ids than room, one in two, four, eight ... of them is kept. The id's hash
chooses, so that every log keeps the same ones, and what is joined stays whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Generic, TypeVar

# The log's place in the order given, the listener's in its log, and 0 for what came in or 1 for what went out.
Station = tuple[int, int, int]
# Each retry of a request may begin a trace; the first few are enough.
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
        # Of each request, a station's number and a trace id in turns; of each trace, three bits for each station.
        self._requests: Sample[tuple[int | bytes, ...]] = Sample(limit)
        self._traces: Sample[int] = Sample(limit)
        self._numbers: dict[Station, int] = {}
        self.stations: Counter[Station] = Counter()

    @property
    def one_in(self) -> int:
        """Return of how many ids one was joined."""
        return max(self._requests.one_in, self._traces.one_in)

    def add(self, station: Station, request_id: bytes, trace_id: bytes, sampled: bool | None) -> None:
        """Take one request; the trace id is empty where there was none that counts."""
        number = self._numbers.setdefault(station, len(self._numbers))
        if trace_id and self._traces.takes(trace_id):
            bits = (_SEEN if sampled is None else _SEEN_SAMPLED if sampled else _SEEN_UNSAMPLED) << 3 * number
            held = self._traces.values.get(trace_id)
            if held is None:
                self._traces.put(trace_id, bits)
            elif held | bits != held:
                self._traces.values[trace_id] = held | bits
        if request_id and self._requests.takes(request_id):
            self._add_request(number, request_id, trace_id)

    def _add_request(self, number: int, request_id: bytes, trace_id: bytes) -> None:
        known = self._requests.values.get(request_id)
        if known is None:
            self._requests.put(request_id, (number, trace_id))
            return
        here = _at(known, number)
        if trace_id not in here and len(here) < _TRACES_PER_REQUEST:
            self._requests.values[request_id] = (*known, number, trace_id)

    def crossings(self, names: Mapping[tuple[int, int], str]) -> tuple[Crossing, ...]:
        """Return what became of traces between each two stations in a row; *names* are those of logs and listeners."""
        ordered = sorted(self.stations)
        labels = {station: _label(station, names, self.stations) for station in ordered}
        return tuple(self._crossing(sender, receiver, labels) for sender, receiver in pairwise(ordered))

    def _crossing(self, sender: Station, receiver: Station, labels: dict[Station, str]) -> Crossing:
        # A station that has shown no id has no number.
        first, second = self._numbers.get(sender, -1), self._numbers.get(receiver, -1)
        joined = lost = 0
        example: tuple[str, ...] = ()
        for request_id, traces in self._requests.values.items():
            here, there = [trace for trace in _at(traces, first) if trace], _at(traces, second)
            if not here or not there:
                continue
            joined += 1
            if not set(here) & set(there):
                lost += 1
                example = example or tuple(map(_text, (here[0], there[0] or b"nothing", request_id)))
        seen, arrived, flipped = self._arrivals(first, second)
        # Two listeners of one proxy need not serve the same request, unless the first is the inbound one.
        in_line = sender[0] != receiver[0] or sender[1] == receiver[1] or sender[1] == 0
        return Crossing(labels[sender], labels[receiver], joined, lost, seen, arrived, flipped, example, in_line)

    def _arrivals(self, first: int, second: int) -> tuple[int, int, int]:
        """Return how many traces one station saw, how many of them the other saw, and how many of those unsampled."""
        seen = arrived = flipped = 0
        for bits in self._traces.values.values():
            here = bits >> 3 * first & _ALL if first >= 0 else 0
            there = bits >> 3 * second & _ALL if second >= 0 else 0
            seen += bool(here)
            arrived += bool(here and there)
            flipped += bool(here & _SAMPLED and there & _UNSAMPLED and not there & _SAMPLED)
        return seen, arrived, flipped


_SEEN, _SAMPLED, _UNSAMPLED, _ALL = 1, 2, 4, 7
_SEEN_SAMPLED, _SEEN_UNSAMPLED = _SEEN | _SAMPLED, _SEEN | _UNSAMPLED


def _at(traces: tuple[int | bytes, ...], number: int) -> list[bytes]:
    """Return the traces that one station has shown of a request."""
    return [trace for at, trace in zip(traces[::2], traces[1::2], strict=True) if at == number]  # type: ignore[misc]


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _label(station: Station, names: Mapping[tuple[int, int], str], stations: Counter[Station]) -> str:
    log, listener, side = station
    name = names[log, listener]
    return f"{name} ({'out' if side else 'in'})" if (log, listener, 1 - side) in stations else name


class Sample(Generic[V]):
    """Holds values by id, for all ids or for a share of them that each sample of a process chooses alike."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._mask = 0
        self.values: dict[bytes, V] = {}

    @property
    def one_in(self) -> int:
        """Return of how many ids one is held."""
        return self._mask + 1

    def takes(self, key: bytes) -> bool:
        """Say whether an id is among those that are held."""
        # Python's hash has a new key in each process. With a checksum, strangers could choose ids that are all held.
        return not hash(key) & self._mask

    def put(self, key: bytes, value: V) -> None:
        """Hold a value, and halve the share while there are too many."""
        self.values[key] = value
        while len(self.values) > self._limit:
            self._mask = 2 * self._mask + 1
            self.values = {held: kept for held, kept in self.values.items() if self.takes(held)}
