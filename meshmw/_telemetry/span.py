"""What happens to a span in the request's own thread: whether it is recorded, and what processors are told of it.

OpenTelemetry calls samplers and processors there, and passes on whatever they raise; here none of them can fail a
request, nor fill its memory.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from marshal import dumps
from sys import getsizeof
from typing import Any, Final, NamedTuple

from opentelemetry import baggage
from opentelemetry.context import Context, get_current
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, SynchronousMultiSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    TraceState,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.util.types import Attributes

from meshmw._context.extraction import B3_KEY
from meshmw._notices import LOGGER, Throttle, escaped
from meshmw._otel import (
    ITEM_ATTRIBUTES,
    SPAN_KEY,
    SPAN_PARTS,
    TRACE_STATE,
    TRACE_STATE_MEMBERS,
    announce_ending,
    overrides,
)
from meshmw._policy.patterns import BaggageKeys, PathPatterns
from meshmw._telemetry.bounds import FAIR_BYTES, ITEM_BYTES, BoundedSpan, Bounds
from meshmw.wire import B3Context

_ANY_SPAN_ID: Final = 1
_DEFAULT_BOUNDS: Final = Bounds()
OVERFLOW: Final = "_overflow"
# Above the size of every span.
UNKNOWN: Final = sys.maxsize
# What a span holds of these is as long as it says.
_SIMPLE: Final = frozenset({str, int, float, bool, bytes})
# Members of a tracestate, of 513 characters each at most.
_FEW_MEMBERS: Final = 3

# What a key and a value of an attribute take beside their characters; and what a span takes on its way beside its text.
_HEADS: Final = 160
_FRAME: Final = 512

# A pattern may fit keys without end, which strangers choose.
_MOST_KEYS: Final = 64


class RemoteParentSampler(Sampler):
    """Decides as another sampler does, but for some remote parents as that one does for roots.

    Those are parents that deferred the decision, which is B3's third state and fits in no trace flag; and all of them
    where this service owns the decision. The trace's id and state stay. Where this process decides, a request's path
    may have a rule of its own. A decision of B3 that came without ids counts as a remote parent's flag does.

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
        elif not (parent.is_valid or self._service_owns) and (state := _decision_alone(context)) is not None:
            parent = _stand_in(trace_id, state)
            parent_context = set_span_in_context(NonRecordingSpan(parent), context)
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

    @property
    def where_b3_is_silent(self) -> Sampler:
        """Return what decides below a valid parent where no B3 header says anything: mostly the other sampler."""
        return self if self._service_owns or self._rules else self._sampler

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


def _decision_alone(context: Context) -> bool | None:
    """Return the decision that a request brought without ids, or None."""
    b3 = context.get(B3_KEY)
    return b3.sampled if isinstance(b3, B3Context) and b3.trace_id is None else None


def _stand_in(trace_id: int, is_sampled: bool) -> SpanContext:
    """Return a remote parent that has decided so; samplers ask nobody else, and nothing remembers it."""
    flags = TraceFlags(TraceFlags.SAMPLED if is_sampled else TraceFlags.DEFAULT)
    return SpanContext(trace_id, _ANY_SPAN_ID, True, flags)


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


