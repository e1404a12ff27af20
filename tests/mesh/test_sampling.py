"""A proxy that samples by its own rate clears the flag of a parent (Envoy 1.39 and later); it cannot hide it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = [("traceparent", f"00-{TRACE_ID}-b7ad6b7169203331-01")]


def test_a_flag_that_flips_between_our_client_and_our_server_is_counted_and_said(mesh: Callable[..., Any]) -> None:
    running = mesh("none", a_out="otel", sidecars_sample=0.0)
    before = running.services.warnings().count("noted (flipped)")
    seen = running.call(SAMPLED)
    arrived = seen["downstream"]["seen"]
    assert arrived["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert arrived["traceparent"].endswith("-00")
    assert arrived["x-meshmw-sent"].endswith("-01")
    assert running.services.warnings().count("noted (flipped)") == before + 1
    assert {span.service for span in running.spans(2)} == {"checkout"}


def test_nothing_is_said_where_the_proxy_leaves_the_decision_alone(mesh: Callable[..., Any]) -> None:
    running = mesh("otel")
    before = running.services.warnings().count("noted (flipped)")
    assert running.call(SAMPLED)["downstream"]["seen"]["traceparent"].endswith("-01")
    running.spans(7)
    assert running.services.warnings().count("noted (flipped)") == before
