"""Where a trace broke, as findings: what each hop did to the headers, and what answer, logs and spans show.

`judge_hops` follows the trace through the sightings of its headers, in the order of the way, and names the first place
where it is lost. What comes after a loss is its consequence, and no loss of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple

from meshmw._notices import quoted, without_secrets
from meshmw._tools import Finding
from meshmw._tools.verify.evidence import Evidence, LogTail, Watch
from meshmw._tools.verify.journey import Change, Hop, JourneySpan
from meshmw._tools.verify.probe import TRACESTATE, Probe, ProbeAnswer
from meshmw.errors import InvalidHeaderError
from meshmw.wire import B3Context, TraceParent

Side = Literal["in", "own", "out"]
State = Literal["valid", "absent", "malformed"]

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
    """Holds what the hops show.

    Attributes:
        hops: The hops, each with what it did.
        findings: The faults, in the order of the way.
        trace_ids: All traces that were seen, the expected one first.
        expected: The trace that the last hops are in; empty where there is none.
        sightings: How often headers were seen.
    """

    hops: list[Hop]
    findings: list[Finding] = field(default_factory=list)
    trace_ids: list[str] = field(default_factory=list)
    expected: str = ""
    sightings: int = 0


def judge_hops(hops: Sequence[Hop], probe: Probe) -> Judgement:
    """Follow the trace from hop to hop, and say where it is lost, restarted or unsampled."""
    judgement = Judgement([_with_change(hop, probe) for hop in hops])
    judgement.expected = "" if probe.variant == "malformed" else probe.trace_id
    judgement.trace_ids = [judgement.expected] if judgement.expected else []
    last = _Sighting(0, "out", _Named("valid", judgement.expected))
    is_lost = False
    for sighting in _sightings(judgement.hops, probe):
        judgement.sightings += 1
        named = sighting.named
        if named.trace_id and named.trace_id not in judgement.trace_ids:
            judgement.trace_ids.append(named.trace_id)
        if named.state == "valid" and named.trace_id == judgement.expected:
            _check_flag(judgement, sighting, probe)
            last, is_lost = sighting, False
        elif probe.variant == "malformed" and not judgement.expected:
            last = _expect_fresh_trace(judgement, sighting) or last
        elif not is_lost:
            _record_break(judgement, last, sighting)
            is_lost = named.state != "valid"
            last = sighting
            judgement.expected = named.trace_id if sighting.side != "own" and named.trace_id else judgement.expected
        elif named.state == "valid":
            judgement.expected, is_lost, last = named.trace_id, False, sighting
    _check_tracestate(judgement, probe)
    return judgement


class _Named(NamedTuple):
    """Holds the trace that some headers name."""

    state: State
    trace_id: str = ""
    sampled: bool | None = None


class _Sighting(NamedTuple):
    """Says what was seen at which hop: what came in, the hop's own trace, or what went out."""

    hop: int
    side: Side
    named: _Named


def _sightings(hops: Sequence[Hop], probe: Probe) -> Iterator[_Sighting]:
    """Yield what was seen, in the order of the way; the first hop is the probe itself."""
    for index, hop in enumerate(hops[1:], start=1):
        if (named := _read_headers(hop.received, probe)) is not None:
            yield _Sighting(index, "in", named)
        if hop.trace_id:
            yield _Sighting(index, "own", _Named("valid", hop.trace_id.rjust(32, "0")))
        if (named := _read_headers(hop.sent, probe)) is not None:
            yield _Sighting(index, "out", named)


def _read_headers(headers: Mapping[str, str | None], probe: Probe) -> _Named | None:
    """Return the trace that headers name, or None where they were not looked at."""
    if "traceparent" not in headers:
        return None
    parent, b3 = headers["traceparent"], headers.get("b3")
    if probe.variant == "b3" and parent is None:
        return _read_b3(headers)
    if parent is None:
        return _Named("absent")
    try:
        found = TraceParent.parse(parent)
    except InvalidHeaderError:
        return _Named("malformed") if b3 is None or probe.variant != "b3" else _read_b3(headers)
    return _Named("valid", f"{found.trace_id:032x}", found.sampled)


def _read_b3(headers: Mapping[str, str | None]) -> _Named | None:
    single, multi = headers.get("b3"), headers.get("x-b3-traceid")
    if "b3" not in headers and "x-b3-traceid" not in headers:
        return None
    if single is None:
        return _Named("absent") if multi is None else _Named("valid", multi.rjust(32, "0"))
    try:
        found = B3Context.parse(single)
    except InvalidHeaderError:
        return _Named("malformed")
    return _Named("valid", f"{found.trace_id or 0:032x}", found.sampled)


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


