"""What the proxies' access logs say of one request.

Knows access logs and hops. Must not know how a verdict is reached. Of a log, only what was appended since the probe
began is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from meshmw.diagnose.access_log import side_of
from meshmw.diagnose.access_log_counts import classify
from meshmw.diagnose.access_log_detect import Format, detect
from meshmw.diagnose.access_log_format import Line
from meshmw.diagnose.journey import HEADERS, Hop
from meshmw.diagnose.verify_probe import AGENT, Probe

_BEFORE: Final = 1 << 16
_AT_ONCE: Final = 1 << 24
_COLUMNS: Final = {name: name.replace("-", "_") for name in HEADERS}


class LogTail:
    """Reads what is appended to one access log from now on.

    Args:
        name: The hop.
        path: The file; it need not exist yet.
        reader: Its format, or None to find it out.

    Raises:
        OSError: It is there and cannot be read.
    """

    def __init__(self, name: str, path: Path, reader: Format | None = None) -> None:
        self.name = name
        self._path = path
        self._reader = reader
        self._position = path.stat().st_size if path.exists() else 0
        self._lines: list[str] = []
        self._before = self._read_before()

    @property
    def lines(self) -> list[Line]:
        """The lines that have been appended and can be read."""
        self._read_new()
        reader = self._reader or detect([*self._lines, *self._before])
        if reader is None:
            return []
        found = [reader.read(line) for line in self._lines]
        return [fields for fields in found if not isinstance(fields, str)]

    @property
    def prints_traceparent(self) -> bool:
        """Says whether the format has the header at all."""
        reader = self._reader or detect([*self._lines, *self._before])
        return reader is None or "traceparent" in reader.names

    def _read_before(self) -> list[str]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(max(0, self._position - _BEFORE))
            return _lines(file.read(_BEFORE))[1:]

    def _read_new(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            new = file.read(_AT_ONCE)
        # The last line may still be on its way.
        whole = new[: new.rfind(b"\n") + 1]
        self._position += len(whole)
        self._lines += _lines(whole)


def _lines(text: bytes) -> list[str]:
    return [line for line in text.decode("utf-8", "surrogateescape").split("\n") if line.strip()]


def probe_hops(tails: Sequence[LogTail], probe: Probe, *, alone: bool = False) -> list[Hop]:
    """Return the hops of the probe that the logs show, in the order of the way, with the applications between them.

    Args:
        tails: The logs, in the order of the way.
        probe: The request.
        alone: Whether nothing else uses the mesh, so that every new line is the probe's.
    """
    lines = [(tail.name, side_of(line), line) for tail in tails for line in tail.lines]
    mine = [each for each in lines if alone] or _matching(lines, probe)
    order = {tail.name: index for index, tail in enumerate(tails)}
    places = dict.fromkeys((name, side) for name, side, _ in mine)
    # Where one listener is the inbound one, all others are for the application's own calls.
    ranked = sorted(places, key=lambda place: (order[place[0]], place[1] != "inbound"))
    proxies = {place: _hop_at(place, [line for *at, line in mine if tuple(at) == place]) for place in ranked}
    return list(_with_applications(proxies))


def _with_applications(proxies: Mapping[tuple[str, str], Hop]) -> Iterator[Hop]:
    """Put an application behind each inbound listener: it got what that sent, and sent what the outbound one got."""
    for (name, side), hop in proxies.items():
        yield hop
        if side == "inbound":
            outbound = next((other for place, other in proxies.items() if place[0] == name and other is not hop), None)
            sent = {} if outbound is None else outbound.received
            yield Hop(name=f"{name} application", kind="app", received=hop.sent, sent=sent)


def _matching(lines: Sequence[tuple[str, str, Line]], probe: Probe) -> list[tuple[str, str, Line]]:
    """Return the lines that share an id with the probe, or with a line that does, in as many steps as it takes."""
    known = {probe.agent, probe.request_id, probe.trace_id}
    chosen: dict[int, tuple[str, str, Line]] = {}
    grew = True
    while grew:
        grew = False
        for index, each in enumerate(lines):
            ids = _ids(each[2])
            if index not in chosen and ids & known:
                chosen[index] = each
                known |= ids
                grew = True
    return [chosen[index] for index in sorted(chosen)]


def _ids(line: Line) -> set[str]:
    parent = classify(line).parent
    found = {line.get("request_id", "-"), line.get("trace_id", "-")}
    if parent is not None:
        found.add(f"{parent.trace_id:032x}")
    # An application's own user agent is everybody's.
    if (agent := line.get("user_agent", "")).startswith(AGENT):
        found.add(agent)
    return found - {"-", ""}


def _hop_at(place: tuple[str, str], lines: Iterable[Line]) -> Hop:
    name, side = place
    received: dict[str, str | None] = {}
    sent: dict[str, str | None] = {}
    trace_id = note = ""
    for line in lines:
        if line.get("type") == "DownstreamStart":
            received = received or _headers(line)
        elif line.get("type") != "DownstreamPeriodic":
            sent = sent or _headers(line)
            trace_id = trace_id or line.get("trace_id", "-").strip("-")
            note = note or _note(line)
    full = f"{name} {side}" if side and side != name else name
    return Hop(name=full, kind="proxy", received=received, sent=sent, trace_id=trace_id, note=note)


def _headers(line: Line) -> dict[str, str | None]:
    """Return the trace headers that a line shows; those that the format has not are not known to be absent."""
    found: dict[str, str | None] = {}
    for name, column in _COLUMNS.items():
        if column in line or name == "traceparent":
            value = line.get(column, "-")
            found[name] = None if value == "-" else value
    return found


def _note(line: Line) -> str:
    code, details = line.get("code", ""), line.get("details", "-")
    return f"answered {code} ({details})" if code[:1] in ("4", "5") or code == "0" else ""
