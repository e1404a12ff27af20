"""Inbound: which parent a request's traceparent, tracestate and B3 headers name, and which of them decides.

A traceparent and B3 may both be there, and may disagree; several traceparents may be there too. `TraceReader` chooses,
and refuses the others with a reason. What it refuses or notes on the way, it collects in a `Reading`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Final

from opentelemetry.trace import SpanContext, TraceFlags

from meshmw._context.carriers import Lines, one_line
from meshmw._notices import IS_COUNTED, Rejections
from meshmw._otel import W3CTraceState
from meshmw._policy.words import Duplicates, Format, Prefer
from meshmw._regex import compiled_late
from meshmw.errors import InvalidHeaderError
from meshmw.wire import B3Context, TraceState, examine_b3, read_traceparent
from meshmw.wire.headers import B3_HEADERS, SENT_HEADER, TRACE_HEADERS
from meshmw.wire.traceparent import FLAG_SAMPLED, TraceParentPolicy, format_traceparent
from meshmw.wire.tracestate import MAX_CHARS

# Version, trace-id, parent-id and trace-flags.
_Fields = tuple[int, int, int, int]

NO_STATE: Final = W3CTraceState(TraceState())
# "Vendors SHOULD propagate at least 512 characters of a combined header."       Section 3.3, "tracestate Limits"
# What is longer than four times that is rare, and may be a stranger's: of such, few are remembered.
REPEATED_STATE: Final = 2048
_CACHE_ENTRIES: Final = 256
_LONG_CACHE_ENTRIES: Final = 16

_FRESH_ROOT: Final = "- the request starts a new trace"
_NOT_READ: Final = "- its format is not read here, and nobody further in sees it"
_FLIPPED: Final = "- our client sent it sampled, it arrived unsampled: a proxy between samples by its own rate"
_IGNORED: Final = "- it is ignored; what is good of the other B3 headers, and of the rest of this one, counts"
_B3_MULTI: Final = B3_HEADERS - {"b3"}
_SENT: Final = compiled_late(r"([0-9a-f]{16})-[0-9a-f]{2}")
_SENT_SAMPLED: Final = compiled_late(r"[0-9a-f]{16}-0[13]")
_MAX_DUPLICATES: Final = 8
_LENIENT_CHARACTERS: Final = 256


class Reading:
    """Collects, while one request is read, what was refused and why, and what must change in the headers.

    Attributes:
        lines: The header lines, by name in lower case.
        refused: Pairs of header and reason, in the order in which they were met.
        rejected: The parent that a refused header named, where it still parses: for a link.
        rewrites: For each header that must not stay as it came: the line to put in its place, or None to remove it.
        takes: Whether the format that is being read is configured. Of any other only what is malformed is of interest.
    """

    __slots__ = ("_rejections", "lines", "refused", "rejected", "rewrites", "takes")

    def __init__(self, lines: Lines, rejections: Rejections) -> None:
        self.lines = lines
        self.takes = True
        self.refused: tuple[tuple[str, str], ...] = ()
        self.rejected: SpanContext | None = None
        self.rewrites: dict[str, str | None] = {}
        self._rejections = rejections

    def accept(self, header: str) -> None:
        """Count a header that is taken."""
        if self.takes and IS_COUNTED():
            self._rejections.accepted((header,))

    def line(self, name: str) -> str | None:
        """Return a header's text, several lines joined, so that no grammar of one value takes two."""
        found = self.lines.get(name)
        return one_line(found) if found else None

    def refuse(
        self, header: str, reason: str, consequence: str, text: str | None = None, *, remove: Iterable[str] = ()
    ) -> None:
        """Count and log a refusal, note it for the span, and mark headers for removal."""
        self._rejections.record(header, reason, consequence if self.takes else _NOT_READ, text)
        self.refused += ((header, reason),)
        for name in remove:
            self.rewrites[name] = None

    def note(self, header: str, reason: str, consequence: str) -> None:
        """Count and log what is odd about a header that is taken all the same, and note it for the span."""
        self._rejections.record(header, reason, consequence, outcome="noted")
        self.refused += ((header, reason),)


