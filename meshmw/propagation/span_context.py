"""OpenTelemetry span contexts made of wire values, and a TraceState that follows the W3C's Level 2 grammar.

Knows OpenTelemetry's trace API and the formats. Must not know carriers or policy.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from opentelemetry.trace import SpanContext, TraceFlags
from opentelemetry.trace import TraceState as OTelTraceState

from meshmw.errors import InvalidHeaderError
from meshmw.wire import B3Context, TraceState

# One object per flag byte that can occur: bits above 0x03 are zeroed by the format.
FLAGS: Final = tuple(TraceFlags(bits) for bits in range(4))

# "Vendors SHOULD propagate at least 512 characters of a combined header."       Section 3.3, "tracestate Limits"
# What is longer than four times that is rare, and may be a stranger's: of such, few are remembered.
REPEATED_STATE: Final = 2048
_CACHE_ENTRIES: Final = 256
_LONG_CACHE_ENTRIES: Final = 16


class W3CTraceState(OTelTraceState):
    """Is OpenTelemetry's TraceState with Level 2 keys, which its own constructor refuses together with all others.

    Args:
        state: The validated members.
    """

    def __init__(self, state: TraceState) -> None:
        super().__init__()
        self._dict = dict(state.members)
        self._state = state
        self._text: str | None = None

    def add(self, key: str, value: str) -> OTelTraceState:
        """Return a state with a new member leftmost, or this one where the key exists or the pair is not valid."""
        return self if key in self._dict else self.update(key, value)

    def update(self, key: str, value: str) -> OTelTraceState:
        """Return a state with the member leftmost, or this one where the pair is not valid.

        The rightmost member is dropped at 32 (W3C Trace Context Level 2, 3.5).
        """
        try:
            return W3CTraceState(self._state.insert(key, value))
        except InvalidHeaderError:
            return self

    def delete(self, key: str) -> OTelTraceState:
        """Return a state without the member."""
        return W3CTraceState(self._state.delete(key))

    def to_header(self) -> str:
        """Return the tracestate header's text."""
        if self._text is None:
            self._text = str(self._state)
        return self._text


NO_STATE: Final = W3CTraceState(TraceState())


def trace_state(line: str) -> W3CTraceState:
    """Return what a tracestate says, all its lines as one.

    Raises:
        InvalidHeaderError: It does not follow the grammar.
    """
    return repeated_trace_state(line) if len(line) <= REPEATED_STATE else _long_trace_state(line)


@lru_cache(maxsize=_CACHE_ENTRIES)
def repeated_trace_state(line: str) -> W3CTraceState:
    """Do as `trace_state` with one of at most `REPEATED_STATE`; peers repeat the same one on every request.

    A fault is remembered for none.
    """
    return W3CTraceState(TraceState.parse(line))


# The format's own limit of characters bounds an entry.
_long_trace_state: Final = lru_cache(maxsize=_LONG_CACHE_ENTRIES)(repeated_trace_state.__wrapped__)


def from_b3(b3: B3Context) -> SpanContext | None:
    """Return the remote span context that B3 headers name, or None where they hold only a decision.

    A deferred decision leaves the sampled flag clear: trace flags cannot say "not decided".
    """
    if b3.trace_id is None or b3.span_id is None:
        return None
    return SpanContext(b3.trace_id, b3.span_id, True, FLAGS[1 if b3.sampled else 0], NO_STATE)
