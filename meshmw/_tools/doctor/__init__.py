"""`meshmw doctor`: says what would break traces in a process, in its proxies, between them, and in Istio's manifests.

`process`, `proxy` and `manifests` look, `judge` and `manifest_rules` judge what was seen, and this file puts all
together and prints it. Only the command uses the folder, so its face is here.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import typer

from meshmw._notices import quoted
from meshmw._tools import Finding, JsonValue, by_severity
from meshmw._tools.doctor.judge import judge_process
from meshmw._tools.doctor.judge_proxy import UNJUDGED, judge_both, judge_proxy
from meshmw._tools.doctor.manifest_rules import judge_manifests
from meshmw._tools.doctor.manifests import SUFFIXES, Manifests, TracingRule, read_manifests
from meshmw._tools.doctor.process import ProcessFacts, load_app, look_at_process
from meshmw._tools.doctor.proxy import ProxyConfig, ProxyListener, ask_proxy, read_dump
from meshmw._tools.doctor.telemetry import merged_rules, provider_of
from meshmw._tools.output import (
    FOUND,
    OK,
    CannotRunError,
    JsonOption,
    as_command,
    print_findings,
    print_json,
    print_line,
    print_table,
)
from meshmw.settings import as_text

_NO_MANIFESTS: Final = Manifests()


@as_command
def doctor(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODULE:APP] [FILE.yaml...]",
            help="The application, as uvicorn takes it; MODULE:MAKE() calls it. Istio's manifests, files or folders.",
        ),
    ] = None,
    envoy_admin: Annotated[
        list[str] | None,
        typer.Option("--envoy-admin", metavar="URL", help="A proxy's administration interface; may be given again."),
    ] = None,
    config_dump: Annotated[
        list[Path] | None,
        typer.Option("--config-dump", metavar="FILE", help="What /config_dump answered, for a proxy out of reach."),
    ] = None,
    connect: Annotated[bool, typer.Option("--connect/--no-connect", help="Try a connection to the collector.")] = True,
    app_dir: Annotated[Path, typer.Option("--app-dir", help="Where MODULE is looked for first.")] = Path(),
    json: JsonOption = False,
) -> int:
    """Say what would break traces here: middleware, propagator, exporter, sampler, baggage, versions, and the proxy.

    Loads the application in this process, with this environment, and looks at what it set up. With --envoy-admin, reads
    the proxy's own configuration and judges both sides together. Nothing of a configuration dump is printed but what
    concerns traces, and only GET is sent to a proxy. YAML files are read as Istio's manifests: give those with
    meshConfig and those with Telemetry objects together.

    Without an application, a proxy and manifests are judged beside the settings of this environment.

    Each finding says what is the case, why that breaks traces, and what to do. Notes alone end with 0.
    """
    app, files = _sorted(targets or ())
    manifests = read_manifests(files)
    # What an application prints is no part of the answer.
    with _importable_from(app_dir), contextlib.redirect_stdout(sys.stderr):
        loaded = load_app(app) if app else None
    facts = look_at_process(app, loaded, connect=connect)
    proxies = [ask_proxy(url) for url in envoy_admin or ()]
    proxies += [proxy for path in config_dump or () for proxy in read_dump(path)]
    diagnosis = examine(facts, proxies, manifests, process_too=bool(app) or not (proxies or files))
    if json:
        print_json(diagnosis.to_json())
    else:
        _print(diagnosis)
    return FOUND if any(finding.is_fault for finding in diagnosis.findings) else OK


def _sorted(targets: Sequence[str]) -> tuple[str, list[Path]]:
    """Part what the command line names into one application and files of manifests."""
    files = [Path(target) for target in targets if target.endswith(SUFFIXES) or Path(target).is_dir()]
    apps = [target for target in targets if Path(target) not in files]
    if len(apps) > 1:
        raise CannotRunError(f"one application at a time: {', '.join(map(quoted, apps))}")
    return "".join(apps), files


@contextlib.contextmanager
def _importable_from(directory: Path) -> Iterator[None]:
    path = str(directory.absolute())
    sys.path.insert(0, path)
    try:
        yield
    finally:
        # The application may have removed the entry itself.
        with contextlib.suppress(ValueError):
            sys.path.remove(path)


@dataclass(frozen=True, slots=True)
class Diagnosis(JsonValue):
    """Holds what a process, its proxies and its mesh's manifests have, and what is wrong with it."""

    process: ProcessFacts
    proxies: tuple[ProxyConfig, ...]
    manifests: Manifests
    findings: tuple[Finding, ...]


def examine(
    process: ProcessFacts,
    proxies: Sequence[ProxyConfig] = (),
    manifests: Manifests = _NO_MANIFESTS,
    *,
    process_too: bool = True,
) -> Diagnosis:
    """Judge a process, its proxies and the manifests of its mesh, the worst findings first.

    Args:
        process: What the process has. Of a process that is not the application's own, only its settings count.
        proxies: What the proxies say of themselves.
        manifests: What the files of the mesh say.
        process_too: Whether the process is the application's own.
    """
    findings = [*judge_process(process)] if process_too else []
    for proxy in proxies:
        findings += [*judge_proxy(proxy), *judge_both(process, proxy)]
    findings += judge_manifests(manifests, process.settings)
    return Diagnosis(process, tuple(proxies), manifests, by_severity(_once_each(findings)))


