"""Span processors that cannot hurt a request: a guard around strangers', and baggage as attributes within bounds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from opentelemetry import baggage
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, SynchronousMultiSpanProcessor

from meshmw._notices import LOGGER, Throttle, escaped
from meshmw._otel import announce_ending
from meshmw._policy.patterns import BaggageKeys

OVERFLOW: Final = "_overflow"
# A pattern may fit keys without end, which strangers choose.
_MOST_KEYS: Final = 64


class GuardedSpanProcessors(SynchronousMultiSpanProcessor):
    """Calls span processors in the order in which they were added, whatever any of them raises.

    OpenTelemetry's own calls them in the request's thread too, and passes on what they raise.

    Args:
        warn_window: Seconds between two warnings of the same kind of processor.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, warn_window: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the SDK's own
        self._clock = clock
        self._throttle = Throttle(warn_window, clock)
        self._adding = threading.Lock()
        self._guarded: tuple[SpanProcessor, ...] = ()

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        """Add a processor, behind those that are there."""
        super().add_span_processor(span_processor)
        with self._adding:
            self._guarded = (*self._guarded, span_processor)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Tell every processor that a span starts."""
        for each in self._guarded:
            try:
                each.on_start(span, parent_context=parent_context)
            except Exception as error:
                self._warn(each, error)

    def _on_ending(self, span: Span) -> None:
        for each in self._guarded:
            try:
                announce_ending(each, span)
            except Exception as error:
                self._warn(each, error)

    def on_end(self, span: ReadableSpan) -> None:
        """Tell every processor that a span has ended."""
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


class BaggageAttributes(SpanProcessor):
    """Sets the baggage members that were asked for as attributes of every span that starts.

    opentelemetry-processor-baggage bounds neither the values' length nor their number, and overwrites what a span says.
    Here an attribute that the span has already stays. A key with more than *distinct* values within a window is a
    user's or a request's: its further values become `_overflow`, and one warning names the key.

    Args:
        keys: The keys, or patterns with `*` and `?`.
        longest: The characters of a value that are kept.
        distinct: The values of a key within a window.
        window: The window's length, in seconds.
        clock: A monotonic clock in seconds.
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
        self._wanted = BaggageKeys(keys)
        self._longest = longest
        self._distinct = distinct
        self._window = window
        self._clock = clock
        self._throttle = Throttle(window, clock)
        self._exact = frozenset(key for key in keys if not {"*", "?"} & set(key))
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
