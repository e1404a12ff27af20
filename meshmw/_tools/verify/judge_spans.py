"""What is wrong with a probe's spans, its answer, and the sources that it was looked for in, as findings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from meshmw._notices import quoted, without_secrets
from meshmw._tools import Finding
from meshmw._tools.verify.evidence import Evidence, HttpBackend, LocalBackend, Watch
from meshmw._tools.verify.journey import Hop, JourneySpan, is_at, name_of_place
from meshmw._tools.verify.judge import Judgement
from meshmw._tools.verify.logs import NOT_LOOKED_AT, LogTail
from meshmw._tools.verify.probe import Probe, ProbeAnswer
from meshmw.errors import InvalidHeaderError
from meshmw.wire import TraceParent

# The code of what could not be asked: then nobody knows whether the trace is whole.
BACKEND_FAULT: Final = "verify.backend"
TOO_OLD: Final = "verify.too-old"
TOO_MANY: Final = "verify.too-many-calls"
NOT_LOGGED: Final = "access-log.not-logged"
# Places at which spans are missing that are named one by one, and services in one sentence.
_MAX_PLACES: Final = 20
# The headers of B3 that a log may have a place for.
_B3: Final = ("b3", "x-b3-traceid")
# The kinds of two spans that may have one id.
_SHARED: Final = (["CLIENT", "SERVER"], ["CONSUMER", "PRODUCER"])


def check_answer(probe: Probe, answer: ProbeAnswer) -> Iterator[Finding]:
    """Yield what the answer itself shows."""
    if 300 <= answer.status_code < 400:
        yield Finding(
            "warning", "verify.status", without_secrets(probe.url),
            f"the answer was {answer.status_code}, which leads to another URL",
            "redirects are not followed: the request ended where it was redirected", "give the URL that it leads to",
        )  # fmt: skip
    elif answer.status_code >= 400:
        yield Finding(
            "warning", "verify.status", without_secrets(probe.url), f"the answer was {answer.status_code}",
            "a request that is refused on the way does not reach every hop",
            "give a URL that answers 2xx, or what it needs with --header",
        )  # fmt: skip


def check_sources(probe: Probe, watch: Watch, evidence: Evidence, faults: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what is wrong with the logs and with the backends, of which *faults* says why one could not be asked."""
    for name, fault in faults.items():
        # What is not known breaks no trace.
        yield Finding(
            "warning", BACKEND_FAULT, name, fault, "what it holds is not known", "mend its URL, or leave it out"
        )
    for text in partial_traces(watch):
        yield Finding(
            "warning", "verify.partial", text.partition(" has trace ")[0], text,
            "spans are missing that it knows of, so that parents and services can seem to be missing",
            "raise its limit for one trace, or ask for a smaller one",
        )  # fmt: skip
    if evidence.too_old:
        yield _too_old(watch, evidence)
    for tail in watch.tails:
        yield from _check_log(tail, evidence, probe)
    for hop in evidence.hops:
        if hop.note.endswith(NOT_LOOKED_AT):
            yield Finding(
                "warning", TOO_MANY, hop.name, hop.note,
                "what became of the trace in them is not known",
                "send the request alone, or look at the log itself: `meshmw access-log`",
            )  # fmt: skip


def _too_old(watch: Watch, evidence: Evidence) -> Finding:
    names = ", ".join(backend.name for backend in watch.backends)
    return Finding(
        # Where others came, what lies there is an earlier probe's for all that is known.
        "note" if evidence.spans else "warning", TOO_OLD, names,
        f"{_spans(evidence.too_old, 'is', 'are')} left out that began more than a minute before the request",
        "an earlier probe has left them, which had the same ids, or a machine's clock is behind: it is not known which",
        "send ids that nobody has used: --random; and compare the clocks of the machines (`chronyc tracking`)",
    )  # fmt: skip


def partial_traces(watch: Watch) -> list[str]:
    """Return what backends say of traces that they gave in part."""
    return [text for backend in watch.backends if isinstance(backend, HttpBackend) for text in backend.partial]


