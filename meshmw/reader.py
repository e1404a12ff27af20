"""Inbound: decides which header of a request is believed, and says why the others are not.

Knows the formats and the policy. Must not know carriers, frameworks or a span's life.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Final, Literal

from opentelemetry.trace import SpanContext

from meshmw import span_context
from meshmw.errors import InvalidHeaderError
from meshmw.extraction import B3_HEADERS, Extraction
from meshmw.rejections import Rejections
from meshmw.wire import B3Context, BaggageValue, TraceParent, TraceState, parse_baggage, read_b3

Lines = Mapping[str, Sequence[str]]
TraceParentPolicy = Literal["strict", "w3c"]

FRESH_ROOT: Final = "- the request starts a new trace"
STRIPPED: Final = (
    "- tracestate or baggage came without it, as if a proxy had stripped it; the request starts a new trace"
)
PASSTHROUGH_MAX_CHARACTERS: Final = 1024
# Peers repeat the same tracestate on every request; 32 members of 513 characters each bound an entry.
_TRACESTATE_CACHE_ENTRIES: Final = 256


@lru_cache(maxsize=_TRACESTATE_CACHE_ENTRIES)
def _trace_state(lines: tuple[str, ...]) -> span_context.W3CTraceState:
    return span_context.W3CTraceState(TraceState.parse(lines))


class HeaderReader:
    """Turns the header lines of one request into an `Extraction`. Nothing in the lines can make it raise.

    Args:
        formats: Which formats are read: `tracecontext`, `baggage`, `b3`, `b3multi`.
        traceparent_policy: `strict` takes version 00 alone; `w3c` also takes 01 to fe as Level 2 asks.
        baggage_max_members: Members kept, all lines together.
        baggage_max_bytes: Bytes kept, all lines together, commas included.
        passthrough: Names, in lower case, of headers to carry on.
        rejections: Counts and warns.
    """

    def __init__(
        self,
        *,
        formats: Collection[str],
        traceparent_policy: TraceParentPolicy,
        baggage_max_members: int,
        baggage_max_bytes: int,
        passthrough: Collection[str],
        rejections: Rejections,
    ) -> None:
        self._w3c = "tracecontext" in formats
        self._baggage = "baggage" in formats
        self._b3 = "b3" in formats or "b3multi" in formats
        self._policy: TraceParentPolicy = traceparent_policy
        self._max_members = baggage_max_members
        self._max_bytes = baggage_max_bytes
        self._passthrough = tuple(passthrough)
        self._rejections = rejections

    def read(self, lines: Lines) -> Extraction:
        """Return what the lines say; refused ones are counted, warned of and listed in `rewrites`."""
        rewrites: dict[str, str | None] = {}
        parent = self._read_trace_context(lines, rewrites) if self._w3c else None
        b3 = self._read_b3(lines, rewrites) if self._b3 else None
        if b3 is not None:
            parent, b3 = self._reconcile(parent, b3)
        baggage = self._read_baggage(lines["baggage"], rewrites) if self._baggage and "baggage" in lines else {}
        if (
            parent is None
            and self._w3c
            and "traceparent" not in lines
            and (baggage or any(lines.get("tracestate", ())))
        ):
            self._rejections.record("traceparent", "missing", STRIPPED)
        return Extraction(
            parent,
            baggage,
            b3,
            self._read_passthrough(lines) if self._passthrough else {},
            rewrites,
        )

    def _reconcile(self, parent: SpanContext | None, b3: B3Context) -> tuple[SpanContext | None, B3Context | None]:
        """Let the traceparent decide (law 7); of B3 that agrees with it only the debug flag is news."""
        from_b3 = span_context.from_b3(b3)
        if parent is None:
            return from_b3, b3
        if from_b3 is not None and (from_b3.trace_id, from_b3.span_id) != (parent.trace_id, parent.span_id):
            self._rejections.record("b3", "conflict", "- it names another parent than traceparent, which decides")
            return parent, None
        return parent, b3 if b3.debug else None

    def _read_trace_context(self, lines: Lines, rewrites: dict[str, str | None]) -> SpanContext | None:
        found = lines.get("traceparent")
        if not found:
            if "tracestate" in lines:
                rewrites["tracestate"] = None
            return None
        try:
            if len(found) > 1:
                raise InvalidHeaderError("traceparent", "duplicate")
            parent = TraceParent.parse(found[0], self._policy)
        except InvalidHeaderError as fault:
            rewrites["traceparent"] = rewrites["tracestate"] = None
            self._rejections.record("traceparent", fault.reason, FRESH_ROOT, found[0])
            return None
        self._rejections.accepted("traceparent")
        return span_context.from_traceparent(parent, self._read_trace_state(lines, rewrites))

    def _read_trace_state(self, lines: Lines, rewrites: dict[str, str | None]) -> span_context.W3CTraceState:
        found = lines.get("tracestate")
        if not found:
            return span_context.NO_STATE
        try:
            return _trace_state(tuple(found))
        except InvalidHeaderError as fault:
            rewrites["tracestate"] = None
            self._rejections.record("tracestate", fault.reason, "- dropped whole; traceparent is kept", found[0])
            return span_context.NO_STATE

    def _read_b3(self, lines: Lines, rewrites: dict[str, str | None]) -> B3Context | None:
        if B3_HEADERS.isdisjoint(lines):
            return None
        single, trace_id, span_id, sampled, flags = (
            _only(lines.get(name)) for name in ("b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "x-b3-flags")
        )
        try:
            b3 = read_b3(single, trace_id=trace_id, span_id=span_id, sampled=sampled, flags=flags)
        except InvalidHeaderError as fault:
            rewrites.update(dict.fromkeys(B3_HEADERS))
            self._rejections.record(
                "b3", fault.reason, "- no B3 context is taken from this request", single or trace_id
            )
            return None
        if b3 is not None:
            self._rejections.accepted("b3")
        return b3

    def _read_baggage(self, found: Sequence[str], rewrites: dict[str, str | None]) -> dict[str, BaggageValue]:
        members, reasons = parse_baggage(found, max_members=self._max_members, max_bytes=self._max_bytes)
        for reason in reasons:
            self._rejections.record("baggage", reason, "- the members concerned are dropped, the others kept")
        if reasons:
            rewrites["baggage"] = ",".join(value.raw for value in members.values()) or None
        else:
            self._rejections.accepted("baggage")
        return members

    def _read_passthrough(self, lines: Lines) -> dict[str, str]:
        carried = {}
        for name in self._passthrough:
            text = _only(lines.get(name))
            if text and len(text) <= PASSTHROUGH_MAX_CHARACTERS and text.isascii() and text.isprintable():
                carried[name] = text
        return carried


def _only(found: Sequence[str] | None) -> str | None:
    """Return the text of a header, several lines joined as RFC 9110, 5.3 has it, so that no grammar accepts two."""
    if not found:
        return None
    return found[0] if len(found) == 1 else ",".join(found)
