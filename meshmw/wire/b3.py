"""Zipkin's B3 headers, in one line (`b3`) and in several (`x-b3-*`).

The sections named are those of the repository openzipkin/b3-propagation. The parent's parent, which B3 can carry too,
is never used and never sent: OpenTelemetry forbids passing it on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from meshmw._regex import compiled_late
from meshmw.errors import InvalidHeaderError
from meshmw.wire.headers import HEXDIGLC, NOT_HEXDIGLC, NOT_PRINTABLE_ASCII, trimmed

__all__ = ["REASONS", "B3Context", "B3Fault", "examine_b3", "read_b3"]

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

_MULTI: Final = ("x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags")

# TraceId = 32 or 16 lower-hex characters, SpanId = 16 lower-hex characters              Sections "TraceId", "SpanId"
_IDS: Final = {
    "trace": compiled_late(rf"(?!0++\Z)(?:{HEXDIGLC}{{32}}|{HEXDIGLC}{{16}})"),
    "span": compiled_late(f"(?!0{{16}}){HEXDIGLC}{{16}}"),
}
# b3={TraceId}-{SpanId}-{SamplingState}-{ParentSpanId}                                   Section "Single Header"
# The last two fields may be missing, and a decision that comes with no ids is its state alone.
_SINGLE = compiled_late(
    f"(?!0++-)({HEXDIGLC}{{32}}|{HEXDIGLC}{{16}})-(?!0{{16}})({HEXDIGLC}{{16}})(?:-([01d])(?:-{HEXDIGLC}{{16}})?)?|([01d])"
)
_SINGLE_MAX_CHARS: Final = 68
# The two fields that cannot be missing, before whatever somebody has put into the others.
_IDS_FIRST = compiled_late(f"((?!0++-)(?:{HEXDIGLC}{{32}}|{HEXDIGLC}{{16}})-(?!0{{16}}){HEXDIGLC}{{16}})-")
_PARENT = compiled_late(f"{HEXDIGLC}{{16}}")

# `true` and `false` are older than the specification, which lets a lenient reader take them.
_SAMPLED: Final = {"1": True, "true": True, "0": False, "false": False}
# One character more than the longest of them has.
_SAMPLED_LOOKED_AT: Final = 6
# Only 1 has a meaning. Finagle, where the header comes from, kept other bits in the same 64-bit number.
_FLAGS = compiled_late("[0-9]{1,20}")
_DEBUG: Final = "1"
_STATES: Final = frozenset({"0", "1", "d"})


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
        text = trimmed(text)
        if (match := _SINGLE().fullmatch(text)) is None:
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
        trace_id, span_id, state, flags = (trimmed(text or "") for text in (trace_id, span_id, sampled, flags))
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


class B3Fault(NamedTuple):
    """Says what is junk in one header, and what remains of the header without it.

    Attributes:
        header: The header's name.
        reason: One of `REASONS`.
        junk: What is junk, and nothing of what is good; `None` where something is missing.
        rest: What the header may be replaced with, or `None` where it is to be removed.
        is_fatal: Whether no context can be taken from this form of the headers.
    """

    header: str
    reason: str
    junk: str | None
    rest: str | None = None
    is_fatal: bool = False


def examine_b3(headers: Mapping[str, str | None]) -> tuple[B3Context | None, tuple[B3Fault, ...]]:
    """Read whichever B3 headers a request has: `b3` first, then `x-b3-*`; an invalid form never hides a valid one.

    The ids cannot be missing. All else is optional, and junk in it counts as if it were not there. Nothing is raised.

    Args:
        headers: Text by name in lower case, `b3` and `x-b3-*`.

    Returns:
        The context, or `None` where no form says anything; and what is junk in either form, in that order.
    """
    context, faults = None, []
    if (single := headers.get("b3")) is not None:
        context, fault = _examine_single(single)
        faults += [fault] if fault else []
    if any(headers.get(name) is not None for name in _MULTI):
        other, others = _examine_multi(headers)
        context = context or other
        faults += others
    return context, tuple(faults)


def read_b3(
    single: str | None,
    *,
    trace_id: str | None = None,
    span_id: str | None = None,
    sampled: str | None = None,
    flags: str | None = None,
) -> B3Context | None:
    """Read whichever B3 headers a request has, as `examine_b3` does.

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
    named = {"x-b3-traceid": trace_id, "x-b3-spanid": span_id, "x-b3-sampled": sampled, "x-b3-flags": flags}
    context, faults = examine_b3({"b3": single, **named})
    if context is None and faults:
        raise InvalidHeaderError(faults[0].header, faults[0].reason)
    return context


