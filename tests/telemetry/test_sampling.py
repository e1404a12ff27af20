"""A parent that deferred its decision is asked of the sampler as a root is; every other parent is left alone."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler

from meshmw import MeshPropagator
from meshmw.telemetry.sampling import DeferredDecisionSampler

IDS = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
DEFERRED, DENIED, ACCEPTED = {"b3": IDS}, {"b3": f"{IDS}-0"}, {"b3": f"{IDS}-1"}


def is_sampled(root: Sampler, carrier: dict[str, str], *, deeper: bool = False) -> bool:
    tracer = TracerProvider(sampler=DeferredDecisionSampler(ParentBased(root))).get_tracer("test")
    context = MeshPropagator(["b3", "tracecontext"]).extract(carrier)
    span = tracer.start_span("server", context)
    if deeper:
        span = tracer.start_span("inner", trace.set_span_in_context(span, context))
    return span.get_span_context().trace_flags.sampled


@pytest.mark.parametrize("deeper", [False, True])
@pytest.mark.parametrize(("root", "expected"), [(ALWAYS_ON, True), (ALWAYS_OFF, False)])
def test_a_deferred_decision_is_the_root_samplers(root: Sampler, expected: bool, deeper: bool) -> None:
    assert is_sampled(root, DEFERRED, deeper=deeper) is expected


@pytest.mark.parametrize("root", [ALWAYS_ON, ALWAYS_OFF])
@pytest.mark.parametrize(("carrier", "expected"), [(DENIED, False), (ACCEPTED, True)])
def test_a_decision_that_came_in_is_followed(root: Sampler, carrier: dict[str, str], expected: bool) -> None:
    assert is_sampled(root, carrier) is expected


def test_a_w3c_parent_beside_a_deferred_b3_of_another_trace_decides() -> None:
    denied = {**DEFERRED, "traceparent": "00-11111111111111111111111111111111-2222222222222222-00"}
    assert is_sampled(ALWAYS_ON, denied) is False


def test_a_root_is_the_root_samplers_and_the_description_too() -> None:
    sampler = DeferredDecisionSampler(ParentBased(ALWAYS_ON))
    assert sampler.should_sample(None, 1, "root").decision.is_sampled()
    assert sampler.should_sample(Context(), 1, "root").decision.is_sampled()
    assert sampler.get_description() == ParentBased(ALWAYS_ON).get_description()
