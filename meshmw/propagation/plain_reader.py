"""Inbound: the headers that nearly every request has, in one pass.

Knows the formats. Must not refuse anything: what asks for a word or a decision is handed on to a reader that takes its
time, and whose result is the same for all that is plain; a property test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

from opentelemetry.trace import SpanContext

from meshmw.errors import InvalidHeaderError
from meshmw.propagation.baggage_reader import REPEATED_BAGGAGE, BaggageReader
from meshmw.propagation.extraction import SENT_HEADER, Extraction
from meshmw.propagation.reading import Lines, one_line
from meshmw.propagation.span_context import FLAGS, NO_STATE, REPEATED_STATE, repeated_trace_state
from meshmw.rejections import Rejections
from meshmw.wire import BaggageValue
from meshmw.wire.traceparent import FLAG_SAMPLED, match_version_00

PASSTHROUGH_MAX_CHARACTERS: Final = 1024
# Shared, as remembered members are: nobody changes what baggage says.
_NO_MEMBERS: Final[Mapping[str, BaggageValue]] = {}
_TRACE: Final[tuple[str, ...]] = ("traceparent",)
_TRACE_AND_BAGGAGE: Final = (*_TRACE, "baggage")
_tuple_of: Final = tuple.__new__


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
        state, members, believed = NO_STATE, _NO_MEMBERS, _TRACE
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
            believed = _TRACE_AND_BAGGAGE
        self._accepted(believed)
        # As the tuples that they are: what their constructors would look at is known here. A test compares the two.
        span_context = _tuple_of(SpanContext, (trace_id, parent_id, True, FLAGS[flags], state, True))
        passthrough = carried(lines, self._passthrough)
        return _tuple_of(Extraction, (span_context, members, None, passthrough, {}, (), None))


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