def _check_log(tail: LogTail, evidence: Evidence, probe: Probe) -> Iterator[Finding]:
    if not tail.path.exists():
        yield Finding(
            "warning", "verify.no-log", tail.name, f"there is no file {tail.path}",
            "nothing is known of what passed there", "give the path of the proxy's access log, as this machine sees it",
        )  # fmt: skip
    elif tail.is_unreadable:
        yield Finding(
            "warning", "verify.unknown-format", tail.name, "its new lines are in no format that is known",
            "nothing is known of what passed there", "give the proxy's own format string with --format",
        )  # fmt: skip
    elif unlogged := _unlogged(tail, evidence, probe):
        what = "a B3 header or a valid traceparent" if probe.variant == "b3" else "traceparent"
        for where in unlogged:
            yield Finding(
                "warning", NOT_LOGGED, where,
                f"no line of this {'log' if where == tail.name else 'listener'} has {what}: its format has no place "
                "for it, or nothing was sent (omit_empty_values)",
                "nobody can see in it what passed: a trace that ends there is not noticed",
                "`meshmw mesh-config` prints a format that does",
            )  # fmt: skip
    elif not evidence.hops_in(tail):
        yield Finding(
            "warning", "verify.not-logged", tail.name, f"no new line in {tail.name} is the probe's",
            "the request did not pass there, or came with neither its trace nor its x-request-id; Envoy "
            "writes its log every ten seconds",
            "wait longer with --timeout; give --alone where nothing else uses the mesh, and each new line counts",
        )  # fmt: skip


def _unlogged(tail: LogTail, evidence: Evidence, probe: Probe) -> list[str]:
    """Return the log, or those of its listeners that the probe passed, whose lines have no place for traceparent."""
    hops = {side: [hop for hop in evidence.hops if is_at(hop, tail.name, side)] for side in tail.printed}
    sides = tail.sides_without("traceparent")
    if probe.variant == "b3":
        # A log that prints B3 shows enough; one that prints traceparent does where something on the way writes it.
        sides = [
            side
            for side in tail.sides_without(*_B3)
            if side in sides or (hops[side] and not any(map(_has_traceparent, hops[side])))
        ]
    if sides and len(sides) == len(hops):
        return [tail.name]
    return [name_of_place(tail.name, side) for side in sides if hops[side]]


def _has_traceparent(hop: Hop) -> bool:
    return any(_parent_in(headers) is not None for headers in (hop.received, hop.sent))


def check_spans(
    probe: Probe, judgement: Judgement, watch: Watch, evidence: Evidence, faults: Mapping[str, str]
) -> Iterator[Finding]:
    """Yield what the spans show: none at all, other traces, parents that never came, hops that export nothing."""
    spans, wanted = evidence.spans, judgement.expected
    if not spans:
        # Of a trace that is not sampled, nothing is to come; one whose id nobody knows could not be asked for.
        is_asked = bool(wanted) or all(isinstance(each, LocalBackend) and each.everything for each in watch.backends)
        if watch.backends and is_asked and not faults and judgement.sampled is not False and not evidence.too_old:
            yield _no_spans(watch)
        return
    wanted = wanted or spans[0].trace_id
    mine = [span for span in spans if span.trace_id == wanted]
    if strays := [span for span in spans if span.trace_id != wanted]:
        yield _split_trace(strays, len(spans))
    yield from _same_ids(spans)
    if probe.sampled is False:
        if mine:
            yield _recorded_unsampled(mine)
    # Of a trace that came in part, and from backends that do not all answer, nobody knows what is missing.
    elif not faults and not partial_traces(watch):
        yield from _missing(judgement, spans, [span for span in mine if span.orphan])


def _missing(judgement: Judgement, spans: Sequence[JourneySpan], orphans: Sequence[JourneySpan]) -> Iterator[Finding]:
    """Yield who exports nothing: each that a span names as its parent, and each that took part and left no span."""
    makers: dict[str, Hop] = {}
    for hop in judgement.hops[1:]:
        # Whoever passes on what it received has not made it.
        if (made := _named_by(hop.sent)[1]) and made != _named_by(hop.received)[1]:
            makers.setdefault(made, hop)
    by_place: dict[str, list[JourneySpan]] = defaultdict(list)
    for span in orphans:
        maker = makers.get(span.parent_id)
        by_place[f"{span.service} {span.kind}" if maker is None else maker.name].append(span)
    # Strangers choose how services are called, and so how many there are.
    for where, below in islice(by_place.items(), _MAX_PLACES):
        yield _orphaned(where, below, makers.get(below[0].parent_id), max(0, len(by_place) - _MAX_PLACES))
    parents = {span.parent_id for span in orphans}
    for hop in silent_hops(judgement, spans):
        if _named_by(hop.sent)[1] not in parents:
            yield _exports_nothing(hop)


