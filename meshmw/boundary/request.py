"""One HTTP request as every server's adapter shows it, and what tells it from another one.

Must not know how a span lives, nor decide anything.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from meshmw.policy.request_view import RequestView
from meshmw.propagation.getters import are_same
from meshmw.propagation.reading import Lines
from meshmw.semconv.attributes import AttributeValue

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class Request(ABC):
    """Tells what is asked; each adapter reads the rest of it where its protocol keeps that, and only when asked.

    Args:
        method: Its method.
        path: Its path, whole.
        lines: Its header lines as the application sees them, by name in lower case.
        carrier: The scope or environ that it came in; held until the request is over and no longer, for contexts that
            outlive the request hold this object.

    Attributes:
        is_over: Whether its last byte was answered, or its operation has ended otherwise.
    """

    __slots__ = ("carrier", "is_over", "lines", "method", "path")

    protocol: ClassVar[Literal["asgi", "wsgi"]]

    def __init__(self, method: str, path: str, lines: Lines, carrier: MutableMapping[str, Any]) -> None:
        self.method = method
        self.path = path
        self.lines = lines
        self.carrier = carrier
        self.is_over = False

    @abstractmethod
    def view(self) -> RequestView:
        """Return what a trust decision looks at."""

    @abstractmethod
    def attributes(self) -> dict[str, AttributeValue]:
        """Return what a span says of the request as it arrives."""

    def host_span(self, read_by_host: bool) -> Span | None:
        """Return the span that the host marked as this request's, told whether one has read the lines; none here."""
        return None

    def rewrite(self, rewrites: dict[str, str | None]) -> None:
        """Replace or remove the named headers in what the application sees."""
        kept = {name: found for name, found in self.lines.items() if name not in rewrites}
        self.lines = kept | {name: [text] for name, text in rewrites.items() if text is not None}

    def close(self) -> None:
        """Let go of what the request came in."""
        self.is_over = True
        self.carrier = {}

    def is_same(self, other: Request) -> bool:
        """Say whether this, still under way, is the other request in another protocol.

        Within one protocol the mark in the scope or environ tells, and a request that looks alike is another one.
        """
        if self.is_over or self.protocol == other.protocol:
            return False
        if (self.method, self.path) != (other.method, other.path):
            return False
        return all(are_same(self.lines.get(name), other.lines.get(name)) for name in {*self.lines, *other.lines})
