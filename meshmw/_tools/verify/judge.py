"""Where a trace broke, as findings: what each hop did to the headers.

`judge_hops` follows the trace through the sightings of its headers, in the order of the way, and names the first place
where it is lost. What comes after a loss is its consequence, and no loss of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple

from meshmw._tools import Finding
from meshmw._tools.verify.fixes import (
    BETWEEN,
    FOLLOW_PARENT,
    FOLLOW_PARENT_IN_PROXY,
    READ_W3C,
    SEND_ON,
    look_at,
    sample_all,
)
from meshmw._tools.verify.journey import Change, Hop
from meshmw._tools.verify.probe import Probe
from meshmw.errors import InvalidHeaderError
from meshmw.wire import TraceParent, examine_b3

Side = Literal["in", "own", "out"]
State = Literal["valid", "absent", "malformed"]
_OWN_ID: Final = re.compile("[0-9a-f]{16}|[0-9a-f]{32}")
_ANY_SPAN: Final = f"{1:016x}"


@dataclass
class Judgement:
    """Holds what the hops show.

    Attributes:
        hops: The hops, each with what it did.
        findings: The faults, in the order of the way.
        trace_ids: All traces that were seen, the expected one first.
        expected: The trace that was sent, whatever became of it; of a malformed one the fresh trace that the first
            strict reader began. Empty where there is none.
        sampled: Whether that trace began sampled; None where that is not known.
        sightings: How often headers were seen.
    """

    hops: list[Hop]
    findings: list[Finding] = field(default_factory=list)
    trace_ids: list[str] = field(default_factory=list)
    expected: str = ""
    sampled: bool | None = None
    sightings: int = 0


def judge_hops(hops: Sequence[Hop], probe: Probe) -> Judgement:
    """Follow the trace from hop to hop, and say where it is lost, restarted or unsampled."""
    judgement = Judgement([_with_change(hop, probe) for hop in hops], sampled=probe.sampled)
    judgement.expected = "" if probe.variant == "malformed" else probe.trace_id
    judgement.trace_ids = [judgement.expected] if judgement.expected else []
    state = _State(_Sighting(0, "out", _Named("valid", judgement.expected)), judgement.expected, probe.sampled)
    # What was seen last at each hop, before it sent something and after: those behind it go on from there.
    ends = [(state, state)]
    for index, hop in enumerate(judgement.hops[1:], start=1):
        above = index - 1 if hop.parent is None else hop.parent
        before, state = ends[above]
        sightings = list(_sightings(index, hop, probe, judgement.expected))
        is_another = _is_another_call(judgement.hops[above], hop)
        if is_another and sightings and sightings[0].named.sampled not in (None, state.sampled):
            state = before
        came = state
        for sighting in sightings:
            state = _follow(judgement, state, sighting, probe)
            came = state if sighting.side != "out" else came
        ends.append((came, state))
    judgement.findings += _lost_tracestate(judgement, probe)
    return judgement


def _is_another_call(app: Hop, hop: Hop) -> bool:
    """Say whether a hop got another call of an application than the first, of which alone it is known what was sent.

    The other one may have kept what the first lost.
    """
    sent, came = ((headers.get("traceparent") or "")[:52] for headers in (app.sent, hop.received))
    return app.kind == "app" and sent != came


def _follow(judgement: Judgement, state: _State, sighting: _Sighting, probe: Probe) -> _State:
    """Return what is known after a sighting, and record in the judgement what it shows."""
    named = sighting.named
    judgement.sightings += 1
    if named.trace_id and named.trace_id not in judgement.trace_ids:
        judgement.trace_ids.append(named.trace_id)
    if named.trace_id and named.trace_id in (state.followed, judgement.expected):
        if named.trace_id == judgement.expected:
            _check_flag(judgement, state, sighting)
        sampled = state.sampled if named.sampled is None else named.sampled
        return _State(sighting, named.trace_id, sampled)
    if not judgement.expected:
        return _expect_fresh_trace(judgement, sighting) or state
    if not state.is_lost:
        _record_break(judgement, state.last, sighting)
        goes_on = sighting.side != "own" and named.state == "valid"
        return _State(sighting, named.trace_id if goes_on else state.followed, state.sampled, named.state != "valid")
    return _State(sighting, named.trace_id, state.sampled) if named.state == "valid" else state


class _Named(NamedTuple):
    """Holds the trace that some headers name, and in which of them it was looked for."""

    state: State
    trace_id: str = ""
    sampled: bool | None = None
    header: str = "traceparent"


class _Sighting(NamedTuple):
    """Says what was seen at which hop: what came in, the hop's own trace, or what went out."""

    hop: int
    side: Side
    named: _Named


