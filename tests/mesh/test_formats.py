"""Which proxies and which formats end in one trace, row by row, and why the others cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
W3C_CLIENT = [("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"), ("tracestate", "vendor=1")]
B3_CLIENT = [("b3", f"{TRACE_ID}-{PARENT_ID}-1")]
W3C, BOTH, BOTH_B3_FIRST, B3 = (
    "tracecontext,baggage",
    "tracecontext,baggage,b3multi",
    "b3multi,tracecontext,baggage",
    "b3multi,baggage",
)
EVERY_SPAN = 7


@dataclass(frozen=True)
class Row:
    """What runs, and what becomes of one request.

    Attributes:
        inside: The services whose spans are all in the client's trace.
        traces: How many traces the request is in the end.
    """

    proxies: str
    formats: str
    traces: int
    inside: frozenset[str]
    client: list[tuple[str, str]] = field(default_factory=lambda: W3C_CLIENT)
    others: dict[str, str] = field(default_factory=dict)


ALL = frozenset({"edge", "sidecar-a", "checkout", "sidecar-b", "inventory"})
APPS = frozenset({"checkout", "inventory"})
ROWS = {
    # Each pair of proxies starts a B3 trace of its own: the applications send them none.
    "B3 proxies, W3C applications": Row("zipkin-b3", W3C, 3, APPS),
    # The proxies before the first application cannot read the client's traceparent.
    "B3 proxies, applications of both": Row("zipkin-b3", BOTH, 2, APPS | {"sidecar-b"}),
    "B3 proxies, applications of both, B3 listed first": Row("zipkin-b3", BOTH_B3_FIRST, 2, APPS | {"sidecar-b"}),
    "B3 and W3C proxies, W3C applications": Row("zipkin-b3-w3c", W3C, 1, ALL),
    "B3 and W3C proxies, applications of both": Row("zipkin-b3-w3c", BOTH, 1, ALL),
    # That proxy gets no B3 to continue.
    "one B3 proxy among W3C ones": Row("otel", W3C, 2, ALL - {"sidecar-a"}, others={"a_out": "zipkin-b3"}),
    # The applications do not read what the proxies write, nor the other way round.
    "W3C proxies, B3 applications": Row("otel", B3, 3, frozenset({"edge"})),
    "an edge that turns B3 into W3C": Row("otel", W3C, 1, ALL, B3_CLIENT, {"edge_kind": "zipkin-b3-w3c"}),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_request_ends_in_so_many_traces(mesh: Callable[..., Any], name: str) -> None:
    row = ROWS[name]
    running = mesh(row.proxies, formats=row.formats, **row.others)
    seen = running.call(row.client)
    spans = running.spans(EVERY_SPAN)
    assert len({span.trace_id for span in spans}) == row.traces
    inside = {service for service in ALL if {s.trace_id for s in spans if s.service == service} == {TRACE_ID}}
    assert inside == row.inside
    # The two applications are one trace in every row, and never lose the caller's state on the way.
    assert len({span.trace_id for span in spans if span.service in APPS}) == 1
    if row.client is W3C_CLIENT and "tracecontext" in row.formats:
        assert seen["downstream"]["seen"]["tracestate"] == "vendor=1"
