"""The hops of a probe as the proxies' access logs show them, with the applications between them.

Of a log, only what is appended after `LogTail` was made is taken for the probe's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from meshmw._tools.access_log import Envelope, recognize, side_of
from meshmw._tools.access_log.counts import classify
from meshmw._tools.access_log.formats import Format
from meshmw._tools.access_log.rows import Line
from meshmw._tools.verify.journey import HEADERS, Hop
from meshmw._tools.verify.probe import AGENT, Probe

# Bytes of a log from before the probe, which show its format.
_BEFORE: Final = 1 << 16
# Bytes that are read at once.
_AT_ONCE: Final = 1 << 24
# Istio: pilot/pkg/networking/util; Envoy Gateway: internal/gatewayapi; Consul: agent/xds.
_CLUSTERS: Final = {
    "istio": re.compile(r"(in|out)bound(-vip)?\||(Inbound)?PassthroughCluster|BlackHoleCluster"),
    "envoy-gateway": re.compile(r"(http|grpc|tls|tcp)route/"),
    "consul": re.compile(r"local_app$|.{1,253}\.consul$"),
}
_COLUMNS: Final = {name: name.replace("-", "_") for name in HEADERS}


class LogTail:
    """Reads what is appended to one access log from now on, without what a container runtime puts around its lines.

    Args:
        name: The hop.
        path: The file; it need not exist yet.
        reader: Its format, or None to find it out.

    Raises:
        OSError: It is there and cannot be read.
    """

    def __init__(self, name: str, path: Path, reader: Format | None = None) -> None:
        self.name = name
        self.path = path
        self._reader = reader
        self._file, self._position = _identity(path)
        self._known: tuple[Envelope, Format] | None = None
        self._waiting: list[bytes] = []
        self._found: list[Line] = []
        self._before = self._read_before()

    @property
    def lines(self) -> list[Line]:
        """Return the lines that have been appended and can be read."""
        new = self._read_new()
        if self._found and self._known is not None:
            self._found += _read(self._known, new)
            return self._found
        # Until a line could be read, what the log says first may have been another program's.
        self._waiting += new
        if new:
            self._known = recognize([*self._before, *self._waiting], self._reader)
            self._found = [] if self._known is None else _read(self._known, self._waiting)
        return self._found

    @property
    def prints_traceparent(self) -> bool:
        """Says whether the format has the header at all, as far as the log has shown."""
        known = self._known or recognize(self._before, self._reader)
        if known is None:
            return True
        if (names := set(known[1].names)) and known[1].source != "json":
            return "traceparent" in names
        # JSON prints what its lines hold.
        seen = {name for line in (*self._found, *_read((type(known[0])(), known[1]), self._before)) for name in line}
        return not seen or "traceparent" in seen

    @property
    def is_unreadable(self) -> bool:
        """Says whether lines came and none of them could be read."""
        return bool(self._waiting) and not self._found

    @property
    def product(self) -> str:
        """Return `nginx` where its own variables make the format; else nothing."""
        return "nginx" if self._known is not None and "$" in self._known[1].source else ""

    def _read_before(self) -> list[bytes]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(max(0, self._position - _BEFORE))
            found = file.read(min(_BEFORE, self._position))
        # The first line may not be whole.
        return _lines(found)[self._position > _BEFORE :]

    def _read_new(self) -> list[bytes]:
        found, size = _identity(self.path)
        if not found:
            return []
        if found != self._file or size < self._position:
            # It is new, or was rotated or emptied meanwhile.
            self._file, self._position = found, 0
        with self.path.open("rb") as file:
            file.seek(self._position)
            new = file.read(_AT_ONCE)
        # The last line may not be whole yet.
        whole = new[: new.rfind(b"\n") + 1]
        self._position += len(whole)
        return _lines(whole)


def _identity(path: Path) -> tuple[tuple[int, int] | None, int]:
    """Return what tells a file from the one that replaces it, and its size."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return None, 0
    return (about.st_dev, about.st_ino), about.st_size


def _lines(text: bytes) -> list[bytes]:
    return [line for line in text.split(b"\n") if line.strip()]


def _read(known: tuple[Envelope, Format], lines: Iterable[bytes]) -> list[Line]:
    envelope, reader = known
    unwrapped = envelope.unwrap(lines)
    # A header that is null in one line of JSON is one that was looked at and was not there.
    printed = dict.fromkeys(reader.read_block(b"\n".join(unwrapped)).names & set(_COLUMNS.values()), "-")
    found = (reader.read(line.decode("utf-8", "surrogateescape")) for line in unwrapped)
    return [{**printed, **fields} for fields in found if not isinstance(fields, str)]