class _State(NamedTuple):
    """Says what was seen last, which trace is followed from there, its flag there, and whether it is in none."""

    last: _Sighting
    followed: str
    sampled: bool | None
    is_lost: bool = False


def _sightings(index: int, hop: Hop, probe: Probe, expected: str) -> Iterator[_Sighting]:
    """Yield what was seen at one hop, in the order of the way."""
    if (named := _read_headers(hop.received, probe)) is not None:
        yield _Sighting(index, "in", named)
    if own := _own_trace(hop, expected):
        yield _Sighting(index, "own", _Named("valid", own))
    if (named := _read_headers(hop.sent, probe)) is not None:
        yield _Sighting(index, "out", named)


def _own_trace(hop: Hop, expected: str) -> str:
    """Return the trace that a hop says it is in; nothing where its id is in no form that is known here."""
    own = hop.trace_id.lower()
    if not _OWN_ID.fullmatch(own):
        return ""
    # Some tracers log the last 64 bits alone.
    return expected if len(own) == 16 and expected.endswith(own) else own.rjust(32, "0")


def _read_headers(headers: Mapping[str, str | None], probe: Probe) -> _Named | None:
    """Return the trace that headers name, or None where they were not looked at."""
    parent, b3 = headers.get("traceparent"), _read_b3(headers) if probe.variant == "b3" else None
    if parent is None:
        is_known = "traceparent" in headers and probe.variant != "b3"
        return _Named("absent") if is_known else b3
    try:
        found = TraceParent.parse(parent)
    except InvalidHeaderError:
        return _Named("malformed") if b3 is None or b3.state == "absent" else b3
    return _Named("valid", f"{found.trace_id:032x}", found.sampled)


def _read_b3(headers: Mapping[str, str | None]) -> _Named | None:
    single, multi = headers.get("b3"), headers.get("x-b3-traceid")
    if "b3" not in headers and "x-b3-traceid" not in headers:
        return None
    if single is None and multi is None:
        return _Named("absent", header="B3 header")
    # Of the several headers, one is logged; the others may be what they like.
    context, _ = examine_b3({"b3": single, "x-b3-traceid": multi, "x-b3-spanid": multi and _ANY_SPAN})
    if context is None:
        return _Named("malformed", header="B3 header")
    if context.trace_id is None:
        # `b3: 0` is a decision, and names no trace.
        return _Named("absent", "", context.sampled, "B3 header")
    return _Named("valid", f"{context.trace_id:032x}", context.sampled, "B3 header")


def _with_change(hop: Hop, probe: Probe) -> Hop:
    """Return a hop with what it did to the trace."""
    came, went = _read_headers(hop.received, probe), _read_headers(hop.sent, probe)
    trace_id = hop.trace_id or (went.trace_id if went else "") or (came.trace_id if came else "")
    note = hop.note
    if not note and came is not None and came.state == "malformed" and not trace_id:
        note = "it takes part in no trace"
    return replace(hop, change=_change(came, went, hop), note=note)


