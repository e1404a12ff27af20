"""Baggage as attributes of spans: only keys that were asked for, short values, and few of them.

opentelemetry-processor-baggage bounds neither the values' length nor their number, and overwrites what a span says.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from opentelemetry import baggage
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, SpanProcessor

from meshmw.policy.baggage_keys import BaggageKeys
from meshmw.settings.faults import escaped

log = logging.getLogger("meshmw")

OVERFLOW: Final = "_overflow"
# A pattern may fit keys without end, which strangers choose.
_MOST_KEYS: Final = 64


class _Window(NamedTuple):
    # The values of each key, and the keys that were warned of; the empty one stands for keys without end.
    values: dict[str, set[str]]
    warned: set[str]


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
        self._exact = frozenset(key for key in keys if not {"*", "?"} & set(key))
        self._windows: dict[int, _Window] = {}

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
        window = self._current()
        seen = window.values.get(key)
        if seen is None:
            # What strangers call their keys leaves room for those that were asked for by name.
            if key not in self._exact and len(window.values.keys() - self._exact) >= _MOST_KEYS:
                self._say_keys(window)
                return None
            seen = window.values.setdefault(key, set())
        if value in seen:
            return value
        if len(seen) >= self._distinct:
            self._say(window, key)
            return OVERFLOW
        seen.add(value)
        return value

    def _current(self) -> _Window:
        # One dictionary call makes a window, so that of several threads at its beginning none empties another's.
        number = int(self._clock() // self._window)
        found = self._windows.get(number)
        if found is None:
            found = self._windows.setdefault(number, _Window({}, set()))
            for each in [each for each in self._windows.copy() if each < number]:
                self._windows.pop(each, None)
        return found

    def _say_keys(self, window: _Window) -> None:
        if "" in window.warned:
            return
        window.warned.add("")
        log.warning(
            "the patterns of baggage_attributes fit more than %d keys within %g s; further ones become no attribute",
            _MOST_KEYS,
            self._window,
        )

    def _say(self, window: _Window, key: str) -> None:
        if key in window.warned:
            return
        window.warned.add(key)
        log.warning(
            "baggage key %s has more than %d values within %g s; as a span attribute, further ones become %s",
            escaped(key),
            self._distinct,
            self._window,
            OVERFLOW,
        )
