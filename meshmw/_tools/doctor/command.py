"""`meshmw doctor`: what is wrong with a process, its proxies, and between them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from meshmw._tools.doctor import Diagnosis, examine
from meshmw._tools.doctor.app import load_app, look_at_process
from meshmw._tools.doctor.config_dump import ProxyConfig, ProxyListener, ask_proxy, read_dump
from meshmw._tools.doctor.process import AppFacts
from meshmw._tools.output import FOUND, OK, answers, line, print_findings, print_json, table
from meshmw.settings import as_text


@answers
def doctor(
    app: Annotated[
        str,
        typer.Argument(metavar="[MODULE:APP]", help="The application, as uvicorn takes it; MODULE:MAKE() calls it."),
    ] = "",
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
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Say what would break traces here: middleware, propagator, exporter, sampler, baggage, versions, and the proxy.

    Loads the application in this process, with this environment, and looks at what it set up. With --envoy-admin, reads
    the proxy's own configuration and judges both sides together. Nothing of a configuration dump is printed but what
    concerns traces, and only GET is sent to a proxy.

    Without an application, a proxy is judged beside the settings of this environment.

    Each finding says what is the case, why that breaks traces, and what to do. Notes alone end with 0.
    """
    # What an application prints is no part of the answer.
    with _importable_from(app_dir), contextlib.redirect_stdout(sys.stderr):
        loaded = load_app(app) if app else None
    facts = look_at_process(app, loaded, connect=connect)
    proxies = [ask_proxy(url) for url in envoy_admin or ()] + [read_dump(path) for path in config_dump or ()]
    diagnosis = examine(facts, proxies, process_too=bool(app) or not proxies)
    if json:
        print_json(diagnosis.to_json())
    else:
        _print(diagnosis)
    return FOUND if any(finding.is_fault for finding in diagnosis.findings) else OK


@contextlib.contextmanager
def _importable_from(directory: Path) -> Iterator[None]:
    path = str(directory.absolute())
    sys.path.insert(0, path)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(path)


def _print(diagnosis: Diagnosis) -> None:
    if diagnosis.process.target or not diagnosis.proxies:
        _print_process(diagnosis.process)
    for proxy in diagnosis.proxies:
        _print_proxy(proxy)
        line("")
    print_findings(diagnosis.findings)
    faults = sum(finding.is_fault for finding in diagnosis.findings)
    line("")
    line(f"{faults} to mend" if faults else "Nothing to mend.", "bold red" if faults else "bold green")


def _print_process(facts: AppFacts) -> None:
    line(facts.target or "this process, without an application", "bold")
    rows = [("propagator", facts.propagator), ("formats", as_text(facts.formats) or "none")]
    if facts.framework:
        rows += [("framework", facts.framework), ("middleware", " > ".join(facts.middleware) or "none")]
    rows += [
        ("provider", facts.provider),
        ("service", facts.service_name or "-"),
        ("sampler", facts.sampler or "-"),
        ("exporters", ", ".join(facts.exporters) or "-"),
        ("collector", f"{facts.collector} {facts.collector_fault or 'answers'}" if facts.collector else "-"),
        ("versions", ", ".join(f"{name} {version}" for name, version in facts.versions.items())),
    ]
    table(["", ""], rows)


def _print_proxy(proxy: ProxyConfig) -> None:
    version = ".".join(map(str, proxy.version))
    line(f"proxy {proxy.node or proxy.where}  Envoy {version or 'of unknown version'}", "bold")
    columns = ["listener", "tracer", "formats", "sampling", "removes", "headers", "request id", "log"]
    table(columns, [_cells(listener) for listener in proxy.listeners])


def _cells(listener: ProxyListener) -> list[str]:
    removed = [*listener.removes, *(f"{name} (early)" for name in listener.removes_early)]
    made = "made" if listener.makes_request_id else "not made"
    return [
        f"{listener.name} {listener.direction.lower()}".strip(),
        listener.tracer or "none",
        "+".join(listener.formats) or "-",
        f"{listener.random_sampling:g} %{f' {listener.sampler}' if listener.sampler else ''}"
        if listener.tracer
        else "-",
        ", ".join(removed) or "-",
        f"{listener.max_kb} KiB, {listener.max_count}",
        ", ".join(
            [made, *["samples"] * (listener.uses_request_id and bool(listener.tracer)), *["replaced"] * listener.edge]
        ),
        {True: "traceparent", False: "no traceparent", None: "none"}[listener.logs_traceparent],
    ]
