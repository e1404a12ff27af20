"""`Journey`: what became of one request's trace headers, hop by hop, and the spans that the request left.

`verify` makes one, the command line prints it, `report` draws it. Spans of any backend become `JourneySpan`s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from meshmw._tools import Finding, JsonValue

HopKind = Literal["client", "proxy", "app"]
Change = Literal["kept", "rewritten", "started", "restarted", "removed", "absent", "malformed", "unknown"]
Maker = Literal["proxy", "app"]
Verdict = Literal["one", "broken", "unknown"]

# The headers that a hop may have been seen with. A name that is not in a mapping was not looked at there.
HEADERS: Final = ("traceparent", "tracestate", "b3", "x-b3-traceid", "baggage")
# How an application is called that is known from the answer alone; the place in the answer and a bracket follow.
ECHO_NAME: Final = "application ("
_PROXY_SCOPES: Final = frozenset({"envoy"})
_CALL: Final = re.compile(r" \(call [0-9]{1,3}\)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Journey(JsonValue):
    """Holds what is known of one request.

    Attributes:
        title: What was asked for, such as `GET http://shop/api/checkout`.
        verdict: `one` trace, `broken`, or `unknown` where nothing could be seen.
        summary: The verdict in one sentence: where it broke, if it did.
        trace_id: The trace that was looked for, 32 lower-case hex digits.
        parent_id: The probe's own span, which nobody exports: a span below it is no orphan.
        sent: The header lines that the probe sent, by name.
        status_code: The answer's, or None where none came.
        hops: In the order in which the request passed them.
        spans: In the order in which they started.
        findings: The faults, the worst first.
        sources: Which logs and backends were looked at and what they showed, in one line each.
        links: Where a backend shows the traces that it has, as URLs.
    """

    title: str
    verdict: Verdict
    summary: str
    trace_id: str = ""
    parent_id: str = ""
    sent: Mapping[str, str] = field(default_factory=dict)
    status_code: int | None = None
    hops: tuple[Hop, ...] = ()
    spans: tuple[JourneySpan, ...] = ()
    findings: tuple[Finding, ...] = ()
    sources: tuple[str, ...] = ()
    links: tuple[str, ...] = ()

    @property
    def trace_ids(self) -> tuple[str, ...]:
        """Return the traces that the spans belong to, in the order in which they began."""
        return tuple(dict.fromkeys(span.trace_id for span in self.spans))

    @property
    def roots(self) -> tuple[JourneySpan, ...]:
        """Return the spans whose parent is not among the spans: the top of the tree, and every orphan."""
        present = {(span.trace_id, span.span_id) for span in self.spans}
        return tuple(span for span in self.spans if (span.trace_id, span.parent_id) not in present)

    def in_order(self) -> Iterator[tuple[JourneySpan, int]]:
        """Yield each span once with its depth: trees from their roots, then spans that are each other's ancestors."""
        below: dict[tuple[str, str], list[JourneySpan]] = {}
        for span in self.spans:
            below.setdefault((span.trace_id, span.parent_id), []).append(span)
        yielded: set[int] = set()
        # A stack rather than recursion: strangers decide how deep a trace is.
        for top in (*self.roots, *self.spans):
            waiting = [(top, 0)]
            while waiting:
                span, depth = waiting.pop()
                if id(span) in yielded:
                    continue
                yielded.add(id(span))
                yield span, depth
                waiting += [(child, depth + 1) for child in reversed(below.get((span.trace_id, span.span_id), ()))]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Journey:
        """Read what `to_json()` wrote."""
        parts = {
            "hops": tuple(map(Hop.from_json, data["hops"])),
            "spans": tuple(map(JourneySpan.from_json, data["spans"])),
            "findings": tuple(Finding(**finding) for finding in data["findings"]),
            "sources": tuple(data["sources"]),
            "links": tuple(data["links"]),
        }
        return cls(**{**data, **parts})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop(JsonValue):
    """Says what one station of the way received, and what it sent on.

    Attributes:
        name: Such as `checkout-sidecar inbound`.
        kind: Whether it is the probe itself, a proxy or an application.
        received: The header lines that came in, by name: the value, or None where there was no such header. A name that
            is missing is not known.
        sent: The same of what went on to the next hop.
        change: What it did to `traceparent`: `kept` it, `rewritten` in the same trace, `started` one where there was
            none, `restarted` as another trace, `removed` it, or had it `absent` or `malformed` throughout.
        trace_id: The trace that this hop took part in, 32 lower-case hex digits; empty if in none that is known.
        lost: Whether the trace was lost at this hop or on the way to it.
        note: What else there is to say of it, in one sentence.
        span_ids: The spans of the journey that this hop made.
        parent: The place in the journey's hops of the one that it was called by; None for the first.
        product: What wrote its log: `istio`, `envoy-gateway`, `consul`, `envoy` or `nginx`; empty if not known.
    """

    name: str
    kind: HopKind
    received: Mapping[str, str | None] = field(default_factory=dict)
    sent: Mapping[str, str | None] = field(default_factory=dict)
    change: Change = "unknown"
    trace_id: str = ""
    lost: bool = False
    note: str = ""
    span_ids: tuple[str, ...] = ()
    parent: int | None = None
    product: str = ""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Hop:
        """Read what `to_json()` wrote."""
        return cls(**{**data, "span_ids": tuple(data["span_ids"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class JourneySpan(JsonValue):
    """Describes one span that the request left.

    Attributes:
        trace_id: 32 lower-case hex digits.
        span_id: 16 lower-case hex digits.
        parent_id: 16 lower-case hex digits; empty for a root.
        service: The resource's `service.name`.
        name: The span's name.
        kind: `INTERNAL`, `SERVER`, `CLIENT`, `PRODUCER` or `CONSUMER`.
        maker: Whether a proxy or an application made it.
        start_ns: Nanoseconds since 1970.
        end_ns: Nanoseconds since 1970.
        status: `UNSET`, `OK` or `ERROR`.
        orphan: Whether it names a parent that is not among the spans and is not the probe.
    """

    trace_id: str
    span_id: str
    parent_id: str = ""
    service: str = ""
    name: str = ""
    kind: str = "INTERNAL"
    maker: Maker = "app"
    start_ns: int = 0
    end_ns: int = 0
    status: str = "UNSET"
    orphan: bool = False

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JourneySpan:
        """Read what `to_json()` wrote."""
        return cls(**data)


def journey_spans(spans: Iterable[Any]) -> tuple[JourneySpan, ...]:
    """Return `meshmw.testing.ReceivedSpan`s, or objects with the same attributes, as spans of a journey."""
    return tuple(
        JourneySpan(
            trace_id=span.trace_id,
            span_id=span.span_id,
            parent_id=span.parent_id,
            service=span.service,
            name=span.name,
            kind=kind_of(span.kind),
            maker=maker_of(span.scope, span.attributes),
            start_ns=span.start_ns,
            end_ns=span.end_ns,
            status=span.status,
        )
        for span in spans
    )


def kind_of(name: str) -> str:
    """Return a span's kind: OpenTelemetry reads one that is not specified as internal, and so do backends."""
    return "INTERNAL" if name == "UNSPECIFIED" else name


def name_of_place(log: str, side: str) -> str:
    """Return the name of a proxy's listener: its log's, with the listener's own behind it where it has another one."""
    return f"{log} {side}" if side and side != log else log


def is_at(hop: Hop, log: str, side: str) -> bool:
    """Say whether a hop is a call at this listener; of those that go out, the name of the callee may follow."""
    place = _place_of(hop)
    is_there = place == name_of_place(log, side) or (side == "outbound" and place.startswith(f"{log} {side} "))
    return hop.kind == "proxy" and is_there


def name_of_call(place: str, number: int) -> str:
    """Return the name of a hop that is one of several calls at one place."""
    return place if number == 1 else f"{place} (call {number})"


def _place_of(hop: Hop) -> str:
    return _CALL.sub("", hop.name)


def with_parents(hops: Sequence[Hop]) -> list[Hop]:
    """Return hops, each with the one before it that called it: a request that branches is a tree.

    A header that one sent and another received joins them. Where there is none, names do: an application's calls leave
    by its own proxy's other listeners, and those are mostly named for whom they call.
    """
    found: list[Hop] = []
    callers = _Callers()
    for hop in hops:
        found.append(replace(hop, parent=_parent_of(hop, found, callers)))
        callers.add(found[-1])
    return found


class _Callers:
    """Finds the hop that called another one, in a time that does not grow with their number: a log decides that."""

    def __init__(self) -> None:
        self.first: dict[tuple[str, ...], int] = {}
        self.last: dict[tuple[str, ...], int] = {}
        self.parents: dict[str, int] = {}
        self._count = 0

    def add(self, hop: Hop) -> None:
        """Take the next hop in."""
        index, place = self._count, _place_of(hop)
        self._count += 1
        self.first.setdefault((place,), index)
        self.first.setdefault((place, trace_of(hop.received)), index)
        if hop.parent is not None:
            self.parents.setdefault(place, hop.parent)
        went = hop.sent.get("traceparent") or ""
        self.last["sent", went] = index
        _, blank, callee = place.rpartition(" ")
        if hop.kind == "proxy" and blank:
            for key in (("named", callee), ("both", callee, went), ("alike", callee, _alike(hop.sent))):
                self.last[key] = index


def _parent_of(hop: Hop, before: Sequence[Hop], callers: _Callers) -> int | None:
    if not before:
        return None
    place = _place_of(hop)
    log, _, side = place.partition(" ")
    app = f"{log} application"
    if hop.kind == "proxy" and side != "inbound" and (app,) in callers.first:
        # Of several requests that an application got, the one in the same trace made the call.
        return callers.first.get((app, trace_of(hop.received)), callers.first[app,])
    if hop.kind == "app" and (echo := _echo_place(hop.name)):
        return _outer_echo(echo, before)
    if hop.kind == "app":
        return len(before) - 1
    came = hop.received.get("traceparent")
    shown = _alike(hop.received if "traceparent" in hop.received else hop.sent)
    keys: list[tuple[str, ...]] = [("alike", log, shown), ("named", log)]
    if came:
        keys = [("both", log, came), ("sent", came), *keys]
    # Whoever made one call of a place made the others, as far as nothing else is known.
    again = callers.parents.get(place, len(before) - 1)
    return next((callers.last[key] for key in keys if key in callers.last), again)


def _alike(headers: Mapping[str, str | None]) -> str:
    """Return what two calls that are told apart differ in: the trace and its flags."""
    value = headers.get("traceparent") or ""
    return value[:36] + value[53:]


def trace_of(headers: Mapping[str, str | None]) -> str:
    """Return the part of a traceparent that names the trace; nothing where there is none."""
    return (headers.get("traceparent") or "")[:35]


def _echo_place(name: str) -> str:
    """Return the place in the answer that names an application of which no log tells; else nothing."""
    return name[len(ECHO_NAME) : -1] if name.startswith(ECHO_NAME) else ""


def _outer_echo(place: str, before: Sequence[Hop]) -> int:
    outer = [
        (len(other), index)
        for index, each in enumerate(before)
        if (other := _echo_place(each.name)) and place.startswith((f"{other}.", f"{other}["))
    ]
    # What is known of no proxy comes last, so that what stands right before the first is what called it.
    first = next((index for index, each in enumerate(before) if _echo_place(each.name)), len(before))
    return max(outer)[1] if outer else first - 1


def with_orphans(spans: Iterable[JourneySpan], probe_id: str = "", probe_trace: str = "") -> tuple[JourneySpan, ...]:
    """Return spans in the order in which they started, those whose parent is not among them marked.

    Args:
        spans: The spans of one request.
        probe_id: The id of the probe's own span, which nobody exports and which is no missing parent.
        probe_trace: The probe's trace: in any other, no span has that parent; empty if the span may be in any trace.
    """
    ordered = sorted(spans, key=lambda span: (span.start_ns, span.span_id))
    present = {(span.trace_id, span.span_id) for span in ordered}
    return tuple(
        replace(
            span,
            orphan=span.parent_id != ""
            and (span.parent_id != probe_id or probe_trace not in ("", span.trace_id))
            and (span.trace_id, span.parent_id) not in present,
        )
        for span in ordered
    )


def maker_of(scope: str, attributes: Mapping[str, Any]) -> Maker:
    """Say who made a span, by its scope or by the attributes that Envoy's tracers and Linkerd's write."""
    if scope in _PROXY_SCOPES or "guid:x-request-id" in attributes or "upstream_cluster" in attributes:
        return "proxy"
    linkerd = str(attributes.get("component", attributes.get("linkerd.io/proxy", "")))
    return "proxy" if linkerd in ("proxy", "linkerd") else "app"
