"""What the demonstration shows: the tree, the traceparent at each hop, and whether it is what it should be."""

from meshmw.testing import Envoy, ReceivedSpan, assert_chain, roots
from sample_apps.mesh import Mesh

# The chain of one request with meshmw: each span is the parent of the next.
CHAIN = [
    ("client", "CLIENT"),
    ("edge", "SERVER"),
    ("checkout-sidecar", "SERVER"),
    ("checkout-service", "SERVER"),
    ("checkout-service", "CLIENT"),
    ("checkout-sidecar", "CLIENT"),
    ("inventory-sidecar", "SERVER"),
    ("inventory-service", "SERVER"),
]
# Without meshmw nobody makes a span for the call from one service to the other.
BARE = [span for span in CHAIN if span != ("checkout-service", "CLIENT")]


def complete(spans: list[ReceivedSpan], *, bare: bool) -> bool:
    """Whether every span of one request has come, wherever it hangs."""
    return {(span.service, span.kind) for span in spans} >= set(BARE if bare else CHAIN)


def hops(mesh: Mesh) -> list[tuple[str, str]]:
    """The traceparent on each stretch of the way, as the proxies at its ends logged it: `absent` if there was none."""
    edge_in, edge_out = _seen(mesh.edge, "edge")
    _, checkout_out = _seen(mesh.checkout_sidecar, "inbound")
    call_in, call_out = _seen(mesh.checkout_sidecar, "outbound")
    _, inventory_out = _seen(mesh.inventory_sidecar, "inbound")
    return [
        ("client -> edge", edge_in),
        ("edge -> checkout-sidecar", edge_out),
        ("checkout-sidecar -> FastAPI", checkout_out),
        ("FastAPI -> checkout-sidecar", call_in),
        ("checkout-sidecar -> inventory-sidecar", call_out),
        ("inventory-sidecar -> Flask", inventory_out),
    ]


def _seen(envoy: Envoy, listener: str) -> tuple[str, str]:
    """What came in at a listener and what went out behind it."""
    lines = envoy.access_log(at_least=2 * len(envoy.proxy.listeners))
    seen = {line["type"]: line["traceparent"] or "absent" for line in lines if line["listener"] == listener}
    return seen["DownstreamStart"], seen["DownstreamEnd"]


def fault(spans: list[ReceivedSpan], wire: list[tuple[str, str]]) -> str:
    """What keeps this from being one trace with every parent right; empty if nothing does."""
    try:
        trace_id = assert_chain(spans, CHAIN)[0].trace_id
    except AssertionError as wrong:
        return str(wrong).partition("\n")[0]
    astray = [f"{stretch} carried {seen}" for stretch, seen in wire if trace_id not in seen]
    return "; ".join(astray)


def render_hops(wire: list[tuple[str, str]]) -> str:
    width = max(len(stretch) for stretch, _ in wire)
    return "\n".join(["traceparent at each hop", *(f"{stretch.ljust(width)}  {seen}" for stretch, seen in wire)])


def count_traces(spans: list[ReceivedSpan]) -> str:
    tops = roots(spans)
    return f"{len({span.trace_id for span in spans})} traces, {len(tops)} roots, {len(spans)} spans for one request"