def _change(came: _Named | None, went: _Named | None, hop: Hop) -> Change:
    if came is None or went is None:
        return "unknown"
    if went.state != "valid":
        return "removed" if went.state == "absent" and came.state == "valid" else went.state
    if came.state != "valid":
        return "started"
    if came.trace_id != went.trace_id:
        return "restarted"
    return "kept" if hop.received.get("traceparent") == hop.sent.get("traceparent") else "rewritten"


def _expect_fresh_trace(judgement: Judgement, sighting: _Sighting) -> _State | None:
    hop = judgement.hops[sighting.hop]
    if sighting.named.state == "valid":
        judgement.expected, judgement.sampled = sighting.named.trace_id, sighting.named.sampled
        return _State(sighting, sighting.named.trace_id, sighting.named.sampled)
    if sighting.named.state == "malformed" and hop.kind == "app" and sighting.side == "out":
        judgement.findings.append(
            Finding(
                "error", "verify.malformed-forwarded", hop.name,
                f"{hop.name} sends the malformed traceparent on",
                "no proxy and no strict reader behind it takes part in any trace",
                SEND_ON,
            )
        )  # fmt: skip
    return None


def _check_flag(judgement: Judgement, state: _State, sighting: _Sighting) -> None:
    """Record each place where the flag changes: what follows in its branch is no change of its own."""
    before, after = state.sampled, sighting.named.sampled
    if before is None or after is None or before == after:
        return
    where, hop = _culprit(judgement, state.last, sighting)
    product = judgement.hops[sighting.hop].product or judgement.hops[state.last.hop].product
    judgement.findings.append(_flag_cleared(where, hop, product) if before else _flag_set_again(where, hop))


def _culprit(judgement: Judgement, last: _Sighting, sighting: _Sighting) -> tuple[str, Hop | None]:
    """Return where something changed between two sightings, and the hop that did it; None if it lies between two."""
    hop, before = judgement.hops[sighting.hop], judgement.hops[last.hop]
    if last.hop == sighting.hop:
        return hop.name, hop
    # Nothing stands between an application and its own proxy; what that received is what was sent.
    is_sender = before.kind == "app" and hop.kind == "proxy" and sighting.side == "in"
    return f"{before.name} -> {hop.name}", before if is_sender else None


def _flag_cleared(where: str, hop: Hop | None, product: str) -> Finding:
    who, fix = _who_cleared(hop, product)
    return Finding(
        "warning", "verify.flipped", where, f"the sampled flag is cleared at {where}",
        f"the spans from there on are not recorded, and the trace ends in the middle: {who}", fix,
    )  # fmt: skip


def _who_cleared(hop: Hop | None, product: str) -> tuple[str, str]:
    envoy = "Envoy since 1.39 clears the flag at its own rate, and for an x-request-id that is no UUID"
    if hop is None:
        return (
            f"something between the two decides anew; {envoy}",
            f"at a proxy {sample_all(product)}; or {FOLLOW_PARENT}",
        )
    if hop.kind == "app":
        return "this application decides anew, or writes the flag by hand", FOLLOW_PARENT
    return "this nginx decides anew" if product == "nginx" else envoy, sample_all(product)


def _flag_set_again(where: str, hop: Hop | None) -> Finding:
    fixes = {"app": FOLLOW_PARENT, "proxy": FOLLOW_PARENT_IN_PROXY}
    return Finding(
        "warning", "verify.sampled-again", where, f"the sampled flag is set again at {where}",
        "the trace begins in the middle: the spans before it were not recorded",
        f"{FOLLOW_PARENT}; {FOLLOW_PARENT_IN_PROXY}" if hop is None else fixes[hop.kind],
    )  # fmt: skip


