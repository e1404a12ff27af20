"""`verify`: one synthetic request, followed through logs, answers and backends, and judged.

Knows the probe, the logs and the backends, and when all has been seen. Must not know a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from meshmw.diagnose.escaping import without_secrets
from meshmw.diagnose.finding import Finding, by_severity
from meshmw.diagnose.journey import Hop, Journey, JourneySpan, Verdict
from meshmw.diagnose.journey_spans import with_orphans
from meshmw.diagnose.verify_answer import Answer, Echo
from meshmw.diagnose.verify_backends import BackendError
from meshmw.diagnose.verify_findings import of_answer, of_sources, of_spans
from meshmw.diagnose.verify_judge import Judgement, judge_hops
from meshmw.diagnose.verify_logs import probe_hops
from meshmw.diagnose.verify_probe import Probe
from meshmw.diagnose.verify_watch import Seen, Watch, logged_in

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
