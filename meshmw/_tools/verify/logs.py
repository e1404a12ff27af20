"""The hops of a probe as the proxies' access logs show them, with the applications between them.

Of a log, only what is appended after `LogTail` was made is taken for the probe's.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from meshmw._tools.access_log import Envelope, recognize, side_of
from meshmw._tools.access_log.counts import classify
from meshmw._tools.access_log.formats import Format
from meshmw._tools.access_log.rows import Line
from meshmw._tools.verify.journey import HEADERS, Hop, name_of_call, name_of_place, trace_of
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
# Calls of one listener that are told apart: strangers decide how many there are.
_MAX_CALLS: Final = 16
# How a hop's note ends that says how many more there are.
NOT_LOOKED_AT: Final = " are not looked at"
# A span id in traceparent or B3, which tells calls apart that are alike otherwise.
_SPAN_ID: Final = re.compile("-[0-9a-f]{16}(?=-|$)")
# Details of answers of which something came from the application, or would have: any other was the proxy's own, and the
# application behind it got nothing. Envoy: source/common/stream_info; many more details come from its filters.
_ARRIVED: Final = re.compile(
    r"-?$|via_upstream|internal_redirect|response_payload_too_large|filter_removed_required_response_headers|"
    r"(upstream_)?response_timeout|upstream_per_try_(idle_)?timeout|upstream_max_stream_duration_reached|"
    r"upstream_reset_after_response_started|"
    r"upstream_reset_before_response_started\{(connection_termination|(remote|local)_reset|protocol_error)|"
    r"(stream_idle|max_duration|request_overall)_timeout|duration_timeout|downstream_(remote|local)_disconnect"
)
# Those who ask whether it is there, or for its metrics, take part in no trace, even where nothing else uses the mesh.
_HEALTH_CHECKS: Final = re.compile(
    r"Envoy/HC|kube-probe/|ELB-HealthChecker/|GoogleHC/|Consul Health Check|Amazon-Route53-Health-Check|Prometheus/|"
    r"Blackbox Exporter/"
)


class _Call(NamedTuple):
    """Holds one call of a listener, and whether an application behind it got it, as far as is known."""

    hop: Hop
    arrived: bool


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
        self._printed: dict[str, set[str]] = defaultdict(set)
        self._before = self._read_before()

    @property
    def lines(self) -> list[Line]:
        """Return the lines that have been appended and can be read."""
        new = self._read_new()
        if self._found and self._known is not None:
            self._found += _read(self._known, new, self._printed)
            return self._found
        # Until a line could be read, what the log says first may have been another program's.
        self._waiting += new
        if new:
            self._known = recognize([*self._before, *self._waiting], self._reader)
            self._found = [] if self._known is None else _read(self._known, self._waiting, self._printed)
        return self._found

    @property
    def printed(self) -> Mapping[str, set[str]]:
        """Return which fields the lines of each listener have, with a value or without, as far as the log has shown.

        A header that is null in one line is one that was looked at and was not there. Of one that no line of a listener
        has, nothing is known.
        """
        known = self._known or recognize(self._before, self._reader)
        found: dict[str, set[str]] = defaultdict(set)
        if known is not None and self._before:
            _read((type(known[0])(), known[1]), self._before, found)
        if self._known is not None:
            for side, names in found.items():
                self._printed[side] |= names
            found, self._before = self._printed, []
        return _with_omitted(found)

    def sides_without(self, *headers: str) -> list[str]:
        """Return the listeners whose lines have no place for any of these headers, as far as the log has shown."""
        columns = {_COLUMNS[name] for name in headers}
        return [side for side, names in self.printed.items() if columns.isdisjoint(names)]

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


def _with_omitted(printed: Mapping[str, set[str]]) -> Mapping[str, set[str]]:
    """Add the headers that lines leave out where they are empty, as Envoy does with `omit_empty_values`.

    Istio has one format for both directions, so that where all else is equal, both have a place for what one prints.
    """
    inbound, outbound = printed.get("inbound", set()), printed.get("outbound", set())
    if inbound == outbound or (inbound ^ outbound) - {*_COLUMNS.values()}:
        return printed
    return {**printed, "inbound": inbound | outbound, "outbound": inbound | outbound}


def _identity(path: Path) -> tuple[tuple[int, int] | None, int]:
    """Return what tells a file from the one that replaces it, and its size."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return None, 0
    return (about.st_dev, about.st_ino), about.st_size


