"""What tells one HTTP request from another. Must not know OpenTelemetry, nor how a span lives."""

from __future__ import annotations

from typing import NamedTuple

from meshmw.propagation.getters import are_same
from meshmw.propagation.reading import Lines


class Request(NamedTuple):
    """Tells one request from others.

    Attributes:
        method: Its method.
        path: Its path, whole.
        lines: Its header lines as the application sees them, by name in lower case.
        protocol: Between server and application: `asgi` or `wsgi`.
    """

    method: str
    path: str
    lines: Lines
    protocol: str

    def is_same(self, other: Request) -> bool:
        """Say whether this is the other request in another protocol.

        Within one protocol the mark in the scope or environ tells, and a request that looks alike is another one.
        """
        if self.protocol == other.protocol or (self.method, self.path) != (other.method, other.path):
            return False
        return all(are_same(self.lines.get(name), other.lines.get(name)) for name in {*self.lines, *other.lines})
