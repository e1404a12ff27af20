"""What an answer, the sources and the spans of a probe show to be wrong, as findings.

Knows what was watched and seen. Must not know the headers of a hop: `verify_judge` judges those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from meshmw.diagnose.escaping import without_secrets
from meshmw.diagnose.finding import Finding
from meshmw.diagnose.journey import JourneySpan
from meshmw.diagnose.verify_answer import Answer
from meshmw.diagnose.verify_judge import Judgement
from meshmw.diagnose.verify_logs import LogTail
from meshmw.diagnose.verify_probe import Probe
from meshmw.diagnose.verify_watch import Seen, Watch, logged_in


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
