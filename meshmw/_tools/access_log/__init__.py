"""What access logs say of traces: shares per route and upstream, and the first hop where a trace is lost.

 Memory does not grow with the logs: a
thousand pairs of route and upstream are told apart, fifty thousand ids are joined, of more a fair share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from meshmw._tools.access_log.counts import AccessLogReport, HopLog, Places, Seen, classify
from meshmw._tools.access_log.formats import Line
from meshmw._tools.access_log.hops import Hops, Station
from meshmw._tools.access_log.lines import FIRST_LINES, Format, Source, detect

_SIDES: Final = {"": 0, "inbound": 0}
_MAX_SIDES: Final = 50
_FIRST, _LAST = "DownstreamStart", "DownstreamPeriodic"

OnLine = Callable[[str, Line, Seen], None]


class Analysis:
    """Reads logs one after the other, in the order of the way that requests take.

    Args:
        limit: Pairs of route and upstream that are told apart in each log.
        ids: Request ids, and trace ids, that are joined.
        on_line: Is told of every request's end: the hop, the fields, what they show.
    """

    def __init__(self, limit: int = 1000, ids: int = 50_000, on_line: OnLine | None = None) -> None:
        self._limit = limit
        self._hops = Hops(ids)
        self._on_line = on_line
        self._logs: list[HopLog] = []
        self._names: dict[tuple[int, int], str] = {}
        self._sides: dict[str, int] = dict(_SIDES)

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
            more: Is asked at the end whether more may come.
            progress: Is called now and then.

        Raises:
            ValueError: Its format could not be found out.
        """
        log = HopLog(source.name, places=Places(self._limit))
        self._logs.append(log)
        waiting: list[str] = []
        for lines in source.lines(more):
            progress()
            texts = [line.decode("utf-8", "surrogateescape") for line in lines if line.strip()]
            if reader is None:
                waiting += texts
                if len(waiting) < FIRST_LINES:
                    continue
                reader, texts, waiting = self._format_of(waiting, source), waiting, []
            self._take(log, reader, texts)
        if reader is None and waiting:
            reader = self._format_of(waiting, source)
            self._take(log, reader, waiting)
        log.broken += source.cut
        log.lines += source.cut
        log.fault = source.fault
        if reader is not None:
            log.format, log.logs_traceparent = reader.source, "traceparent" in reader.names
        return log

    def report(self) -> AccessLogReport:
        """Return what has been read so far."""
        return AccessLogReport(tuple(self._logs), self._hops.crossings(self._names), self._hops.one_in)

    @staticmethod
    def _format_of(lines: list[str], source: Source) -> Format:
        found = detect(lines)
        if found is None:
            raise ValueError(
                f"{source.name}: its format is none that is known; give the proxy's own format string with --format"
            )
        return found

    def _take(self, log: HopLog, reader: Format, texts: list[str]) -> None:
        read, log.lines = reader.read, log.lines + len(texts)
        refusals: Counter[str] = Counter()
        for text in texts:
            fields = read(text)
            if isinstance(fields, str):
                refusals[fields] += 1
            else:
                self._take_fields(log, fields)
        log.broken += refusals["broken"]
        log.ambiguous += refusals["ambiguous"]

    def _take_fields(self, log: HopLog, fields: Line) -> None:
        phase = fields.get("type")
        if phase == _LAST:
            return
        seen = classify(fields)
        if phase != _FIRST:
            log.places.add(seen, fields)
            if self._on_line is not None:
                self._on_line(log.name, fields, seen)
        if seen.kind == "refused":
            return
        request_id = fields.get("request_id", "")
        trace_id = _trace_id(seen, fields)
        sampled = seen.parent is not None and seen.parent.sampled
        self._hops.add(
            self._station(log.name, fields, phase == _FIRST), "" if request_id == "-" else request_id, trace_id, sampled
        )

    def _station(self, name: str, fields: Line, start: bool) -> Station:
        side = side_of(fields)
        rank = self._sides.get(side)
        if rank is None:
            rank = len(self._sides)
            if rank < _MAX_SIDES:
                self._sides[side] = rank
        place = (len(self._logs) - 1, rank)
        if place not in self._names:
            self._names[place] = f"{name} {side}" if side not in ("", name) else name
        return (*place, 0 if start else 1)


def side_of(fields: Line) -> str:
    """Return the listener that logged a line, or the direction that Istio puts before a cluster's name."""
    if listener := fields.get("listener", ""):
        return listener[:100]
    direction = fields.get("cluster", "").partition("|")[0]
    return direction if direction in ("inbound", "outbound") else ""


def _trace_id(seen: Seen, fields: Line) -> str:
    if seen.parent is not None:
        return f"{seen.parent.trace_id:032x}"
    # A proxy that traces by B3 alone tells its trace here.
    own = fields.get("trace_id", "-")
    return own.rjust(32, "0") if len(own) in (16, 32) else ""
