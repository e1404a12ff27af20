"""What is found out while the headers of one request are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from opentelemetry.trace import SpanContext

from meshmw.rejections import Rejections

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
