"""Outbound: the headers of one call, what must not stay beside them, and what its host is not to get.

`HeaderWriter` writes what a context holds. `OutgoingHeaders` puts that on a call in place of every trace header that is
there, and leaves to `OutboundScope` what a host gets of it.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, MutableMapping
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Setter, default_setter
from opentelemetry.trace import Span, SpanContext, TraceState

from meshmw._context.carriers import Lines, as_lines
from meshmw._context.extraction import B3_KEY, PASSTHROUGH_KEY, HeaderReader
from meshmw._notices import Rejections
from meshmw._otel import BAGGAGE_KEY, SPAN_KEY, W3CTraceState
from meshmw._policy.outbound import OutboundScope, Pairs
from meshmw._policy.patterns import BaggageKeys
from meshmw.errors import InvalidHeaderError
from meshmw.wire import B3Context, format_baggage, format_traceparent
from meshmw.wire import TraceState as WireTraceState
from meshmw.wire.headers import B3_HEADERS, PROPAGATION_HEADERS, SENT_HEADER, TRACE_HEADERS

_TRACE_FORMATS: Final = TRACE_HEADERS | B3_HEADERS
# Only our client writes it, and each time anew.
_NEVER_KEPT: Final = frozenset({SENT_HEADER})
# The names that must not stay on a carrier, by whether baggage and whether a trace is written to it.
_STALE: Final = {
    (False, False): _NEVER_KEPT,
    (True, False): _NEVER_KEPT | {"baggage"},
    (False, True): _NEVER_KEPT | _TRACE_FORMATS,
    (True, True): _NEVER_KEPT | _TRACE_FORMATS | {"baggage"},
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
        parent = span.get_span_context() if span is not None and isinstance(span, Span) else None
        if parent is not None and parent.is_valid:
            self._write_trace(parent, context, headers)
        elif self._writes_b3:
            self._write_decision(context.get(B3_KEY), headers)
        members = context.get(BAGGAGE_KEY)
        if members and isinstance(members, dict) and "baggage" in self._formats:
            self._write_baggage(members, headers)
        return headers

    def _write_trace(self, parent: SpanContext, context: Context, headers: dict[str, str]) -> None:
        if "tracecontext" in self._formats:
            headers["traceparent"] = format_traceparent(parent.trace_id, parent.span_id, parent.trace_flags)
            if text := _state_text(parent.trace_state):
                headers["tracestate"] = text
        if self._writes_b3:
            self._write_b3(_outgoing_b3(parent, context.get(B3_KEY)), headers)

    def _write_b3(self, b3: B3Context, headers: dict[str, str]) -> None:
        if "b3" in self._formats:
            headers["b3"] = str(b3)
        if "b3multi" in self._formats:
            headers.update(b3.to_multi())

    def _write_decision(self, received: object, headers: dict[str, str]) -> None:
        """Pass on a decision that came without ids, where nobody has begun the trace that it is for."""
        if isinstance(received, B3Context) and received.trace_id is None:
            self._write_b3(received, headers)

    def _write_baggage(self, members: dict[str, object], headers: dict[str, str]) -> None:
        permitted = self._keys.permitted(members)
        text, reasons = format_baggage(permitted, max_members=self._max_members, max_bytes=self._max_bytes)
        for reason in reasons:
            self._rejections.record("baggage", reason, "- the members concerned are not sent, the others are")
        if text:
            headers["baggage"] = text


class OutgoingHeaders:
    """Replaces the propagation headers of outbound calls.

    Args:
        writer: Writes the headers of a context.
        checker: Reads what a caller wrote, without counting it as a request.
        scope: Withholds what a host is not to get.
        rejections: Counts and warns.
        watched: The names, in lower case, of all headers that are replaced, removed or checked.
    """

    def __init__(
        self,
        *,
        writer: HeaderWriter,
        checker: HeaderReader,
        scope: OutboundScope,
        rejections: Rejections,
        watched: Container[bytes],
    ) -> None:
        self._writer = writer
        self._checker = checker
        self._scope = scope
        self._rejections = rejections
        self._watched = watched
        self._owns_baggage = "baggage" in writer.fields

    def replace(
        self, context: Context, present: Iterable[tuple[str, str]], host: str | None
    ) -> tuple[dict[str, str], frozenset[str]]:
        """Return the headers to write, and the names in lower case of those to remove first."""
        headers = self._writer.write(context)
        # A caller's baggage is stale beside a trace too, also where the context has none: it may have been taken away.
        has_baggage = "baggage" in headers or (self._owns_baggage and bool(headers))
        # A trace header of any format is stale once this process sends a trace of its own (W3C Trace Context, 3.4).
        stale = _STALE[has_baggage, not _TRACE_FORMATS.isdisjoint(headers)]
        carried = passthrough(context)
        kept: dict[str, list[str]] = {}
        for name, value in present:
            if name.lower() not in stale:
                kept.setdefault(name.lower(), []).append(value)
        if kept:
            carried = {name: text for name, text in carried.items() if name not in kept}
            if not kept.keys().isdisjoint(PROPAGATION_HEADERS):
                rewrites = self._check(kept)
                stale |= rewrites.keys()
                headers.update((name, text) for name, text in rewrites.items() if text is not None)
        if host is not None:
            return self._scope.narrow(host, headers, carried, stale)
        headers.update(carried)
        return headers, stale

    def replace_lines(self, lines: Pairs, context: Context, host: str, method: str, target: bytes) -> Pairs:
        """Replace the propagation headers of an HTTP request, and cut baggage that does not fit."""
        watched = self._watched
        present = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in lines if name.lower() in watched
        ]
        headers, stale = self.replace(context, present, host)
        if present:
            lines = [line for line in lines if line[0].lower().decode("latin-1") not in stale]
        lines += [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
        return self._scope.fit(lines, method, target)

    def replace_in_request(
        self, headers: MutableMapping[Any, Any], context: Context, host: str, method: str, target: bytes
    ) -> None:
        """Do so in the mapping in which a client keeps a request's headers; the others stay the objects they are."""
        lines = lines_in(headers)
        sent = self.replace_lines(list(lines), context, host, method, target)
        # Counted: of two equal lines, one may be left.
        before, after = Counter(lines), Counter(sent)
        changed = {name.lower() for name, _ in (before - after) + (after - before)}
        for name in [name for name in headers if _bytes(name).lower() in changed]:
            # A mapping with several lines of one name has removed them with the first.
            headers.pop(name, None)
        # One that can have several has a way to add the second.
        put = getattr(headers, "add", headers.__setitem__)
        for line, value in sent:
            if line.lower() in changed:
                put(line.decode("ascii"), value.decode("latin-1"))

    def replace_in(self, carrier: Any, context: Context, setter: Setter[Any], host: str | None) -> None:
        """Replace the propagation headers of a mapping or of a list of pairs, whatever their case."""
        if not carrier and host is None:
            # Nothing is there that could be stale, and nothing is withheld.
            headers = self._writer.write(context)
            headers.update(passthrough(context))
        else:
            named = list(filter(_is_named, carrier if isinstance(carrier, list) else carrier.items()))
            present = [(_text(name), line) for name, value in named for line in as_lines(value)]
            headers, stale = self.replace(context, present, host)
            _remove([pair for pair in named if _text(pair[0]).lower() in stale], carrier)
        if type(carrier) is dict and setter is default_setter:
            carrier.update(headers)
            return
        for name, value in headers.items():
            setter.set(carrier, name, value)

    def _check(self, lines: Lines) -> dict[str, str | None]:
        """Check what a caller has written by hand, and what this process does not replace (law 2)."""
        checked = self._checker.read(lines)
        for header, reason in checked.refused:
            if header in lines and reason != "flipped":
                consequence = "- it was written by hand on an outbound call, and is not sent"
                self._rejections.record(header, reason, consequence)
        return checked.rewrites


