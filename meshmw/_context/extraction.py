"""What one request's headers say, after validation, and how that enters an OpenTelemetry context."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from opentelemetry.context import Context, create_key
from opentelemetry.trace import NonRecordingSpan, SpanContext

from meshmw._notices import Rejections
from meshmw._otel import BAGGAGE_KEY, SPAN_KEY
from meshmw._policy.words import Trust
from meshmw.wire import B3Context, BaggageValue
from meshmw.wire.headers import PROPAGATION_HEADERS, SENT_HEADER

B3_KEY: Final = create_key("meshmw-b3")
PASSTHROUGH_KEY: Final = create_key("meshmw-passthrough")
# The Extraction that a context was made of: a host's telemetry may read a request before we do.
READ_KEY: Final = create_key("meshmw-read")
_OF_ONE_REQUEST: Final = frozenset({SPAN_KEY, BAGGAGE_KEY, B3_KEY, PASSTHROUGH_KEY, READ_KEY})


class Extraction(NamedTuple):
    """Says what one request's headers say, after validation.

    Attributes:
        span_context: The remote parent, or None where no header gave a valid one.
        baggage: Decoded values by key; each keeps its raw text. Shared by requests that say the same.
        b3: The B3 context that was believed, for what trace flags cannot say (deferred, debug).
        passthrough: Headers that outbound calls carry on as they are.
        rewrites: For each header that must not stay as it came: the line to put in its place, or None to remove it.
        refused: Pairs of header and reason, for the span to tell.
        rejected: A parent that was named but is not believed, for the span to link to.
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
        return bool(self.span_context or self.refused or self.baggage or self.passthrough)

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
        if not base:
            return Context(self.entries())
        return Context({key: value for key, value in base.items() if key not in _OF_ONE_REQUEST} | self.entries())

    def entries(self) -> dict[str, object]:
        """Return what a context holds of this extraction, by key."""
        span_context, baggage, b3, passthrough, _, _, _ = self
        entries: dict[str, object] = {} if span_context is None else {SPAN_KEY: NonRecordingSpan(span_context)}
        if baggage:
            entries[BAGGAGE_KEY] = baggage
        if b3 is not None:
            entries[B3_KEY] = b3
        if passthrough:
            entries[PASSTHROUGH_KEY] = passthrough
        return entries


# What is found out while the headers of one request are read.


Lines = Mapping[str, Sequence[str]]


def one_line(lines: Sequence[str]) -> str:
    """Return a header's lines as the one that they stand for (RFC 9110, 5.3)."""
    return lines[0] if len(lines) == 1 else ",".join(lines)


class Reading:
    """Collects, for one request, what was refused and why, and what must change in the headers.

    Attributes:
        lines: The header lines, by name in lower case.
        refused: Pairs of header and reason, in the order in which they were met.
        rejected: The parent that a refused header named, where it still parses: for a link.
        rewrites: For each header that must not stay as it came: the line to put in its place, or None to remove it.
        accept: Counts a header that is believed.
    """

    __slots__ = ("_rejections", "accept", "lines", "refused", "rejected", "rewrites")

    def __init__(self, lines: Lines, rejections: Rejections) -> None:
        self.lines = lines
        self.refused: tuple[tuple[str, str], ...] = ()
        self.rejected: SpanContext | None = None
        self.rewrites: dict[str, str | None] = {}
        self._rejections = rejections
        self.accept = rejections.accepted

    def line(self, name: str) -> str | None:
        """Return a header's text, several lines joined (RFC 9110, 5.3), so that no grammar of one value takes two."""
        found = self.lines.get(name)
        return one_line(found) if found else None

    def refuse(
        self, header: str, reason: str, consequence: str, text: str | None = None, *, remove: Iterable[str] = ()
    ) -> None:
        """Count and say a refusal, note it for the span, and mark headers for removal."""
        self._rejections.record(header, reason, consequence, text)
        self.refused += ((header, reason),)
        for name in remove:
            self.rewrites[name] = None

    def note(self, header: str, reason: str, consequence: str) -> None:
        """Count and say what is odd about a header that is believed all the same, and note it for the span."""
        self._rejections.record(header, reason, consequence, outcome="noted")
        self.refused += ((header, reason),)