def _once_each(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield findings that differ only in their places once, with the first places and the count of the rest."""
    places: dict[Finding, list[str]] = {}
    for finding in findings:
        places.setdefault(replace(finding, where=""), []).append(finding.where)
    for finding, found in places.items():
        distinct = list(dict.fromkeys(found))
        more = f" and {len(distinct) - 3} more" if len(distinct) > 3 else ""
        yield replace(finding, where=f"{', '.join(distinct[:3])}{more}")


def _print(diagnosis: Diagnosis) -> None:
    if diagnosis.process.target or not (diagnosis.proxies or diagnosis.manifests != _NO_MANIFESTS):
        _print_process(diagnosis.process)
    for proxy in diagnosis.proxies:
        _print_proxy(proxy)
        print_line("")
    _print_manifests(diagnosis.manifests)
    print_findings(diagnosis.findings)
    print_line("")
    print_line(*_summary(diagnosis.findings))


def _summary(findings: Sequence[Finding]) -> tuple[str, str]:
    """Return the last line and its style: what cannot be judged is never said to be well."""
    unjudged = sum(finding.code.startswith(UNJUDGED) for finding in findings)
    faults = sum(finding.is_fault and not finding.code.startswith(UNJUDGED) for finding in findings)
    if faults:
        return f"{faults} to mend{f', {unjudged} that cannot be judged' if unjudged else ''}", "bold red"
    if unjudged:
        return f"Nothing to mend in what can be judged; {unjudged} that cannot.", "bold yellow"
    return "Nothing to mend.", "bold green"


def _print_process(facts: ProcessFacts) -> None:
    print_line(facts.target or "this process, without an application", "bold")
    rows = [("propagator", facts.propagator), ("formats", as_text(facts.formats) or "none")]
    if facts.framework:
        rows += [("framework", facts.framework), ("middleware", " > ".join(facts.middleware) or "none")]
    rows += [
        ("provider", facts.provider),
        ("service", facts.service_name or "-"),
        ("sampler", facts.sampler or "-"),
        ("exporters", ", ".join(facts.exporters) or "-"),
        ("collector", f"{facts.collector} {facts.collector_fault or 'answers'}" if facts.collector else "-"),
        ("export", _export_shown(facts) if facts.export_seconds else "-"),
        ("versions", ", ".join(f"{name} {version}" for name, version in facts.versions.items())),
    ]
    print_table(["", ""], rows)


def _export_shown(facts: ProcessFacts) -> str:
    return f"{'with' if facts.collector_tls else 'without'} TLS, for {facts.export_seconds:g} seconds at most"


def _print_proxy(proxy: ProxyConfig) -> None:
    version = ".".join(map(str, proxy.version))
    print_line(f"proxy {proxy.node or proxy.where}  Envoy {version or 'of unknown version'}", "bold")
    columns = ["listener", "tracer", "formats", "sampling", "changes", "headers", "request id", "log"]
    rows = Counter(tuple(_listener_row(listener)) for listener in proxy.listeners)
    print_table(
        columns, [[f"{name}, {times} times" if times > 1 else name, *cells] for (name, *cells), times in rows.items()]
    )


def _changes_shown(listener: ProxyListener) -> str:
    changed = dict.fromkeys(f"{change.header} {change.effect}" for change in listener.changes)
    unknown = ["?"] if listener.unjudged or listener.missing_routes else []
    return ", ".join([*changed, *unknown]) or "-"


def _print_manifests(manifests: Manifests) -> None:
    for mesh in manifests.meshes:
        names = ", ".join(f"{provider.name} ({provider.kind or '?'})" for provider in mesh.providers)
        print_line(f"{mesh.where}  {names or 'refused'}", "bold")
    if merged := merged_rules(manifests):
        rows = [_rule_row(manifests, each.rule) for each in merged]
        print_table(["Telemetry", "provider", "sampling"], rows)
        print_line("")


def _rule_row(manifests: Manifests, rule: TracingRule) -> list[str]:
    provider = provider_of(manifests, rule.provider)
    shown = f"{rule.provider or '-'} ({provider.kind if provider else '?'})"
    by = "by the request id" if rule.by_request_id else "by the parent's flag"
    percent = "?" if rule.sampling is None else f"{rule.sampling:g}"
    return [f"{rule.where} {rule.mode}".strip(), shown, f"{percent} % {by}" if rule.reports else "no spans"]


def _listener_row(listener: ProxyListener) -> list[str]:
    sampling = f"{listener.random_sampling:g} % {listener.sampler}".strip() if listener.tracer else "-"
    request_id = ["made" if listener.makes_request_id else "not made"]
    if listener.uses_request_id and listener.tracer:
        request_id.append("samples")
    if listener.edge:
        request_id.append("replaced")
    return [
        f"{listener.name} {listener.direction.lower()}".strip(),
        listener.tracer or "none",
        "+".join(listener.formats) or "-",
        sampling,
        _changes_shown(listener),
        f"{listener.max_kb} KiB, {listener.max_count}",
        ", ".join(request_id),
        {True: "traceparent", False: "no traceparent", None: "none"}[listener.logs_traceparent],
    ]
