"""What there is to see of a probe: its spans in backends, and its lines in the proxies' access logs.

A `Watch` names the backends and the logs, and `Evidence` holds what they have shown so far. Of a log, only what is
appended after `LogTail` was made is taken for the probe's.
"""

from __future__ import annotations

import base64
import binascii
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from meshmw._notices import without_secrets
from meshmw._tools.access_log import side_of
from meshmw._tools.access_log.counts import classify
from meshmw._tools.access_log.formats import Format, detect
from meshmw._tools.access_log.rows import Line
from meshmw._tools.http_client import HttpError, exchange
from meshmw._tools.verify.journey import HEADERS, Hop, JourneySpan, journey_spans, maker_of
from meshmw._tools.verify.probe import AGENT, Probe
from meshmw.errors import MeshmwError

_KINDS: Final = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_STATUS: Final = ("UNSET", "OK", "ERROR")
# Seconds for one answer of a backend.
_ASKED_FOR: Final = 5.0
_LATEST_NS: Final = 2**63 - 1
# Bytes of a log from before the probe, which show its format.
_BEFORE: Final = 1 << 16
# Bytes that are read at once.
_AT_ONCE: Final = 1 << 24
_COLUMNS: Final = {name: name.replace("-", "_") for name in HEADERS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Says which logs and backends are watched, and how long.

    Attributes:
        tails: The access logs, in the order of the way, opened before the probe is sent.
        backends: Where spans are looked up.
        timeout: Seconds to wait at most for logs and spans.
        settle: Seconds without anything new after which everything has come.
        spans: Spans that must come, 0 for one.
        alone: Whether nothing else uses the mesh, so that each new line and span is the probe's.
    """

    tails: Sequence[LogTail] = ()
    backends: Sequence[Backend] = ()
    timeout: float = 15.0
    settle: float = 1.0
    spans: int = 0
    alone: bool = False


class Evidence(NamedTuple):
    """Holds what has been seen of a probe so far."""

    hops: tuple[Hop, ...]
    spans: tuple[JourneySpan, ...]

    def hops_in(self, log: LogTail) -> int:
        """Return how many hops a log shows."""
        # Another log's name may begin like this one's.
        proxies = [hop.name for hop in self.hops if hop.kind == "proxy"]
        return sum(name == log.name or name.startswith(f"{log.name} ") for name in proxies)


class BackendError(MeshmwError):
    """Says in one line why a backend cannot be asked."""


class Backend(Protocol):
    """Looks up spans, and is asked again until they are all there."""

    name: str

    def spans(self, trace_ids: Iterable[str]) -> list[JourneySpan]:
        """Return the spans of these traces that have arrived so far; those that do not exist yield none.

        Raises:
            BackendError: It does not answer as it should.
        """


class HttpBackend:
    """Looks spans up over HTTP, under each path that the versions of Jaeger or Tempo have.

    Args:
        name: `jaeger` or `tempo`.
        base_url: Such as `http://localhost:16686`, also with a path in front.
        headers: Header lines that it asks for, such as `X-Scope-OrgID`.
    """

    def __init__(self, name: str, base_url: str, headers: Mapping[str, str] | None = None) -> None:
        self.name = f"{name} at {without_secrets(base_url)}"
        self._paths = _PATHS[name]
        self._base = base_url.rstrip("/")
        self._headers = {"accept": "application/json", **(headers or {})}
        # Tempo has no page of its own: Grafana shows its traces, wherever that is.
        self._has_page = name == "jaeger"
        self._found: dict[str, None] = {}

    @property
    def links(self) -> tuple[str, ...]:
        """Return where a browser shows the traces that were found."""
        return tuple(jaeger_link(self._base, trace_id) for trace_id in self._found) if self._has_page else ()

    def spans(self, trace_ids: Iterable[str]) -> list[JourneySpan]:
        """Return the spans of these traces that have arrived so far.

        Raises:
            BackendError: It cannot be reached, or answers neither with spans nor with 404.
        """
        found: list[JourneySpan] = []
        for trace_id in trace_ids:
            found += self._of_trace(trace_id)
        return found

    def _of_trace(self, trace_id: str) -> list[JourneySpan]:
        refusals = []
        for path, read in self._paths:
            try:
                url = f"{self._base}{path.format(trace_id)}"
                response = exchange("GET", url, headers=self._headers, timeout=_ASKED_FOR)
                if response.status_code == 200:
                    found = [span for span in read(response.json()) if span.trace_id == trace_id]
                    if found:
                        self._found[trace_id] = None
                        return found
                elif response.status_code != 404:
                    refusals.append(f"{path.format('ID')} answered {response.status_code}")
            except HttpError as error:
                raise BackendError(f"{self.name} cannot be reached: {error}") from error
            except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
                refusals.append(f"{path.format('ID')} answered something else ({type(error).__name__})")
        if len(refusals) == len(self._paths):
            raise BackendError(f"{self.name}: {'; '.join(refusals)}")
        return []


def jaeger_link(base_url: str, trace_id: str) -> str:
    """Return the page on which Jaeger's query service shows a trace."""
    return f"{without_secrets(base_url).rstrip('/')}/trace/{trace_id}"


class LocalBackend:
    """Looks spans up in a collector in this process, such as `meshmw.testing.OtlpReceiver`.

    Args:
        name: Where it listens.
        received: Returns what it has received so far, objects with the attributes of `meshmw.testing.ReceivedSpan`.
        everything: Whether spans of other traces are the probe's as well.
    """

    def __init__(self, name: str, received: Callable[[], Sequence[Any]], *, everything: bool = False) -> None:
        self.name = name
        self._received = received
        self._everything = everything

    def spans(self, trace_ids: Iterable[str]) -> list[JourneySpan]:
        """Return the spans of these traces, or all, that have arrived so far."""
        wanted = set(trace_ids)
        return [span for span in journey_spans(self._received()) if self._everything or span.trace_id in wanted]


def _from_jaeger(document: Any) -> Iterator[JourneySpan]:
    for trace in document["data"]:
        processes = trace.get("processes") or {}
        for span in trace["spans"]:
            process = processes.get(span.get("processID")) or {}
            yield _jaeger_span(span, str(process.get("serviceName", "")))


def _jaeger_span(span: Mapping[str, Any], service: str) -> JourneySpan:
    tags = {tag["key"]: tag.get("value") for tag in span.get("tags") or ()}
    parents = [each for each in span.get("references") or () if each.get("refType") == "CHILD_OF"]
    start = _nanoseconds(span["startTime"], 1000)
    return JourneySpan(
        trace_id=str(span["traceID"]).rjust(32, "0"),
        span_id=str(span["spanID"]).rjust(16, "0"),
        parent_id=str(parents[0]["spanID"]).rjust(16, "0") if parents else "",
        service=service,
        name=str(span.get("operationName", "")),
        kind=str(tags.get("span.kind", "internal")).upper(),
        maker=maker_of(str(tags.get("otel.scope.name", tags.get("otel.library.name", ""))), tags),
        start_ns=start,
        end_ns=start + _nanoseconds(span.get("duration", 0), 1000),
        status=str(tags.get("otel.status_code", "ERROR" if tags.get("error") in (True, "true") else "UNSET")),
    )


def _from_otlp(document: Any) -> Iterator[JourneySpan]:
    """Read OTLP as JSON, in each of the envelopes and spellings that backends give it."""
    for wrapper in ("result", "trace"):
        document = document.get(wrapper) or document
    for batch in document.get("resourceSpans") or document.get("batches") or ():
        resource = _otlp_attributes(batch.get("resource") or {})
        for scope_spans in batch.get("scopeSpans") or batch.get("instrumentationLibrarySpans") or ():
            scope = (scope_spans.get("scope") or scope_spans.get("instrumentationLibrary") or {}).get("name", "")
            for span in scope_spans.get("spans") or ():
                yield _otlp_span(span, str(resource.get("service.name", "")), str(scope))


def _otlp_span(span: Mapping[str, Any], service: str, scope: str) -> JourneySpan:
    return JourneySpan(
        trace_id=_hex_id(span["traceId"], 16),
        span_id=_hex_id(span["spanId"], 8),
        parent_id=_hex_id(span.get("parentSpanId") or "", 8),
        service=service,
        name=str(span.get("name", "")),
        kind=_enum_name(span.get("kind", 0), _KINDS, "SPAN_KIND_"),
        maker=maker_of(scope, _otlp_attributes(span)),
        start_ns=_nanoseconds(span.get("startTimeUnixNano", 0)),
        end_ns=_nanoseconds(span.get("endTimeUnixNano", 0)),
        status=_enum_name((span.get("status") or {}).get("code", 0), _STATUS, "STATUS_CODE_"),
    )


def _nanoseconds(value: Any, each: int = 1) -> int:
    # A time beyond the 64 bits that OTLP has for it could not be drawn.
    return min(max(int(value) * each, 0), _LATEST_NS)


def _otlp_attributes(holder: Mapping[str, Any]) -> dict[str, Any]:
    return {each["key"]: next(iter((each.get("value") or {}).values()), "") for each in holder.get("attributes") or ()}


def _enum_name(value: Any, names: Sequence[str], prefix: str) -> str:
    return names[value] if isinstance(value, int) else str(value).removeprefix(prefix)


def _hex_id(text: str, size: int) -> str:
    """Return an id of so many bytes in hexadecimal digits; what makes JSON from protobuf writes base64 instead."""
    if not text or len(text) == 2 * size:
        return text.lower()
    try:
        decoded = base64.b64decode(text, validate=True)
    except binascii.Error:
        return text.lower().rjust(2 * size, "0")
    return decoded.hex() if len(decoded) == size else text.lower().rjust(2 * size, "0")


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
        """Return the lines that have been appended and can be read."""
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
        # The last line may not be whole yet.
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


def _hop_at(place: tuple[str, str], lines: Iterable[Line]) -> Hop:
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
    return Hop(name=full, kind="proxy", received=received, sent=sent, trace_id=trace_id, note=note)


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


_PATHS: Final[dict[str, tuple[tuple[str, Callable[[Any], Iterator[JourneySpan]]], ...]]] = {
    "jaeger": (("/api/v3/traces/{}", _from_otlp), ("/api/traces/{}", _from_jaeger)),
    "tempo": (("/api/v2/traces/{}", _from_otlp), ("/api/traces/{}", _from_otlp)),
}