def probe_hops(tails: Sequence[LogTail], probe: Probe, *, alone: bool = False) -> list[Hop]:
    """Return the hops of the probe that the logs show, in the order of the way, with the applications between them.

    Args:
        tails: The logs, in the order of the way.
        probe: The request.
        alone: Whether nothing else uses the mesh, so that every new line is the probe's.
    """
    lines = [(tail.name, side_of(line), line) for tail in tails for line in tail.lines]
    mine = _with_callees([each for each in lines if alone] or _matching(lines, probe))
    products = {tail.name: tail.product for tail in tails}
    order = {tail.name: index for index, tail in enumerate(tails)}
    places = dict.fromkeys((name, side) for name, side, _ in mine)
    # Where one listener is the inbound one, all others are for the application's own calls.
    ranked = sorted(places, key=lambda place: (order[place[0]], place[1] != "inbound"))
    proxies = {
        place: _hop_at(place, [line for *at, line in mine if tuple(at) == place], products[place[0]])
        for place in ranked
    }
    return list(_with_applications(proxies))


def _with_callees(lines: Sequence[tuple[str, str, Line]]) -> list[tuple[str, str, Line]]:
    """Tell the calls to several services apart where, as in Istio, one word stands for all that goes out."""
    hosts: dict[str, set[str]] = defaultdict(set)
    for name, side, line in lines:
        if side == "outbound":
            hosts[name].add(_host(line))
    return [
        (name, f"{side} {_host(line)}".strip() if side == "outbound" and len(hosts[name]) > 1 else side, line)
        for name, side, line in lines
    ]


def _host(line: Line) -> str:
    return line.get("cluster", "").rpartition("|")[2].partition(".")[0][:100]


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
    ids = [_ids(line) for _, _, line in lines]
    lines_with: dict[str, list[int]] = defaultdict(list)
    for index, each in enumerate(ids):
        for name in each:
            lines_with[name].append(index)
    waiting, chosen = [probe.agent, probe.request_id, probe.trace_id], set[int]()
    while waiting:
        # Each id is followed once: strangers decide how many lines lead to one another.
        for index in lines_with.pop(waiting.pop(), ()):
            if index not in chosen:
                chosen.add(index)
                waiting += ids[index]
    return [lines[index] for index in sorted(chosen)]


def _ids(line: Line) -> set[str]:
    parent = classify(line).parent
    found = {line.get("request_id", "-"), line.get("trace_id", "-")}
    if parent is not None:
        found.add(f"{parent.trace_id:032x}")
    # Any other user agent may be that of many requests.
    if (agent := line.get("user_agent", "")).startswith(AGENT):
        found.add(agent)
    return found - {"-", ""}


def _hop_at(place: tuple[str, str], lines: Sequence[Line], product: str) -> Hop:
    name, side = place
    received: dict[str, str | None] = {}
    sent: dict[str, str | None] = {}
    trace_id = note = ""
    for line in lines:
        if line.get("type") == "DownstreamStart":
            received = received or _headers_in(line)
        elif line.get("type") != "DownstreamPeriodic":
            sent = sent or _headers_in(line)
            trace_id = trace_id or line.get("trace_id", "-").strip("-")
            note = note or _refusal_note(line)
    full = f"{name} {side}" if side and side != name else name
    product = product or next(filter(None, map(_product, lines)), "")
    return Hop(name=full, kind="proxy", received=received, sent=sent, trace_id=trace_id, note=note, product=product)


def _product(line: Line) -> str:
    """Return which product names its clusters so; `envoy` for any other line that only Envoy writes."""
    cluster = line.get("cluster", "")
    for product, pattern in _CLUSTERS.items():
        if pattern.match(cluster):
            return product
    return "envoy" if "type" in line or "details" in line else ""


def _headers_in(line: Line) -> dict[str, str | None]:
    """Return the trace headers that a line shows; of one that the format does not print, nothing is known."""
    found: dict[str, str | None] = {}
    for name, column in _COLUMNS.items():
        if column in line or name == "traceparent":
            value = line.get(column, "-")
            found[name] = None if value == "-" else value
    return found


def _refusal_note(line: Line) -> str:
    code, details = line.get("code", ""), line.get("details", "-")
    return f"answered {code} ({details})" if code[:1] in ("4", "5") or code == "0" else ""
