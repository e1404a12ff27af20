"""What access logs say of traces: shares by route and upstream, and the first hop where a trace is lost.

A `Source` yields the lines of a log, a format of `formats` reads each, and `Analysis` counts what the lines show
(`counts`). `command` says what is wrong with the outcome, and prints it. `meshmw verify` reads its access logs by the
same formats.

Memory does not grow with the logs: a thousand pairs of route and upstream are told apart, and fifty thousand ids are
joined, of more a fair share.
"""

from __future__ import annotations

import gzip
import os
import stat
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from meshmw._tools.access_log.counts import AccessLogReport, HopLog, JoinedLogs, LineTrace, Places, Station, classify
from meshmw._tools.access_log.formats import FIRST_LINES, Format, Line, detect

MAX_LINE: Final = 1 << 18
_CHUNK: Final = 1 << 20
_GZIP: Final = b"\x1f\x8b"
_POLL: Final = 0.1
# The rank of each listener's name on a request's way. No name and `inbound` have one rank: both are what comes in. The
# operator chooses the names, and still their number is bounded.
_SIDES: Final = {"": 0, "inbound": 0}
_MAX_SIDES: Final = 50
# Envoy logs a request at its start and its end, and now and then a long one in between.
_AT_START, _IN_BETWEEN = "DownstreamStart", "DownstreamPeriodic"

OnLine = Callable[[str, Line, LineTrace], None]


class Analysis:
    """Reads logs one after the other, in the order of the way that requests take.

    Args:
        limit: Pairs of route and upstream that are told apart in each log.
        ids: Request ids, and trace ids, that are joined.
        on_line: Takes the end of each request: the hop, the fields, what they show.
    """

    def __init__(self, limit: int = 1000, ids: int = 50_000, on_line: OnLine | None = None) -> None:
        self._limit = limit
        self._joined = JoinedLogs(ids)
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
            more: Says, when it is asked at the end, whether more may come.
            progress: Is called now and then.

        Raises:
            ValueError: Its format could not be found out.
        """
        log = HopLog(source.name, places=Places(self._limit))
        self._logs.append(log)
        for known, texts in _batches(source, reader, more):
            progress()
            self._count(log, known, texts)
            reader = known
        log.broken += source.cut
        log.lines += source.cut
        log.fault = source.fault
        if reader is not None:
            log.logs_traceparent = "traceparent" in reader.names
        return log

    def report(self) -> AccessLogReport:
        """Return what has been read so far."""
        return AccessLogReport(tuple(self._logs), self._joined.crossings(self._names), self._joined.one_in)

    def _count(self, log: HopLog, reader: Format, texts: list[str]) -> None:
        read, log.lines = reader.read, log.lines + len(texts)
        refusals: Counter[str] = Counter()
        for text in texts:
            fields = read(text)
            if isinstance(fields, str):
                refusals[fields] += 1
            else:
                self._count_line(log, fields)
        log.broken += refusals["broken"]
        log.ambiguous += refusals["ambiguous"]

    def _count_line(self, log: HopLog, fields: Line) -> None:
        phase = fields.get("type")
        if phase == _IN_BETWEEN:
            return
        trace = classify(fields)
        if phase != _AT_START:
            log.places.add(trace, fields)
            if self._on_line is not None:
                self._on_line(log.name, fields, trace)
        if trace.kind == "refused":
            return
        request_id = fields.get("request_id", "")
        self._joined.add(
            self._station(log.name, fields, phase == _AT_START),
            "" if request_id == "-" else request_id,
            _trace_id(trace, fields),
            sampled=trace.parent is not None and trace.parent.sampled,
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


def _batches(source: Source, reader: Format | None, more: Callable[[], bool]) -> Iterator[tuple[Format, list[str]]]:
    """Yield the lines that are not empty with their format, which the first of them tell where it is not known."""
    waiting: list[str] = []
    for lines in source.lines(more):
        waiting += [line.decode("utf-8", "surrogateescape") for line in lines if line.strip()]
        if reader is None and len(waiting) < FIRST_LINES:
            continue
        reader = reader or _detect_format(source.name, waiting)
        yield reader, waiting
        waiting = []
    if waiting:
        yield _detect_format(source.name, waiting), waiting


def _detect_format(name: str, lines: list[str]) -> Format:
    found = detect(lines)
    if found is None:
        raise ValueError(f"{name}: its format is none that is known; give the proxy's own format string with --format")
    return found


def side_of(fields: Line) -> str:
    """Return the listener that logged a line, or the direction that Istio puts before a cluster's name."""
    if listener := fields.get("listener", ""):
        return listener[:100]
    direction = fields.get("cluster", "").partition("|")[0]
    return direction if direction in ("inbound", "outbound") else ""


