"""How large a span may be, and the shorter copy of one that is larger.

A stranger chooses how long a query, an exception's text or a tracestate is. The SDK bounds none of that by itself, and
neither a span's name, its status, keys, bytes, nor how many elements a sequence has. Sizes here are bytes of memory: a
text takes up to twice as many on its way to the collector.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from sys import getsizeof
from typing import Any, Final, NamedTuple, TypeVar

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import Link, SpanContext, Status

from meshmw._notices import Throttle
from meshmw._otel import ATTRIBUTES_LOGGER

T = TypeVar("T")
B = TypeVar("B", str, bytes)

# Longer than most tracebacks, and a sixteenth of a batch.
_LONGEST_TEXT: Final = 16_384
_LONGEST_NAME: Final = 1_024
_LARGEST_SPAN: Final = 131_072
# What every span may take: as many of these as may wait are half of what the queue may take.
FAIR_BYTES: Final = 6_144
_FAIR_TEXT: Final = 256
_DEEPEST: Final = 8
# An event or a link beside what it says.
ITEM_BYTES: Final = 256


class Bounds(NamedTuple):
    """Says how large a span may be.

    Attributes:
        text: The characters of a text that are kept.
        span: The bytes of all that it says.
    """

    text: int = _LONGEST_TEXT
    span: int = _LARGEST_SPAN


FAIR: Final = Bounds(_FAIR_TEXT, FAIR_BYTES)


def limits_of_spans() -> tuple[SpanLimits, Bounds]:
    """Return what the SDK is to limit while a span is recorded, and what is limited when it ends.

    What the variables of OpenTelemetry say wins, for which the SDK reads them. Without them, texts of events and links
    are cut as they come, because a span that lasts long collects them; the attributes of a span are cut at its end.
    """
    asked = SpanLimits()
    longest = [each for each in (asked.max_attribute_length, asked.max_span_attribute_length) if each is not None]
    text = max(longest, default=_LONGEST_TEXT)
    bounds = Bounds(text, max(_LARGEST_SPAN, 4 * text))
    if asked.max_attribute_length is not None:
        return asked, bounds
    of_spans = asked.max_span_attribute_length
    return SpanLimits(
        max_attribute_length=_LONGEST_TEXT,
        max_span_attribute_length=SpanLimits.UNSET if of_spans is None else of_spans,
    ), bounds._replace(text=max(text, _LONGEST_TEXT))


class _Repeats(logging.Filter):
    """Lets each kind of line out once in a window: a stranger chooses how often an attribute is too long."""

    def __init__(self) -> None:
        super().__init__()
        self.throttle = Throttle()

    def filter(self, record: logging.LogRecord) -> bool:
        return self.throttle.opens(record.msg) is not None


_REPEATS: Final = _Repeats()


def hold_back_repeats(warn_window: float) -> None:
    """Have the SDK say once in a window, and not every time, that it cuts or drops attributes.

    Args:
        warn_window: Seconds between two such lines.
    """
    _REPEATS.throttle = Throttle(warn_window)
    logging.getLogger(ATTRIBUTES_LOGGER).addFilter(_REPEATS)


class BoundedSpan(ReadableSpan):
    """A span that has ended, within bounds, and knows its size.

    Args:
        span: The span, which stays as it is.
        bounds: What is kept of it.

    Attributes:
        size: The bytes of what it says.
    """

    def __init__(self, span: ReadableSpan, bounds: Bounds) -> None:
        # A quarter is kept for events and links.
        kept = _Kept(bounds.text, bounds.span * 3 // 4)
        name = kept.name(span.name)
        status = span.status
        if status.description:
            status = Status(status.status_code, kept.text(status.description))
        context, parent = kept.context(span.context), kept.context(span.parent)
        attributes = kept.attributes(span.attributes, span.dropped_attributes)
        kept.left += bounds.span // 4
        super().__init__(
            name,
            context,
            parent,
            span.resource,
            attributes,
            _list(kept.event, span.events, span.dropped_events, kept),
            _list(kept.link, span.links, span.dropped_links, kept),
            span.kind,
            status=status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )
        self.size = bounds.span - kept.left


def _list(copy: Callable[[T], T], items: Sequence[T], dropped: int, kept: _Kept) -> BoundedList[T]:
    copies = BoundedList.from_seq(None, kept.each(copy, items))
    copies.dropped = dropped + len(items) - len(copies)
    return copies


class _Kept:
    """Copies what a span says, as much of it as there is room for.

    Args:
        longest: The characters of a text that are kept.
        left: The bytes that are left.
    """

    def __init__(self, longest: int, left: int) -> None:
        self._longest = longest
        # The variable for the length of values means no keys, of which several would become one, and nothing else.
        self._longest_name = max(min(longest, _LONGEST_NAME), _FAIR_TEXT)
        self.left = left

    def text(self, text: str) -> str:
        """Return as much of a text as may be kept."""
        return self._taken(text[: self._longest])

    def name(self, text: str) -> str:
        """Return as much of a name or a key as may be kept."""
        return self._taken(text[: self._longest_name])

    def attributes(self, attributes: Mapping[str, Any] | None, dropped: int) -> BoundedAttributes:
        """Return attributes, and count those that are dropped."""
        given = attributes or {}
        copied = BoundedAttributes(attributes=self._mapping(given, 0))
        copied.dropped = dropped + len(given) - len(copied)
        return copied

    def event(self, event: Event) -> Event:
        """Return an event."""
        self.left -= ITEM_BYTES
        attributes = self.attributes(event.attributes, event.dropped_attributes)
        return Event(self.name(event.name), attributes, event.timestamp)

    def link(self, link: Link) -> Link:
        """Return a link."""
        self.left -= ITEM_BYTES
        context = self.context(link.context) or link.context
        return Link(context, self.attributes(link.attributes, link.dropped_attributes))

    def context(self, context: SpanContext | None) -> SpanContext | None:
        """Return a context, without its tracestate where that is too long."""
        if not context or not context.trace_state:
            return context
        length = len(context.trace_state.to_header())
        if length <= min(max(self._longest, _FAIR_TEXT), self.left):
            self.left -= length
            return context
        return SpanContext(context.trace_id, context.span_id, context.is_remote, context.trace_flags)

    def each(self, copy: Callable[[T], T], items: Iterable[T]) -> Iterable[T]:
        """Yield copies as long as there is room."""
        for item in items:
            if self.left <= 0:
                return
            yield copy(item)

    def _mapping(self, given: Mapping[str, Any], depth: int) -> dict[str, Any]:
        return dict(self.each(lambda pair: (self.name(pair[0]), self._value(pair[1], depth)), given.items()))

    def _value(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bytes):
            return self._taken(value[: self._longest])
        if isinstance(value, Mapping | Sequence):
            self.left -= ITEM_BYTES
            if depth >= _DEEPEST:
                return None
            if isinstance(value, Mapping):
                return self._mapping(value, depth + 1)
            return tuple(self.each(lambda item: self._value(item, depth + 1), value))
        self.left -= getsizeof(value)
        return value

    def _taken(self, cut: B) -> B:
        if getsizeof(cut) > self.left:
            # A character takes four bytes at most.
            cut = cut[: max(self.left, 0) // 4]
        self.left -= getsizeof(cut)
        return cut
