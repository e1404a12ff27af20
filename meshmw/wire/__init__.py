"""The formats: what trace headers say, and nothing of what is done about it.

A function here takes a header's value, and returns an immutable one or raises `InvalidHeaderError` with a reason from
`REASONS`. It uses the standard library alone, and does bounded work on any text. This package knows no OpenTelemetry,
no framework, no setting and no log.
"""

from __future__ import annotations

from typing import Final

from meshmw.wire import b3, baggage, traceparent, tracestate
from meshmw.wire.b3 import B3Context, B3Fault, examine_b3, read_b3
from meshmw.wire.baggage import BaggageValue, format_baggage, format_member, parse_baggage, parse_member
from meshmw.wire.traceparent import TraceParent, format_traceparent, read_traceparent
from meshmw.wire.tracestate import TraceState

__all__ = [
    "REASONS",
    "B3Context",
    "B3Fault",
    "BaggageValue",
    "TraceParent",
    "TraceState",
    "examine_b3",
    "format_baggage",
    "format_member",
    "format_traceparent",
    "parse_baggage",
    "parse_member",
    "read_b3",
    "read_traceparent",
]

REASONS: Final = {
    "traceparent": traceparent.REASONS,
    "tracestate": tracestate.REASONS,
    "baggage": baggage.REASONS,
    "b3": b3.REASONS,
}


def __dir__() -> list[str]:
    return sorted(__all__)