def _lines(text: bytes) -> list[bytes]:
    return [line for line in text.split(b"\n") if line.strip()]


def _read(known: tuple[Envelope, Format], lines: Iterable[bytes], printed: dict[str, set[str]]) -> list[Line]:
    """Return what lines hold, and note in *printed* which fields those of each listener have."""
    envelope, reader = known
    found: list[Line] = []
    texts: dict[str, list[bytes]] = defaultdict(list)
    for text in envelope.unwrap(lines):
        fields = reader.read(text.decode("utf-8", "surrogateescape"))
        if not isinstance(fields, str):
            found.append(fields)
            texts[side_of(fields)].append(text)
    for side, each in texts.items():
        printed[side] |= reader.read_block(b"\n".join(each)).names
    return found


def probe_hops(tails: Sequence[LogTail], probe: Probe, *, alone: bool = False) -> list[Hop]:
    """Return the hops of the probe that the logs show, in the order of the way, with the applications between them.

    Args:
        tails: The logs, in the order of the way.
        probe: The request.
        alone: Whether nothing else uses the mesh, so that every new line is the probe's.
    """
    lines = [(tail.name, side_of(line), line) for tail in tails for line in tail.lines]
    mine = _with_callees([each for each in lines if alone and _is_request(each[2])] or _matching(lines, probe))
    logs = {tail.name: tail for tail in tails}
    order = {name: index for index, name in enumerate(logs)}
    places: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for name, side, line in mine:
        places[name, side].append(line)
    # Where one listener is the inbound one, all others are for the application's own calls.
    ranked = sorted(places, key=lambda place: (order[place[0]], place[1] != "inbound"))
    proxies = [(place, call) for place in ranked for call in _calls_at(place, places[place], logs[place[0]])]
    return list(_with_applications(proxies))


def _is_request(line: Line) -> bool:
    # One that was refused before it was read shows nothing of its headers.
    return classify(line).kind not in ("tcp", "refused") and not _HEALTH_CHECKS.match(line.get("user_agent", ""))


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


def _with_applications(proxies: Sequence[tuple[tuple[str, str], _Call]]) -> Iterator[Hop]:
    """Put an application behind each inbound call: it got what that sent, and sent what the outbound listener got."""
    outbound: dict[str, list[Hop]] = defaultdict(list)
    for (name, side), call in proxies:
        if side != "inbound":
            outbound[name].append(call.hop)
    numbers: Counter[str] = Counter()
    for (name, side), (hop, arrived) in proxies:
        yield hop
        if side == "inbound" and arrived:
            numbers[name] += 1
            own = name_of_call(f"{name} application", numbers[name])
            is_only = not any(place == (name, side) and other.hop is not hop for place, other in proxies)
            yield Hop(name=own, kind="app", received=hop.sent, sent=_first_call(hop, outbound[name], is_only))


def _first_call(inbound: Hop, outbound: Sequence[Hop], is_only: bool) -> Mapping[str, str | None]:
    """Return what an application sent first; of several requests that it got, the calls in the same trace are its."""
    same = [hop.received for hop in outbound if trace_of(hop.received) == trace_of(inbound.sent)]
    return next(iter([*same, *([hop.received for hop in outbound] if is_only else [])]), {})


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


def _calls_at(place: tuple[str, str], lines: Sequence[Line], tail: LogTail) -> Iterator[_Call]:
    """Yield each call of one listener that is unlike those before it."""
    name, side = place
    full = name_of_place(name, side)
    found: dict[object, _Call] = {}
    for lines_of_one in _calls(lines):
        call = _Call(
            _hop_of(full, lines_of_one, tail), all(_ARRIVED.match(each.get("details", "-")) for each in lines_of_one)
        )
        key = (_alike(call.hop.received), _alike(call.hop.sent), call.hop.trace_id)
        # Of a call that failed and of its repetition, the one that came through shows more.
        if key not in found or _shows(call) > _shows(found[key]):
            found[key] = call
    for number, (hop, arrived) in enumerate(_chosen([*found.values()]), start=1):
        more = len(found) - number if number == _MAX_CALLS else 0
        note = f"{more} further calls{NOT_LOOKED_AT}" if more else hop.note
        yield _Call(replace(hop, name=name_of_call(full, number), note=note), arrived)


