"""`meshmw verify`: sends one request, follows it, and says that it is one trace, or where the trace broke."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.progress import SpinnerColumn, TextColumn
from rich.text import Text
from rich.tree import Tree

from meshmw._notices import header_shown, quoted, shown
from meshmw._policy.words import one_of
from meshmw._tools.access_log.formats import format_of
from meshmw._tools.output import (
    FOUND,
    MISUSE,
    OK,
    CannotRunError,
    JsonOption,
    LogFormatOption,
    ReportOption,
    as_command,
    console,
    os_error_as_cannot_run,
    print_findings,
    print_json,
    print_line,
    print_table,
    progress_display,
    split_named_file,
    value_error_as_cannot_run,
)
from meshmw._tools.verify import follow
from meshmw._tools.verify.evidence import Backend, HttpBackend, LocalBackend, Watch
from meshmw._tools.verify.journey import Hop, Journey, JourneySpan
from meshmw._tools.verify.judge_spans import BACKEND_FAULT
from meshmw._tools.verify.logs import LogTail
from meshmw._tools.verify.probe import SYNTHETIC, VARIANTS, Probe, Variant, make_probe, random_ids, send
from meshmw._tools.verify.report import write_report

# Spans that hang deeper are printed at this depth: nobody reads further to the right.
_MAX_DEPTH: Final = 40
# Wider than any terminal: rich cuts what has no room, a terminal wraps it.
_MAX_WIDTH: Final = 4096
# A field name, RFC 9110 5.1.
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PORTS: Final = re.compile(r"[0-9]{1,5}(,[0-9]{1,5})?")
_STYLES: Final = {"one": "bold green", "broken": "bold red", "unknown": "bold yellow"}


UrlArgument = Annotated[str, typer.Argument(metavar="URL", help="Where the request goes, such as the mesh's ingress.")]
VariantOption = Annotated[
    str, typer.Option("--variant", help="; ".join(f"{name}: {meaning}" for name, meaning in VARIANTS.items()))
]
RandomOption = Annotated[
    bool, typer.Option("--random", help="Random ids, for a backend that still holds an earlier probe's spans.")
]
AccessLogOption = Annotated[
    list[str] | None,
    typer.Option("--access-log", "-a", metavar="[NAME=]FILE", help="A proxy's log; in the order of the way."),
]
JaegerOption = Annotated[str, typer.Option(metavar="URL", help="Jaeger's query service, such as http://host:16686")]
TempoOption = Annotated[str, typer.Option(metavar="URL", help="Tempo, such as http://host:3200")]
OtlpOption = Annotated[
    str, typer.Option(metavar="GRPC[,HTTP]", help="Be the collector: take OTLP at these ports on loopback.")
]
HeaderOption = Annotated[
    list[str] | None, typer.Option("--header", "-H", metavar="'NAME: VALUE'", help="A header to send as well.")
]
BackendHeaderOption = Annotated[
    list[str] | None,
    typer.Option("--backend-header", metavar="'NAME: VALUE'", help="A header for --jaeger and --tempo; never printed."),
]
MethodOption = Annotated[str, typer.Option("--method", "-X", help="The HTTP method.")]
AloneOption = Annotated[
    bool, typer.Option("--alone", help="Nothing else uses the mesh: each new log line and span is the probe's.")
]
SpansOption = Annotated[int, typer.Option("--spans", min=0, help="Spans that must come before it is over.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait for logs and spans.")]
SettleOption = Annotated[float, typer.Option("--settle", min=0, help="Seconds without news after which all has come.")]
InsecureOption = Annotated[bool, typer.Option("--insecure", "-k", help="Accept any TLS certificate.")]

_DEFAULT: Final = Watch()


@as_command
def verify(
    url: UrlArgument,
    variant: VariantOption = "w3c",
    random: RandomOption = False,
    access_log: AccessLogOption = None,
    log_format: LogFormatOption = "auto",
    jaeger: JaegerOption = "",
    tempo: TempoOption = "",
    otlp: OtlpOption = "",
    header: HeaderOption = None,
    backend_header: BackendHeaderOption = None,
    method: MethodOption = "GET",
    alone: AloneOption = False,
    spans: SpansOption = _DEFAULT.spans,
    timeout: TimeoutOption = _DEFAULT.timeout,
    settle: SettleOption = _DEFAULT.settle,
    insecure: InsecureOption = False,
    report: ReportOption = None,
    json: JsonOption = False,
) -> int:
    """Send one request with a synthetic trace, follow it, and say that it is ONE trace, or where it broke.

    By default the trace is 31 zeros and a 1, the parent 15 zeros and a 1, sampled. It is followed through the access
    logs that are given, through the answer, where an application echoes its headers as JSON, and to the backend.

    Log lines are the probe's where they share its trace id, its x-request-id or its user agent, directly or through
    another line; where a trace is lost and x-request-id with it, --alone takes each new line.

    Ends with 0 for one trace without faults, with 1 for a broken one, a fault, or nothing to be seen, and with 2 where
    a backend could not be asked and nothing else shows a break.
    """
    probe = _build_probe(url, variant, random, header or [], method)
    tails = _open_tails(access_log or [], log_format)
    asked_with = _parse_headers(backend_header or [], "--backend-header")
    with _open_backends(jaeger, tempo, otlp, alone, asked_with) as backends:
        watch = Watch(tails=tails, backends=backends, timeout=timeout, settle=settle, spans=spans, alone=alone)
        journey = _send_and_follow(probe, watch, verify_tls=not insecure)
    _show(journey, report, json=json)
    return _exit_code(journey)


def _exit_code(journey: Journey) -> int:
    if journey.verdict != "broken" and any(finding.code == BACKEND_FAULT for finding in journey.findings):
        return MISUSE
    is_fine = journey.verdict == "one" and not any(finding.is_fault for finding in journey.findings)
    return OK if is_fine else FOUND


def _show(journey: Journey, report: Path | None, *, json: bool) -> None:
    if report is not None:
        with os_error_as_cannot_run(report):
            write_report(journey, report)
    if json:
        print_json(journey.to_json())
    else:
        print_journey(journey)


def _build_probe(url: str, variant: str, random: bool, headers: list[str], method: str) -> Probe:
    with value_error_as_cannot_run():
        known: Variant = one_of(Variant, variant, "--variant")
    ids = random_ids() if random else SYNTHETIC
    return make_probe(url, known, ids=ids, headers=_parse_headers(headers, "--header"), method=method)


def _parse_headers(given: list[str], option: str) -> dict[str, str]:
    found = {}
    for text in given:
        name, colon, value = text.partition(":")
        if not (colon and _TOKEN.fullmatch(name.strip())):
            # What stands there may be a secret.
            raise CannotRunError(f"{option} takes 'NAME: VALUE'")
        if not value.strip().isprintable():
            raise CannotRunError(f"{option} {quoted(name.strip())}: its value holds a control character")
        found[name.strip()] = value.strip()
    return found


def _open_tails(given: list[str], log_format: str) -> list[LogTail]:
    with value_error_as_cannot_run():
        reader = format_of(log_format)
    tails: list[LogTail] = []
    for each in given:
        named, path = split_named_file(each)
        name = path.stem if named is None else named
        if any(tail.name == name for tail in tails):
            # Lines of two proxies would be calls of one.
            raise CannotRunError(f"two access logs are called {quoted(name)}: give one of them another, NAME=FILE")
        with os_error_as_cannot_run(path):
            tails.append(LogTail(name, path, reader))
    return tails


@contextlib.contextmanager
def _open_backends(
    jaeger: str, tempo: str, otlp: str, alone: bool, headers: Mapping[str, str]
) -> Iterator[list[Backend]]:
    urls = {"jaeger": jaeger, "tempo": tempo}
    backends: list[Backend] = [HttpBackend(name, url, headers) for name, url in urls.items() if url]
    with contextlib.ExitStack() as stack:
        if otlp:
            backends.append(_start_collector(otlp, alone, stack))
        yield backends


def _start_collector(ports: str, alone: bool, stack: contextlib.ExitStack) -> Backend:
    # It brings gRPC along, which takes a while to load.
    from meshmw.testing import OtlpReceiver

    if not _PORTS.fullmatch(ports) or max(map(int, ports.split(","))) > 65535:
        raise CannotRunError(f"--otlp takes one or two port numbers, not {quoted(ports)}")
    try:
        receiver = stack.enter_context(OtlpReceiver(*map(int, ports.split(","))))
    except (OSError, RuntimeError) as error:
        raise CannotRunError(f"--otlp {ports}: a port cannot be opened: {error}") from error
    name = f"collector at {receiver.grpc_endpoint}, {receiver.http_endpoint}"
    return LocalBackend(name, lambda: receiver.spans, everything=alone)


def _send_and_follow(probe: Probe, watch: Watch, *, verify_tls: bool) -> Journey:
    with progress_display(SpinnerColumn(), TextColumn("{task.description}", markup=False)) as display:
        task = display.add_task("waiting for the answer")
        began = time.time_ns()
        answer = send(probe, timeout=max(watch.timeout, 1.0), verify_tls=verify_tls)
        return follow(probe, answer, watch, began, lambda text: display.update(task, description=text))


def print_journey(journey: Journey) -> None:
    """Print a journey for people: hops, spans, findings, verdict."""
    print_line(f"{journey.title}: {journey.status_code or 'no answer'}", "bold")
    for source in journey.sources:
        print_line(f"  {source}", "dim")
    print_line("")
    rows = [_hop_row(before, hop) for before, hop in zip((None, *journey.hops), journey.hops, strict=False)]
    print_table(["hop", "received", "sent on", ""], rows)
    if journey.spans:
        print_line("")
        for tree in _trees(journey).values():
            console(_MAX_WIDTH).print(tree)
    print_findings(journey.findings)
    print_line("")
    print_line(journey.summary, _STYLES[journey.verdict])
    for link in journey.links:
        print_line(f"{'see it' if journey.trace_id in link else 'another trace'} at {link}")


def _hop_row(before: Hop | None, hop: Hop) -> tuple[str, str, str, str]:
    marks = ["LOST HERE" if hop.lost else "", "" if hop.change == "unknown" else hop.change, hop.note]
    received, sent = _show_parent(hop.received), _show_parent(hop.sent)
    # What the hop before sent on stands in the row above.
    same = before is not None and received == _show_parent(before.sent)
    return hop.name, "" if same else received, sent, "; ".join(filter(None, marks))


def _show_parent(values: Mapping[str, str | None]) -> str:
    if "traceparent" not in values:
        b3 = values.get("b3")
        return f"b3 {header_shown(b3)}" if b3 else ""
    parent = values["traceparent"]
    return f"b3 {header_shown(values['b3'])}" if parent is None and values.get("b3") else header_shown(parent)


def _trees(journey: Journey) -> dict[str, Tree]:
    trees: dict[str, Tree] = {}
    above: list[Tree] = []
    for span, depth in journey.in_order():
        if span.trace_id not in trees:
            which = "" if journey.trace_id in ("", span.trace_id) else ", not the request's"
            trees[span.trace_id] = Tree(Text(f"trace {shown(span.trace_id)}{which}", style="bold"), guide_style="dim")
        depth = min(depth, _MAX_DEPTH)
        branch = above[depth - 1] if depth else trees[span.trace_id]
        above[depth:] = [branch.add(_span_text(span))]
    return trees


def _span_text(span: JourneySpan) -> Text:
    milliseconds = f"{(span.end_ns - span.start_ns) / 1e6:.1f} ms"
    text = Text(f"{shown(span.service)} {shown(span.kind)} {shown(span.name)} {milliseconds}")
    text.append("" if span.maker == "app" else "  proxy", style="dim")
    if span.orphan:
        text.append(f"  orphan: its parent {shown(span.parent_id)} is missing", style="bold red")
    return text
