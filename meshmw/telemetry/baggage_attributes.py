"""Baggage as attributes of spans: only keys that were asked for, short values, and few of them.

opentelemetry-processor-baggage bounds neither the values' length nor their number, and overwrites what a span says.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from opentelemetry import baggage
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, SpanProcessor

from meshmw.policy.baggage_keys import BaggageKeys
from meshmw.settings.faults import escaped

log = logging.getLogger("meshmw")

OVERFLOW: Final = "_overflow"
# A pattern may fit keys without end, which strangers choose.
_MOST_KEYS: Final = 64


class BaggageAttributes(SpanProcessor):
    """Sets the baggage members that were asked for as attributes of every span that starts.

    An attribute that the span has already stays. A key with more than *distinct* values within a window is a user's or
    a request's: its further values become `_overflow`, and one warning names the key.

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
        self._until = clock() + window
        self._seen: dict[str, set[str]] = {}
        self._warned: set[str] = set()

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
        if self._clock() >= self._until:
            self._until = self._clock() + self._window
            self._seen, self._warned = {}, set()
        seen = self._seen.get(key)
        if seen is None:
            if len(self._seen) >= _MOST_KEYS:
                return None
            seen = self._seen.setdefault(key, set())
        if value in seen:
            return value
        if len(seen) >= self._distinct:
            self._say(key)
            return OVERFLOW
        seen.add(value)
        return value

    def _say(self, key: str) -> None:
        if key in self._warned:
            return
        self._warned.add(key)
        log.warning(
            "baggage key %s has more than %d values within %g s; as a span attribute, further ones become %s",
            escaped(key),
            self._distinct,
            self._window,
            OVERFLOW,
        )