class TraceReader:
    """Finds the remote parent of one request. Nothing in its headers can make it raise.

    Args:
        formats: Which formats are read: `tracecontext`, `b3`, `b3multi`.
        traceparent_policy: `strict` takes version 00 alone; `w3c` also takes 01 to fe as Level 2 asks.
        duplicates: Of several traceparents, `restart` takes none; `same-trace` the first, where all name one trace.
        prefer: Which format decides where two valid ones disagree; `auto` takes B3 where it can tell that a proxy has
            written that last.
    """

    def __init__(
        self,
        *,
        formats: Collection[Format],
        traceparent_policy: TraceParentPolicy,
        duplicates: Duplicates,
        prefer: Prefer,
    ) -> None:
        self.reads_w3c = "tracecontext" in formats
        self.reads_b3 = "b3" in formats or "b3multi" in formats
        self._policy: TraceParentPolicy = traceparent_policy
        self._duplicates = duplicates
        self._prefer = prefer

    def read(self, reading: Reading) -> tuple[SpanContext | None, B3Context | None]:
        """Return the parent that was chosen, and the B3 context where that says more than the parent can."""
        # A format that is not configured is read too: what is malformed of it must not stay either.
        reading.takes = self.reads_w3c
        parent = self._read_w3c(reading)
        reading.takes = self.reads_b3
        b3 = _read_b3(reading)
        reading.takes = True
        if not self.reads_w3c:
            parent = reading.rejected = None
        if b3 is None or not self.reads_b3:
            return parent, None
        return self._reconcile(parent, b3, reading)

    def _reconcile(
        self, parent: SpanContext | None, b3: B3Context, reading: Reading
    ) -> tuple[SpanContext | None, B3Context | None]:
        """Let one format decide (law 7); of B3 that agrees with traceparent only the debug flag is news."""
        other = _span_context_of(b3)
        if parent is None:
            return other, b3
        if other is None or (other.trace_id, other.span_id) == (parent.trace_id, parent.span_id):
            return parent, b3 if b3.debug else None
        if self._prefer == "b3" or (self._prefer == "auto" and _is_newer(reading, other, parent)):
            reading.refuse("traceparent", "conflict", "- it names another parent than B3, which decides here")
            return _with_state(other, parent), b3
        reading.refuse("b3", "conflict", "- it names another parent than traceparent, which decides")
        return parent, None

    def _read_w3c(self, reading: Reading) -> SpanContext | None:
        lines = reading.lines
        found = lines.get("traceparent")
        if not found:
            if "tracestate" in lines:
                reading.rewrites["tracestate"] = None
            return None
        try:
            # WSGI servers have joined repeated lines with a comma, ASGI servers have not.
            is_one = len(found) == 1 and "," not in found[0]
            parent = read_traceparent(found[0], self._policy) if is_one else self._read_copies(found, reading)
        except InvalidHeaderError as fault:
            reading.refuse("traceparent", fault.reason, _FRESH_ROOT, found[0], remove=TRACE_HEADERS)
            reading.rejected = _read_leniently(found[0])
            return None
        reading.accept("traceparent")
        _, trace_id, parent_id, flags = parent
        if SENT_HEADER in lines and not flags & FLAG_SAMPLED:
            _note_flip(reading)
        state = _read_trace_state(reading) if "tracestate" in lines else NO_STATE
        return SpanContext(trace_id, parent_id, True, TraceFlags(flags), state)

    def _read_copies(self, found: Sequence[str], reading: Reading) -> _Fields:
        copies = one_line(found).split(",", _MAX_DUPLICATES)
        if self._duplicates == "restart" or len(copies) > _MAX_DUPLICATES:
            raise InvalidHeaderError("traceparent", "duplicate")
        parents = [self._read_copy(text) for text in copies]
        version, trace_id, parent_id, flags = parents[0]
        if any(parent[1] != trace_id for parent in parents):
            raise InvalidHeaderError("traceparent", "duplicate")
        reading.note("traceparent", "duplicate", "- all copies name one trace, which goes on below the first")
        reading.rewrites["traceparent"] = format_traceparent(trace_id, parent_id, flags)
        return version, trace_id, parent_id, flags

    def _read_copy(self, text: str) -> _Fields:
        try:
            return read_traceparent(text, self._policy)
        except InvalidHeaderError:
            raise InvalidHeaderError("traceparent", "duplicate") from None


