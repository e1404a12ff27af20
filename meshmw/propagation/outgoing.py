"""Outbound: the headers of one call, what must not stay beside them, and what its host is not to get.

Knows what a caller may have written by hand. Must not know clients or a span's life.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, MutableMapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Setter, default_setter

from meshmw.propagation.extraction import PROPAGATION_HEADERS
from meshmw.propagation.getters import texts
from meshmw.propagation.outbound import OutboundScope, Pairs
from meshmw.propagation.reader import HeaderReader
from meshmw.propagation.reading import Lines
from meshmw.propagation.writer import HeaderWriter
from meshmw.rejections import Rejections


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

    def replace(
        self, context: Context, present: Iterable[tuple[str, str]], host: str | None
    ) -> tuple[dict[str, str], frozenset[str]]:
        """Return the headers to write, and the names in lower case of those to remove first."""
        headers = self._writer.write(context)
        stale = self._writer.stale(headers)
        carried = self._writer.passthrough(context)
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

    def replace_in(
        self, carrier: MutableMapping[Any, Any], context: Context, setter: Setter[Any], host: str | None
    ) -> None:
        """Replace the propagation headers of a mapping, whatever their case."""
        if not carrier and host is None:
            # Nothing is there that could be stale, and nothing is withheld.
            headers = self._writer.write(context)
            headers.update(self._writer.passthrough(context))
        else:
            present = [(key, text) for key, value in carrier.items() if isinstance(key, str) for text in texts(value)]
            headers, stale = self.replace(context, present, host)
            for key in [key for key in carrier if isinstance(key, str) and key.lower() in stale]:
                del carrier[key]
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