def _expect_fresh_trace(judgement: Judgement, sighting: _Sighting) -> _Sighting | None:
    hop = judgement.hops[sighting.hop]
    if sighting.named.state == "valid":
        judgement.expected = sighting.named.trace_id
        return sighting
    if sighting.named.state == "malformed" and hop.kind == "app" and sighting.side == "out":
        judgement.findings.append(
            Finding(
                "error", "verify.malformed-forwarded", hop.name,
                f"{hop.name} sends the malformed traceparent on",
                "no proxy and no strict reader behind it takes part in any trace",
                _FIXES["app"],
            )
        )  # fmt: skip
    return None


def _check_flag(judgement: Judgement, sighting: _Sighting, probe: Probe) -> None:
    wanted = probe.variant != "unsampled"
    if sighting.named.sampled is None or sighting.named.sampled == wanted:
        return
    hop = judgement.hops[sighting.hop]
    where = hop.name if sighting.side == "out" else f"before {hop.name}"
    found = _flag_cleared(where) if wanted else _flag_set_again(where)
    if found.code not in {finding.code for finding in judgement.findings}:
        judgement.findings.append(found)


def _flag_cleared(where: str) -> Finding:
    return Finding(
        "warning", "verify.flipped", where, f"the sampled flag is cleared at or {where}",
        "the spans from there on are not recorded, and the trace ends in the middle: Envoy since 1.39 clears "
        "the flag at its own rate, and for an x-request-id that is no UUID",
        "set randomSamplingPercentage: 100 or useRequestIdForTraceSampling: false in Istio's Telemetry; in "
        "Envoy random_sampling, or use_request_id_for_trace_sampling of the request id extension",
    )  # fmt: skip


def _flag_set_again(where: str) -> Finding:
    return Finding(
        "warning", "verify.sampled-again", where, f"the sampled flag is set again at or {where}",
        "the trace begins in the middle: the spans before it were not recorded",
        "let the sampler there follow its parent: ParentBased in an application, parent_based in Envoy",
    )  # fmt: skip


def _record_break(judgement: Judgement, last: _Sighting, sighting: _Sighting) -> None:
    hop, before = judgement.hops[sighting.hop], judgement.hops[last.hop]
    judgement.hops[sighting.hop] = replace(hop, lost=True)
    became = _what_became(sighting.named)
    if sighting.side == "own":
        code, fix = "verify.other-trace", _FIXES["own" if hop.kind == "proxy" else "app"]
        what = f"{hop.name} records in a trace of its own, {sighting.named.trace_id}"
        where = hop.name
    elif last.hop == sighting.hop:
        code, fix, where = _break_code(sighting.named), _FIXES["app" if hop.kind == "app" else "proxy"], hop.name
        what = f"{hop.name} received the trace and sent {became} on"
    else:
        code, fix, where = _break_code(sighting.named), _FIXES["between"], f"{before.name} -> {hop.name}"
        if before.kind == "app":
            fix = _FIXES["app"]
        elif sighting.side == "out":
            fix = f"{_FIXES['between']}; or {_FIXES['app' if hop.kind == 'app' else 'proxy']}"
        verb = "sent on" if sighting.side == "out" else "received"
        what = f"{before.name} had the trace, and {hop.name} {verb} {became}"
    judgement.findings.append(Finding("error", code, where, what, "everything from there on is another trace", fix))


def _break_code(named: _Named) -> str:
    return {"valid": "verify.restarted", "absent": "verify.lost", "malformed": "verify.malformed"}[named.state]


def _what_became(named: _Named) -> str:
    if named.state == "valid":
        return f"another trace ({named.trace_id})"
    return "no traceparent" if named.state == "absent" else "a malformed traceparent"


def _check_tracestate(judgement: Judgement, probe: Probe) -> None:
    # Where the trace itself was lost, its tracestate went with it.
    if "tracestate" not in probe.headers or probe.variant == "malformed" or judgement.findings:
        return
    seen = [
        (hop, headers["tracestate"] or "")
        for hop in judgement.hops[1:]
        for headers in (hop.received, hop.sent)
        if "tracestate" in headers
    ]
    lost = next((hop for hop, state in seen if TRACESTATE not in state), None)
    if lost is not None:
        judgement.findings.append(
            Finding(
                "warning", "verify.tracestate-lost", lost.name, f"the tracestate is gone at {lost.name}",
                "what other tracing systems noted there, a sampling probability for one, is lost",
                "pass tracestate on with traceparent; an OpenTelemetry application loses it where B3 is the last of "
                "its formats",
            )
        )  # fmt: skip


