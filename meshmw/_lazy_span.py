"""A span of our own for the SDK's tracer provider: what nobody may ever look at is made when somebody does.

It is the SDK's own span class with its parts put off. What it stands on, and what the SDK calls private:

* `Tracer.start_span` and `Span.__init__`, whose work `LazyTracer.start_span` and `LazySpan.take` do: who is asked
  (sampler, id generator, span metrics, processors), in which order, with what;
* the names under which `Span` and `ReadableSpan` keep their parts (`_name`, `_attributes`, `_end_time`, ...). Every
  method that is not written here is inherited, and finds them there;
* `BoundedAttributes._dict`.

It is held equal by `tests/telemetry/test_lazy_span*.py`, which do the same to both spans and compare all that they
say, with each SDK of `_otel.KNOWN_SDKS`. Under any other one, or where the tracer is not the SDK's own, nothing of this
is used.

Attributes wait in a plain dictionary as long as the SDK would keep each of them as it is: keys and values of exactly
these types, none too long, none too many. The first that is different makes `BoundedAttributes`, which goes on with the
same dictionary, so that a thread that looks loses nothing of what another one is just setting. Whatever changes a span
holds its lock, as in the SDK.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from sys import maxsize
from time import time_ns
from types import MappingProxyType
from typing import Any, Final

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, ReadableSpan, _Span
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.version import __version__ as sdk_version
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    TraceFlags,
    Tracer,
    get_current_span,
)
from opentelemetry.util.types import Attributes

from meshmw._context.extraction import B3_KEY
from meshmw._otel import SPAN_CONTEXT, SPAN_KEY, decisions_by_parent

_VERSION: Final = tuple(map(int, sdk_version.split(".")[:2]))
# Since then a trace that begins says whether its id is random, and a child says of it what its parent says.
_HAS_RANDOM_FLAG: Final = _VERSION >= (1, 42)
# Since then nobody can change the attributes of a span that has ended.
_SEALS: Final = _VERSION >= (1, 43)

# What the SDK keeps as it is. An instance of a class below these may have methods of its own.
_PLAIN: Final = frozenset({str, int, bool, float})
_TEXT: Final = frozenset({str})
# Keys that were looked at before; few, as strangers may choose some.
_KEYS: Final[set[str]] = set()
_MOST_KEYS: Final = 512
_LONGEST_KEY: Final = 64
# A longer text that is set later is kept as the SDK keeps it: to measure it when the span ends takes longer than the
# span. Hardly one that a span begins with is longer.
_LONGEST_TEXT: Final = 2_048
_HIGHEST_SPAN_ID: Final = 2**64 - 1
_SAMPLED: Final = TraceFlags.SAMPLED
_RANDOM: Final = 2 if _HAS_RANDOM_FLAG else 0
# A flag is an integer with methods; there are four that the SDK gives.
_FLAGS: Final = tuple(TraceFlags(bits) for bits in range(4))
_DROP: Final = Decision.DROP
_SAMPLE: Final = Decision.RECORD_AND_SAMPLE
_new: Final = object.__new__


class _OfTracer:
    """Looks a part of a span up in its tracer, unless somebody has set another one."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, span: LazySpan, owner: type[LazySpan]) -> Any:
        return getattr(span._maker.tracer, self._name)