def _examine_single(text: str) -> tuple[B3Context | None, B3Fault | None]:
    text = trimmed(text)
    if _SINGLE().fullmatch(text):
        return B3Context.parse(text), None
    reason, position = _fault_of_single(text)
    ids = _IDS_FIRST().match(text)
    # Servers have joined two lines with a comma, and neither of the two is the right one.
    if ids is None or "," in text:
        begin = text.rfind("-", 0, position) + 1
        junk = text[begin:] if "," in text else text[begin:].partition("-")[0]
        return None, B3Fault("b3", reason, None if reason == "incomplete" else junk, is_fatal=True)
    state, hyphen, parent = text[ids.end() :].partition("-")
    if state not in _STATES:
        return B3Context.parse(ids[1]), B3Fault("b3", reason, f"{state}{hyphen}{parent}", ids[1])
    rest = f"{ids[1]}-{state}"
    return B3Context.parse(rest), B3Fault("b3", reason, parent, rest)


def _examine_multi(headers: Mapping[str, str | None]) -> tuple[B3Context | None, list[B3Fault]]:
    trace_id, span_id, parent, state, flags = (trimmed(headers.get(name) or "") for name in _MULTI)
    faults = []
    if flags and not _FLAGS().fullmatch(flags):
        faults.append(B3Fault("x-b3-flags", "flags", flags))
        flags = ""
    if state and state[:_SAMPLED_LOOKED_AT].lower() not in _SAMPLED:
        faults.append(B3Fault("x-b3-sampled", "sampled", state))
        state = ""
    if parent and not _PARENT().fullmatch(parent):
        faults.append(B3Fault("x-b3-parentspanid", _fault_of_parent(parent)[0], parent))
    try:
        return B3Context.parse_multi(trace_id=trace_id, span_id=span_id, sampled=state, flags=flags), faults
    except InvalidHeaderError as error:
        # Of headers that say nothing else, the junk is said already.
        if error.reason != "empty" or not faults:
            junk = trimmed(headers.get(error.header) or "") or None
            faults.append(B3Fault(error.header, error.reason, junk, is_fatal=True))
        return None, faults


def _read_decision(state: str, flags: str) -> tuple[bool, bool | None]:
    if flags and not _FLAGS().fullmatch(flags):
        raise InvalidHeaderError("x-b3-flags", "flags")
    if state and state.lower() not in _SAMPLED:
        raise InvalidHeaderError("x-b3-sampled", "sampled")
    return (True, True) if flags == _DEBUG else (False, _SAMPLED.get(state.lower()))


def _read_id(kind: str, text: str) -> int:
    if _IDS[kind]().fullmatch(text):
        return int(text, 16)
    raise InvalidHeaderError(f"x-b3-{kind}id", *_fault_of_id(kind, text))


def _fault_of_id(kind: str, text: str) -> tuple[str, int]:
    text = text[:_SINGLE_MAX_CHARS]
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
    # What is longer is refused for that, and no stranger has the rest looked at.
    if control := NOT_PRINTABLE_ASCII.search(text[:_SINGLE_MAX_CHARS]):
        return "control", control.start()
    if len(text) > _SINGLE_MAX_CHARS:
        return "length", _SINGLE_MAX_CHARS
    fields = text.split("-")
    if len(fields) == 1:
        return ("incomplete" if _IDS["trace"]().fullmatch(text) else "sampled"), 0
    at = 0
    for kind, field in zip(_IDS, fields, strict=False):
        if not _IDS[kind]().fullmatch(field):
            reason, position = _fault_of_id(kind, field)
            return reason, at + position
        at += len(field) + 1
    if fields[2] not in _STATES:
        return "sampled", at
    # What is left is the parent's parent, of which the form alone is looked at.
    reason, position = _fault_of_parent(fields[3])
    return reason, at + 2 + position


def _fault_of_parent(text: str) -> tuple[str, int]:
    text = text[:_SINGLE_MAX_CHARS]
    if control := NOT_PRINTABLE_ASCII.search(text):
        return "control", control.start()
    other = NOT_HEXDIGLC.search(text)
    return ("hex", other.start()) if other else ("length", len(text))


def __dir__() -> list[str]:
    return sorted(__all__)
