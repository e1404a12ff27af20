"""Zipkin's B3 headers, in one line (`b3`) and in several (`x-b3-*`).

The sections named are those of the repository openzipkin/b3-propagation. The parent's parent, which B3 can carry too,
is never used and never sent: OpenTelemetry forbids passing it on.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from meshmw.errors import InvalidHeaderError
from meshmw.wire.headers import HEXDIGLC, NOT_HEXDIGLC, NOT_PRINTABLE_ASCII, OWS

__all__ = ["REASONS", "B3Context", "read_b3"]

REASONS: Final = {
    "empty": "there is nothing but spaces, or nothing that says anything",
    "control": "a control character or one outside ASCII",
    "length": "an id, or the whole, is too short or too long",
    "hex": "something else than a lower-case hexadecimal digit in an id",
    "zero_trace_id": "the trace id is all zeros",
    "zero_span_id": "the span id is all zeros",
    "incomplete": "a trace id without a span id, or a span id without a trace id",
    "sampled": "a sampling state that the format does not have",
    "flags": "something else than a number in x-b3-flags",
}

# TraceId = 32 or 16 lower-hex characters, SpanId = 16 lower-hex characters              Sections "TraceId", "SpanId"
_IDS: Final = {
    "trace": re.compile(rf"(?!0++\Z)(?:{HEXDIGLC}{{32}}|{HEXDIGLC}{{16}})"),
    "span": re.compile(f"(?!0{{16}}){HEXDIGLC}{{16}}"),
}
# b3={TraceId}-{SpanId}-{SamplingState}-{ParentSpanId}                                   Section "Single Header"
# The last two fields may be missing, and a decision that comes with no ids is its state alone.
_SINGLE = re.compile(
    f"(?!0++-)({HEXDIGLC}{{32}}|{HEXDIGLC}{{16}})-(?!0{{16}})({HEXDIGLC}{{16}})(?:-([01d])(?:-{HEXDIGLC}{{16}})?)?|([01d])"
)
_SINGLE_MAX_CHARS: Final = 68

# `true` and `false` are older than the specification, which lets a lenient reader take them.
_SAMPLED: Final = {"1": True, "true": True, "0": False, "false": False}
# Only 1 has a meaning. Finagle, where the header comes from, kept other bits in the same 64-bit number.
_FLAGS = re.compile("[0-9]{1,20}")
_DEBUG: Final = "1"


class B3Context(NamedTuple):
    """Identifies the caller's span, or holds a sampling decision alone.

    Attributes:
        trace_id: Not zero; 64 bits from older senders, else 128. `None` where only a decision was sent.
        span_id: 64 bits, not zero. `None` together with `trace_id`.
        sampled: `None` where the sender left the decision to its callee, which is not the same as `False`.
        debug: Asks every system on the way to record; `sampled` is then `True`.
    """

    trace_id: int | None
    span_id: int | None
    sampled: bool | None
    debug: bool = False

    @classmethod
    def parse(cls, text: str) -> B3Context:
        """Read the header `b3`.

        Raises:
            InvalidHeaderError: With one of `REASONS`.
        """
        text = text.strip(OWS)
        if (match := _SINGLE.fullmatch(text)) is None:
            raise InvalidHeaderError("b3", *_fault_of_single(text))
        trace_id, span_id, state, lone_state = match.groups()
        state = state or lone_state
        sampled = state != "0" if state else None
        if trace_id is None:
            return cls(None, None, sampled, state == "d")
        return cls(int(trace_id, 16), int(span_id, 16), sampled, state == "d")

    @classmethod
    def parse_multi(
        cls, *, trace_id: str | None, span_id: str | None, sampled: str | None, flags: str | None
    ) -> B3Context:
        """Read the headers `x-b3-traceid`, `x-b3-spanid`, `x-b3-sampled` and `x-b3-flags`.

        Args:
            trace_id: The header's value, or `None` where there is no such header. Here and below, blank means the same.
            span_id: 16 hexadecimal digits.
            sampled: `1`, `0`, or `true`, `false` from older senders.
            flags: `1` for debug; other numbers mean nothing here.

        Raises:
            InvalidHeaderError: With one of `REASONS`.
        """
        trace_id, span_id, state, flags = ((text or "").strip(OWS) for text in (trace_id, span_id, sampled, flags))
        debug, decision = _read_decision(state, flags)
        if trace_id and span_id:
            return cls(_read_id("trace", trace_id), _read_id("span", span_id), decision, debug)
        if trace_id or span_id:
            raise InvalidHeaderError("x-b3-spanid" if trace_id else "x-b3-traceid", "incomplete")
        if decision is None:
            raise InvalidHeaderError("x-b3-traceid", "empty")
        return cls(None, None, decision, debug)

    def to_multi(self) -> dict[str, str]:
        """Return the `x-b3-*` headers, names in lower case, trace ids always in 32 digits."""
        headers: dict[str, str] = {}
        if self.trace_id is not None and self.span_id is not None:
            headers |= {"x-b3-traceid": f"{self.trace_id:032x}", "x-b3-spanid": f"{self.span_id:016x}"}
        if self.debug:
            # "Debug implies an accept decision, so don't also send the X-B3-Sampled header."   Section "Debug Flag"
            headers["x-b3-flags"] = _DEBUG
        elif self.sampled is not None:
            headers["x-b3-sampled"] = "1" if self.sampled else "0"
        return headers

    def __str__(self) -> str:
        state = "d" if self.debug else {None: "", True: "1", False: "0"}[self.sampled]
        if self.trace_id is None or self.span_id is None:
            return state
        return f"{self.trace_id:032x}-{self.span_id:016x}" + (f"-{state}" if state else "")


def read_b3(
    single: str | None,
    *,
    trace_id: str | None = None,
    span_id: str | None = None,
    sampled: str | None = None,
    flags: str | None = None,
) -> B3Context | None:
    """Read whichever B3 headers a request has: `b3` first, then `x-b3-*`. An invalid form never hides a valid one.

    Args:
        single: The value of `b3`, or `None` where there is no such header.
        trace_id: The value of `x-b3-traceid`; this and the other arguments are those of `B3Context.parse_multi`.
        span_id: The value of `x-b3-spanid`.
        sampled: The value of `x-b3-sampled`.
        flags: The value of `x-b3-flags`.

    Returns:
        `None` where there are no B3 headers at all.

    Raises:
        InvalidHeaderError: If there were headers and none was valid; it speaks of the first form that was there.
    """
    fault = None
    if single is not None:
        try:
            return B3Context.parse(single)
        except InvalidHeaderError as error:
            fault = error
    if any(text is not None for text in (trace_id, span_id, sampled, flags)):
        try:
            return B3Context.parse_multi(trace_id=trace_id, span_id=span_id, sampled=sampled, flags=flags)
        except InvalidHeaderError as error:
            fault = fault or error
    if fault is not None:
        raise fault
    return None


def _read_decision(state: str, flags: str) -> tuple[bool, bool | None]:
    if flags and not _FLAGS.fullmatch(flags):
        raise InvalidHeaderError("x-b3-flags", "flags")
    if state and state.lower() not in _SAMPLED:
        raise InvalidHeaderError("x-b3-sampled", "sampled")
    return (True, True) if flags == _DEBUG else (False, _SAMPLED.get(state.lower()))


def _read_id(kind: str, text: str) -> int:
    if _IDS[kind].fullmatch(text):
        return int(text, 16)
    raise InvalidHeaderError(f"x-b3-{kind}id", *_fault_of_id(kind, text))


def _fault_of_id(kind: str, text: str) -> tuple[str, int]:
    if control := NOT_PRINTABLE_ASCII.search(text):
        return "control", control.start()
    if len(text) != 16 and not (kind == "trace" and len(text) == 32):
        return "length", len(text)
    if other := NOT_HEXDIGLC.search(text):
        return "hex", other.start()
    return f"zero_{kind}_id", 0


def _fault_of_single(text: str) -> tuple[str, int]:
    if not text:
        return "empty", 0
    if control := NOT_PRINTABLE_ASCII.search(text):
        return "control", control.start()
    if len(text) > _SINGLE_MAX_CHARS:
        return "length", _SINGLE_MAX_CHARS
    fields = text.split("-")
    if len(fields) == 1:
        return ("incomplete" if _IDS["trace"].fullmatch(text) else "sampled"), 0
    at = 0
    for kind, field in zip(_IDS, fields, strict=False):
        if not _IDS[kind].fullmatch(field):
            reason, position = _fault_of_id(kind, field)
            return reason, at + position
        at += len(field) + 1
    if fields[2] not in ("0", "1", "d"):
        return "sampled", at
    # What is left is the parent's parent, of which the form alone is looked at.
    at += 2
    other = NOT_HEXDIGLC.search(fields[3])
    return ("hex", at + other.start()) if other else ("length", at + len(fields[3]))


def __dir__() -> list[str]:
    return sorted(__all__)
