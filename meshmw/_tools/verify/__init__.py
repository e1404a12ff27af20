"""`follow`: one synthetic request, followed through answer, access logs and backends, and judged.

`probe` makes the request and sends it, `evidence` looks at logs and backends, `judge` says where the trace broke, and a
`Journey` holds the outcome. `command` prints it, and `report` makes a page of it. `meshmw.testing` follows the requests
of a test in the same way.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from meshmw._notices import without_secrets
from meshmw._tools import Finding, by_severity
from meshmw._tools.verify.evidence import BackendError, Evidence, HttpBackend, Watch, merged
from meshmw._tools.verify.journey import ECHO_NAME, Hop, Journey, JourneySpan, Verdict, with_orphans, with_parents
from meshmw._tools.verify.judge import Judgement, judge_hops
from meshmw._tools.verify.judge_spans import (
    BACKEND_FAULT,
    NOT_LOGGED,
    TOO_MANY,
    TOO_OLD,
    check_answer,
    check_sources,
    check_spans,
    partial_traces,
    silent_hops,
)
from meshmw._tools.verify.logs import probe_hops
from meshmw._tools.verify.probe import Echo, Probe, ProbeAnswer, is_trace_id

_POLL: Final = 0.1
# Codes of findings that say that something is not known.
_UNKNOWN: Final = (
    BACKEND_FAULT, NOT_LOGGED, TOO_OLD, TOO_MANY, "verify.partial", "verify.no-log", "verify.unknown-format"
)  # fmt: skip
# Clocks differ from machine to machine; what is older than this is an earlier probe with the same ids.
_SKEW_NS: Final = 60 * 10**9
_SHOW_IT: Final = "give access logs, a backend, or an application that echoes its headers"


def follow(
    probe: Probe,
    answer: ProbeAnswer,
    watch: Watch,
    began_ns: int,
    progress: Callable[[str], None] = lambda text: None,
) -> Journey:
    """Wait until logs and backends show the probe, and return its journey with the verdict.

    Args:
        probe: What was sent.
        answer: Its answer.
        watch: The logs and backends, and how long to wait for them.
        began_ns: When it was sent, in nanoseconds since 1970.
        progress: Takes a text from time to time that says what has been seen.
    """
    deadline = time.monotonic() + watch.timeout
    faults: dict[str, str] = {}
    evidence, since = _look(probe, answer, watch, began_ns, faults), time.monotonic()
    while time.monotonic() < deadline:
        if _is_complete(evidence, watch, probe) and time.monotonic() - since >= watch.settle:
            break
        progress(f"{max(0, len(evidence.hops) - 1)} hops, {len(evidence.spans)} spans")
        time.sleep(min(_POLL, watch.settle))
        now = _look(probe, answer, watch, began_ns, faults)
        if now != evidence:
            evidence, since = now, time.monotonic()
    return _conclude(probe, answer, watch, evidence, faults)


def _look(probe: Probe, answer: ProbeAnswer, watch: Watch, began_ns: int, faults: dict[str, str]) -> Evidence:
    """Return what can be seen now, and note in *faults* which backends cannot be asked."""
    hops = join_hops(probe, probe_hops(watch.tails, probe, alone=watch.alone), answer.echoes)
    named = [probe.trace_id, *judge_hops(hops, probe).trace_ids, answer.trace_id]
    # A trace id that a header or a log line names becomes part of a backend's URL.
    trace_ids = [trace_id for trace_id in dict.fromkeys(named) if is_trace_id(trace_id)]
    answers: list[Sequence[JourneySpan]] = []
    for backend in watch.backends:
        try:
            answers.append(backend.spans(trace_ids))
        except BackendError as error:
            faults[backend.name] = str(error)
            continue
        faults.pop(backend.name, None)
    # Ids that are fresh are nobody else's.
    fresh = set(trace_ids) - (set() if probe.is_fresh else {probe.trace_id})
    mine, too_old = _of_this_request(merged(answers), hops, fresh, began_ns)
    return Evidence(tuple(hops), with_orphans(mine, probe.parent_id, probe.trace_id), too_old)


def _of_this_request(
    spans: Iterable[JourneySpan], hops: Sequence[Hop], fresh: set[str], began_ns: int
) -> tuple[list[JourneySpan], int]:
    """Return the spans that are the request's, and how many are left out because they seem too old.

    What a header of a hop names, and what hangs together with a span of the request, is the request's whatever its
    clock says: span ids are drawn anew for each request, but for the probe's own.
    """
    mine: list[JourneySpan] = []
    old: list[JourneySpan] = []
    for span in spans:
        (mine if span.trace_id in fresh or span.start_ns >= began_ns - _SKEW_NS else old).append(span)
    named = {span_id for hop in hops[1:] for headers in (hop.received, hop.sent) if (span_id := _span_in(headers))}
    own = _span_in(hops[0].sent)
    waiting = [named, *({span.span_id, span.parent_id} for span in mine)]
    by_id: dict[str, list[JourneySpan]] = defaultdict(list)
    for span in old:
        by_id[span.span_id].append(span)
        by_id[span.parent_id].append(span)
    left = {id(span): span for span in old}
    while waiting:
        for span_id in waiting.pop() - {"", own}:
            for span in by_id.pop(span_id, ()):
                if left.pop(id(span), None) is not None:
                    mine.append(span)
                    waiting.append({span.span_id, span.parent_id})
    return mine, len(left)


def _span_in(headers: Mapping[str, str | None]) -> str:
    return (headers.get("traceparent") or "")[36:52]


def join_hops(probe: Probe, proxies: Iterable[Hop], echoes: Sequence[Echo]) -> list[Hop]:
    """Return the hops from the probe on, with what applications said of themselves put where they are."""
    waiting = list(echoes)
    hops = [Hop(name="probe", kind="client", sent=dict(probe.trace_headers))]
    for hop in proxies:
        echo = _echo_of(hop, waiting) if hop.kind == "app" else None
        if echo is not None:
            waiting.remove(echo)
        hops.append(hop if echo is None else _with_echo(hop, echo))
    hops += [_with_echo(Hop(name=f"{ECHO_NAME}{echo.where})", kind="app"), echo) for echo in waiting]
    return with_parents(hops)


def _echo_of(hop: Hop, waiting: Sequence[Echo]) -> Echo | None:
    """Return the echo that bears what the proxy in front of an application sent it; else the next one."""
    came = hop.received.get("traceparent")
    mine = [echo for echo in waiting if came and echo.headers.get("traceparent") == came]
    return next(iter([*mine, *waiting]), None)


def _with_echo(hop: Hop, echo: Echo) -> Hop:
    return replace(hop, received={**hop.received, **echo.headers}, trace_id=echo.trace_id)


def _is_complete(evidence: Evidence, watch: Watch, probe: Probe) -> bool:
    logged = all(evidence.hops_in(tail) for tail in watch.tails)
    recorded = len(evidence.spans) >= max(1, watch.spans) and not any(span.orphan for span in evidence.spans)
    recorded = recorded and not silent_hops(judge_hops(evidence.hops, probe), evidence.spans)
    # An unsampled probe is to leave no spans, so there are none to wait for. Late ones have the settling time.
    return logged and (recorded or not watch.backends or probe.sampled is False)


def _conclude(probe: Probe, answer: ProbeAnswer, watch: Watch, evidence: Evidence, faults: dict[str, str]) -> Journey:
    judgement = judge_hops(evidence.hops, probe)
    findings = by_severity(
        [
            *judgement.findings,
            *check_answer(probe, answer),
            *check_sources(probe, watch, evidence, faults),
            *check_spans(probe, judgement, watch, evidence, faults),
        ]
    )
    verdict = _verdict(judgement, findings, evidence)
    # A malformed probe is in no trace: what its spans say is all that is known.
    expected = judgement.expected or next((span.trace_id for span in evidence.spans), "")
    links = dict(link for each in watch.backends if isinstance(each, HttpBackend) for link in each.links.items())
    return Journey(
        title=f"{probe.method} {without_secrets(probe.url)}",
        verdict=verdict,
        summary=_summary(verdict, probe, judgement, findings, evidence.spans),
        trace_id=expected,
        parent_id=probe.parent_id,
        sent=probe.trace_headers,
        status_code=answer.status_code,
        hops=tuple(_with_spans(hop, evidence.spans) for hop in judgement.hops),
        spans=evidence.spans,
        findings=findings,
        sources=tuple(_describe_sources(watch, answer, evidence, faults)),
        links=tuple(links[trace_id] for trace_id in sorted(links, key=lambda trace_id: trace_id != expected)),
    )


def _verdict(judgement: Judgement, findings: Sequence[Finding], evidence: Evidence) -> Verdict:
    if any(finding.severity == "error" for finding in findings):
        return "broken"
    # Of a malformed traceparent nothing goes on: to see it arrive is not to see a trace.
    return "one" if evidence.spans or (judgement.sightings and judgement.expected) else "unknown"


def _summary(
    verdict: Verdict, probe: Probe, judgement: Judgement, findings: Sequence[Finding], spans: Sequence[JourneySpan]
) -> str:
    if verdict == "broken":
        # The worst findings come first.
        return f"BROKEN at {findings[0].where}: {findings[0].what}"
    if verdict == "unknown" and judgement.sightings:
        what = "the traceparent that was sent is malformed" if probe.variant == "malformed" else "no trace was sent"
        return f"UNKNOWN: {what}, and nothing shows the trace that was begun instead"
    if verdict == "unknown":
        # What is the matter with what was given comes before what else could be given.
        doubts = [f"{finding.where}: {finding.what}" for finding in findings if finding.code in _UNKNOWN]
        return next((f"UNKNOWN: {doubt}" for doubt in doubts), f"UNKNOWN: nothing shows the trace; {_SHOW_IT}")
    counts = ((judgement.sightings, "sighting", " of its headers"), (len(spans), "span", ""))
    seen = (f"{count} {noun}{'' if count == 1 else 's'}{rest}" for count, noun, rest in counts if count)
    return f"ONE trace: {' and '.join(seen)}, all of one trace{_doubts(findings)}"


def _doubts(findings: Sequence[Finding]) -> str:
    """Say what is not known, where the trace is one as far as it could be seen."""
    unknown = [finding.where for finding in findings if finding.code in _UNKNOWN and finding.is_fault]
    return f", as far as is known: nothing more of {', '.join(unknown)}" if unknown else ""


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


def _describe_sources(watch: Watch, answer: ProbeAnswer, evidence: Evidence, faults: dict[str, str]) -> Iterator[str]:
    count = len(answer.echoes)
    yield f"answer: {answer.status_code}, {count} application{'' if count == 1 else 's'} echoed the headers"
    for tail in watch.tails:
        count = evidence.hops_in(tail)
        missing = "" if tail.path.exists() else f", there is no file {tail.path}"
        yield f"access log {tail.name}: {count} hop{'' if count == 1 else 's'}{missing}"
    for backend in watch.backends:
        yield f"{backend.name}: {faults.get(backend.name) or f'{len(evidence.spans)} spans'}"
    yield from partial_traces(watch)
