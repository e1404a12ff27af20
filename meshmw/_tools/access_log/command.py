"""`meshmw access-log`: reads access logs, judges what they show of traces, and prints it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Final

import typer
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn

from meshmw._notices import DEFAULT_WARN_WINDOW, Throttle, quoted, shown
from meshmw._tools import Finding, by_severity
from meshmw._tools.access_log import Analysis, Source, open_source
from meshmw._tools.access_log.counts import (
    KINDS,
    MEANINGS,
    AccessLogReport,
    HopLog,
    Kind,
    LineTrace,
    Place,
    sorted_places,
)
from meshmw._tools.access_log.formats import Format, format_of
from meshmw._tools.access_log.joins import Crossing
from meshmw._tools.access_log.rows import Line
from meshmw._tools.output import (
    FOUND,
    OK,
    CannotRunError,
    JsonOption,
    LogFormatOption,
    as_command,
    error_console,
    os_error_as_cannot_run,
    print_findings,
    print_json,
    print_line,
    print_table,
    progress_display,
    signals_handled,
    split_named_file,
    value_error_as_cannot_run,
)
from meshmw.wire import REASONS

# Of each kind of log, how to have it print the header.
_ADD_TO_TEXT: Final = "add  traceparent=%REQ(TRACEPARENT)%  to the access log format; `meshmw mesh-config` prints one"
_ADD_TO_JSON: Final = (
    'add  "traceparent": "%REQ(TRACEPARENT)%"  to the fields of Envoy\'s JSON, "$http_traceparent" to nginx\'s, and in '
    "Traefik keep the request header Traceparent (accesslog.fields.headers.names); where the log has it under another "
    "key, name that: --field traceparent=KEY"
)
_ADD_TO_NGINX: Final = (
    'add "$http_traceparent" to log_format (in Apache "%{traceparent}i"), and give that format with --format; Traefik '
    "prints it in JSON alone"
)
# Envoy's OpenTelemetry tracer reads these, and writes them anew as they should be.
_MENDED_BY_ENVOY: Final = frozenset({"case", "version", "version_ff"})

FilesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME=]FILE...",
        help="Logs, also gzipped, in the order of the way that requests take; - or nothing is standard input.",
    ),
]
FieldOption = Annotated[
    list[str] | None,
    typer.Option("--field", metavar="FIELD=KEY", help="Where JSON holds a field: traceparent=labels.tp"),
]
FollowOption = Annotated[
    bool, typer.Option("--follow", "-F", help="Go on as the log grows, and say what is new, until Ctrl-C.")
]
TopOption = Annotated[int, typer.Option("--top", min=1, help="Routes to print for each log.")]
MaxMissingOption = Annotated[
    float, typer.Option("--max-missing", min=0, max=100, help="Percent without traceparent that is no fault.")
]


@as_command
def access_log(
    files: FilesArgument = None,
    log_format: LogFormatOption = "auto",
    fields: FieldOption = None,
    follow: FollowOption = False,
    top: TopOption = 20,
    max_missing: MaxMissingOption = 100.0,
    json: JsonOption = False,
) -> int:
    """Count, for each route and upstream, which requests came with a valid, missing, empty or malformed traceparent.

    Given the logs of several hops, name the first place where traces are lost, and where the sampled flag is cleared.

    Recognised are the default formats of Envoy, Istio, nginx and Traefik, what is often appended to them, and the JSON
    of these, Envoy Gateway, Consul, Contour, Gloo and OpenTelemetry; in CRI, Docker's JSON, or with the prefix of stern
    or kubectl. A line that can be read in several ways, because a header in it holds quotes or spaces, is counted as
    ambiguous and not used. A log in which no line has a traceparent is a fault, for nobody can judge it.

    Memory is constant: 1,000 pairs of route and upstream are told apart in each log, the rest is (other); 50,000
    request and trace ids are joined across logs, of more a share that is the same in every log.
    """
    given = files or ["-"]
    if follow and len(given) != 1:
        raise CannotRunError("--follow takes one log")
    reader = _parse_format(log_format, fields or [])
    analysis = Analysis(on_line=InvalidRequestNotices() if follow else None, alone=len(given) == 1)
    _read_all(analysis, given, reader, follow)
    report = analysis.report()
    findings = judge_access_logs(report, max_missing / 100)
    if json:
        print_json({**report.to_json(), "findings": [finding.to_json() for finding in findings]})
    else:
        _print_report(report, top)
        print_findings(findings)
    return FOUND if any(finding.is_fault for finding in findings) else OK


def _parse_format(log_format: str, fields: list[str]) -> Format | None:
    keys = {}
    for field in fields:
        name, equals, key = field.partition("=")
        if not (equals and key):
            raise CannotRunError(f"--field takes FIELD=KEY, not {quoted(field)}")
        keys[name] = key
    with value_error_as_cannot_run():
        return format_of(log_format, keys)


def _read_all(analysis: Analysis, given: list[str], reader: Format | None, follow: bool) -> None:
    with progress_display(
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    ) as display:
        for each in given:
            source = _open(each)
            task = display.add_task(shown(source.name, 40), total=source.size or None)

            def advance(source: Source = source, task: object = task) -> None:
                display.update(task, completed=source.position)  # type: ignore[arg-type]

            try:
                with value_error_as_cannot_run(), _until_interrupt(follow) as more:
                    analysis.read(source, reader, more, advance)
            finally:
                source.close()


def _open(given: str) -> Source:
    if given == "-":
        return Source("stdin", sys.stdin.buffer)
    name, path = split_named_file(given)
    with os_error_as_cannot_run(path):
        return open_source(path, name or None)


@contextlib.contextmanager
def _until_interrupt(follow: bool) -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C end the reading and not the command, so that what was counted is printed."""
    if not follow:
        yield lambda: False
        return
    stopped: list[int] = []
    with signals_handled(lambda number, _: stopped.append(number)):
        yield lambda: not stopped


