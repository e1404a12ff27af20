"""What the demonstration shows: the tree, the traceparent at each hop, and whether it is what it should be."""

from collections import Counter

from meshmw.testing import Envoy, ReceivedSpan, assert_one_trace, roots
from sample_apps.branches import BARE, CHAIN, ORDERED, PRICED
from sample_apps.mesh import Mesh


def complete(spans: list[ReceivedSpan], mesh: Mesh, *, bare: bool) -> bool:
    """Whether every span of one request has come, wherever it hangs."""
    expected = Counter(BARE if bare else CHAIN + PRICED + ORDERED * len(mesh.brokers))
    return Counter((span.service, span.kind) for span in spans) >= expected


def hops(mesh: Mesh) -> list[tuple[str, str]]:
    """The traceparent on each stretch of the way, as the proxies at its ends logged it: `absent` if there was none."""
    edge_in, edge_out = _seen(mesh.edge, "edge")
    _, checkout_out = _seen(mesh.checkout_sidecar, "inbound")
    call_in, call_out = _seen(mesh.checkout_sidecar, "outbound")
    _, inventory_out = _seen(mesh.inventory_sidecar, "inbound")
    way = [
        ("client -> edge", edge_in),
        ("edge -> checkout-sidecar", edge_out),
        ("checkout-sidecar -> FastAPI", checkout_out),
        ("FastAPI -> checkout-sidecar", call_in),
        ("checkout-sidecar -> inventory-sidecar", call_out),
        ("inventory-sidecar -> Flask", inventory_out),
    ]
    if mesh.pricing_sidecar is not None:
        rpc_in, rpc_out = _seen(mesh.checkout_sidecar, "rpc")
        _, pricing_out = _seen(mesh.pricing_sidecar, "inbound")
        way += [
            ("FastAPI -> checkout-sidecar (gRPC)", rpc_in),
            ("checkout-sidecar -> pricing-sidecar", rpc_out),
            ("pricing-sidecar -> gRPC server", pricing_out),
        ]
    if mesh.worker_sidecar is not None:
        worker_in, worker_out = _seen(mesh.worker_sidecar, "outbound")
        way += [("worker -> worker-sidecar", worker_in), ("worker-sidecar -> inventory-sidecar", worker_out)]
    return way


def _seen(envoy: Envoy, listener: str) -> tuple[str, str]:
    """What came in at a listener and what went out behind it, for the first request there."""
    lines, seen = envoy.access_log(at_least=2 * len(envoy.proxy.listeners)), {}
    while not {"DownstreamStart", "DownstreamEnd"} <= seen.keys():
        mine = [line for line in lines if line["listener"] == listener]
        seen = {line["type"]: line["traceparent"] or "absent" for line in reversed(mine)}
        # Those that have come may be another request's: wait for one more.
        lines = lines if len(seen) > 1 else envoy.access_log(at_least=len(lines) + 1)
    return seen["DownstreamStart"], seen["DownstreamEnd"]


def fault(spans: list[ReceivedSpan], mesh: Mesh, wire: list[tuple[str, str]]) -> str:
    """What keeps this from being one trace with every parent right; empty if nothing does."""
    try:
        assert_one_trace(spans)
    except AssertionError as wrong:
        return str(wrong).partition("\n")[0]
    expected = [CHAIN, CHAIN[:4] + PRICED, *[CHAIN[:4] + ORDERED] * len(mesh.brokers)]
    if sorted(found := ways(spans)) != sorted(expected):
        return f"the ways from the client to the last of each branch are {found}, wanted {expected}"
    trace_id = spans[0].trace_id
    astray = [f"{stretch} carried {seen}" for stretch, seen in wire if trace_id not in seen]
    return "; ".join(astray)


def ways(spans: list[ReceivedSpan]) -> list[list[tuple[str, str]]]:
    """Each way from the root to a span below which there is none, without INTERNAL spans."""
    by_id = {span.span_id: span for span in spans}

    def above(span: ReceivedSpan) -> ReceivedSpan | None:
        parent = by_id.get(span.parent_id)
        return above(parent) if parent is not None and parent.kind == "INTERNAL" else parent

    def way(span: ReceivedSpan | None) -> list[tuple[str, str]]:
        return [] if span is None else [*way(above(span)), (span.service, span.kind)]

    calls = [span for span in spans if span.kind != "INTERNAL"]
    parents = {id(above(span)) for span in calls}
    return [way(span) for span in calls if id(span) not in parents]


def render_hops(wire: list[tuple[str, str]]) -> str:
    width = max(len(stretch) for stretch, _ in wire)
    return "\n".join(["traceparent at each hop", *(f"{stretch.ljust(width)}  {seen}" for stretch, seen in wire)])


def count_traces(spans: list[ReceivedSpan]) -> str:
    tops = roots(spans)
    return f"{len({span.trace_id for span in spans})} traces, {len(tops)} roots, {len(spans)} spans for one request"
