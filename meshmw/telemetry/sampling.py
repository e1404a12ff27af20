"""A sampler for remote parents whose decision is not there, or is not to be followed."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceState, get_current_span
from opentelemetry.util.types import Attributes

from meshmw.propagation.extraction import B3_KEY, SPAN_KEY
from meshmw.wire import B3Context


class RemoteParentSampler(Sampler):
    """Decides as another sampler does, but for some remote parents as that one does for roots.

    Those are parents that deferred the decision, which is B3's third state and fits in no trace flag; and all of them
    where this service owns the decision. The trace's id and state stay.

    Args:
        sampler: The sampler that decides, such as `ParentBased(TraceIdRatioBased(0.1))`.
        service_owns: Whether a remote parent's flag counts for nothing.
    """

    def __init__(self, sampler: Sampler, *, service_owns: bool = False) -> None:
        self._sampler = sampler
        self._service_owns = service_owns

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
        parent = None if parent_context is None else get_current_span(parent_context).get_span_context()
        if parent_context is None or parent is None or not self._decides(parent, parent_context):
            return self._sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        rootless = Context({key: value for key, value in parent_context.items() if key != SPAN_KEY})
        result = self._sampler.should_sample(rootless, trace_id, name, kind, attributes, links, trace_state)
        return SamplingResult(result.decision, result.attributes, parent.trace_state)

    def get_description(self) -> str:
        """Return the other sampler's description."""
        return self._sampler.get_description()

    def _decides(self, parent: SpanContext, context: Context) -> bool:
        if not parent.is_remote:
            return False
        b3 = context.get(B3_KEY)
        deferred = isinstance(b3, B3Context) and b3.sampled is None and b3.trace_id == parent.trace_id
        return deferred or self._service_owns