def _shows(call: _Call) -> tuple[bool, bool]:
    return call.arrived, not call.hop.note


def _chosen(calls: Sequence[_Call]) -> list[_Call]:
    """Return as many calls as are told apart, in their order: those whose trace or flag no call before had win."""
    firsts: dict[object, int] = {}
    for index, (hop, _) in enumerate(calls):
        firsts.setdefault((_trace_shown(hop.received), _trace_shown(hop.sent), hop.trace_id), index)
    chosen = [*firsts.values(), *sorted(set(range(len(calls))) - set(firsts.values()))][:_MAX_CALLS]
    return [calls[index] for index in sorted(chosen)]


def _trace_shown(headers: Mapping[str, str | None]) -> tuple[tuple[str, object], ...]:
    return tuple(each for each in _alike(headers) if each[0] != "tracestate")


def _calls(lines: Sequence[Line]) -> list[list[Line]]:
    """Return the lines of one listener by the call that they are of: one at its start and one at its end, or one."""
    # What a router logs of each attempt upstream is a part of a call.
    lines = [line for line in lines if not line.get("type", "").startswith("Upstream")] or lines
    calls = [[line] for line in lines if line.get("type") == "DownstreamStart"]
    ends = [line for line in lines if line.get("type") not in ("DownstreamStart", "DownstreamPeriodic")]
    begun = list(calls)
    # What names a call best is asked first; calls of one moment may share all but their trace.
    for names in (("start_time", "request_id", "traceparent"), ("start_time", "request_id"), ("request_id",), ()):
        waiting: dict[object, list[list[Line]]] = defaultdict(list)
        for call in reversed(begun):
            waiting[_named_alike(call[0], names)].append(call)
        left = []
        for end in ends:
            if alike := waiting[_named_alike(end, names)]:
                alike.pop().append(end)
            else:
                left.append(end)
        ends, begun = left, [call for call in begun if len(call) == 1]
    return calls + [[end] for end in ends]


def _named_alike(line: Line, names: Sequence[str]) -> tuple[str, ...]:
    # The span id is another behind the proxy.
    return tuple(line.get(name, "-")[:35] for name in names)


def _alike(headers: Mapping[str, str | None]) -> tuple[tuple[str, object], ...]:
    """Return what headers say of a trace, without what differs from call to call."""
    found: dict[str, object] = {name: value and _SPAN_ID.sub("", value) for name, value in headers.items()}
    found.pop("baggage", None)
    if state := headers.get("tracestate"):
        found["tracestate"] = frozenset(member.partition("=")[0].strip() for member in state.split(","))
    return tuple(found.items())


def _hop_of(name: str, call: Sequence[Line], tail: LogTail) -> Hop:
    received: dict[str, str | None] = {}
    sent: dict[str, str | None] = {}
    trace_id = note = ""
    for line in call:
        headers = _headers_in(line, tail.printed[side_of(line)])
        if line.get("type") == "DownstreamStart":
            received = headers
        else:
            sent, note = headers, _refusal_note(line)
            trace_id = line.get("trace_id", "-").strip("-")
    product = tail.product or next(filter(None, map(_product, call)), "")
    return Hop(name=name, kind="proxy", received=received, sent=sent, trace_id=trace_id, note=note, product=product)


def _product(line: Line) -> str:
    """Return which product names its clusters so; `envoy` for any other line that only Envoy writes."""
    cluster = line.get("cluster", "")
    for product, pattern in _CLUSTERS.items():
        if pattern.match(cluster):
            return product
    return "envoy" if "type" in line or "details" in line else ""


def _headers_in(line: Line, printed: set[str]) -> dict[str, str | None]:
    """Return the trace headers that a line shows; of one that the format does not print, nothing is known."""
    shown = {name: line.get(column, "-") for name, column in _COLUMNS.items() if column in printed}
    return {name: None if value == "-" else value for name, value in shown.items()}


def _refusal_note(line: Line) -> str:
    code, details = line.get("code", ""), line.get("details", "-")
    return f"answered {code} ({details})" if code[:1] in ("4", "5") or code == "0" else ""
