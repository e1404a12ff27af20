"""What access logs say of traces: shares by route and upstream, and the first hop where a trace is lost.

A `Source` yields the lines of a log, and an `Envelope` takes off what a container runtime has put around them
(`source`). A format reads a block of lines into rows (`formats`, `json_lines`, `rows`), and `Analysis` counts equal
rows together (`counts`) and joins those of several logs (`joins`). `command` says what is wrong with the outcome, and
prints it. `meshmw verify` reads its access logs by the same formats.

Memory does not grow with the logs: a thousand pairs of route and upstream are told apart, and fifty thousand ids are
joined, of more a fair share. Nothing is joined where one log has one kind of line.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from meshmw._tools.access_log.counts import (
    AccessLogReport,
    HopLog,
    LineTrace,
    Places,
    classify,
    generalized,
    is_another_trace,
    trace_id_of,
)
from meshmw._tools.access_log.formats import FIRST_LINES, Format, best_of, known_formats
from meshmw._tools.access_log.joins import JoinedLogs, Station
from meshmw._tools.access_log.rows import COUNTED, PLACE, Block, Line, Row, Shape
from meshmw._tools.access_log.source import ENVELOPES, MAX_LINE, Envelope, Source, open_source

__all__ = ["MAX_LINE", "Analysis", "Envelope", "OnLine", "Source", "open_source", "recognize", "side_of"]

# The rank of each listener's name on a request's way. No name and `inbound` have one rank: both are what comes in. The
# operator chooses the names, and still their number is bounded.
_SIDES: Final = {"": 0, "inbound": 0}
_MAX_SIDES: Final = 50
# Listeners and clusters in one log whose station is remembered, and kinds of rows that are counted together.
_MOST_PLACES: Final = 10_000
_MOST_ALIKE: Final = 10_000
# Envoy logs a request at its start and its end, and now and then a long one in between.
_AT_START, _IN_BETWEEN = "DownstreamStart", "DownstreamPeriodic"
# A container's log begins with what the program says of itself: so much is looked through for a line that is known.
_MOST_FIRST_LINES, _MOST_FIRST_BYTES = 20_000, 1 << 23
# A longer line is none that tells a format.
_TELLS_FORMAT: Final = 1 << 14
# Rows of so many shapes are kept, for the case that a second kind of line comes to be joined with them.
_KEPT: Final = 4

OnLine = Callable[[str, Line, LineTrace], None]


class Analysis:
    """Reads logs one after the other, in the order of the way that requests take.

    Args:
        limit: Pairs of route and upstream that are told apart in each log.
        ids: Request ids, and trace ids, that are joined.
        on_line: Takes the ends of equal requests, once for each block of lines: the hop, the fields, what they show.
        alone: Whether only one log will be read.
    """

    def __init__(
        self, limit: int = 1000, ids: int = 50_000, on_line: OnLine | None = None, *, alone: bool = False
    ) -> None:
        self._limit = limit
        self._joined = JoinedLogs(ids)
        self._joins = not alone
        self._kept: deque[tuple[Shape, list[Row], int]] = deque(maxlen=_KEPT)
        self._on_line = on_line
        self._logs: list[HopLog] = []
        self._names: dict[tuple[int, int], str] = {}
        self._sides: dict[str, int] = dict(_SIDES)
        self._stations: dict[Row, Station | None] = {}
        self._alike: Counter[tuple[bytes, Row]] = Counter()

    def read(
        self,
        source: Source,
        reader: Format | None = None,
        more: Callable[[], bool] = lambda: False,
        progress: Callable[[], None] = lambda: None,
    ) -> HopLog:
        """Read one log to its end.

        Args:
            source: The log.
            reader: Its format, or None to find it out from its first lines.
            more: Says, when it is asked at the end, whether more may come.
            progress: Is called now and then.

        Raises:
            ValueError: Its format could not be found out.
        """
        log = HopLog(source.name, places=Places(self._limit))
        self._logs.append(log)
        self._stations.clear()
        cut = 0
        for known, block in _blocks(source, reader, more):
            progress()
            cut, log.source, log.keys = known.cut, known.source, known.keys
            self._count(log, block, cut)
        self._count_alike(log, cut)
        log.broken += source.cut
        log.lines += source.cut
        log.fault = source.fault
        return log

    def report(self) -> AccessLogReport:
        """Return what has been read so far."""
        return AccessLogReport(tuple(self._logs), self._joined.crossings(self._names), self._joined.one_in)

    def _count(self, log: HopLog, block: Block, cut: int) -> None:
        log.lines += block.lines
        log.broken += block.refused["broken"]
        log.ambiguous += block.refused["ambiguous"]
        log.names |= block.names
        for shape, rows in block.rows:
            paths = generalized(list(map(shape.path, rows)))
            self._alike.update(zip(paths, map(shape.counted, rows), strict=True))
            if shape.own is not None:
                _compare(log, map(shape.own, rows))
            self._join_or_keep(shape, rows, cut)
        if len(self._alike) > _MOST_ALIKE or self._on_line is not None:
            self._count_alike(log, cut)

    def _count_alike(self, log: HopLog, cut: int) -> None:
        for (path, key), number in self._alike.items():
            self._count_rows(log, path, key, number, cut)
        self._alike.clear()

    def _count_rows(self, log: HopLog, path: bytes, key: Row, number: int, cut: int) -> None:
        fields = {name: _text(value) for name, value in zip(COUNTED, key, strict=True) if value}
        # What a format prints, and a line has no value for.
        fields |= {name: fields.get(name, "-") for name in ("method",) if name in log.names}
        if path or "path" in log.names:
            fields["path"] = _text(path) or "-"
        trace = classify(fields, cut)
        phase = fields.get("type")
        if phase == _IN_BETWEEN:
            return
        if trace.kind == "tcp":
            log.tcp += number
            return
        if trace.kind != "refused":
            self._joined.stations[self._station(log.name, fields)] += number
        if phase != _AT_START:
            log.places.add(trace, fields, number)
            if self._on_line is not None:
                self._on_line(log.name, fields, trace)

    def _join_or_keep(self, shape: Shape, rows: list[Row], cut: int) -> None:
        self._remember(shape, rows)
        if not self._joins and len({*self._stations.values()} - {None}) > 1:
            self._joins = True
            for kept in self._kept:
                self._remember(*kept[:2])
                self._join(*kept)
            self._remember(shape, rows)
        if self._joins:
            self._join(shape, rows, cut)
        else:
            self._kept.append((shape, rows, cut))

    def _join(self, shape: Shape, rows: list[Row], cut: int) -> None:
        stations, add = self._stations, self._joined.add
        for kind, listener, cluster, request_id, trace, flag, parent, own in map(shape.joined, rows):
            station = stations[kind, listener, cluster]
            trace = trace or trace_id_of(parent, own, cut)
            if station is not None and (trace or request_id not in _NO_ID):
                add(station, b"" if request_id in _NO_ID else request_id, trace, _SAMPLED.get(flag))

    def _remember(self, shape: Shape, rows: list[Row]) -> None:
        places = set(map(shape.place, rows))
        if len(self._stations) + len(places) > _MOST_PLACES:
            self._stations.clear()
        for place in places - self._stations.keys():
            fields = {name: _text(value) for name, value in zip(PLACE, place, strict=True)}
            is_counted = fields["type"] != _IN_BETWEEN and not fields["type"].startswith("Tcp")
            self._stations[place] = self._station(self._logs[-1].name, fields) if is_counted else None

    def _station(self, name: str, fields: Line) -> Station:
        side = side_of(fields)
        rank = self._sides.get(side)
        if rank is None:
            rank = len(self._sides)
            if rank < _MAX_SIDES:
                self._sides[side] = rank
        place = (len(self._logs) - 1, rank)
        if place not in self._names:
            self._names[place] = f"{name} {side}" if side not in ("", name) else name
        return (*place, 0 if fields.get("type") == _AT_START else 1)


def _compare(log: HopLog, traces: Iterable[Row]) -> None:
    for trace, own in traces:
        if trace != own and is_another_trace(trace, own):
            log.other_traces += 1
            log.other_example = log.other_example or (_text(trace), _text(own))


_NO_ID: Final = (b"", b"-")
_SAMPLED: Final = {b"%x" % digit: bool(digit & 1) for digit in range(16)}


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _blocks(source: Source, reader: Format | None, more: Callable[[], bool]) -> Iterator[tuple[Format, Block]]:
    """Yield what the lines hold with their format, which the first of them tell where it is not known."""
    waiting: list[bytes] = []
    envelope: Envelope | None = None
    wanted, tried = FIRST_LINES if reader is None else 1, 0
    for text in source.blocks(more):
        if envelope is not None and reader is not None:
            yield reader, reader.read_block(envelope.unwrapped(text))
            continue
        waiting += [line for line in text.split(b"\n") if line.strip()]
        # Where nothing more comes for now, what there is has to do.
        if len(waiting) == tried or (text and len(waiting) < wanted):
            continue
        tried = len(waiting)
        found = recognize(waiting, reader)
        if found is None:
            wanted *= 4
            if len(waiting) <= _MOST_FIRST_LINES and sum(map(len, waiting)) <= _MOST_FIRST_BYTES:
                continue
            if reader is None:
                break
            found = Envelope(), reader
        envelope, reader = found
        yield reader, reader.read_block(envelope.unwrapped(b"\n".join(waiting)))
        waiting = []
    if waiting:
        found = recognize(waiting, reader) or (None if reader is None else (Envelope(), reader))
        if found is None:
            raise ValueError(
                f"{source.name}: its format is none that is known; give the proxy's own format string with --format"
            )
        envelope, reader = found
        yield reader, reader.read_block(envelope.unwrapped(b"\n".join(waiting)))
    if envelope is not None and reader is not None:
        source.cut += envelope.cut
        yield reader, reader.read_block(b"\n".join(envelope.rest()))


def recognize(lines: list[bytes], reader: Format | None) -> tuple[Envelope, Format] | None:
    """Return what the lines are wrapped in, and their format; None where they are in no format that is known."""
    best: tuple[int, Envelope, Format] | None = None
    sample = [line for line in lines[-FIRST_LINES:] if len(line) < _TELLS_FORMAT]
    for kind in ENVELOPES:
        envelope = kind()
        unwrapped = [*envelope.unwrap(sample), *envelope.rest()]
        found = best_of(known_formats() if reader is None else [reader], unwrapped)
        if found is not None and (best is None or found[0] > best[0]):
            best = (found[0], kind(), found[1])
        if best is not None and 2 * best[0] > len(sample):
            break
    return None if best is None else best[1:]


def side_of(fields: Line) -> str:
    """Return the listener that logged a line, or the direction that Istio puts before a cluster's name."""
    if listener := fields.get("listener", ""):
        return listener[:100]
    direction = fields.get("cluster", "").partition("|")[0]
    return direction if direction in ("inbound", "outbound") else ""
