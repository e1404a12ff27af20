"""Inbound: reads all headers of one request, and says what is believed of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from opentelemetry.trace import SpanContext

from meshmw._context.extraction import Extraction, Lines, Reading, one_line
from meshmw._context.read_trace import FLAGS, NO_STATE, REPEATED_STATE, TraceReader, repeated_trace_state
from meshmw._notices import Rejections
from meshmw._policy.patterns import BaggageKeys
from meshmw.errors import InvalidHeaderError
from meshmw.wire import BaggageValue, parse_baggage
from meshmw.wire.headers import SENT_HEADER
from meshmw.wire.traceparent import FLAG_SAMPLED, match_version_00

# Inbound: what the baggage of one request says, and whether its header may stay as it came.


# Peers repeat the same baggage on many requests. What is read of it is shared, and nobody changes it.
REPEATED_BAGGAGE: Final = 8192
_CACHE_ENTRIES: Final = 256
_LIMITS: Final = frozenset({"too_many_members", "too_many_bytes"})


class ReadBaggage(NamedTuple):
    """Is what baggage says, and what is to be done about its header.

    Attributes:
        members: What is let in.
        reasons: Why others were left out.
        must_change: Whether the header must not stay as it came; so it is wherever there are reasons.
    """

    members: Mapping[str, BaggageValue]
    reasons: tuple[str, ...]
    must_change: bool


class BaggageReader:
    """Reads baggage within limits, and remembers what it has read.

    Args:
        keys: Which keys are let in.
        max_members: Members kept, all lines together.
        max_bytes: Bytes kept, all lines together, commas included.

    Attributes:
        repeated: Does as `read` with one line of at most `REPEATED_BAGGAGE`.
    """

    def __init__(self, keys: BaggageKeys, max_members: int, max_bytes: int) -> None:
        self._keys = keys
        self._max_members = max_members
        self._max_bytes = max_bytes
        self.repeated = lru_cache(maxsize=_CACHE_ENTRIES)(self._read)

    def read(self, lines: Sequence[str]) -> ReadBaggage:
        """Return what all lines say together; nobody may change it."""
        text = one_line(lines)
        if len(text) <= REPEATED_BAGGAGE:
            return self.repeated(text)
        # Where a limit is reached in the beginning, nothing beyond it is looked at, so nothing else need be known.
        read = self.repeated(text[:REPEATED_BAGGAGE].rpartition(",")[0])
        return self._read(text) if _LIMITS.isdisjoint(read.reasons) else read

    def _read(self, text: str) -> ReadBaggage:
        read, reasons = parse_baggage(text, max_members=self._max_members, max_bytes=self._max_bytes)
        members = self._keys.permitted(read)
        # Blanks and commas are refused by no rule, and count for the next proxy all the same.
        must_change = bool(reasons) or len(members) < len(read) or len(text) > self._max_bytes
        return ReadBaggage(members, reasons, must_change)


# Inbound: the headers that nearly every request has, in one pass.


PASSTHROUGH_MAX_CHARACTERS: Final = 1024
# Shared, as remembered members are: nobody changes what baggage says.
_NO_MEMBERS: Final[Mapping[str, BaggageValue]] = {}
_TRACE: Final[tuple[str, ...]] = ("traceparent",)
_TRACE_AND_BAGGAGE: Final = (*_TRACE, "baggage")


class PlainReader:
    """Reads one valid traceparent with what may stand beside it: tracestate, baggage, and headers to carry on.

    Args:
        baggage: Reads baggage; None where it is not read.
        passthrough: Names, in lower case, of headers to carry on.
        rejections: Counts what is believed.
        otherwise: Reads all other requests.
    """

    def __init__(
        self,
        *,
        baggage: BaggageReader | None,
        passthrough: Collection[str],
        rejections: Rejections,
        otherwise: Callable[[Lines], Extraction],
    ) -> None:
        self._baggage = baggage
        self._passthrough = tuple(passthrough)
        self._accepted = rejections.accepted
        self._otherwise = otherwise

    def read(self, lines: Lines) -> Extraction:
        """Return what the lines say."""
        found = lines.get("traceparent")
        parent = match_version_00(found[0]) if found and len(found) == 1 else None
        if parent is None:
            return self._otherwise(lines)
        trace_id, parent_id, flags = parent
        state, members, accepted = NO_STATE, _NO_MEMBERS, _TRACE
        if SENT_HEADER in lines and not flags & FLAG_SAMPLED:
            return self._otherwise(lines)
        if "tracestate" in lines:
            found = lines["tracestate"]
            # Here and below: what `one_line` does with nearly every header, without the call.
            text = found[0] if len(found) == 1 else one_line(found)
            if len(text) > REPEATED_STATE:
                return self._otherwise(lines)
            try:
                state = repeated_trace_state(text)
            except InvalidHeaderError:
                return self._otherwise(lines)
        if "baggage" in lines and self._baggage is not None:
            found = lines["baggage"]
            text = found[0] if len(found) == 1 else one_line(found)
            if len(text) > REPEATED_BAGGAGE:
                return self._otherwise(lines)
            members, _, must_change = self._baggage.repeated(text)
            if must_change:
                return self._otherwise(lines)
            accepted = _TRACE_AND_BAGGAGE
        self._accepted(accepted)
        span_context = SpanContext(trace_id, parent_id, True, FLAGS[flags], state)
        passthrough = carried(lines, self._passthrough)
        return Extraction(span_context, members, None, passthrough, {}, (), None)


def carried(lines: Lines, names: Collection[str]) -> dict[str, str]:
    """Return the headers of some names that outbound requests may carry on as they came."""
    found = {}
    for name in names:
        if name in lines:
            values = lines[name]
            text = values[0] if len(values) == 1 else one_line(values)
            if 0 < len(text) <= PASSTHROUGH_MAX_CHARACTERS and text.isascii() and text.isprintable():
                found[name] = text
    return found


STRIPPED: Final = (
    "- tracestate or baggage came without it, as if a proxy had stripped it; the request starts a new trace"
)


class HeaderReader:
    """Turns the header lines of one request into an `Extraction`. Nothing in the lines can make it raise.

    Args:
        trace: Reads the parent.
        baggage: Reads baggage; None where it is not read.
        passthrough: Names, in lower case, of headers to carry on.
        rejections: Counts and warns.

    Attributes:
        read: Returns what the lines say; refused ones are counted, warned of and listed.
    """

    def __init__(
        self,
        *,
        trace: TraceReader,
        baggage: BaggageReader | None,
        passthrough: Collection[str],
        rejections: Rejections,
    ) -> None:
        self._trace = trace
        self._baggage = baggage
        self._passthrough = tuple(passthrough)
        self._rejections = rejections
        plain = PlainReader(
            baggage=baggage, passthrough=passthrough, rejections=rejections, otherwise=self.read_with_care
        )
        # B3 beside a traceparent is always a decision.
        is_plain = trace.reads_w3c and not trace.reads_b3
        self.read: Callable[[Lines], Extraction] = plain.read if is_plain else self.read_with_care

    def read_with_care(self, lines: Lines) -> Extraction:
        """Do as `read`, and look at everything."""
        reading = Reading(lines, self._rejections)
        parent, b3 = self._trace.read(reading)
        baggage = _read_baggage(reading, self._baggage) if "baggage" in lines and self._baggage else {}
        if parent is None and self._is_stripped(lines, baggage):
            reading.refuse("traceparent", "missing", STRIPPED)
        passthrough = carried(lines, self._passthrough)
        return Extraction(parent, baggage, b3, passthrough, reading.rewrites, reading.refused, reading.rejected)

    def _is_stripped(self, lines: Lines, baggage: Mapping[str, BaggageValue]) -> bool:
        beside = baggage or any(lines.get("tracestate", ()))
        return bool(beside) and self._trace.reads_w3c and "traceparent" not in lines


def _read_baggage(reading: Reading, reader: BaggageReader) -> Mapping[str, BaggageValue]:
    members, reasons, must_change = reader.read(reading.lines["baggage"])
    if must_change:
        reading.rewrites["baggage"] = ",".join(value.raw for value in members.values()) or None
    for reason in reasons:
        reading.refuse("baggage", reason, "- the members concerned are dropped, the others kept")
    if not reasons:
        reading.accept(("baggage",))
    return members


_DROPPED: Final = "- the members concerned are dropped, the others kept"


class BaggageLimit:
    def __init__(self, max_members: int, max_bytes: int, warn_window: float) -> None:
        if max_members < 0 or max_bytes < 0:
            raise ValueError("limits of baggage are 0 or more")
        self._max_members = max_members
        self._max_bytes = max_bytes
        self._rejections = Rejections(warn_window)

    def rewrites(self, lines: Sequence[str]) -> dict[str, str | None]:
        """Return what to put in the place of the header, None to remove it; nothing where it may stay."""
        members, reasons = parse_baggage(lines, max_members=self._max_members, max_bytes=self._max_bytes)
        for reason in reasons:
            self._rejections.record("baggage", reason, _DROPPED)
        # Empty members and blanks are no members, and yet take bytes.
        if not reasons and sum(map(len, lines)) + len(lines) - 1 <= self._max_bytes:
            return {}
        return {"baggage": ",".join(value.raw for value in members.values()) or None}