def lines_in(headers: Mapping[Any, Any]) -> Pairs:
    """Return the header lines of a request, as its client keeps them, as bytes."""
    return [(_bytes(name), _bytes(value)) for name, value in headers.items()]


def _bytes(text: object) -> bytes:
    # What is not ASCII is refused in each of our headers, in whatever encoding.
    return text if isinstance(text, bytes) else str(text).encode("utf-8", "surrogatepass")


def can_be_replaced_in(carrier: object) -> bool:
    """Say whether stale headers can be removed from a carrier: many headers' classes are no `MutableMapping`."""
    if isinstance(carrier, (dict, list, MutableMapping)):
        return True
    return hasattr(carrier, "items") and hasattr(carrier, "__delitem__")


def _is_named(pair: Any) -> bool:
    return isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str | bytes)


def _text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode("latin-1")


def _remove(stale: list[Any], carrier: Any) -> None:
    if isinstance(carrier, list):
        numbers = {id(pair) for pair in stale}
        carrier[:] = [pair for pair in carrier if id(pair) not in numbers]
        return
    for name, _ in stale:
        # A mapping that ignores case, or has several values of one name, may have removed it with another.
        with contextlib.suppress(KeyError):
            del carrier[name]


def passthrough(context: Context) -> dict[str, str]:
    """Return the headers that came in with the request and go out as they were."""
    carried = context.get(PASSTHROUGH_KEY)
    return carried if isinstance(carried, dict) else {}


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
    # A decision without ids is for the trace that begins with it.
    if isinstance(received, B3Context) and received.trace_id in (parent.trace_id, None):
        debug = received.debug
        if parent.is_remote and received.sampled is None:
            sampled = None
    return B3Context(parent.trace_id, parent.span_id, True if debug else sampled, debug)
