"""Outbound: which headers a context sends, each once, and which stale ones must not travel beside them.

Knows the formats and OpenTelemetry's context. Must not know carriers, frameworks or a span's life.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, TraceState

from meshmw.errors import InvalidHeaderError
from meshmw.policy.baggage_keys import BaggageKeys
from meshmw.propagation.extraction import (
    B3_HEADERS,
    B3_KEY,
    BAGGAGE_KEY,
    PASSTHROUGH_KEY,
    SENT_HEADER,
    SPAN_KEY,
    TRACE_HEADERS,
)
from meshmw.propagation.span_context import W3CTraceState
from meshmw.rejections import Rejections
from meshmw.wire import B3Context, format_baggage, format_traceparent
from meshmw.wire import TraceState as WireTraceState

_TRACE_FORMATS: Final = TRACE_HEADERS | B3_HEADERS
_STALE_WITH_TRACE: Final = _TRACE_FORMATS | {SENT_HEADER}
# By whether baggage and whether a trace is sent.
_STALE: Final = {
    (False, False): frozenset[str](),
    (True, False): frozenset({"baggage"}),
    (False, True): _STALE_WITH_TRACE,
    (True, True): _STALE_WITH_TRACE | {"baggage"},
}
_WRITES: Final = {
    "tracecontext": ("traceparent", "tracestate"),
    "baggage": ("baggage",),
    "b3": ("b3",),
    "b3multi": ("x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "x-b3-flags"),
}


class HeaderWriter:
    """Turns an OpenTelemetry context into the headers of one outbound operation.

    Args:
        formats: Which formats are written: `tracecontext`, `baggage`, `b3`, `b3multi`.
        baggage_keys: Which keys are let out.
        baggage_max_members: Members written at most.
        baggage_max_bytes: Bytes of the baggage header at most, commas included.
        rejections: Counts and warns.
    """

    def __init__(
        self,
        *,
        formats: Collection[str],
        baggage_keys: BaggageKeys,
        baggage_max_members: int,
        baggage_max_bytes: int,
        rejections: Rejections,
    ) -> None:
        self._keys = baggage_keys
        self._formats = frozenset(formats)
        self._writes_b3 = not self._formats.isdisjoint({"b3", "b3multi"})
        self._max_members = baggage_max_members
        self._max_bytes = baggage_max_bytes
        self._rejections = rejections
        self.fields: frozenset[str] = frozenset(name for each in self._formats for name in _WRITES[each])

    def write(self, context: Context) -> dict[str, str]:
        """Return the propagation headers of *context*, named in lower case; none where it holds nothing to send."""
        headers: dict[str, str] = {}
        span = context.get(SPAN_KEY)
        if span is not None and isinstance(span, Span):
            self._write_trace(span.get_span_context(), context, headers)
        members = context.get(BAGGAGE_KEY)
        if members and isinstance(members, dict) and "baggage" in self._formats:
            self._write_baggage(members, headers)
        return headers

    def passthrough(self, context: Context) -> dict[str, str]:
        """Return the headers that came in with the request and go out as they were."""
        carried = context.get(PASSTHROUGH_KEY)
        return carried if isinstance(carried, dict) else {}

    def stale(self, headers: dict[str, str]) -> frozenset[str]:
        """Return the names, in lower case, that must not stay on a carrier which gets *headers*.

        A trace header of any format is stale once this process sends a trace of its own (W3C Trace Context, 3.4).
        """
        return _STALE["baggage" in headers, not _TRACE_FORMATS.isdisjoint(headers)]

    def _write_trace(self, parent: SpanContext, context: Context, headers: dict[str, str]) -> None:
        # The tuple that it is, since to ask for each of its properties takes as long as to write the header.
        trace_id, span_id, _, trace_flags, state, is_valid = parent
        if not is_valid:
            return
        if "tracecontext" in self._formats:
            headers["traceparent"] = format_traceparent(trace_id, span_id, trace_flags)
            if text := _state_text(state):
                headers["tracestate"] = text
        if self._writes_b3:
            b3 = _outgoing_b3(parent, context.get(B3_KEY))
            if "b3" in self._formats:
                headers["b3"] = str(b3)
            if "b3multi" in self._formats:
                headers.update(b3.to_multi())

    def _write_baggage(self, members: dict[str, object], headers: dict[str, str]) -> None:
        permitted = members if self._keys.are_all else self._keys.permitted(members)
        text, reasons = format_baggage(permitted, max_members=self._max_members, max_bytes=self._max_bytes)
        for reason in reasons:
            self._rejections.record("baggage", reason, "- the members concerned are not sent, the others are")
        if text:
            headers["baggage"] = text


def _state_text(state: TraceState) -> str:
    """Return a tracestate's text; one that a foreign sampler made is sent only where it follows the grammar."""
    if isinstance(state, W3CTraceState):
        return state.to_header()
    if not state:
        return ""
    try:
        return str(WireTraceState.parse(state.to_header()))
    except InvalidHeaderError:
        return ""


def _outgoing_b3(parent: SpanContext, received: object) -> B3Context:
    """Return the B3 form of *parent*, with what only B3 can say where the trace came in as B3."""
    sampled: bool | None = parent.trace_flags.sampled
    debug = False
    if isinstance(received, B3Context) and received.trace_id == parent.trace_id:
        debug = received.debug
        if parent.is_remote and received.sampled is None:
            sampled = None
    return B3Context(parent.trace_id, parent.span_id, True if debug else sampled, debug)