def check_answer(probe: Probe, answer: ProbeAnswer) -> Iterator[Finding]:
    """Yield what the answer itself shows."""
    if answer.status_code >= 400:
        yield Finding(
            "warning", "verify.status", without_secrets(probe.url), f"the answer was {answer.status_code}",
            "a request that is refused on the way does not reach every hop",
            "give a URL that answers 2xx, or what it needs with --header",
        )  # fmt: skip


def check_sources(watch: Watch, evidence: Evidence, faults: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what is wrong with the logs and with the backends, of which *faults* says why one could not be asked."""
    for name, fault in faults.items():
        yield Finding(
            "error", "verify.backend", name, fault, "what it holds is not known", "mend its URL, or leave it out"
        )
    for tail in watch.tails:
        yield from _check_log(tail, evidence)


def _check_log(tail: LogTail, evidence: Evidence) -> Iterator[Finding]:
    if not tail.prints_traceparent:
        yield Finding(
            "error", "access-log.not-logged", tail.name, "the access log does not print traceparent",
            "nobody can see in it what passed", "`meshmw mesh-config` prints a format that does",
        )  # fmt: skip
    elif not evidence.hops_in(tail):
        yield Finding(
            "warning", "verify.not-logged", tail.name, f"no new line in {tail.name} is the probe's",
            "the request did not pass there, or came with neither its trace nor its x-request-id; Envoy "
            "writes its log every ten seconds",
            "wait longer with --timeout; give --alone where nothing else uses the mesh, and each new line counts",
        )  # fmt: skip


def check_spans(
    probe: Probe, judgement: Judgement, watch: Watch, spans: Sequence[JourneySpan], faults: Mapping[str, str]
) -> Iterator[Finding]:
    """Yield what the spans show: none at all, other traces, parents that never came."""
    if probe.variant == "unsampled":
        if spans:
            yield _recorded_unsampled(spans)
    elif not spans:
        if watch.backends and not faults:
            yield _no_spans(watch)
    else:
        wanted = judgement.expected or spans[0].trace_id
        if strays := [span for span in spans if span.trace_id != wanted]:
            yield _split_trace(strays, len(spans))
        if orphans := [span for span in spans if span.orphan and span.trace_id == wanted]:
            yield _orphaned(orphans)


def _split_trace(strays: Sequence[JourneySpan], count: int) -> Finding:
    first, others = strays[0], len({span.trace_id for span in strays})
    return Finding(
        "error", "verify.split", f"{first.service} {first.kind}",
        f"{len(strays)} of {count} spans are in {others} other trace{'s' if others > 1 else ''}; the "
        f"first is {quoted(first.name)} of {first.service} in {first.trace_id}",
        "one request shows up as several traces",
        "look at the hop before that span: it did not pass the headers on, or in another format",
    )  # fmt: skip


def _orphaned(orphans: Sequence[JourneySpan]) -> Finding:
    first = orphans[0]
    return Finding(
        "error", "verify.orphan", f"{first.service} {first.kind}",
        f"{len(orphans)} spans hang below spans that never came; the first is {quoted(first.name)} of "
        f"{first.service}, whose parent {first.parent_id} is missing",
        "the tree falls apart at this place, although the trace id is right",
        "find who made that parent: a service or a proxy that passes headers on and exports nothing, or not "
        "yet; wait longer with --timeout",
    )  # fmt: skip


def _recorded_unsampled(spans: Sequence[JourneySpan]) -> Finding:
    return Finding(
        "warning", "verify.recorded-unsampled", spans[0].service,
        f"{len(spans)} spans were recorded of a trace that was sent unsampled, the first by {spans[0].service}",
        "it costs what the sender decided not to spend, and the trace begins in the middle",
        "let samplers follow their parent: ParentBased in an application, parent_based in Envoy",
    )  # fmt: skip


def _no_spans(watch: Watch) -> Finding:
    names = ", ".join(backend.name for backend in watch.backends)
    return Finding(
        "error", "verify.no-spans", names, f"no span of the trace came in {watch.timeout:g} seconds",
        "nothing was recorded, or it is exported elsewhere, or later",
        "check the exporter's endpoint and the sampler with `meshmw doctor`, or wait longer with --timeout",
    )  # fmt: skip