def _same_ids(spans: Sequence[JourneySpan]) -> Iterator[Finding]:
    """Yield the first span id that several spans of a trace have; a client and its server may share one (Zipkin)."""
    by_id: dict[tuple[str, str], list[JourneySpan]] = defaultdict(list)
    for span in spans:
        by_id[span.trace_id, span.span_id].append(span)
    alike = [each for each in by_id.values() if len(each) > 1 and sorted(span.kind for span in each) not in _SHARED]
    if alike:
        first = alike[0]
        services = ", ".join(dict.fromkeys(span.service for span in first[:_MAX_PLACES]))
        more = "" if len(alike) == 1 else f", and {len(alike) - 1} more ids are like it"
        yield Finding(
            "warning", "verify.same-id", services, f"{len(first)} spans have the id {first[0].span_id}{more}",
            "nobody can say below which of them a child hangs, and a backend may keep one of them alone",
            "let each process draw ids of its own: after fork, or where a seed is set, a generator repeats itself; and "
            "let nothing write its caller's span id as its own",
        )  # fmt: skip


def silent_hops(judgement: Judgement, spans: Sequence[JourneySpan]) -> list[Hop]:
    """Return the hops that took part in the sampled trace, and of whom no span came.

    A hop that made a span names it in what it sends. Of an application that called nobody, what it received is known:
    its span would hang below that.
    """
    present = {(span.trace_id, span.span_id) for span in spans}
    parents = {(span.trace_id, span.parent_id) for span in spans}
    silent = []
    for hop in judgement.hops[1:]:
        came, went = _named_by(hop.received), _named_by(hop.sent)
        if went[1] and went[0] == judgement.expected and came[1] and went != came:
            is_silent = went not in present
        else:
            is_leaf = hop.kind == "app" and not hop.sent
            is_silent = is_leaf and came[0] == judgement.expected != "" and came not in parents
        if is_silent:
            silent.append(hop)
    return silent


def _named_by(headers: Mapping[str, str | None]) -> tuple[str, str]:
    """Return the trace and the span that a sampled traceparent names; empty texts where there is none."""
    found = _parent_in(headers)
    return (f"{found.trace_id:032x}", f"{found.parent_id:016x}") if found is not None and found.sampled else ("", "")


def _parent_in(headers: Mapping[str, str | None]) -> TraceParent | None:
    try:
        return TraceParent.parse(headers.get("traceparent") or "")
    except InvalidHeaderError:
        return None


def _exports_nothing(hop: Hop) -> Finding:
    fix = (
        "check its exporter and its endpoint: `meshmw doctor MODULE:APP` in its environment"
        if hop.kind == "app"
        else "check the tracer's collector in this proxy: `meshmw doctor --envoy-admin URL`"
    )
    return Finding(
        "warning", "verify.not-exported", hop.name, f"{hop.name} got the sampled trace, and no span of it came",
        "it records nothing, or exports elsewhere or later: the trace ends one hop too early",
        f"{fix}; or wait longer with --timeout; an application that is not traced at all is a leaf like this one",
    )  # fmt: skip


def _split_trace(strays: Sequence[JourneySpan], count: int) -> Finding:
    first, others = strays[0], len({span.trace_id for span in strays})
    return Finding(
        "error", "verify.split", f"{first.service} {first.kind}",
        f"{len(strays)} of {_spans(count, 'is', 'are')} in {others} other trace{'s' if others > 1 else ''}; the "
        f"first is {quoted(first.name)} of {first.service} in {first.trace_id}",
        "one request shows up as several traces",
        "look at the hop before that span: it did not pass the headers on, or in another format",
    )  # fmt: skip


def _orphaned(where: str, orphans: Sequence[JourneySpan], maker: Hop | None, more: int) -> Finding:
    first = orphans[0]
    who = "" if maker is None else f"; {maker.name} sent that parent on"
    who += f"; at {more} further places it is the same" if more else ""
    return Finding(
        "error", "verify.orphan", where,
        f"{_spans(len(orphans), 'hangs', 'hang')} below spans that never came; the first is {quoted(first.name)} of "
        f"{first.service}, whose parent {first.parent_id} is missing{who}",
        "the tree falls apart at this place, although the trace id is right",
        f"{'find who made that parent' if maker is None else f'look at {maker.name}'}: a service or a proxy that "
        "passes headers on and exports nothing, or not yet; wait longer with --timeout",
    )  # fmt: skip


def _spans(count: int, one: str, many: str) -> str:
    return f"1 span {one}" if count == 1 else f"{count} spans {many}"


def _recorded_unsampled(spans: Sequence[JourneySpan]) -> Finding:
    return Finding(
        "warning", "verify.recorded-unsampled", spans[0].service,
        f"{_spans(len(spans), 'was', 'were')} recorded of a trace that was sent unsampled, the first by "
        f"{spans[0].service}",
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
