"""What one request's headers say, after validation, and how that enters an OpenTelemetry context.

`HeaderReader.read` makes an `Extraction` of header lines, and `Extraction.into` a context of that. Nearly every request
is plain: it has one valid traceparent, and a tracestate and baggage that are good as they came. A plain request is read
in one pass. Any other is read with care, which counts, warns and lists what is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Final, NamedTuple

from opentelemetry.context import Context, create_key
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from meshmw._context.carriers import Lines
from meshmw._context.read_baggage import MEMBERS_DROPPED, REPEATED_BAGGAGE, BaggageReader, ReadBaggage
from meshmw._context.read_trace import NO_STATE, REPEATED_STATE, Reading, TraceReader, repeated_trace_state
from meshmw._notices import IS_COUNTED, Rejections
from meshmw._otel import BAGGAGE_KEY, SPAN_CONTEXT, SPAN_KEY
from meshmw._policy.words import Trust
from meshmw.errors import InvalidHeaderError
from meshmw.wire import B3Context, BaggageValue
from meshmw.wire.headers import B3_HEADERS, PROPAGATION_HEADERS, SENT_HEADER
from meshmw.wire.traceparent import FLAG_SAMPLED, KNOWN_FLAGS, VERSION_00

B3_KEY: Final = create_key("meshmw-b3")
PASSTHROUGH_KEY: Final = create_key("meshmw-passthrough")
# The Extraction that a context was made of: a host's telemetry may read a request before we do.
READ_KEY: Final = create_key("meshmw-read")
_OF_ONE_REQUEST: Final = frozenset({SPAN_KEY, BAGGAGE_KEY, B3_KEY, PASSTHROUGH_KEY, READ_KEY})

PASSTHROUGH_MAX_CHARACTERS: Final = 1024
# One object for each two digits that flags can be; W3C Trace Context clears all other bits (section 3.2.2.5.3).
TRACE_FLAGS: Final = {f"{bits:02x}": TraceFlags(bits & KNOWN_FLAGS) for bits in range(256)}
# Shared, as remembered members are: nobody changes what baggage says.
_NO_MEMBERS: Final[Mapping[str, BaggageValue]] = {}
_UNPLAIN: Final = B3_HEADERS | {SENT_HEADER}
_TRACE: Final[tuple[str, ...]] = ("traceparent",)
_TRACE_AND_BAGGAGE: Final = (*_TRACE, "baggage")
_STRIPPED: Final = (
    "- tracestate or baggage came without it, as if a proxy had stripped it; the request starts a new trace"
)


class Extraction(NamedTuple):
    """Holds what one request's headers say, after validation.

    Attributes:
        span_context: The remote parent, or None where no header gave a valid one.
        baggage: Decoded values by key; each keeps its raw text. Shared by requests that say the same.
        b3: The B3 context that decided, for what trace flags cannot say (deferred, debug).
        passthrough: Headers that outbound calls carry on as they are.
        rewrites: For each header that must not stay as it came: the line to put in its place, or None to remove it.
        refused: Pairs of header and reason, for the span to record.
        rejected: A parent that was named but is not trusted, for the span to link to.
    """

    span_context: SpanContext | None
    baggage: Mapping[str, BaggageValue]
    b3: B3Context | None
    passthrough: dict[str, str]
    rewrites: dict[str, str | None]
    refused: tuple[tuple[str, str], ...]
    rejected: SpanContext | None

    @property
    def says_something(self) -> bool:
        """Say whether any header of this request said anything, and so tells it from other requests."""
        return bool(self.span_context or self.b3 or self.refused or self.baggage or self.passthrough)

    def trusted(self, trust: Trust) -> Extraction:
        """Return what remains where the sender is trusted so far: all, a link to its span, or nothing of it."""
        if trust == "continue":
            return self
        return self._replace(
            span_context=None,
            baggage={},
            b3=None,
            # Other headers that are passed on may name a trace too; the request id names this request alone.
            passthrough={name: text for name, text in self.passthrough.items() if name == "x-request-id"},
            rewrites={**self.rewrites, **dict.fromkeys((*PROPAGATION_HEADERS, SENT_HEADER))},
            rejected=(self.span_context or self.rejected) if trust == "restart" else None,
        )

    def into(self, base: Mapping[str, object]) -> Context:
        """Return *base* with this extraction in it, and with no span or baggage of another request."""
        return Context(self.entries_over(base))

    def entries_over(self, base: Mapping[str, object]) -> dict[str, object]:
        """Return what `into` does as a dictionary of the caller's own."""
        if not base:
            return self.entries()
        return {key: value for key, value in base.items() if key not in _OF_ONE_REQUEST} | self.entries()

    def entries(self) -> dict[str, object]:
        """Return what a context holds of this extraction, by key."""
        entries: dict[str, object] = {}
        if self.span_context is not None:
            entries[SPAN_KEY] = NonRecordingSpan(self.span_context)
        if self.baggage:
            entries[BAGGAGE_KEY] = self.baggage
        if self.b3 is not None:
            entries[B3_KEY] = self.b3
        if self.passthrough:
            entries[PASSTHROUGH_KEY] = self.passthrough
        return entries


# Makes one of all its items. A named tuple's own constructor takes longer than to read a traceparent.
_EXTRACTION: Final[Callable[[tuple[object, ...]], Extraction]] = partial(tuple.__new__, Extraction)