def _record_break(judgement: Judgement, last: _Sighting, sighting: _Sighting) -> None:
    hop, before = judgement.hops[sighting.hop], judgement.hops[last.hop]
    judgement.hops[sighting.hop] = replace(hop, lost=True)
    became = _what_became(sighting.named)
    if sighting.side == "own":
        code, fix, where = "verify.other-trace", READ_W3C if hop.kind == "proxy" else SEND_ON, hop.name
        what = f"{hop.name} records in a trace of its own, {sighting.named.trace_id}"
    elif last.hop == sighting.hop:
        code, fix, where = _break_code(sighting.named), SEND_ON if hop.kind == "app" else look_at(hop), hop.name
        what = f"{hop.name} received the trace and sent {became} on"
    else:
        code, where = _break_code(sighting.named), f"{before.name} -> {hop.name}"
        fix = SEND_ON if before.kind == "app" else BETWEEN
        if before.kind != "app" and sighting.side == "out":
            fix = f"{BETWEEN}; or {SEND_ON if hop.kind == 'app' else look_at(hop)}"
        verb = "sent on" if sighting.side == "out" else "received"
        what = f"{before.name} had the trace, and {hop.name} {verb} {became}"
    judgement.findings.append(Finding("error", code, where, what, "everything from there on is another trace", fix))


def _break_code(named: _Named) -> str:
    return {"valid": "verify.restarted", "absent": "verify.lost", "malformed": "verify.malformed"}[named.state]


def _what_became(named: _Named) -> str:
    if named.state == "valid":
        return f"another trace ({named.trace_id})"
    if named.sampled is not None:
        return f"no trace: its b3 holds the decision {'' if named.sampled else 'not '}to record, and no ids"
    return f"no {named.header}" if named.state == "absent" else f"a malformed {named.header}"


def _lost_tracestate(judgement: Judgement, probe: Probe) -> list[Finding]:
    """Return where the trace goes on without the members of tracestate that were sent: the first place of a branch."""
    sent = _keys(probe.headers.get("tracestate"))
    # Beside a malformed traceparent, and beside none, it is to be dropped.
    if not sent or probe.variant in ("malformed", "b3"):
        return []
    found: list[Finding] = []
    # None in the place of what was seen last: it is gone already.
    seen: _Sighting | None = _Sighting(0, "out", _Named("valid", judgement.expected))
    ends = [(seen, seen)]
    for index, hop in enumerate(judgement.hops[1:], start=1):
        above = index - 1 if hop.parent is None else hop.parent
        is_kept = _is_another_call(judgement.hops[above], hop) and sent <= _keys(hop.received.get("tracestate"))
        seen = came = ends[above][not is_kept]
        sides: tuple[tuple[Side, Mapping[str, str | None]], ...] = (("in", hop.received), ("out", hop.sent))
        for side, headers in sides:
            named = _read_headers(headers, probe)
            # Where the trace itself was lost, its tracestate went with it.
            is_seen = "tracestate" in headers and named is not None and named.trace_id == judgement.expected
            if seen is None or named is None or not is_seen:
                continue
            sighting = _Sighting(index, side, named)
            is_whole = sent <= _keys(headers["tracestate"])
            if not is_whole:
                found.append(_tracestate_finding(*_culprit(judgement, seen, sighting)))
            seen = sighting if is_whole else None
            came = seen if side == "in" else came
        ends.append((came, seen))
    return found


def _keys(tracestate: str | None) -> set[str]:
    return {member.partition("=")[0].strip() for member in (tracestate or "").split(",") if "=" in member}


def _tracestate_finding(where: str, hop: Hop | None) -> Finding:
    app = (
        "pass tracestate on with traceparent; an OpenTelemetry application loses it where B3 is the last of its "
        "formats (OTEL_PROPAGATORS), and so does one that copies traceparent alone"
    )
    proxy = "look in the proxy for a rule that removes tracestate or sets it"
    fix = f"{proxy}; or {app}" if hop is None else app if hop.kind == "app" else f"{proxy}; {look_at(hop)}"
    return Finding(
        "warning", "verify.tracestate-lost", where, f"the tracestate is gone at {where}",
        "what other tracing systems noted there, a sampling probability for one, is lost", fix,
    )  # fmt: skip