class InvalidRequestNotices:
    """Prints requests without a valid traceparent while a log is followed: each kind and path once a minute.

    A crawler asks for paths without end, so of one minute no more lines are printed than a `Throttle` has keys.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._throttle = Throttle(DEFAULT_WARN_WINDOW, clock)

    def __call__(self, hop: str, fields: Line, trace: LineTrace) -> None:
        if trace.kind in ("valid", "refused"):
            return
        path = fields.get("path", "-").partition("?")[0][:100]
        if self._throttle.opens((trace.kind, trace.reason, path)) is None:
            return
        what = f"{trace.kind} ({trace.reason})" if trace.reason else trace.kind
        error_console().print(f"{hop}: {what}  {shown(fields.get('method', '-'), 20)} {shown(path)}", soft_wrap=True)


def _print_report(report: AccessLogReport, top: int) -> None:
    for index, hop in enumerate(report.hops):
        if index:
            print_line("")
        _print_hop(hop, top)
    if report.crossings:
        print_line("")
        print_table(
            ["from", "to", "joined", "lost", "trace ids", "arrived", "flipped"],
            [_crossing_cells(crossing) for crossing in report.crossings],
            numbers=["joined", "lost", "trace ids", "arrived", "flipped"],
        )
        if report.joined_one_in > 1:
            print_line(f"(one in {report.joined_one_in} ids was joined)", "dim")


def _crossing_cells(crossing: Crossing) -> tuple[str, ...]:
    numbers = (crossing.joined, crossing.lost, crossing.traces, crossing.arrived, crossing.flipped)
    return (crossing.sender, crossing.receiver, *(f"{number:,}" for number in numbers))


def _print_hop(hop: HopLog, top: int) -> None:
    total = hop.places.total
    connections = f", TCP connections: {hop.tcp:,}" if hop.tcp else ""
    print_line(f"{hop.name}: requests: {total.total:,}{connections}, lines: {hop.lines:,}", "bold")
    if not (hop.logs_traceparent and total.total):
        return
    # A kind that does not occur needs no column.
    kinds = [kind for kind in KINDS if kind in ("valid", "missing") or total.kinds[kind]]
    places = sorted_places(hop.places)
    rows = [(route, upstream, *_place_cells(place, kinds)) for (route, upstream), place in places[:top]]
    if len(places) != 1:
        rows.append((f"all {len(places)}" if len(places) > top else "all", "", *_place_cells(total, kinds)))
    columns = ["route", "upstream", "requests", *kinds]
    print_table(columns, rows, numbers=columns[2:])
    for kind in kinds[2:]:
        print_line(f"  {kind}: {MEANINGS[kind]}", "dim")


def _place_cells(place: Place, kinds: list[Kind]) -> tuple[str, ...]:
    return (f"{place.total:,}", *(f"{place.share(kind):.1%}" for kind in kinds))


def judge_access_logs(report: AccessLogReport, max_missing: float = 1.0) -> tuple[Finding, ...]:
    """Return what is wrong, the worst first.

    Args:
        report: What the logs said.
        max_missing: The share of requests without traceparent that is still no fault, from 0 to 1.
    """
    findings = [finding for hop in report.hops for finding in _check_hop(hop, max_missing)]
    findings += _check_all(report.hops)
    loss = report.first_loss
    if loss is not None:
        findings.append(_loss_finding(loss))
    findings += [_flip_finding(crossing) for crossing in report.crossings if crossing.flipped]
    return by_severity(findings)


def _check_all(hops: Sequence[HopLog]) -> Iterator[Finding]:
    """Say that there is nothing to judge, where the logs print traceparent and no request had one."""
    totals = [hop.places.total for hop in hops if hop.logs_traceparent]
    missing = sum(total.kinds["missing"] for total in totals)
    others = sum(total.total - total.kinds["missing"] - total.kinds["refused"] for total in totals)
    if missing and not others and not any(total.stripped or total.b3 for total in totals):
        yield Finding(
            "warning", "access-log.no-trace", ", ".join(hop.name for hop in hops[:3]),
            f"none of {_requests(missing)} has a traceparent, so that nothing can be judged",
            "either nobody before this proxy starts traces, and it starts none, or something takes the header away",
            "send a request that has one, and see where it ends: `meshmw verify URL`",
        )  # fmt: skip


def _check_hop(hop: HopLog, max_missing: float) -> Iterator[Finding]:
    yield from _check_lines(hop)
    absent = [name for name in hop.keys if name not in hop.names]
    for name in absent:
        yield Finding(
            "error", "access-log.no-such-key", hop.name, f"no line holds {quoted(hop.keys[name])}, named for {name}",
            "what --field says is not in this log", "look at a line of it: a dot in a key goes into a nested object",
        )  # fmt: skip
    if not hop.places.total.total:
        yield _nothing_finding(hop)
    elif hop.logs_traceparent:
        yield from _check_requests(hop)
        yield from _check_missing(hop, max_missing)
    elif "traceparent" not in absent:
        yield Finding(
            "error", "access-log.not-logged", hop.name, "the access log does not print traceparent",
            "nobody can see in it whether a trace arrived or went on", _how_to_add(hop.source),
        )  # fmt: skip


def _how_to_add(source: str) -> str:
    if source == "json":
        return _ADD_TO_JSON
    return _ADD_TO_TEXT if "%" in source else _ADD_TO_NGINX


def _nothing_finding(hop: HopLog) -> Finding:
    connections = f"; it has {hop.tcp:,} TCP connections" if hop.tcp else ""
    return Finding(
        "warning", "access-log.no-requests", hop.name, f"no line is a request's{connections}",
        "nothing could be judged",
        "give the log of a proxy that serves HTTP; where it is one, its format string with --format, or the keys of "
        "its JSON with --field",
    )  # fmt: skip


def _check_missing(hop: HopLog, max_missing: float) -> Iterator[Finding]:
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
            "such lines are counted and not used",
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
    if total.b3:
        yield Finding(
            "warning", "access-log.b3", hop.name, f"{_requests(total.b3)} with B3 headers but without traceparent",
            "what reads W3C alone starts a new trace there",
            "let the proxy's tracer write traceparent as well, or have applications read B3: "
            "OTEL_PROPAGATORS=tracecontext,baggage,b3",
        )  # fmt: skip
    if hop.other_traces:
        yield _other_trace_finding(hop)


def _other_trace_finding(hop: HopLog) -> Finding:
    header, own = (shown(trace, 64) for trace in hop.other_example)
    return Finding(
        "warning", "access-log.other-trace", hop.name,
        f"{_requests(hop.other_traces)} went on in another trace than the proxy's own, such as {header}, where the "
        f"proxy logged {own}",
        "the proxy's spans are in a trace of their own: its tracer does not continue traceparent, or does not write it",
        "let the proxy trace by OpenTelemetry, or with W3C as its format; `meshmw doctor --envoy-admin URL` shows it",
    )  # fmt: skip


def _malformed_finding(hop: HopLog) -> Finding:
    found = hop.places.reasons
    reasons = ", ".join(
        f"{reason} ({count:,}; such as '{shown(hop.places.examples[reason], 60)}': {REASONS['traceparent'][reason]})"
        for reason, count in found.most_common(3)
    )
    # The log shows what the proxy sent on.
    why = []
    if found.keys() - _MENDED_BY_ENVOY:
        why.append("an OpenTelemetry tracer in Envoy passes it on and makes no span")
    if mended := sorted(found.keys() & _MENDED_BY_ENVOY):
        why.append(
            f"an OpenTelemetry tracer in Envoy would have mended {' and '.join(mended)}, so this proxy does not trace "
            "by it"
        )
    return Finding(
        "error", "access-log.malformed", hop.name,
        f"{_requests(hop.places.total.kinds['malformed'])} with a malformed traceparent: {reasons}",
        f"{'; '.join(why)}; the first strict application starts a new trace",
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