class LazySpan(_Span):
    """Is to everybody what the SDK's span would be, made of what was given and of the tracer that makes it.

    Args:
        maker: The tracer.
        name: The span's name.
        context: The span's ids.
        parent: The parent's, or None.
        kind: The span's kind.
        attributes: What it says; the span keeps the dictionary, and adds to it.
        start_time: When it began, in nanoseconds.
        record_end_metrics: To be called at its end, or None.
    """

    # What is the same for nearly all. `_bounded`, `_event_list` and `_link_list` are None until there is something.
    _status = Status()
    _record_exception = _set_status_on_exception = True
    _trace_config = None
    _bounded: BoundedAttributes | None = None
    _event_list: BoundedList[Event] | None = None
    _link_list: BoundedList[Link] | None = None
    _sampler = _OfTracer("sampler")
    _limits = _OfTracer("_span_limits")
    _instrumentation_scope = _OfTracer("_instrumentation_scope")
    _instrumentation_info = _OfTracer("instrumentation_info")

    def take(
        self,
        maker: LazyTracer,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: dict[str, Any],
        start_time: int | None,
        record_end_metrics: Callable[[], None] | None,
    ) -> None:
        """Take what there is of the span, as the SDK's constructor does; the attributes become its own."""
        tracer = maker.tracer
        self._maker = maker
        self._name = name
        self._context = context
        self._parent = parent
        self._kind = kind
        self._plain = attributes
        # A forked process has another one, and this span may end there.
        self._resource = tracer.resource
        self._span_processor = tracer.span_processor
        self._record_end_metrics = record_end_metrics
        # Looked up for each span: gevent may have put another one there meanwhile.
        self._lock = threading.Lock()
        self._end_time: int | None = None
        self._start_time = time_ns() if start_time is None else start_time

    # These three are made on demand. Of several threads that look at once, all get the same one. Processors of others
    # put something else there, although the names are private; that stays.

    @property
    def _attributes(self) -> Any:
        found = self._bounded
        return self._bound() if found is None else found

    @_attributes.setter
    def _attributes(self, value: Any) -> None:
        self._bounded, self._plain = value, {}

    def _bound(self) -> Any:
        made = self._maker.bounded(None)
        made._dict = self._plain
        found = self.__dict__.setdefault("_bounded", made)
        # After that, because the end looks for it after it has set the time.
        if _SEALS and self._end_time is not None:
            made._immutable = True
        return found

    @property
    def _events(self) -> Any:
        found = self._event_list
        return self.__dict__.setdefault("_event_list", BoundedList(self._limits.max_events)) if found is None else found

    @_events.setter
    def _events(self, value: Any) -> None:
        self._event_list = value

    @property
    def _links(self) -> Any:
        found = self._link_list
        return self.__dict__.setdefault("_link_list", self._new_links(())) if found is None else found

    @_links.setter
    def _links(self, value: Any) -> None:
        self._link_list = value

    # What exporters read, where it can be told without making anything. A span that has not ended may change while
    # somebody goes through its attributes, for which the SDK's make a copy.

    @property
    def attributes(self) -> Attributes:
        """Return what the span says."""
        if self._bounded is None and self._end_time is not None:
            return MappingProxyType(self._plain)
        return super().attributes

    @property
    def dropped_attributes(self) -> int:
        """Return how many attributes there was no room for."""
        return 0 if self._bounded is None else super().dropped_attributes

    @property
    def events(self) -> Sequence[Event]:
        """Return the events."""
        return () if self._event_list is None else super().events

    @property
    def dropped_events(self) -> int:
        """Return how many events there was no room for."""
        return 0 if self._event_list is None else super().dropped_events

    @property
    def links(self) -> Sequence[Link]:
        """Return the links."""
        return () if self._link_list is None else super().links

    @property
    def dropped_links(self) -> int:
        """Return how many links there was no room for."""
        return 0 if self._link_list is None else super().dropped_links

    @property
    def plain(self) -> dict[str, Any] | None:
        """Return all that the span says, where that is keys and values as the SDK keeps them, and nothing else."""
        is_all = self._bounded is None and self._event_list is None and self._link_list is None
        return self._plain if is_all else None

    def get_span_context(self) -> SpanContext:
        """Return the span's ids."""
        return self._context  # type: ignore[return-value]  # a readable span may have none

    # What nearly every request calls. All but the plainest case goes the SDK's way.

    def set_attribute(self, key: str, value: Any) -> None:
        """Set an attribute; one that is there already becomes the last."""
        kind, maker = type(value), self._maker
        if kind in _PLAIN and type(key) is str and key and (kind is not str or len(value) <= maker.longest):
            plain = self._plain
            with self._lock:
                if self._end_time is None and self._bounded is None:
                    if key in plain:
                        del plain[key]
                    if len(plain) < maker.most:
                        plain[key] = value
                        return
        super().set_attribute(key, value)

    def update_name(self, name: str) -> None:
        """Give the span another name."""
        with self._lock:
            if self._end_time is None:
                self._name = name
                return
        super().update_name(name)

    def end(self, end_time: int | None = None) -> None:
        """End the span, once, and tell the processors."""
        with self._lock:
            is_first = self._end_time is None
            if is_first:
                self._end_time = time_ns() if end_time is None else end_time
                if _SEALS and self._bounded is not None:
                    self._bounded._immutable = True
        if not is_first:
            super().end(end_time)
            return
        if self._record_end_metrics is not None:
            self._record_end_metrics()
        processor = self._span_processor
        processor._on_ending(self)
        # The SDK makes a copy for them, which shares everything with the span. Nothing of this one changes any more.
        processor.on_end(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadableSpan:
        # Of the SDK's spans, exporters have that copy, and can copy it again.
        return copy.deepcopy(self._readable_span(), memo)


class LazyTracer(Tracer):
    """Makes lazy spans as the SDK's tracer makes its own: the same sampler, ids, limits, metrics and processors.

    Args:
        tracer: The SDK's tracer.

    Attributes:
        tracer: The same.
        most: How many attributes a span may have.
        longest: How many characters a text may have that is kept as it is.
    """

    def __init__(self, tracer: Any) -> None:
        self.tracer = tracer
        limits = tracer._span_limits
        self.most = maxsize if limits.max_span_attributes is None else limits.max_span_attributes
        limit = limits.max_span_attribute_length
        self.longest = _LONGEST_TEXT if limit is None else min(limit, _LONGEST_TEXT)
        self._cuts = limit is not None
        metrics = tracer._tracer_metrics
        self._count = None if type(metrics).__name__ == "NoOpTracerMetrics" else metrics.start_span
        self._known: tuple[object, tuple[Any, ...]] = None, ()

    # It asks nothing of its tracer but to start spans.
    start_as_current_span = SdkTracer.start_as_current_span

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = (),
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> Span:
        """Start a span, which is a child of the context's."""
        tracer = self.tracer
        parent = _span_in(context).get_span_context()
        if type(parent) is not SpanContext or not tracer._is_enabled():
            return tracer.start_span(  # type: ignore[no-any-return]  # it is the SDK's
                name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception
            )
        # What B3 headers say may weigh more than the parent does: `RemoteParentSampler`.
        decision = None if context is None or B3_KEY in context else self._decided(parent)
        if decision is None:
            own, origin, result = self._ask(parent, name, context, kind, attributes, links or ())
            decision, is_recording, attributes = result.decision, result.decision.is_recording(), result.attributes
        else:
            own, origin, is_recording = self._child(parent, decision), parent, decision is not _DROP
        ended = None if self._count is None else self._count(origin, decision)
        if not is_recording:
            return NonRecordingSpan(own)
        plain = _copied(attributes, self.most, self.longest if self._cuts else maxsize)
        span = _new(LazySpan)
        span.take(self, name, own, origin, kind, {} if plain is None else plain, start_time, ended)
        if plain is None:
            span._bounded = self.bounded(attributes)
        if links:
            span._link_list = span._new_links(links)
        if not (record_exception and set_status_on_exception):
            span._record_exception, span._set_status_on_exception = record_exception, set_status_on_exception
        tracer.span_processor.on_start(span, parent_context=context)
        return span

    def bounded(self, attributes: Attributes) -> BoundedAttributes:
        """Return attributes of a span that is recorded, as the SDK keeps them."""
        limits = self.tracer._span_limits
        return BoundedAttributes(
            limits.max_span_attributes, attributes, immutable=False, max_value_len=limits.max_span_attribute_length
        )

    def dropped(self, parent: SpanContext) -> Span | None:
        """Return the span below a parent whose flags alone tell that it is not recorded; None for any other."""
        if self._decided(parent) is not _DROP or not self.tracer._is_enabled():
            return None
        if self._count is not None:
            self._count(parent, _DROP)
        return NonRecordingSpan(self._child(parent, _DROP))

    def recorded(
        self, parent: SpanContext, name: str, context: Context, kind: SpanKind, attributes: dict[str, Any]
    ) -> Span | None:
        """Return the span below a parent whose flags alone tell that it is recorded.

        None where they do not, or where the SDK might keep other attributes than these: `start_span` knows then.

        Args:
            parent: What is current in the context.
            name: The span's name.
            context: What it begins in.
            kind: The span's kind.
            attributes: What it says, with keys of this package's.
        """
        if self._cuts or self._decided(parent) is not _SAMPLE or not self.tracer._is_enabled():
            return None
        if len(attributes) > self.most or not _PLAIN.issuperset(map(type, attributes.values())):
            return None
        span = _new(LazySpan)
        own, ended = self._child(parent, _SAMPLE), None if self._count is None else self._count(parent, _SAMPLE)
        span.take(self, name, own, parent, kind, attributes.copy(), None, ended)
        self.tracer.span_processor.on_start(span, parent_context=context)
        return span

    def _decided(self, parent: SpanContext) -> Decision | None:
        """Return what the sampler would decide below a parent, where that is known without asking it."""
        sampler = self.tracer.sampler
        known, decisions = self._known
        if sampler is not known:
            decisions = decisions_by_parent(sampler)
            self._known = sampler, decisions
        _, _, is_remote, flags, _, is_valid = parent
        return decisions[(2 if is_remote else 0) + (flags & _SAMPLED)] if is_valid else None

    def _child(self, parent: SpanContext, decision: Decision) -> SpanContext:
        """Return the ids of a span below a valid parent."""
        trace_id, _, _, flags, state, _ = parent
        span_id = self.tracer.id_generator.generate_span_id()
        flags = _FLAGS[(flags & _RANDOM) + (1 if decision is _SAMPLE else 0)]
        return SPAN_CONTEXT((trace_id, span_id, False, flags, state, 0 < span_id <= _HIGHEST_SPAN_ID))

    def _ask(
        self,
        parent: SpanContext,
        name: str,
        context: Context | None,
        kind: SpanKind,
        attributes: Attributes,
        links: Sequence[Link],
    ) -> tuple[SpanContext, SpanContext | None, Any]:
        """Return a span's ids, its parent if that is valid, and what the sampler says."""
        generator = self.tracer.id_generator
        origin = parent if parent.is_valid else None
        trace_id = generator.generate_trace_id() if origin is None else origin.trace_id
        result: Any = self.tracer.sampler.should_sample(context, trace_id, name, kind, attributes, links)
        is_random = _HAS_RANDOM_FLAG and (
            generator.is_trace_id_random() if origin is None else origin.trace_flags.random_trace_id
        )
        flags = _FLAGS[(1 if result.decision.is_sampled() else 0) + (2 if is_random else 0)]
        own = SpanContext(trace_id, generator.generate_span_id(), False, flags, result.trace_state)
        return own, origin, result


def _span_in(context: Context | None) -> Span:
    """Return the current span; those that everybody has are known without asking for their base class."""
    found = None if context is None else context.get(SPAN_KEY)
    return found if type(found) in _SPANS else get_current_span(context)  # type: ignore[return-value]


def _copied(attributes: Attributes, most: int, longest: int) -> dict[str, Any] | None:
    """Return attributes in a dictionary of their own, or None where the SDK might keep them otherwise than they are."""
    if not attributes:
        return {}
    made = attributes.copy() if hasattr(attributes, "copy") else None
    if type(made) is not dict or len(made) > most or not _PLAIN.issuperset(map(type, made.values())):
        return None
    # What is equal to a key may still be an enumeration's member.
    if not _TEXT.issuperset(map(type, made)) or (not made.keys() <= _KEYS and not _are_keys(made)):
        return None
    if longest < maxsize and any(type(value) is str and len(value) > longest for value in made.values()):
        return None
    return made


def _are_keys(found: dict[str, Any]) -> bool:
    """Say whether the SDK would take all of these for keys, and know them from then on."""
    if "" in found:
        return False
    if len(_KEYS) < _MOST_KEYS:
        _KEYS.update(key for key in found if len(key) <= _LONGEST_KEY)
    return True


# Whose ids are those of the current span: of what came in, and of what we have started.
_SPANS: Final = frozenset({NonRecordingSpan, LazySpan})
