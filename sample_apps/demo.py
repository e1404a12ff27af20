"""The demonstration on a running mesh: one request, the trace it left, the verdict."""

import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import meshmw
from meshmw.httpx import Client
from meshmw.testing import Journey, ReceivedSpan, render_tree, roots, write_report
from meshmw.testing._requests import Follower, as_probe
from sample_apps import NotReadyError
from sample_apps.jaeger import JaegerReceiver
from sample_apps.mesh import Mesh
from sample_apps.report import complete, count_traces, fault, hops, render_hops


def show_one_request(mesh: Mesh, flavour: str, *, report: Path | None = None, as_json: bool = False) -> int:
    """Send one request as a traced client, print what came of it, and return the exit code.

    Args:
        mesh: The running mesh.
        flavour: Which services run, as for `start_mesh`.
        report: Where an HTML report goes as well.
        as_json: Print the request's journey, as `meshmw verify --json` does, and nothing else.
    """
    say = (lambda text: None) if as_json else print
    logs = {envoy.proxy.name: envoy.access_log_path for envoy in mesh.envoys}
    follower, began = Follower(logs, mesh.receiver), time.time_ns()
    endpoint = mesh.receiver.grpc_endpoint
    settings = meshmw.Settings(service_name="client", exporter="otlp", endpoint=endpoint, show_log=False)
    # The client's own environment may hold proxies, which do not know this mesh.
    with meshmw.configure(settings), Client(trust_env=False, timeout=10) as client:
        answer = client.get(mesh.url)
    say(f"{answer.status_code} {answer.text.strip()}\n")
    try:
        spans = mesh.receiver.wait_for(lambda spans: complete(spans, mesh, bare=flavour == "_bare"))
    except AssertionError as late:
        print(f"FAILED: {late}", file=sys.stderr if as_json else sys.stdout)
        return 1
    wire = hops(mesh)
    say(f"{render_tree(spans)}\n\n{render_hops(wire)}\n")
    show_links(mesh, spans, say)
    if as_json or report is not None:
        client_span = next(span for span in spans if span.service == "client")
        named = client_span.trace_id, client_span.span_id
        probe = as_probe("GET", mesh.url, [("traceparent", wire[0][1])], named)
        hand_on(follower.journey(probe, answer.status_code, began, timeout=5), report, as_json=as_json)
    verdicts = {"": with_meshmw, "_contrib": with_contrib, "_bare": without_meshmw}
    return verdicts[flavour](spans, mesh, wire, say)


def show_links(mesh: Mesh, spans: list[ReceivedSpan], say: Callable[[str], None] = print) -> None:
    """Say where Jaeger shows the traces, where one was given."""
    for link in mesh.receiver.links(spans) if isinstance(mesh.receiver, JaegerReceiver) else ():
        say(f"jaeger   {link}")


def hand_on(journey: Journey, report: Path | None, *, as_json: bool) -> None:
    if report is not None:
        try:
            write_report(journey, report)
        except OSError as error:
            raise NotReadyError(f"{report}: {error.strerror or error}") from error
        print(f"report   {report}", file=sys.stderr)
    if as_json:
        print(json.dumps(journey.to_json(), indent=2))


def with_meshmw(spans: list[ReceivedSpan], mesh: Mesh, wire: list[tuple[str, str]], say: Callable[[str], None]) -> int:
    wrong = fault(spans, mesh, wire)
    say(f"FAILED: {wrong}" if wrong else f"ONE trace: {len(spans)} spans, every parent right.")
    return 1 if wrong else 0


def with_contrib(spans: list[ReceivedSpan], mesh: Mesh, wire: list[tuple[str, str]], say: Callable[[str], None]) -> int:
    _, *astray = roots(spans)
    if astray:
        say(f"With the contrib packages: {count_traces(spans)}.")
        for span in astray:
            say(f"{span.service} {span.kind} {span.name} begins a trace of its own.")
    else:
        say(f"With the contrib packages this is ONE trace too: {len(spans)} spans.")
    return 0


def without_meshmw(
    spans: list[ReceivedSpan], mesh: Mesh, wire: list[tuple[str, str]], say: Callable[[str], None]
) -> int:
    wrong = fault(spans, mesh, wire)
    say(
        f"Where nothing passes trace headers on: {count_traces(spans)}."
        if wrong
        else "FAILED: this is one trace, even without meshmw."
    )
    return 0 if wrong else 1


def serve(mesh: Mesh) -> None:
    """Print where everything is, then each trace as it comes in, until Ctrl-C."""
    print(f"\ntry      curl {mesh.url}")
    logs = " ".join(f"-a {shlex.quote(f'{envoy.proxy.name}={envoy.access_log_path}')}" for envoy in mesh.envoys)
    # One line, so that it can be typed, or copied, as it stands.
    print(f"follow   meshmw verify {mesh.url} --random {logs}")
    for envoy in mesh.envoys:
        print(f"envoy    {envoy.admin_url}  {envoy.proxy.name}")
    print(f"otlp     {mesh.receiver.grpc_endpoint} (gRPC), {mesh.receiver.http_endpoint}/v1/traces (HTTP)")
    print("Ctrl-C stops everything.", flush=True)
    mesh.receiver.clear()
    before = 0
    while True:
        time.sleep(0.3)
        spans = mesh.receiver.spans
        if spans and len(spans) == before:
            mesh.receiver.clear()
            print(f"\n{render_tree(spans)}")
            show_links(mesh, spans)
            sys.stdout.flush()
        before = len(spans)