def _trace_id(trace: LineTrace, fields: Line) -> str:
    if trace.parent is not None:
        return f"{trace.parent.trace_id:032x}"
    # Where a proxy traces by B3 alone, only this field names its trace.
    own = fields.get("trace_id", "-")
    return own.rjust(32, "0") if len(own) in (16, 32) else ""


def open_source(path: Path, name: str | None = None) -> Source:
    """Open a file, compressed or not.

    Raises:
        OSError: It cannot be opened.
    """
    file = path.open("rb")
    about = os.fstat(file.fileno())
    size = about.st_size
    if file.peek(2)[:2] == _GZIP:
        unpacked: IO[bytes] = gzip.GzipFile(fileobj=file)  # type: ignore[assignment]
        return Source(name or path.name, unpacked, size, raw=file)
    return Source(name or path.name, file, size, path if stat.S_ISREG(about.st_mode) else None, raw=file)


@dataclass
class Source:
    """Reads the lines of one log, which may be long, compressed, hostile, or still growing.

    A line of much more than `MAX_LINE` bytes is left out and counted, so that memory is bounded.

    Attributes:
        name: What it is called in a report.
        stream: Where its bytes come from, decompressed.
        size: Bytes on disk, for a progress display; 0 where that is not known.
        path: The file, where there is one that can be followed.
        cut: Lines that were left out because they were too long.
        fault: Why reading ended before the end; empty if it did not.
        raw: The file itself, where there is one.
    """

    name: str
    stream: IO[bytes]
    size: int = 0
    path: Path | None = None
    cut: int = 0
    fault: str = ""
    raw: IO[bytes] | None = None

    @property
    def position(self) -> int:
        """Return how many bytes of the file have been read; 0 of what has no size, such as a pipe."""
        return self.raw.tell() if self.raw is not None and self.size else 0

    def close(self) -> None:
        """Close the file; standard input stays open."""
        if self.raw is not None:
            self.raw.close()

    def lines(self, more: Callable[[], bool] = lambda: False) -> Iterator[list[bytes]]:
        """Yield the lines without their newlines, many at a time.

        Args:
            more: Says, when it is asked at the end, whether more may come; while it does, an empty list is yielded now
                and then.
        """
        rest, overlong = b"", False
        while True:
            chunk = self._chunk()
            if not chunk:
                if self.fault or not more():
                    break
                time.sleep(_POLL)
                self._reopen_if_replaced()
                yield []
                continue
            *whole, rest = (rest + chunk).split(b"\n")
            if overlong and whole:
                whole, overlong = whole[1:], False
            if len(rest) > MAX_LINE:
                self.cut += not overlong
                rest, overlong = b"", True
            yield whole
        if rest and not overlong:
            yield [rest]

    def _chunk(self) -> bytes:
        try:
            # `read1` returns what is there now, so that a pipe that is slow to fill shows its lines.
            read = getattr(self.stream, "read1", self.stream.read)
            found: bytes = read(_CHUNK)
        except (OSError, EOFError, zlib.error) as error:
            self.fault = f"{type(error).__name__}: {error}"
            return b""
        return found

    def _reopen_if_replaced(self) -> None:
        """Go on with the new file where a log was rotated, and from the start where it was truncated."""
        if self.path is None:
            return
        try:
            now, ours = self.path.stat(), os.fstat(self.stream.fileno())
            is_new = (now.st_ino, now.st_dev) != (ours.st_ino, ours.st_dev)
            # The new file may be gone again, or not readable yet.
            opened = self.path.open("rb") if is_new else None
        except OSError:
            return
        if opened is not None:
            self.stream.close()
            self.stream = self.raw = opened
        elif now.st_size < self.stream.tell():
            self.stream.seek(0)
