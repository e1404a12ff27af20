"""Inbound: reads all headers of one request, and says what is believed of them.

Knows the formats and the policy. Must not know carriers, frameworks or a span's life.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

from meshmw.propagation.baggage_reader import BaggageReader
from meshmw.propagation.extraction import Extraction
from meshmw.propagation.plain_reader import PlainReader, carried
from meshmw.propagation.reading import Lines, Reading
from meshmw.propagation.trace_reader import TraceReader
from meshmw.rejections import Rejections
from meshmw.wire import BaggageValue

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
