"""A sampler for routes of their own, and for remote parents whose decision is not there, or is not to be followed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from opentelemetry.context import Context, get_current
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceState, get_current_span
from opentelemetry.util.types import Attributes

from meshmw._context.extraction import B3_KEY
from meshmw._notices import LOGGER, Throttle
from meshmw._otel import SPAN_KEY
from meshmw._policy.patterns import PathPatterns
from meshmw.wire import B3Context


class RemoteParentSampler(Sampler):
    """Decides as another sampler does, but for some remote parents as that one does for roots.

    Those are parents that deferred the decision, which is B3's third state and fits in no trace flag; and all of them
    where this service owns the decision. The trace's id and state stay. Where this process decides, a request's path
    may have a rule of its own.

    Args:
        sampler: The sampler that decides, such as `ParentBased(TraceIdRatioBased(0.1))`.
        service_owns: Whether a remote parent's flag counts for nothing.
        rules: Of which the first that means a request's path decides.
    """

    def __init__(self, sampler: Sampler, *, service_owns: bool = False, rules: Sequence[RouteRule] = ()) -> None:
        self._sampler = sampler
        self._service_owns = service_owns
        self._rules = tuple(rules)
        self._throttle = Throttle()

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
        """Return the decision for a span that is about to start; where the other sampler raises, it is not recorded."""
        context = get_current() if parent_context is None else parent_context
        parent = get_current_span(context).get_span_context()
        decides = self._decides(parent, context)
        if decides:
            parent_context = Context({key: value for key, value in context.items() if key != SPAN_KEY})
        sampler = self._route_sampler(kind, attributes, decides or not parent.is_valid) if self._rules else None
        try:
            result = (sampler or self._sampler).should_sample(
                parent_context, trace_id, name, kind, attributes, links, trace_state
            )
            if not isinstance(result, SamplingResult):
                raise TypeError("a sampler returns a SamplingResult")
        except Exception:
            self._warn()
            return SamplingResult(Decision.DROP, None, parent.trace_state)
        return SamplingResult(result.decision, result.attributes, parent.trace_state) if decides else result

    def get_description(self) -> str:
        """Return the other sampler's description."""
        return self._sampler.get_description()

    def _decides(self, parent: SpanContext, context: Context) -> bool:
        if not parent.is_remote:
            return False
        b3 = context.get(B3_KEY)
        deferred = isinstance(b3, B3Context) and b3.sampled is None and b3.trace_id == parent.trace_id
        return deferred or self._service_owns

    def _route_sampler(self, kind: SpanKind | None, attributes: Attributes, is_root: bool) -> Sampler | None:
        if kind is not SpanKind.SERVER or attributes is None:
            return None
        path = str(attributes.get("url.path") or attributes.get("http.target", "")).partition("?")[0]
        rule = next((each for each in self._rules if each.paths.match(path)), None)
        return rule.sampler if rule is not None and (is_root or rule.never) else None

    def _warn(self) -> None:
        if self._throttle.opens() is not None:
            LOGGER.warning(
                "the sampler %s raised; spans are not recorded", type(self._sampler).__qualname__, exc_info=True
            )


class RouteRule(NamedTuple):
    """Says what share of the requests to some paths is recorded.

    Attributes:
        paths: The paths.
        sampler: Decides by the trace id.
        never: Whether the share is 0, which holds also for requests whose caller records them.
    """

    paths: PathPatterns
    sampler: Sampler
    never: bool

    @classmethod
    def parse(cls, text: str) -> RouteRule:
        """Return the rule of a text such as `/health=0`."""
        pattern, _, share = text.rpartition("=")
        return cls(PathPatterns([pattern]), TraceIdRatioBased(float(share)), float(share) == 0)
