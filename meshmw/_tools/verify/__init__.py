"""`verify`: one synthetic request, followed through logs, answers and backends, and judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from meshmw._notices import without_secrets
from meshmw._tools import Finding, by_severity
from meshmw._tools.verify.evidence import BackendError, LogTail, Seen, Watch, logged_in, probe_hops
from meshmw._tools.verify.journey import Hop, Journey, JourneySpan, Verdict, with_orphans
from meshmw._tools.verify.judge import Judgement, judge_hops
from meshmw._tools.verify.probe import Answer, Echo, Probe

# What an answer, the sources and the spans of a probe show to be wrong, as findings.


def of_answer(probe: Probe, answer: Answer) -> list[Finding]:
    """Return what the answer itself shows."""
    if answer.status_code < 400:
        return []
    return [
        Finding(
            "warning", "verify.status", without_secrets(probe.url), f"the answer was {answer.status_code}",
            "a request that is refused on the way does not reach every hop",
            "give a URL that answers 2xx, or what it needs with --header",
        )
    ]  # fmt: skip


def of_sources(watch: Watch, seen: Seen, faults: dict[str, str]) -> list[Finding]:
    """Return what is wrong with the logs and the backends themselves."""
    findings = [
        Finding("error", "verify.backend", name, text, "what it holds is not known", "mend its URL, or leave it out")
        for name, text in faults.items()
    ]
    return findings + [finding for tail in watch.tails for finding in _of_log(tail, seen)]


def _of_log(tail: LogTail, seen: Seen) -> Iterator[Finding]:
    if not tail.prints_traceparent:
        yield Finding(
            "error", "access-log.not-logged", tail.name, "the access log does not print traceparent",
            "nobody can see in it what passed", "`meshmw mesh-config` prints a format that does",
        )  # fmt: skip
    elif not logged_in(tail, seen):
        yield Finding(
            "warning", "verify.not-logged", tail.name, f"no new line in {tail.name} is the probe's",
            "the request did not pass there, or came with neither its trace nor its x-request-id; Envoy "
            "writes its log every ten seconds",
            "wait longer with --timeout; give --alone where nothing else uses the mesh, and each new line counts",
        )  # fmt: skip


def of_spans(
    probe: Probe, judgement: Judgement, watch: Watch, spans: Sequence[JourneySpan], faults: dict[str, str]
) -> list[Finding]:
    """Return what the spans show: none at all, other traces, parents that never came."""
    if probe.variant == "unsampled":
        return [_recorded_unsampled(spans)] if spans else []
    if not spans:
        return [] if not watch.backends or faults else [_no_spans(watch)]
    wanted = judgement.expected or spans[0].trace_id
    strays = [span for span in spans if span.trace_id != wanted]
    orphans = [span for span in spans if span.orphan and span.trace_id == wanted]
    findings = [_split(strays, len(spans))] if strays else []
    return [*findings, _fallen_apart(orphans)] if orphans else findings


def _split(strays: Sequence[JourneySpan], count: int) -> Finding:
    first, others = strays[0], len({span.trace_id for span in strays})
    return Finding(
        "error", "verify.split", f"{first.service} {first.kind}",
        f"{len(strays)} of {count} spans are in {others} other trace{'s' if others > 1 else ''}; the "
        f"first is {first.name!r} of {first.service} in {first.trace_id}",
        "one request shows up as several traces",
        "look at the hop before that span: it did not pass the headers on, or in another format",
    )  # fmt: skip


def _fallen_apart(orphans: Sequence[JourneySpan]) -> Finding:
    first = orphans[0]
    return Finding(
        "error", "verify.orphan", f"{first.service} {first.kind}",
        f"{len(orphans)} spans hang below spans that never came; the first is {first.name!r} of "
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


_POLL: Final = 0.1
# Clocks differ from machine to machine; what is older than this is an earlier probe with the same ids.
_SKEW_NS: Final = 60 * 10**9


def follow(
    probe: Probe, answer: Answer, watch: Watch, began_ns: int, tell: Callable[[str], None] = lambda text: None
) -> Journey:
    """Wait until logs and backends show the probe, and return its journey with the verdict.

    Args:
        probe: What was sent.
        answer: What came back.
        watch: What is watched.
        began_ns: When it was sent, in nanoseconds since 1970.
        tell: Is told now and then what has been seen.
    """
    deadline = time.monotonic() + watch.timeout
    faults: dict[str, str] = {}
    seen, since = _look(probe, answer, watch, began_ns, faults), time.monotonic()
    while time.monotonic() < deadline:
        if _is_complete(seen, watch, probe) and time.monotonic() - since >= watch.settle:
            break
        tell(f"{max(0, len(seen.hops) - 1)} hops, {len(seen.spans)} spans")
        time.sleep(min(_POLL, watch.settle))
        now = _look(probe, answer, watch, began_ns, faults)
        if now != seen:
            seen, since = now, time.monotonic()
    return _journey(probe, answer, watch, seen, faults)


def _look(probe: Probe, answer: Answer, watch: Watch, began_ns: int, faults: dict[str, str]) -> Seen:
    hops = way(probe, probe_hops(watch.tails, probe, alone=watch.alone), answer.echoes)
    trace_ids = list(dict.fromkeys([probe.trace_id, *judge_hops(hops, probe).trace_ids, *_named(answer)]))
    spans: dict[tuple[str, str, str], JourneySpan] = {}
    for backend in watch.backends:
        try:
            found = backend.spans(trace_ids)
        except BackendError as error:
            faults[backend.name] = str(error)
            continue
        faults.pop(backend.name, None)
        for span in found:
            if span.start_ns >= began_ns - _SKEW_NS:
                # A Zipkin client and its server may share an id.
                spans.setdefault((span.trace_id, span.span_id, span.kind), span)
    return Seen(tuple(hops), with_orphans(spans.values(), probe.parent_id))


def _named(answer: Answer) -> list[str]:
    return [answer.trace_id] if answer.trace_id else []


def way(probe: Probe, proxies: Iterable[Hop], echoes: Sequence[Echo]) -> list[Hop]:
    """Return the hops from the probe on, with what applications said of themselves put where they are."""
    told = list(echoes)
    hops = [Hop(name="probe", kind="client", sent=dict(probe.trace_headers))]
    for hop in proxies:
        hops.append(_with_echo(hop, told.pop(0)) if hop.kind == "app" and told else hop)
    hops += [_with_echo(Hop(name=f"application ({echo.where})", kind="app"), echo) for echo in told]
    return hops


def _with_echo(hop: Hop, echo: Echo) -> Hop:
    return replace(hop, received={**hop.received, **echo.headers}, trace_id=echo.trace_id)


def _is_complete(seen: Seen, watch: Watch, probe: Probe) -> bool:
    logged = all(logged_in(tail, seen) for tail in watch.tails)
    recorded = len(seen.spans) >= max(1, watch.spans) and not any(span.orphan for span in seen.spans)
    # What must not come cannot be waited for; the settling time is all that it gets.
    return logged and (recorded or not watch.backends or probe.variant == "unsampled")


def _journey(probe: Probe, answer: Answer, watch: Watch, seen: Seen, faults: dict[str, str]) -> Journey:
    judgement = judge_hops(seen.hops, probe)
    findings = [*judgement.findings, *of_answer(probe, answer), *of_sources(watch, seen, faults)]
    findings += of_spans(probe, judgement, watch, seen.spans, faults)
    ordered = by_severity(findings)
    errors = [finding for finding in ordered if finding.severity == "error"]
    verdict = _verdict(judgement, errors, seen)
    return Journey(
        title=f"{probe.method} {without_secrets(probe.url)}",
        verdict=verdict,
        summary=_summary(verdict, judgement, errors, seen.spans),
        trace_id=judgement.expected or probe.trace_id,
        parent_id=probe.parent_id,
        sent=probe.trace_headers,
        status_code=answer.status_code,
        hops=tuple(_with_spans(hop, seen.spans) for hop in judgement.hops),
        spans=seen.spans,
        findings=ordered,
        sources=tuple(_sources(watch, answer, seen, faults)),
    )


def _verdict(judgement: Judgement, errors: Sequence[Finding], seen: Seen) -> Verdict:
    if errors:
        return "broken"
    return "one" if judgement.sights or seen.spans else "unknown"


def _summary(verdict: Verdict, judgement: Judgement, errors: Sequence[Finding], spans: Sequence[JourneySpan]) -> str:
    if verdict == "broken":
        return f"BROKEN at {errors[0].where}: {errors[0].what}"
    if verdict == "unknown":
        return (
            "UNKNOWN: nothing shows the trace; give access logs, a backend, or an application that echoes its headers"
        )
    recorded = f" and {len(spans)} spans" if spans else ""
    sightings = f"{judgement.sights} sighting{'' if judgement.sights == 1 else 's'} of its headers"
    return f"ONE trace: {sightings}{recorded}, all of one trace"


def _with_spans(hop: Hop, spans: Sequence[JourneySpan]) -> Hop:
    """Name the spans that a hop made: the one that it sent on as parent, and those right below what it received."""
    sent, came = ((headers.get("traceparent") or "")[36:52] for headers in (hop.sent, hop.received))
    made = [
        span.span_id
        for span in spans
        if (sent and span.span_id == sent and sent != came)
        or (came and span.parent_id == came and span.maker == hop.kind)
    ]
    return replace(hop, span_ids=tuple(dict.fromkeys(made)))


def _sources(watch: Watch, answer: Answer, seen: Seen, faults: dict[str, str]) -> Iterable[str]:
    count = len(answer.echoes)
    yield f"answer: {answer.status_code}, {count} application{'' if count == 1 else 's'} told what arrived"
    for tail in watch.tails:
        count = logged_in(tail, seen)
        yield f"access log {tail.name}: {count} hop{'' if count == 1 else 's'}"
    for backend in watch.backends:
        yield f"{backend.name}: {faults.get(backend.name) or f'{len(seen.spans)} spans'}"