class HeaderReader:
    """Turns the header lines of one request into an `Extraction`. Nothing in the lines can make it raise.

    Args:
        trace: Reads the parent.
        baggage: Reads baggage.
        takes_baggage: Whether baggage is taken; where it is not, the header loses what is bad all the same.
        passthrough: Names, in lower case, of headers to carry on.
        rejections: Counts and warns.
    """

    def __init__(
        self,
        *,
        trace: TraceReader,
        baggage: BaggageReader,
        passthrough: Collection[str],
        rejections: Rejections,
        takes_baggage: bool = True,
    ) -> None:
        self._trace = trace
        self._baggage = baggage
        self._takes_baggage = takes_baggage
        self._passthrough = tuple(passthrough)
        self._rejections = rejections
        # B3 beside a traceparent is always a decision.
        self._reads_plain = trace.reads_w3c and not trace.reads_b3

    def read(self, lines: Lines) -> Extraction:
        """Return what the lines say; refused headers are counted, warned of and listed."""
        return (self._reads_plain and self._read_plain(lines)) or self.read_with_care(lines)

    def read_with_care(self, lines: Lines) -> Extraction:
        """Return what `read` does, of a plain request too without the one pass."""
        reading = Reading(lines, self._rejections)
        parent, b3 = self._trace.read(reading)
        baggage = self._read_baggage(reading)
        if parent is None and self._is_stripped(lines, baggage):
            reading.refuse("traceparent", "missing", _STRIPPED)
        passthrough = _carried(lines, self._passthrough)
        return Extraction(parent, baggage, b3, passthrough, reading.rewrites, reading.refused, reading.rejected)

    def _read_plain(self, lines: Lines) -> Extraction | None:
        """Return what the lines of a plain request say, or of one that only its baggage keeps from being plain.

        Of any other request return None, and count nothing.
        """
        # Several lines make a text that no grammar of one value takes; one line stays as it is.
        match = VERSION_00.fullmatch(",".join(lines.get("traceparent", ())))
        if match is None:
            return None
        trace_id, parent_id, digits = match.groups()
        flags, state, members, accepted = TRACE_FLAGS[digits], NO_STATE, _NO_MEMBERS, _TRACE
        # B3 is looked at where it is not read too: what is malformed of it must not stay.
        if not _UNPLAIN.isdisjoint(lines) and (not flags & FLAG_SAMPLED or not B3_HEADERS.isdisjoint(lines)):
            return None
        if "tracestate" in lines:
            text = ",".join(lines["tracestate"])
            if len(text) > REPEATED_STATE:
                return None
            found = repeated_trace_state(text)
            if isinstance(found, InvalidHeaderError):
                return None
            state = found
        # The grammar refuses ids that are not valid.
        span_context = SPAN_CONTEXT((int(trace_id, 16), int(parent_id, 16), True, flags, state, True))
        if "baggage" in lines:
            text = ",".join(lines["baggage"])
            if len(text) > REPEATED_BAGGAGE:
                return self._read_beside(span_context, lines, self._baggage.read_long(text))
            members, _, must_change = self._baggage.repeated(text)
            if must_change or not self._takes_baggage:
                return self._read_beside(span_context, lines, self._baggage.repeated(text))
            accepted = _TRACE_AND_BAGGAGE
        # Without a meter provider there is nobody to count for.
        if IS_COUNTED():
            self._rejections.accepted(accepted)
        return _EXTRACTION((span_context, members, None, _carried(lines, self._passthrough), {}, (), None))

    def _read_beside(self, parent: SpanContext, lines: Lines, read: ReadBaggage) -> Extraction:
        """Return what the lines of a request say that is plain but for its baggage, which was read."""
        reading = Reading(lines, self._rejections)
        reading.accept("traceparent")
        baggage = self._take_baggage(reading, read)
        return Extraction(
            parent, baggage, None, _carried(lines, self._passthrough), reading.rewrites, reading.refused, None
        )

    def _read_baggage(self, reading: Reading) -> Mapping[str, BaggageValue]:
        if "baggage" not in reading.lines:
            return _NO_MEMBERS
        return self._take_baggage(reading, self._baggage.read(reading.lines["baggage"]))

    def _take_baggage(self, reading: Reading, read: ReadBaggage) -> Mapping[str, BaggageValue]:
        reading.takes = self._takes_baggage
        if read.must_change:
            reading.rewrites["baggage"] = read.rewrite
        for reason in read.reasons:
            reading.refuse("baggage", reason, MEMBERS_DROPPED)
        if not read.reasons:
            reading.accept("baggage")
        return read.members if self._takes_baggage else _NO_MEMBERS

    def _is_stripped(self, lines: Lines, baggage: Mapping[str, BaggageValue]) -> bool:
        beside = baggage or any(lines.get("tracestate", ()))
        return bool(beside) and self._trace.reads_w3c and "traceparent" not in lines


def _carried(lines: Lines, names: Collection[str]) -> dict[str, str]:
    """Return the headers of some names that outbound requests may carry on as they came."""
    found = {}
    for name in names:
        if name in lines:
            text = ",".join(lines[name])
            if 0 < len(text) <= PASSTHROUGH_MAX_CHARACTERS and text.isascii() and text.isprintable():
                found[name] = text
    return found
