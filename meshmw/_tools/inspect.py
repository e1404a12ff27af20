"""`meshmw inspect`: says what trace headers mean, field by field, or where they are wrong and why."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from meshmw._notices import character_shown, shown
from meshmw._tools.output import (
    FOUND,
    MISUSE,
    OK,
    JsonOption,
    as_command,
    console,
    error_console,
    print_json,
    print_table,
)
from meshmw.errors import InvalidHeaderError
from meshmw.wire import REASONS, B3Context, TraceParent, TraceState, examine_b3, parse_baggage, parse_member
from meshmw.wire.baggage import MAX_BYTES, MAX_MEMBERS
from meshmw.wire.headers import OWS

_NAME: Final = re.compile(r"(traceparent|tracestate|baggage|b3|x-b3-[a-z]+)[ \t]*:", re.IGNORECASE)
# Any other field name (RFC 9110 5.1), also with the mark that `curl -v` puts before a line. No value of ours has a
# colon there, but for hexadecimal digits, which are Jaeger's value without its name.
_OTHER_NAME: Final = re.compile(r"(?:[<>*] )?(?![0-9a-fA-F]+:)(:?[!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*:")
_REQUEST_LINE: Final = re.compile(r"(?:[<>*] )?(?:[A-Z]{3,10} [^ ]+ HTTP/[0-9.]+|HTTP/[0-9.]+ [0-9]{3}.*)")
# How HTTP/2 and HTTP/3 begin the headers of a request.
_PSEUDO: Final = re.compile(r":(?:method|path):")
# What `curl -v` puts before a header; `curl --trace-ascii` puts the offset there.
_MARK: Final = re.compile(r"(?:[<>*]|[0-9a-f]{4}:)[ \t]")
# What stands around the headers: what curl says of itself and of its progress, and the beginning of a page.
_NOISE: Final = re.compile(
    r"<|[>*](?:[ \t]|$)|[{}](?:[ \t,]|$)|[0-9a-f]{4}:(?:[ \t]|$)|=[=>] |% Total|Dload|(?:[-0-9.:kMGTP]+[ \t]+){5}"
)
# One line of headers in JSON or in Python, and one field of a log.
_QUOTED: Final = re.compile(r"""\{?[ \t]*["']([A-Za-z0-9-]+)["'][ \t]*:[ \t]*["']([^"']*)["'][ \t]*\}?,?[ \t]*""")
_LOGGED: Final = re.compile(r'(traceparent|tracestate)="?([^"]*)"?', re.IGNORECASE)
_LIKE_JAEGER: Final = re.compile(r"[0-9a-fA-F]{1,32}:[0-9a-fA-F]{1,16}:[0-9a-fA-F]{1,16}:[0-9a-fA-F]{1,2}")
# Headers of other systems, by the beginnings of their names.
_OTHERS: Final = {
    "uber-trace-id": "Jaeger's own clients; OTEL_PROPAGATORS=jaeger reads it",
    "uberctx-": "Jaeger's own clients, as baggage",
    "jaeger-": "Jaeger's own clients",
    "sw8": "SkyWalking",
    "x-datadog-": "Datadog; since 2023 its tracers send traceparent as well",
    "x-amzn-trace-id": "AWS X-Ray and load balancers of AWS; OTEL_PROPAGATORS=xray reads it",
    "x-cloud-trace-context": "Google Cloud",
    "grpc-trace-bin": "OpenCensus over gRPC",
    "x-ot-span-context": "Lightstep's old tracer in Envoy",
    "ot-tracer-": "OpenTracing's basic tracers; OTEL_PROPAGATORS=ottrace reads it",
    "ot-baggage-": "OpenTracing's basic tracers, as baggage",
    "sentry-trace": "Sentry",
    "newrelic": "New Relic",
    "x-instana-": "Instana",
    "elastic-apm-traceparent": "Elastic APM, before it sent traceparent",
    "x-dynatrace": "Dynatrace",
    "singularityheader": "AppDynamics",
    "l5d-ctx-": "Linkerd 1",
    "request-id": "Application Insights before it sent traceparent",
    "request-context": "Application Insights",
    "correlation-context": "what became baggage, before the W3C named it",
    "traceresponse": "an answer to traceparent, which no request has (Trace Context Level 2, draft)",
    "x-request-id": "Envoy, which joins its logs by it; it is no trace",
    "x-client-trace-id": "Envoy, for clients outside; it is no trace",
}
_LIKE_TRACEPARENT: Final = re.compile(r"[0-9a-zA-Z]{2}-[0-9a-zA-Z]{20,}-")
_LIKE_B3: Final = re.compile(r"[0-9a-zA-Z]{16,32}-[0-9a-zA-Z]{16}(-.*)?|[01d]")
_B3_MULTI: Final = {
    "x-b3-traceid": "trace_id",
    "x-b3-spanid": "span_id",
    "x-b3-sampled": "sampled",
    "x-b3-flags": "flags",
}
_OPTIONAL: Final = frozenset({"x-b3-sampled", "x-b3-flags"})
_IGNORED: Final = "is ignored; the other x-b3-* headers of its request count"
_FATAL: Final = "makes all x-b3-* headers of its request refused"


@as_command
def inspect(
    headers: Annotated[
        list[str],
        typer.Argument(metavar="HEADER...", help="'name: value', or a value alone; - reads lines from standard input."),
    ],
    header: Annotated[
        str, typer.Option("--header", "-H", metavar="NAME", help="The name of values that are given alone.")
    ] = "",
    json: JsonOption = False,
) -> int:
    """Say what traceparent, tracestate, baggage and B3 headers mean, field by field, or why they are malformed.

    Of the headers of a whole request, those of other tracing systems are named, and all others are left out.

    Ends with 1 if one of ours is malformed.
    """
    texts = list(_header_texts(headers))
    found = [inspect_header(text, header or None) for text in texts if header or not _is_none_of_ours(text)]
    if not found:
        what = f"none of {len(texts)} lines is a trace header" if texts else "there is no header to inspect"
        error_console().print(f"meshmw: {what}")
        return MISUSE
    if json:
        print_json([inspection.to_json() for inspection in found])
    else:
        _print(found)
    return OK if all(inspection.valid for inspection in found) else FOUND


def _header_texts(arguments: Iterable[str]) -> Iterator[str]:
    for text in arguments:
        if text == "-":
            lines = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").split("\n")
            yield from _without_bodies(line.strip("\r") for line in lines)
        else:
            yield text


def _without_bodies(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines, but for those that an empty line parts from the headers of a request or of an answer."""
    in_headers = in_body = False
    left_out: list[str] = []
    for line in lines:
        # In HTTP/2, a body is followed by no line that says so.
        if _is_request_line(line) or (in_body and _PSEUDO.match(_unmarked(line))):
            in_headers, in_body = True, False
        elif not _unmarked(f"{line} ").strip():
            in_body, in_headers = in_body or in_headers, False
            continue
        # Between the lines of a body, curl goes on to say what it does.
        if not in_body or _MARK.match(line):
            yield line
        else:
            left_out.append(line)
    if any(_NAME.match(_unmarked(line)) for line in left_out):
        what = f"{len(left_out)} line{'' if len(left_out) == 1 else 's'} of bodies were not looked at"
        error_console().print(f"meshmw: {what}, although one begins like a trace header: give it alone to inspect it")


def _print(found: Iterable[Inspection]) -> None:
    printer = console()
    for index, inspection in enumerate(found):
        if index:
            printer.print()
        word, style = ("valid", "bold green") if inspection.valid else ("malformed", "bold red")
        if inspection.system:
            word, style = "of another system", "bold yellow"
        printer.print(Text.assemble((inspection.header, "bold"), ": ", (word, style)))
        _print_text(inspection)
        if inspection.fields:
            rows = [(each.name, each.value, each.meaning) for each in inspection.fields]
            print_table(["field", "value", "meaning"], rows)
        printer.print(Text(f"It {inspection.consequence}."))


def _print_text(inspection: Inspection) -> None:
    """Print the header in pieces that fit any terminal, each fault with a caret under its place."""
    printer = console()
    width = max(20, min(printer.width, 120) - 4)
    faults = {fault.column: fault for fault in inspection.faults if fault.column is not None}
    for start in range(0, max(1, len(inspection.shown)), width):
        printer.print(Text(f"  {inspection.shown[start : start + width]}"), soft_wrap=True)
        # A fault at the very end belongs to the last piece.
        last = start + width >= len(inspection.shown)
        for column, fault in sorted(faults.items()):
            if start <= column < start + width or (last and column == start + width):
                caret = Text(" " * (2 + column - start) + "^ ", style="red")
                printer.print(caret.append(fault.reason, style="bold red").append(f": {fault.meaning}"), soft_wrap=True)
    for fault in inspection.faults:
        if fault.column is None:
            printer.print(Text.assemble("  ", (fault.reason, "bold red"), f": {fault.meaning}"), soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Field:
    """Holds one part of a header: its name, its text, and what that means."""

    name: str
    value: str
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """Says why a header, or a part of it, is refused.

    Attributes:
        reason: The reason code, as in `meshmw.wire.REASONS`.
        meaning: The same in words.
        position: The offset in the header's text, in characters; None where no one place is at fault.
        column: The same in `Inspection.shown`.
    """

    reason: str
    meaning: str
    position: int | None = None
    column: int | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """Holds what one header says.

    Attributes:
        header: Its name in lower case.
        text: What was given.
        shown: The same in printable ASCII.
        fields: What could be read of it.
        faults: Why it, or a part of it, is refused; empty for a valid header.
        consequence: What meshmw does with it.
        system: Whose header it is, if it is none that meshmw reads; it was not validated then.
    """

    header: str
    text: str
    shown: str
    fields: tuple[Field, ...] = ()
    faults: tuple[Fault, ...] = ()
    consequence: str = ""
    system: str = ""

    @property
    def valid(self) -> bool:
        """Says whether nothing is wrong with it."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """Return the inspection as plain JSON values."""
        return {
            "header": self.header,
            "text": self.text,
            "valid": self.valid,
            "fields": [{"name": each.name, "value": each.value, "meaning": each.meaning} for each in self.fields],
            "faults": [
                {"reason": each.reason, "meaning": each.meaning, "position": each.position} for each in self.faults
            ],
            "consequence": self.consequence,
            "system": self.system,
        }


def inspect_header(text: str, header: str | None = None) -> Inspection:
    """Say what a header means, or why it means nothing.

    Args:
        text: `name: value`, or a value alone, of which the name is guessed.
        header: The name, where it is known; *text* is then the value.
    """
    name, value = (header.lower(), text) if header else _split_name(text)
    name = name or _guess_name(value)
    if name in _READERS:
        return _READERS[name](name, value)
    return _inspect_b3_multi(name, value) if name.startswith("x-b3-") else _inspect_foreign(name, value)


def _split_name(text: str) -> tuple[str | None, str]:
    text_from_name = _unmarked(text)
    match = _NAME.match(text_from_name)
    if match is None and (system_of(name := _other_name(text)) or name.startswith("x-b3-")):
        match = _OTHER_NAME.match(text_from_name)
    return (None, text) if match is None else (match[1].lower(), text_from_name[match.end() :].strip(OWS))


def _unmarked(text: str) -> str:
    """Return a header line without what others put around it: curl's mark, the quotes of JSON, the `=` of a log."""
    unspaced = text.lstrip(OWS)
    if match := _QUOTED.fullmatch(unspaced) or _LOGGED.fullmatch(unspaced):
        return f"{match[1]}: {match[2]}"
    mark = _MARK.match(unspaced)
    return unspaced[mark.end() :] if mark else unspaced


def _other_name(text: str) -> str:
    match = _OTHER_NAME.match(_unmarked(text))
    return "" if match is None else match[1].lower()


def _is_none_of_ours(text: str) -> bool:
    """Say whether a line is a request's own, a header that no tracing system reads, or no header at all."""
    if _is_request_line(text):
        return True
    if _NAME.match(_unmarked(text)):
        return False
    name = _other_name(text)
    return not system_of(name) if name else _NOISE.match(text.lstrip(OWS)) is not None


def _is_request_line(text: str) -> bool:
    return _REQUEST_LINE.fullmatch(_unmarked(text).rstrip()) is not None


def system_of(header: str) -> str:
    """Return the tracing system whose header this is, if meshmw does not read it; else nothing."""
    return next((system for name, system in _OTHERS.items() if header == name or _goes_on(header, name)), "")


def _goes_on(header: str, name: str) -> bool:
    return header.startswith(name) and (name.endswith("-") or header[len(name) :].startswith("-"))


def _inspect_foreign(header: str, text: str) -> Inspection:
    system = system_of(header) or "nobody that is known here"
    display = escaped_with_offsets(text)[0]
    return Inspection(header, text, display, (), (), f"belongs to {system}. It is passed on untouched", system)


def _guess_name(value: str) -> str:
    value = value.strip(OWS)
    if _LIKE_JAEGER.fullmatch(value):
        return "uber-trace-id"
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
    # Both grammars take `a=1`; what tracing systems write is more like a tracestate.
    return "baggage" if ";" in value or "%" in value else "tracestate"


def _inspect_traceparent(header: str, text: str) -> Inspection:
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
    return _accepted(header, text, fields, "is continued: the server span becomes a child of the caller's")


def _inspect_tracestate(header: str, text: str) -> Inspection:
    try:
        state = TraceState.parse(text)
    except InvalidHeaderError as error:
        return _refused(header, text, error, "is dropped whole; the traceparent beside it stays")
    fields = tuple(Field(key, value, _vendor(key)) for key, value in state.members)
    return _accepted(header, text, fields, "is passed on as it is, beside a valid traceparent only")


def _vendor(key: str) -> str:
    tenant, at, system = key.rpartition("@")
    return f"of {system}, tenant {tenant}" if at else ""


def _inspect_baggage(header: str, text: str) -> Inspection:
    display, offsets = escaped_with_offsets(text)
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
            faults.append(Fault(error.reason, REASONS["baggage"][error.reason], at, offsets[at]))
        else:
            fields.append(Field(key, shown(value, None), f"properties {value.properties}" if value.properties else ""))
    _, dropped = parse_baggage(text)
    excess = [reason for reason in dropped if reason in ("too_many_members", "too_many_bytes")]
    faults += [Fault(reason, f"{REASONS['baggage'][reason]} ({MAX_MEMBERS}, {MAX_BYTES})") for reason in excess]
    consequence = "loses those members; the others stay" if faults else "is passed on, byte for byte"
    return Inspection(header, text, display, tuple(fields), tuple(faults), consequence)


def _inspect_b3(header: str, text: str) -> Inspection:
    try:
        context = B3Context.parse(text)
    except InvalidHeaderError as error:
        kept, _ = examine_b3({"b3": text})
        consequence = "is refused; a valid traceparent or x-b3-* beside it still counts"
        return _refused(header, text, error, consequence if kept is None else f"counts as {kept}; the rest is ignored")
    return _accepted(header, text, _b3_fields(context), "counts where b3 or b3multi is among the formats")


def _b3_fields(context: B3Context) -> tuple[Field, ...]:
    state = "debug" if context.debug else {None: "deferred", True: "sampled", False: "not sampled"}[context.sampled]
    ids = []
    if context.trace_id is not None and context.span_id is not None:
        bits = "64 bits, or 128 with zeros" if context.trace_id < 1 << 64 else "128 bits"
        ids = [Field("trace-id", f"{context.trace_id:032x}", bits), Field("span-id", f"{context.span_id:016x}")]
    return (*ids, Field("sampling", state, "the callee decides" if state == "deferred" else ""))


def _inspect_b3_multi(header: str, text: str) -> Inspection:
    if header not in _B3_MULTI:
        return _accepted(header, text, (), "is not read: the parent's parent says nothing to anyone")
    # One of these headers means nothing by itself, so valid ones are put in the place of the others.
    others: dict[str, str | None] = {"trace_id": "1" * 32, "span_id": "1" * 16, "sampled": None, "flags": None}
    try:
        B3Context.parse_multi(**{**others, _B3_MULTI[header]: text})
    except InvalidHeaderError as error:
        return _refused(header, text, error, _IGNORED if header in _OPTIONAL else _FATAL)
    fields = (Field(header.removeprefix("x-b3-"), text),)
    return _accepted(header, text, fields, "is read with the other x-b3-* headers")


def _accepted(header: str, text: str, fields: tuple[Field, ...], consequence: str) -> Inspection:
    return Inspection(header, text, escaped_with_offsets(text)[0], fields, (), consequence)


def _refused(header: str, text: str, error: InvalidHeaderError, consequence: str) -> Inspection:
    display, offsets = escaped_with_offsets(text)
    # A tracestate's faults are counted from the start of its text, those of the others from where the value begins.
    lead = 0 if header == "tracestate" else len(text) - len(text.lstrip(OWS))
    at = None if error.position is None else min(lead + error.position, len(text))
    reasons = REASONS["b3" if header.startswith("x-b3-") else header]
    fault = Fault(error.reason, reasons[error.reason], at, None if at is None else offsets[at])
    return Inspection(header, text, display, (), (fault,), consequence)


def escaped_with_offsets(text: str) -> tuple[str, list[int]]:
    """Return a text in printable ASCII, and where in it each character of the given text begins.

    The offsets have one more entry, for the end of the text, so that a caret can stand under any fault.
    """
    parts = [character_shown(char) for char in text]
    offsets = [0]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    return "".join(parts), offsets


_READERS: Final[dict[str, Callable[[str, str], Inspection]]] = {
    "traceparent": _inspect_traceparent,
    "tracestate": _inspect_tracestate,
    "baggage": _inspect_baggage,
    "b3": _inspect_b3,
}
