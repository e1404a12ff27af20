"""Inbound: the headers that nearly every request has, in one pass.

Knows the formats. Must not refuse anything: what asks for a word or a decision is left to `HeaderReader`, whose result
is the same wherever this one has any; a property test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from opentelemetry.trace import SpanContext

from meshmw.errors import InvalidHeaderError
from meshmw.propagation.baggage_reader import BaggageReader
from meshmw.propagation.extraction import SENT_HEADER, Extraction
from meshmw.propagation.reading import Lines, one_line
from meshmw.propagation.span_context import FLAGS, NO_STATE, REPEATED_CHARACTERS, repeated_trace_state
from meshmw.rejections import Rejections
from meshmw.wire import BaggageValue
from meshmw.wire.traceparent import FLAG_SAMPLED, match_version_00

PASSTHROUGH_MAX_CHARACTERS: Final = 1024
# Shared, as remembered members are: nobody changes what baggage says.
_NO_MEMBERS: Final[Mapping[str, BaggageValue]] = {}


class PlainReader:
    """Reads one valid traceparent with what may stand beside it: tracestate, baggage, and headers to carry on.

    Args:
        baggage: Reads baggage; None where it is not read.
        passthrough: Names, in lower case, of headers to carry on.
        rejections: Counts what is believed.
    """

    def __init__(self, baggage: BaggageReader | None, passthrough: Collection[str], rejections: Rejections) -> None:
        self._baggage = baggage
        self._passthrough = tuple(passthrough)
        self._accepted = rejections.accepted

    def read(self, lines: Lines) -> Extraction | None:
        """Return what the lines say, or None where they ask for more than this."""
        found = lines.get("traceparent")
        parent = match_version_00(found[0]) if found and len(found) == 1 else None
        if parent is None:
            return None
        trace_id, parent_id, flags = parent
        state, members = NO_STATE, _NO_MEMBERS
        if SENT_HEADER in lines and not flags & FLAG_SAMPLED:
            return None
        if "tracestate" in lines:
            found = lines["tracestate"]
            # Here and below: what `one_line` does with nearly every header, without the call.
            text = found[0] if len(found) == 1 else one_line(found)
            if len(text) > REPEATED_CHARACTERS:
                return None
            try:
                state = repeated_trace_state(text)
            except InvalidHeaderError:
                return None
        if "baggage" in lines and self._baggage is not None:
            read = self._baggage.read_short(lines["baggage"])
            if read is None or read.must_change:
                return None
            members = read.members
            self._accepted("baggage")
        self._accepted("traceparent")
        # As the tuples that they are: what their constructors would look at is known here. A test compares the two.
        span_context = tuple.__new__(SpanContext, (trace_id, parent_id, True, FLAGS[flags], state, True))
        passthrough = carried(lines, self._passthrough)
        return tuple.__new__(Extraction, (span_context, members, None, passthrough, {}, (), None))


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
