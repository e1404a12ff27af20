"""What is wrong in what access logs say, as findings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from meshmw._notices import shown
from meshmw._tools import Finding, by_severity
from meshmw._tools.access_log.counts import AccessLogReport, HopLog
from meshmw._tools.access_log.crossings import Crossing
from meshmw.wire import REASONS

_ADD_IT: Final = "add  traceparent=%REQ(TRACEPARENT)%  to the access log format; `meshmw mesh-config` prints one"


def judge_access_logs(report: AccessLogReport, max_missing: float = 1.0) -> tuple[Finding, ...]:
    """Return what is wrong, the worst first.

    Args:
        report: What the logs said.
        max_missing: The share of requests without traceparent that is still no fault, from 0 to 1.
    """
    findings = [finding for hop in report.hops for finding in _check_hop(hop, max_missing)]
    loss = report.first_loss
    if loss is not None:
        findings.append(_loss_finding(loss))
    findings += [_flip_finding(crossing) for crossing in report.crossings if crossing.flipped]
    return by_severity(findings)


def _check_hop(hop: HopLog, max_missing: float) -> Iterator[Finding]:
    if not hop.logs_traceparent:
        yield Finding(
            "error", "access-log.not-logged", hop.name, "the access log does not print traceparent",
            "nobody can see in it whether a trace arrived or went on", _ADD_IT,
        )  # fmt: skip
        return
    yield from _check_lines(hop)
    yield from _check_requests(hop)
    missing = hop.places.total.share("missing")
    if missing > max_missing:
        yield Finding(
            "warning", "access-log.missing", hop.name,
            f"{missing:.1%} of requests have no traceparent, more than {max_missing:.1%}",
            "each of them starts a trace of its own here, or has none",
            "let the callers send it: `meshmw verify URL` shows where it ends",
        )  # fmt: skip


def _check_lines(hop: HopLog) -> Iterator[Finding]:
    if hop.fault:
        yield Finding(
            "error", "access-log.unreadable", hop.name, f"reading ended early: {shown(hop.fault)}",
            "what comes after that was not counted", "give a file that is whole",
        )  # fmt: skip
    if hop.ambiguous:
        yield Finding(
            "note", "access-log.ambiguous", hop.name, f"{_lines(hop.ambiguous)} can be read in several ways",
            "Envoy's text formats escape nothing, so that a user agent with quotes in it can look like other fields; "
            "such lines are counted and not believed",
            "log as JSON",
        )  # fmt: skip
    if hop.broken:
        share = hop.broken / hop.lines
        yield Finding(
            "warning" if share > 0.5 else "note", "access-log.broken", hop.name,
            f"{_lines(hop.broken)} of {hop.lines:,} are not in the format",
            "they were not counted", "give the proxy's own format string with --format, if these are access log lines",
        )  # fmt: skip


def _check_requests(hop: HopLog) -> Iterator[Finding]:
    total = hop.places.total
    if total.kinds["malformed"]:
        yield _malformed_finding(hop)
    if total.kinds["empty"]:
        yield Finding(
            "warning", "access-log.empty", hop.name, f"{_requests(total.kinds['empty'])} with an empty traceparent",
            "an OpenTelemetry tracer in Envoy passes it on and makes no span; the first application starts a new trace",
            "find who sets the header without a value, often a template or a proxy's `set header` of an unset variable",
        )  # fmt: skip
    if total.stripped:
        yield Finding(
            "warning", "access-log.stripped", hop.name,
            f"{_requests(total.stripped)} with tracestate or baggage but without traceparent",
            "no client sends it so: something before this proxy, or this proxy, takes traceparent out",
            "look at the hop before it for headers that are removed or not passed on; `meshmw doctor "
            "--envoy-admin URL`",
        )  # fmt: skip


def _malformed_finding(hop: HopLog) -> Finding:
    reasons = ", ".join(
        f"{reason} ({count:,}; such as '{shown(hop.places.examples[reason], 60)}': {REASONS['traceparent'][reason]})"
        for reason, count in hop.places.reasons.most_common(3)
    )
    return Finding(
        "error", "access-log.malformed", hop.name,
        f"{_requests(hop.places.total.kinds['malformed'])} with a malformed traceparent: {reasons}",
        "an OpenTelemetry tracer in Envoy passes it on and makes no span; the first strict application "
        "starts a new trace",
        "mend the sender; `meshmw inspect` shows the place of the fault",
    )  # fmt: skip


def _loss_finding(loss: Crossing) -> Finding:
    if loss.joined:
        trace, arrived, request_id = (shown(part, 64) for part in loss.example)
        what = (
            f"of {_requests(loss.joined)} that {loss.sender} sent and {loss.receiver} logged, {loss.lost:,} lost the "
            f"trace; request {request_id} left with {trace} and arrived with {arrived}"
        )
    else:
        what = f"none of {loss.traces:,} trace ids that {loss.sender} logged appears at {loss.receiver}"
    return Finding(
        "error", "access-log.lost", f"{loss.sender} -> {loss.receiver}", what,
        "everything from there on is another trace",
        "look at what lies between the two: an application that does not pass its headers on, or a proxy "
        "that removes them",
    )  # fmt: skip


def _flip_finding(crossing: Crossing) -> Finding:
    return Finding(
        "warning", "access-log.flipped", f"{crossing.sender} -> {crossing.receiver}",
        f"{_requests(crossing.flipped)} sampled at {crossing.sender} arrived unsampled at {crossing.receiver}",
        "the spans from there on are not recorded, and the trace ends in the middle: Envoy since 1.39 clears the flag "
        "at its own rate",
        "set randomSamplingPercentage: 100 or useRequestIdForTraceSampling: false in Istio's Telemetry; in Envoy "
        "random_sampling, or use_request_id_for_trace_sampling of the request id extension",
    )  # fmt: skip


def _requests(number: int) -> str:
    return f"{number:,} request{'' if number == 1 else 's'}"


def _lines(number: int) -> str:
    return f"{number:,} line{'' if number == 1 else 's'}"
