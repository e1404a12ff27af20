"""One request through real Envoys: client, edge, sidecar, FastAPI, sidecar, sidecar, Flask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meshmw.testing import ReceivedSpan, assert_child_of, find_span

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
W3C_CLIENT = [("traceparent", TRACEPARENT), ("tracestate", "vendor=1"), ("baggage", "user=alice;p=1")]
B3_CLIENT = [("b3", f"{TRACE_ID}-{PARENT_ID}-1")]
ALL_FORMATS = "b3multi,tracecontext,baggage"
EVERY_HOP = [
    ("edge", "SERVER"),
    ("sidecar-a", "SERVER"),
    ("checkout", "SERVER"),
    ("checkout", "CLIENT"),
    ("sidecar-a", "CLIENT"),
    ("sidecar-b", "SERVER"),
    ("inventory", "SERVER"),
]

Build = Callable[..., Any]


def assert_linear(spans: list[ReceivedSpan], first_parent: str, services: list[tuple[str, str]]) -> None:
    """The spans of the client's trace are one chain that hangs on the client's own span."""
    by_parent = {span.parent_id: span for span in spans}
    chain, parent = [], first_parent
    while parent in by_parent:
        chain.append(by_parent.pop(parent))
        parent = chain[-1].span_id
    assert [(span.service, span.kind) for span in chain] == services
    assert not by_parent


def test_without_tracing_in_the_proxies_the_apps_make_one_trace(mesh: Build) -> None:
    seen = mesh("none").call(W3C_CLIENT)
    meshed = seen["downstream"]["seen"]
    assert meshed["tracestate"] == "vendor=1"
    assert meshed["baggage"] == "user=alice;p=1"


def test_without_tracing_every_app_span_hangs_on_the_one_before(mesh: Build) -> None:
    running = mesh("none")
    running.call(W3C_CLIENT)
    spans = running.spans(3, TRACE_ID)
    assert_linear(spans, PARENT_ID, [("checkout", "SERVER"), ("checkout", "CLIENT"), ("inventory", "SERVER")])
    assert {span.name for span in spans} == {"GET /api/checkout", "GET", "GET /api/stock"}
    assert {span.trace_id for span in running.receiver.spans} == {TRACE_ID}


@pytest.mark.parametrize("kind", ["otel", "otel-http", "zipkin-b3-w3c"])
def test_proxies_and_apps_make_one_trace(mesh: Build, kind: str) -> None:
    running = mesh(kind)
    seen = running.call(W3C_CLIENT)
    spans = running.spans(7, TRACE_ID)
    assert_linear(spans, PARENT_ID, EVERY_HOP)
    assert seen["downstream"]["seen"]["tracestate"] == "vendor=1"
    assert {span.trace_id for span in running.receiver.spans} == {TRACE_ID}


def test_b3_proxies_and_b3_apps_make_one_trace_of_a_b3_client(mesh: Build) -> None:
    running = mesh("zipkin-b3", formats="b3multi,baggage")
    running.call(B3_CLIENT)
    assert_linear(running.spans(7, TRACE_ID), PARENT_ID, EVERY_HOP)
    assert {span.trace_id for span in running.receiver.spans} == {TRACE_ID}


def test_b3_proxies_between_apps_of_both_formats_are_in_the_trace_but_not_between_the_apps(mesh: Build) -> None:
    """The proxies rewrite B3 and leave traceparent alone: the traceparent decides, and names the calling app."""
    running = mesh("zipkin-b3", formats=ALL_FORMATS)
    running.call(B3_CLIENT)
    spans = running.spans(7)
    assert {span.trace_id for span in spans} == {TRACE_ID}
    client = find_span(spans, service="checkout", kind="CLIENT")
    assert_child_of(find_span(spans, service="inventory"), client)
    assert_child_of(find_span(spans, service="sidecar-a", kind="CLIENT"), client)


def test_b3_proxies_between_apps_of_both_formats_are_in_line_where_the_apps_prefer_what_was_written_last(
    mesh: Build,
) -> None:
    running = mesh("zipkin-b3", formats=ALL_FORMATS, settings={"MESHMW_PREFER": "auto"})
    running.call(B3_CLIENT)
    assert_linear(running.spans(7, TRACE_ID), PARENT_ID, EVERY_HOP)


def test_an_edge_that_does_not_trust_starts_one_tree_that_links_to_the_strangers_span(mesh: Build) -> None:
    running = mesh("none", settings={"MESHMW_TRUST": "restart"})
    running.call(W3C_CLIENT)
    # The server's and the client's span of checkout need not come in one batch; inventory's is the third.
    spans = running.spans(3)
    server = find_span(spans, service="checkout", kind="SERVER")
    assert server.parent_id == ""
    assert [(link.trace_id, link.span_id) for link in server.links] == [(TRACE_ID, PARENT_ID)]


def test_with_the_sdk_disabled_what_came_in_goes_out_again(mesh: Build) -> None:
    running = mesh("none", settings={"OTEL_SDK_DISABLED": "true"})
    seen = running.call([*W3C_CLIENT, ("x-request-id", "9acb4236-4cdf-4863-b1e2-5f786b9484ea")])
    arrived = seen["downstream"]["seen"]
    assert arrived["traceparent"] == TRACEPARENT
    assert arrived["tracestate"] == "vendor=1"
    assert arrived["baggage"] == "user=alice;p=1"
    assert arrived["x-request-id"] == seen["seen"]["x-request-id"]
    assert not {"traceparent", "tracestate", "baggage"} & running.call([])["downstream"]["seen"].keys()
    assert running.receiver.spans == []


def test_b3_proxies_and_a_w3c_client_keep_the_clients_trace_from_the_first_app_on(mesh: Build) -> None:
    """The proxies in front of the first app read B3 alone: they cannot join a trace that came as traceparent."""
    running = mesh("zipkin-b3", formats=ALL_FORMATS)
    seen = running.call(W3C_CLIENT)
    spans = running.spans(7)
    inside = [span for span in spans if span.trace_id == TRACE_ID]
    assert {span.service for span in inside} == {"checkout", "inventory", "sidecar-a", "sidecar-b"}
    assert [span.parent_id for span in inside if span.service == "checkout" and span.kind == "SERVER"] == [PARENT_ID]
    assert seen["downstream"]["seen"]["tracestate"] == "vendor=1"
    assert "b3 refused (conflict)" in running.services.warnings()


def test_a_zipkin_sidecar_beside_otel_sidecars_joins_the_trace(mesh: Build) -> None:
    running = mesh("otel", formats=ALL_FORMATS, a_out="zipkin-b3")
    running.call(W3C_CLIENT)
    spans = running.spans(7)
    assert {span.trace_id for span in spans} == {TRACE_ID}
    client = find_span(spans, service="checkout", kind="CLIENT")
    assert_child_of(find_span(spans, service="sidecar-a", kind="CLIENT"), client)
    assert_child_of(find_span(spans, service="sidecar-b"), client)


def test_a_zipkin_sidecar_that_apps_do_not_speak_to_keeps_the_apps_whole(mesh: Build) -> None:
    running = mesh("otel", a_out="zipkin-b3")
    running.call(W3C_CLIENT)
    spans = running.spans(7)
    assert {span.service for span in spans if span.trace_id != TRACE_ID} == {"sidecar-a"}
    assert_child_of(find_span(spans, service="sidecar-b"), find_span(spans, service="checkout", kind="CLIENT"))


def test_an_edge_that_strips_traceparent_leaves_one_tree_below_a_fresh_root(mesh: Build) -> None:
    running = mesh("none", edge={"remove_headers": ("traceparent", "tracestate")})
    running.call(W3C_CLIENT)
    spans = running.spans(3)
    root = find_span(spans, service="checkout", kind="SERVER")
    assert root.parent_id == ""
    assert_linear(spans, "", [("checkout", "SERVER"), ("checkout", "CLIENT"), ("inventory", "SERVER")])
    assert root.trace_id != TRACE_ID
    assert "traceparent refused (missing)" in running.services.warnings()


def test_a_traced_edge_that_strips_early_is_the_root_of_one_tree(mesh: Build) -> None:
    running = mesh("otel", edge={"early_remove_headers": ("traceparent", "tracestate")})
    running.call(W3C_CLIENT)
    spans = running.spans(7)
    assert len({span.trace_id for span in spans}) == 1
    assert [span.service for span in spans if not span.parent_id] == ["edge"]


MALFORMED = {
    "hex": [f"00-{TRACE_ID[:-1]}g-{PARENT_ID}-01"],
    "length": ["00-xyz"],
    "empty": [""],
    "duplicate": [TRACEPARENT, TRACEPARENT],
    "zero_trace_id": [f"00-{'0' * 32}-{PARENT_ID}-01"],
    "zero_parent_id": [f"00-{TRACE_ID}-{'0' * 16}-01"],
    "case": [TRACEPARENT.upper()],
    "version_ff": [f"ff-{TRACE_ID}-{PARENT_ID}-01"],
    "trailing": [f"{TRACEPARENT}-and-more"],
    "over-long": [TRACEPARENT + "0" * 3000],
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_traceparent_that_envoy_passes_on_ends_at_the_first_app(mesh: Build, case: str) -> None:
    running = mesh("none")
    seen = running.call([*(("traceparent", value) for value in MALFORMED[case]), ("tracestate", "vendor=1")])
    spans = running.spans(3)
    assert_linear(spans, "", [("checkout", "SERVER"), ("checkout", "CLIENT"), ("inventory", "SERVER")])
    assert len({span.trace_id for span in spans}) == 1
    assert TRACE_ID not in {span.trace_id for span in spans}
    assert not {"traceparent", "tracestate"} & seen["seen"].keys()
    assert seen["downstream"]["seen"]["traceparent"].startswith(f"00-{spans[0].trace_id}-")
    assert "tracestate" not in seen["downstream"]["seen"]


def test_a_malformed_traceparent_blinds_traced_proxies_until_the_first_app(mesh: Build) -> None:
    running = mesh("otel")
    running.call([("traceparent", "00-xyz")])
    spans = running.spans(5)
    assert_linear(spans, "", EVERY_HOP[2:])


@pytest.mark.parametrize("values", [[TRACEPARENT, TRACEPARENT], [TRACEPARENT, TRACEPARENT.replace("b7", "c7")]])
def test_two_traceparents_end_in_the_same_decision_in_fastapi_and_in_flask(mesh: Build, values: list[str]) -> None:
    running = mesh("none")
    lines = [("traceparent", value) for value in values]
    assert TRACE_ID not in (running.call(lines)["trace_id"], running.call(lines, start="inventory")["trace_id"])
    running.spans(4)
    assert all(span.trace_id != TRACE_ID for span in running.receiver.spans)


def test_the_request_id_of_the_edge_reaches_the_last_app(mesh: Build) -> None:
    seen = mesh("otel").call(W3C_CLIENT)
    assert seen["seen"]["x-request-id"] == seen["downstream"]["seen"]["x-request-id"]