def _read_trace_state(reading: Reading) -> W3CTraceState:
    line = one_line(reading.lines["tracestate"])
    state = repeated_trace_state(line) if len(line) <= REPEATED_STATE else _long_trace_state_of(line)
    if not isinstance(state, InvalidHeaderError):
        return state
    consequence = "- dropped whole; traceparent is kept"
    junk = line[state.position or 0 :].partition(",")[0]
    reading.refuse("tracestate", state.reason, consequence, junk, remove=["tracestate"])
    return NO_STATE


def _note_flip(reading: Reading) -> None:
    if _SENT_SAMPLED().fullmatch(reading.line(SENT_HEADER) or ""):
        reading.note("traceparent", "flipped", _FLIPPED)


def _read_b3(reading: Reading) -> B3Context | None:
    if B3_HEADERS.isdisjoint(reading.lines):
        return None
    b3, faults = examine_b3({name: reading.line(name) for name in B3_HEADERS})
    if b3 is None:
        if faults:
            reading.refuse("b3", faults[0].reason, "- no B3 context is taken", faults[0].junk, remove=B3_HEADERS)
        return None
    for fault in faults:
        reading.refuse("b3", fault.reason, _IGNORED, fault.junk)
        if fault.is_fatal:
            reading.rewrites.update(dict.fromkeys(["b3"] if fault.header == "b3" else _B3_MULTI))
        else:
            reading.rewrites[fault.header] = fault.rest
    reading.accept("b3")
    return b3


def _span_context_of(b3: B3Context) -> SpanContext | None:
    """Return the remote span context that B3 headers name, or None where they hold only a decision.

    A deferred decision leaves the sampled flag clear: trace flags cannot say "not decided".
    """
    if b3.trace_id is None or b3.span_id is None:
        return None
    return SpanContext(b3.trace_id, b3.span_id, True, TraceFlags(FLAG_SAMPLED if b3.sampled else 0), NO_STATE)


def _is_newer(reading: Reading, b3: SpanContext, parent: SpanContext) -> bool:
    """Say whether a proxy has written B3 after our client, or another, wrote both, and has left traceparent alone."""
    if b3.trace_id != parent.trace_id:
        return False
    traceparent_span = f"{parent.span_id:016x}"
    sent = _SENT().fullmatch(reading.line(SENT_HEADER) or "")
    if sent is not None:
        return sent[1] == traceparent_span
    # Without our client's word, only a proxy directly below the sender can be recognized: it names the sender's span.
    fields = (reading.line("b3") or "").split("-", 4)
    above = fields[3] if len(fields) == 4 else reading.line("x-b3-parentspanid")
    return above == traceparent_span


def _with_state(b3: SpanContext, parent: SpanContext) -> SpanContext:
    """Return B3's context with the tracestate that came along, if that is of the same trace."""
    if b3.trace_id != parent.trace_id:
        return b3
    return SpanContext(b3.trace_id, b3.span_id, True, b3.trace_flags, parent.trace_state)


def _read_leniently(text: str) -> SpanContext | None:
    """Return what a refused traceparent names, read as kindly as possible: it is for a link alone."""
    try:
        _, trace_id, parent_id, flags = read_traceparent(text[:_LENIENT_CHARACTERS].partition(",")[0].lower(), "w3c")
    except InvalidHeaderError:
        return None
    return SpanContext(trace_id, parent_id, True, TraceFlags(flags), NO_STATE)


@lru_cache(maxsize=_CACHE_ENTRIES)
def repeated_trace_state(line: str) -> W3CTraceState | InvalidHeaderError:
    """Return what a tracestate of at most `REPEATED_STATE` characters says, or its fault; peers repeat the same one.

    The fault is no longer a raised one: its traceback would keep the request alive.
    """
    try:
        return W3CTraceState(TraceState.parse(line))
    except InvalidHeaderError as fault:
        return fault.with_traceback(None)


_long_trace_state: Final = lru_cache(maxsize=_LONG_CACHE_ENTRIES)(repeated_trace_state.__wrapped__)


def _long_trace_state_of(line: str) -> W3CTraceState | InvalidHeaderError:
    # What is longer than any list is refused for that at once, and to look it up among others takes longer.
    return _long_trace_state(line) if len(line) <= MAX_CHARS else repeated_trace_state.__wrapped__(line)
