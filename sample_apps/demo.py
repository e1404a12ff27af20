"""The demonstration on a running mesh: one request, the trace it left, the verdict."""

import time

import meshmw
from meshmw.httpx import Client
from meshmw.testing import ReceivedSpan, render_tree
from sample_apps.mesh import Mesh
from sample_apps.report import complete, count_traces, fault, hops, render_hops


def show_one_request(mesh: Mesh, *, bare: bool) -> int:
    """Send one request as a traced client, print what came of it, and return the exit code."""
    settings = meshmw.Settings(service_name="client", exporter="otlp", endpoint=mesh.receiver.grpc_endpoint)
    # The client's own environment may hold proxies, which do not know this mesh.
    with meshmw.configure(settings), Client(trust_env=False, timeout=10) as client:
        answer = client.get(mesh.url)
    print(f"{answer.status_code} {answer.text.strip()}\n")
    try:
        spans = mesh.receiver.wait_for(lambda spans: complete(spans, mesh, bare=bare))
    except AssertionError as late:
        print(f"FAILED: {late}")
        return 1
    wire = hops(mesh)
    print(render_tree(spans), render_hops(wire), sep="\n\n", end="\n\n")
    return without_meshmw(spans, mesh, wire) if bare else with_meshmw(spans, mesh, wire)


def with_meshmw(spans: list[ReceivedSpan], mesh: Mesh, wire: list[tuple[str, str]]) -> int:
    wrong = fault(spans, mesh, wire)
    print(f"FAILED: {wrong}" if wrong else f"ONE trace: {len(spans)} spans, every parent right.")
    return 1 if wrong else 0


def without_meshmw(spans: list[ReceivedSpan], mesh: Mesh, wire: list[tuple[str, str]]) -> int:
    wrong = fault(spans, mesh, wire)
    print(f"Without meshmw: {count_traces(spans)}." if wrong else "FAILED: this is one trace, even without meshmw.")
    return 0 if wrong else 1


def serve(mesh: Mesh) -> None:
    """Print where everything is, then each trace as it comes in, until Ctrl-C."""
    print(f"\ntry      curl {mesh.url}")
    for envoy in filter(
        None, (mesh.edge, mesh.checkout_sidecar, mesh.inventory_sidecar, mesh.pricing_sidecar, mesh.worker_sidecar)
    ):
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
            print(f"\n{render_tree(spans)}", flush=True)
        before = len(spans)