class GuardedSpanProcessors(SynchronousMultiSpanProcessor):
    """Calls span processors in the order in which they were added, whatever any of them raises.

    OpenTelemetry's own calls them in the request's thread too, and passes on what they raise.

    Args:
        warn_window: Seconds between two warnings of the same kind of processor.
        clock: A monotonic clock in seconds.
        bounds: How large a span may be when it has ended.
    """

    def __init__(
        self, warn_window: float, clock: Callable[[], float] = time.monotonic, bounds: Bounds = _DEFAULT_BOUNDS
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the SDK's own
        self._bounds = bounds
        self._clock = clock
        self._throttle = Throttle(warn_window, clock)
        self._adding = threading.Lock()
        self._guarded: tuple[SpanProcessor, ...] = ()
        # Most have nothing to do at these steps.
        self._starting: tuple[SpanProcessor, ...] = ()
        self._ending: tuple[SpanProcessor, ...] = ()

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        """Add a processor, behind those that are there."""
        super().add_span_processor(span_processor)
        with self._adding:
            self._guarded = (*self._guarded, span_processor)
            if overrides(span_processor, SpanProcessor, "on_start"):
                self._starting = (*self._starting, span_processor)
            if overrides(span_processor, SpanProcessor):
                self._ending = (*self._ending, span_processor)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Tell every processor that a span starts."""
        for each in self._starting:
            try:
                each.on_start(span, parent_context=parent_context)
            except Exception as error:
                self._warn(each, error)

    def _on_ending(self, span: Span) -> None:
        for each in self._ending:
            try:
                announce_ending(each, span)
            except Exception as error:
                self._warn(each, error)

    def on_end(self, span: ReadableSpan) -> None:
        """Tell every processor that a span has ended; what they see of it is bounded."""
        if ordinary_size(span) is None and plain_size(span) > FAIR_BYTES:
            # What cannot be copied, such as a text of a class with rules of its own, passes as it is.
            with contextlib.suppress(Exception):
                span = BoundedSpan(span, self._bounds)
        for each in self._guarded:
            try:
                each.on_end(span)
            except Exception as error:
                self._warn(each, error)

    def shutdown(self) -> None:
        """End every processor."""
        for each in self._guarded:
            self._succeeds(each, each.shutdown)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Let every processor export what it holds; say whether all of them did, within the time."""
        deadline = self._clock() + timeout_millis / 1000
        flushed = True
        for each in self._guarded:
            left = int((deadline - self._clock()) * 1000)
            flushed = left > 0 and self._succeeds(each, lambda: each.force_flush(left)) and flushed  # noqa: B023
        return flushed

    def _succeeds(self, processor: SpanProcessor, call: Callable[[], object]) -> bool:
        try:
            return call() is not False
        except Exception as error:
            self._warn(processor, error)
            return False

    def _warn(self, processor: SpanProcessor, error: Exception) -> None:
        kind = type(processor)
        if self._throttle.opens((kind.__module__, kind.__qualname__)) is not None:
            LOGGER.warning(
                "the span processor %s raised; requests and other processors are unaffected",
                kind.__qualname__,
                exc_info=error,
            )


def ordinary_size(span: Any) -> int | None:
    """Return about how many bytes a lazy span has on its way, or None where it may hold more than an ordinary one.

    One call of C writes down all that it says, which takes a fifth of the time of adding sizes up. What is written is
    UTF-8 and as long as the text at least; in memory each character takes four bytes at most.
    """
    plain = getattr(span, "plain", None)
    try:
        if plain is None or len(TRACE_STATE_MEMBERS(span.context[TRACE_STATE])) > _FEW_MEMBERS:
            return None
        # In this version of the format a text that stands there twice is written twice.
        written = len(dumps(plain, 2)) + _written(span.name) + _written(span.status.description or "")
    except (AttributeError, TypeError, ValueError):
        return None
    held = 4 * written + _HEADS * len(plain)
    return written + _FRAME if held <= FAIR_BYTES else None


def _written(text: str) -> int:
    return len(text) if text.isascii() else 4 * len(text)


def plain_size(span: Any) -> int:
    """Return the bytes that a span of the SDK holds, or `UNKNOWN` and above where not all that it holds is simple.

    Where a name is gone that the SDK calls private, no span looks simple.
    """
    try:
        attributes, context, name, description, events, links = SPAN_PARTS(span)
        values = attributes.values()
        if len(TRACE_STATE_MEMBERS(context[TRACE_STATE])) > _FEW_MEMBERS or not _SIMPLE.issuperset(map(type, values)):
            return UNKNOWN
        size = sum(map(getsizeof, (*attributes, *values, name, description)))
        return size + sum(map(_item_size, (*events, *links))) if events or links else size
    except (AttributeError, TypeError):
        return UNKNOWN


def _item_size(item: Any) -> int:
    attributes = ITEM_ATTRIBUTES(item)
    values = attributes.values()
    state = item.context.trace_state if isinstance(item, Link) else ()
    if len(state) > _FEW_MEMBERS or not _SIMPLE.issuperset(map(type, values)):
        return UNKNOWN
    return ITEM_BYTES + sum(map(getsizeof, (*attributes, *values, getattr(item, "name", None))))


class BaggageAttributes(SpanProcessor):
    """Sets the baggage members that were asked for as attributes of every span that starts.

    opentelemetry-processor-baggage bounds neither the values' length nor their number, and overwrites what a span says.
    Here an attribute that the span has already stays. A key with more than *distinct* values within a window is a
    user's or a request's: its further values become `_overflow`, and one warning names the key.

    Args:
        keys: The keys, or patterns with `*` and `?`; beside these, patterns with a `!` before them leave keys out.
        longest: The characters of a value that are kept.
        distinct: The values of a key within a window.
        window: The window's length, in seconds.
        clock: A monotonic clock in seconds.

    Raises:
        ValueError: A pattern is malformed, or all of them leave keys out and none asks for any.
    """

    def __init__(
        self,
        keys: Sequence[str],
        *,
        longest: int = 128,
        distinct: int = 100,
        window: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wanted = BaggageKeys(keys, opt_in=True)
        self._longest = longest
        self._distinct = distinct
        self._window = window
        self._clock = clock
        self._throttle = Throttle(window, clock)
        self._exact = frozenset(key for key in keys if not key.startswith("!") and not {"*", "?"} & set(key))
        # The values of each key, by the window's number.
        self._windows: dict[int, dict[str, set[str]]] = {}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Set the attributes of a span that starts."""
        members = baggage.get_all(parent_context)
        if not members or not span.is_recording():
            return
        present = span.attributes or {}
        for key, value in members.items():
            if key not in present and self._wanted.permits(key):
                bounded = self._bounded(key, str(value)[: self._longest])
                if bounded is not None:
                    span.set_attribute(key, bounded)

    def _bounded(self, key: str, value: str) -> str | None:
        values = self._values_by_key()
        known = values.get(key)
        if known is None:
            # What strangers call their keys leaves room for those that were asked for by name.
            if key not in self._exact and len(values.keys() - self._exact) >= _MOST_KEYS:
                self._warn_of_keys()
                return None
            known = values.setdefault(key, set())
        if value in known:
            return value
        if len(known) >= self._distinct:
            self._warn_of_values(key)
            return OVERFLOW
        known.add(value)
        return value

    def _values_by_key(self) -> dict[str, set[str]]:
        # One dictionary call makes a window, so that of several threads at its beginning none empties another's.
        number = int(self._clock() // self._window)
        found = self._windows.get(number)
        if found is None:
            found = self._windows.setdefault(number, {})
            for each in [each for each in self._windows.copy() if each < number]:
                self._windows.pop(each, None)
        return found

    def _warn_of_keys(self) -> None:
        if self._throttle.opens() is not None:
            LOGGER.warning(
                "the patterns of baggage_attributes fit more than %d keys within %g s; further ones become no "
                "attribute",
                _MOST_KEYS,
                self._window,
            )

    def _warn_of_values(self, key: str) -> None:
        if self._throttle.opens(key) is not None:
            LOGGER.warning(
                "baggage key %s has more than %d values within %g s; as a span attribute, further ones become %s",
                escaped(key),
                self._distinct,
                self._window,
                OVERFLOW,
            )
