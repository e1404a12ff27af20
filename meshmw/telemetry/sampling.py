"""A sampler for parents that have not decided: B3's third state, which trace flags cannot hold."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState, get_current_span
from opentelemetry.util.types import Attributes

from meshmw.extraction import B3_KEY, SPAN_KEY
from meshmw.wire import B3Context


class DeferredDecisionSampler(Sampler):
    """Decides as another sampler does; where the remote parent deferred its decision, as that one decides for roots.

    Args:
        sampler: The sampler that decides, such as `ParentBased(TraceIdRatioBased(0.1))`.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Return the decision for a span that is about to start."""
        if parent_context is not None and _deferred(parent_context):
            parent_context = Context({key: value for key, value in parent_context.items() if key != SPAN_KEY})
        return self._sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """Return the other sampler's description."""
        return self._sampler.get_description()


def _deferred(context: Context) -> bool:
    b3 = context.get(B3_KEY)
    if not isinstance(b3, B3Context) or b3.sampled is not None:
        return False
    parent = get_current_span(context).get_span_context()
    return parent.is_remote and parent.trace_id == b3.trace_id
