"""Where a trace broke: what each hop did to the headers, in the order of the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple

from meshmw._tools import Finding
from meshmw._tools.verify.journey import Change, Hop
from meshmw._tools.verify.probe import TRACESTATE, Probe
from meshmw.errors import InvalidHeaderError
from meshmw.wire import B3Context, TraceParent

# What each look at the headers showed on the way, and what a hop did to them between two looks.


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


_FIXES: Final = {
    "app": "let the application take its headers in (meshmw.asgi or meshmw.wsgi TraceContextMiddleware) and "
    "send them on (meshmw.httpx.Client), and check it with `meshmw doctor MODULE:APP`",
    "proxy": "look at what this proxy removes and which formats its tracer reads: `meshmw doctor --envoy-admin URL`",
    "own": "let the tracer of this proxy read W3C trace context: the OpenTelemetry tracer, or Zipkin's with "
    "trace_context_option: USE_B3_WITH_W3C_PROPAGATION",
    "between": "look at what lies between the two: a TLS terminator, a gateway or a load balancer that passes only the "
    "headers that it knows; `meshmw mesh-config nginx` and the others print what it needs",
}


@dataclass
class Judgement:
    """Is what the hops show.

    Attributes:
        hops: The hops, each with what it did.
        findings: The faults, in the order of the way.
        trace_ids: All traces that were seen, the expected one first.
        expected: The trace that the last hops are in; empty where there is none.
        sights: How many looks there were.
    """

    hops: list[Hop]
    findings: list[Finding] = field(default_factory=list)
    trace_ids: list[str] = field(default_factory=list)
    expected: str = ""
    sights: int = 0


def judge_hops(hops: Sequence[Hop], probe: Probe) -> Judgement:
    """Follow the trace from hop to hop, and say where it is lost, restarted or unsampled."""
    judgement = Judgement([with_change(hop, probe) for hop in hops])
    judgement.expected = "" if probe.variant == "malformed" else probe.trace_id
    judgement.trace_ids = [judgement.expected] if judgement.expected else []
    last = Sight(0, "out", Value("valid", judgement.expected))
    is_lost = False
    for sight in sights(judgement.hops, probe):
        judgement.sights += 1
        value = sight.value
        if value.trace_id and value.trace_id not in judgement.trace_ids:
            judgement.trace_ids.append(value.trace_id)
        if value.state == "valid" and value.trace_id == judgement.expected:
            _check_flag(judgement, sight, probe)
            last, is_lost = sight, False
        elif probe.variant == "malformed" and not judgement.expected:
            last = _before_a_fresh_trace(judgement, sight) or last
        elif not is_lost:
            _break(judgement, last, sight)
            is_lost = value.state != "valid"
            last = sight
            judgement.expected = value.trace_id if sight.side != "own" and value.trace_id else judgement.expected
        elif value.state == "valid":
            # What comes after a loss is its consequence, and no loss of its own.
            judgement.expected, is_lost, last = value.trace_id, False, sight
    _check_state(judgement, probe)
    return judgement


def _before_a_fresh_trace(judgement: Judgement, sight: Sight) -> Sight | None:
    hop = judgement.hops[sight.hop]
    if sight.value.state == "valid":
        judgement.expected = sight.value.trace_id
        return sight
    if sight.value.state == "malformed" and hop.kind == "app" and sight.side == "out":
        judgement.findings.append(
            Finding(
                "error", "verify.malformed-forwarded", hop.name,
                f"{hop.name} sends the malformed traceparent on",
                "no proxy and no strict reader behind it takes part in any trace",
                _FIXES["app"],
            )
        )  # fmt: skip
    return None


def _check_flag(judgement: Judgement, sight: Sight, probe: Probe) -> None:
    wanted = probe.variant != "unsampled"
    if sight.value.sampled is None or sight.value.sampled == wanted:
        return
    hop = judgement.hops[sight.hop]
    where = hop.name if sight.side == "out" else f"before {hop.name}"
    found = _cleared(where) if wanted else _set_again(where)
    if found.code not in {finding.code for finding in judgement.findings}:
        judgement.findings.append(found)


def _cleared(where: str) -> Finding:
    return Finding(
        "warning", "verify.flipped", where, f"the sampled flag is cleared at or {where}",
        "the spans from there on are not recorded, and the trace ends in the middle: Envoy since 1.39 clears "
        "the flag at its own rate, and for an x-request-id that is no UUID",
        "set randomSamplingPercentage: 100 or useRequestIdForTraceSampling: false in Istio's Telemetry; in "
        "Envoy random_sampling, or use_request_id_for_trace_sampling of the request id extension",
    )  # fmt: skip


def _set_again(where: str) -> Finding:
    return Finding(
        "warning", "verify.sampled-again", where, f"the sampled flag is set again at or {where}",
        "the trace begins in the middle: the spans before it were not recorded",
        "let the sampler there follow its parent: ParentBased in an application, parent_based in Envoy",
    )  # fmt: skip


def _break(judgement: Judgement, last: Sight, sight: Sight) -> None:
    hop, before = judgement.hops[sight.hop], judgement.hops[last.hop]
    judgement.hops[sight.hop] = replace(hop, lost=True)
    did = _what_became(sight.value)
    if sight.side == "own":
        code, fix = "verify.other-trace", _FIXES["own" if hop.kind == "proxy" else "app"]
        what = f"{hop.name} records in a trace of its own, {sight.value.trace_id}"
        where = hop.name
    elif last.hop == sight.hop:
        code, fix, where = _code(sight.value), _FIXES["app" if hop.kind == "app" else "proxy"], hop.name
        what = f"{hop.name} received the trace and sent {did} on"
    else:
        code, fix, where = _code(sight.value), _FIXES["between"], f"{before.name} -> {hop.name}"
        if before.kind == "app":
            fix = _FIXES["app"]
        elif sight.side == "out":
            fix = f"{_FIXES['between']}; or {_FIXES[hop.kind if hop.kind == 'app' else 'proxy']}"
        verb = "sent on" if sight.side == "out" else "received"
        what = f"{before.name} had the trace, and {hop.name} {verb} {did}"
    judgement.findings.append(Finding("error", code, where, what, "everything from there on is another trace", fix))


def _code(value: Value) -> str:
    return {"valid": "verify.restarted", "absent": "verify.lost", "malformed": "verify.malformed"}[value.state]


def _what_became(value: Value) -> str:
    if value.state == "valid":
        return f"another trace, {value.trace_id},"
    return "no traceparent" if value.state == "absent" else "a malformed traceparent"


def _check_state(judgement: Judgement, probe: Probe) -> None:
    """Say where the tracestate went that the probe sent, if the trace itself arrived."""
    if "tracestate" not in probe.headers or probe.variant == "malformed" or judgement.findings:
        return
    looks = [
        (hop, headers["tracestate"] or "")
        for hop in judgement.hops[1:]
        for headers in (hop.received, hop.sent)
        if "tracestate" in headers
    ]
    lost = next((hop for hop, state in looks if TRACESTATE not in state), None)
    if lost is not None:
        judgement.findings.append(
            Finding(
                "warning", "verify.tracestate-lost", lost.name, f"the tracestate is gone at {lost.name}",
                "what other tracing systems noted there, a sampling probability for one, is lost",
                "pass tracestate on with traceparent; an OpenTelemetry application loses it where B3 is the last of "
                "its formats",
            )
        )  # fmt: skip
