"""What a trace header says, field by field, or why it says nothing, with the place of the fault.

Knows `meshmw.wire` alone. Must not know a terminal; the caret is a column in a text that has one column per character.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from meshmw.diagnose.escaping import one_column_each, shown
from meshmw.diagnose.inspection import Fault, Field, Inspection
from meshmw.errors import InvalidHeaderError
from meshmw.wire import REASONS, B3Context, TraceParent, TraceState, parse_baggage, parse_member
from meshmw.wire.baggage import MAX_BYTES, MAX_MEMBERS
from meshmw.wire.grammar import OWS

_NAME: Final = re.compile(r"(traceparent|tracestate|baggage|b3|x-b3-[a-z]+)[ \t]*:", re.IGNORECASE)
_LIKE_TRACEPARENT: Final = re.compile(r"[0-9a-zA-Z]{2}-[0-9a-zA-Z]{20,}-")
_LIKE_B3: Final = re.compile(r"[0-9a-zA-Z]{16,32}-[0-9a-zA-Z]{16}(-.*)?|[01d]")
_MULTI: Final = {
    "x-b3-traceid": "trace_id",
    "x-b3-spanid": "span_id",
    "x-b3-sampled": "sampled",
    "x-b3-flags": "flags",
}


def split_name(text: str) -> tuple[str | None, str]:
    """Split `name: value` where the name is a trace header's; the name is None where the text is a value alone."""
    match = _NAME.match(text.lstrip(OWS))
    return (None, text) if match is None else (match[1].lower(), text.lstrip(OWS)[match.end() :].strip(OWS))


def inspect(text: str, header: str | None = None) -> Inspection:
    """Say what a header means, or why it means nothing.

    Args:
        text: `name: value`, or a value alone, of which the name is guessed.
        header: The name, where it is known.
    """
    name, value = (header.lower(), text) if header else split_name(text)
    name = name or _guess(value)
    return _READERS[name if name in _READERS else "x-b3-"](name, value)


def _guess(value: str) -> str:
    value = value.strip(OWS)
    if _LIKE_TRACEPARENT.match(value) or not value:
        return "traceparent"
    if _LIKE_B3.fullmatch(value):
        return "b3"
    if "=" not in value:
        return "traceparent"
    try:
        TraceState.parse(value)
    except InvalidHeaderError:
        return "baggage"
    # Both grammars take `a=1`; what tracing systems write is more like a state.
    return "baggage" if ";" in value or "%" in value else "tracestate"


def _traceparent(header: str, text: str) -> Inspection:
    try:
        parent = TraceParent.parse(text)
    except InvalidHeaderError as error:
        return _refused(header, text, error, "is removed, with its tracestate, and the request starts a new trace")
    sampled = "sampled: the caller may have recorded its span" if parent.sampled else "not sampled"
    random = "; the trace-id is random (Level 2)" if parent.random else ""
    raw = text.strip(OWS)
    fields = (
        Field("version", raw[:2]),
        Field("trace-id", f"{parent.trace_id:032x}", "the trace"),
        Field("parent-id", f"{parent.parent_id:016x}", "the caller's span"),
        Field("trace-flags", raw[53:], sampled + random),
    )
    return _read(header, text, fields, "is continued: the server span becomes a child of the caller's")


def _tracestate(header: str, text: str) -> Inspection:
    try:
        state = TraceState.parse(text)
    except InvalidHeaderError as error:
        return _refused(header, text, error, "is dropped whole; the traceparent beside it stays")
    fields = tuple(Field(key, value, _vendor(key)) for key, value in state.members)
    return _read(header, text, fields, "is passed on as it is, beside a valid traceparent only")


def _vendor(key: str) -> str:
    tenant, at, system = key.rpartition("@")
    return f"of {system}, tenant {tenant}" if at else ""


def _baggage(header: str, text: str) -> Inspection:
    display, columns = one_column_each(text)
    fields, faults, offset = [], [], 0
    for part in text.split(","):
        lead = offset + len(part) - len(part.lstrip(OWS))
        offset += len(part) + 1
        if not part.strip(OWS):
            continue
        try:
            key, value = parse_member(part)
        except InvalidHeaderError as error:
            at = lead + (error.position or 0)
            faults.append(Fault(error.reason, REASONS["baggage"][error.reason], at, columns[at]))
        else:
            fields.append(Field(key, shown(value, None), f"properties {value.properties}" if value.properties else ""))
    _, dropped = parse_baggage(text)
    excess = [reason for reason in dropped if reason in ("too_many_members", "too_many_bytes")]
    faults += [Fault(reason, f"{REASONS['baggage'][reason]} ({MAX_MEMBERS}, {MAX_BYTES})") for reason in excess]
    consequence = "loses those members; the others stay" if faults else "is passed on, byte for byte"
    return Inspection(header, text, display, tuple(fields), tuple(faults), consequence)


def _b3(header: str, text: str) -> Inspection:
    try:
        context = B3Context.parse(text)
    except InvalidHeaderError as error:
        return _refused(header, text, error, "is refused; a valid traceparent or x-b3-* beside it still counts")
    return _read(header, text, _b3_fields(context), "counts where b3 or b3multi is among the formats")


def _b3_fields(context: B3Context) -> tuple[Field, ...]:
    state = "debug" if context.debug else {None: "deferred", True: "sampled", False: "not sampled"}[context.sampled]
    ids = []
    if context.trace_id is not None and context.span_id is not None:
        bits = "64 bits, or 128 with zeros" if context.trace_id < 1 << 64 else "128 bits"
        ids = [Field("trace-id", f"{context.trace_id:032x}", bits), Field("span-id", f"{context.span_id:016x}")]
    return (*ids, Field("sampling", state, "the callee decides" if state == "deferred" else ""))


def _b3_multi(header: str, text: str) -> Inspection:
    """Read one of the `x-b3-*` headers, with the others thought of as good."""
    others: dict[str, str | None] = {"trace_id": "1" * 32, "span_id": "1" * 16, "sampled": None, "flags": None}
    if header not in _MULTI:
        return _read(header, text, (), "is not read: the parent's parent says nothing to anyone")
    try:
        B3Context.parse_multi(**{**others, _MULTI[header]: text})
    except InvalidHeaderError as error:
        return _refused(header, text, error, "makes all x-b3-* headers of its request refused")
    return _read(header, text, (Field(header.removeprefix("x-b3-"), text),), "is read with the other x-b3-* headers")


def _read(header: str, text: str, fields: tuple[Field, ...], consequence: str) -> Inspection:
    return Inspection(header, text, one_column_each(text)[0], fields, (), consequence)


def _refused(header: str, text: str, error: InvalidHeaderError, consequence: str) -> Inspection:
    display, columns = one_column_each(text)
    # A list's faults are counted from the start of its text, those of the other formats from where the value begins.
    lead = 0 if header == "tracestate" else len(text) - len(text.lstrip(OWS))
    at = None if error.position is None else min(lead + error.position, len(text))
    reasons = REASONS["b3" if header.startswith("x-b3-") else header]
    fault = Fault(error.reason, reasons[error.reason], at, None if at is None else columns[at])
    return Inspection(header, text, display, (), (fault,), consequence)


_READERS: Final[dict[str, Callable[[str, str], Inspection]]] = {
    "traceparent": _traceparent,
    "tracestate": _tracestate,
    "baggage": _baggage,
    "b3": _b3,
    "x-b3-": _b3_multi,
}
