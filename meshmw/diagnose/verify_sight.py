"""What each look at the headers showed on the way, and what a hop did to them between two looks.

Knows hops and header values. Must not know where they were seen, nor what is a fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from meshmw.diagnose.journey import Change, Hop
from meshmw.diagnose.verify_probe import Probe
from meshmw.errors import InvalidHeaderError
from meshmw.wire import B3Context, TraceParent

Side = Literal["in", "own", "out"]
State = Literal["valid", "absent", "malformed"]


class Value(NamedTuple):
    """Is a trace that some headers name."""

    state: State
    trace_id: str = ""
    sampled: bool | None = None


class Sight(NamedTuple):
    """Is one look at the headers: at which hop, on which side of it."""

    hop: int
    side: Side
    value: Value


def sights(hops: Sequence[Hop], probe: Probe) -> Iterator[Sight]:
    """Yield each look at the headers, in the order of the way; the first hop is the probe itself."""
    for index, hop in enumerate(hops[1:], start=1):
        if (value := read_headers(hop.received, probe)) is not None:
            yield Sight(index, "in", value)
        if hop.trace_id:
            yield Sight(index, "own", Value("valid", hop.trace_id.rjust(32, "0")))
        if (value := read_headers(hop.sent, probe)) is not None:
            yield Sight(index, "out", value)


def read_headers(headers: Mapping[str, str | None], probe: Probe) -> Value | None:
    """Return the trace that headers name, or None where they were not looked at."""
    if "traceparent" not in headers:
        return None
    parent, b3 = headers["traceparent"], headers.get("b3")
    if probe.variant == "b3" and parent is None:
        return _read_b3(headers)
    if parent is None:
        return Value("absent")
    try:
        found = TraceParent.parse(parent)
    except InvalidHeaderError:
        return Value("malformed") if b3 is None or probe.variant != "b3" else _read_b3(headers)
    return Value("valid", f"{found.trace_id:032x}", found.sampled)


def _read_b3(headers: Mapping[str, str | None]) -> Value | None:
    single, multi = headers.get("b3"), headers.get("x-b3-traceid")
    if "b3" not in headers and "x-b3-traceid" not in headers:
        return None
    if single is None:
        return Value("absent") if multi is None else Value("valid", multi.rjust(32, "0"))
    try:
        found = B3Context.parse(single)
    except InvalidHeaderError:
        return Value("malformed")
    return Value("valid", f"{found.trace_id or 0:032x}", found.sampled)


def with_change(hop: Hop, probe: Probe) -> Hop:
    """Return a hop with what it did to the trace."""
    came, went = read_headers(hop.received, probe), read_headers(hop.sent, probe)
    trace_id = hop.trace_id or (went.trace_id if went else "") or (came.trace_id if came else "")
    return replace(hop, change=_change(came, went, hop), trace_id=hop.trace_id, note=hop.note or _hint(came, trace_id))


def _hint(came: Value | None, trace_id: str) -> str:
    return "it takes part in no trace" if came is not None and came.state == "malformed" and not trace_id else ""


def _change(came: Value | None, went: Value | None, hop: Hop) -> Change:
    if came is None or went is None:
        return "unknown"
    if went.state != "valid":
        return "removed" if went.state == "absent" and came.state == "valid" else went.state
    if came.state != "valid":
        return "started"
    if came.trace_id != went.trace_id:
        return "restarted"
    return "kept" if hop.received.get("traceparent") == hop.sent.get("traceparent") else "rewritten"
