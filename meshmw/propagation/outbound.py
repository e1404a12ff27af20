"""Outbound: which hosts get what, and how much of it, checked for every single hop.

Knows header names and hosts. Must not know contexts, clients or a span's life.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from meshmw.policy.destinations import Destinations
from meshmw.policy.header_budget import HeaderBudget, request_line_bytes
from meshmw.propagation.extraction import PROPAGATION_HEADERS, SENT_HEADER
from meshmw.rejections import LOGGER, Rejections, excerpt

Pairs = list[tuple[bytes, bytes]]

# A crawler meets hosts without end; what is said of the first of them is enough.
_HOSTS_NAMED: Final = 256
# Of a traceparent: parent-id and trace-flags.
_SPAN_AND_FLAGS: Final = slice(36, 55)


class OutboundScope:
    """Withholds trace headers and baggage from hosts that are not to get them, and cuts what proxies would refuse.

    Args:
        propagate_to: Patterns of hosts that get trace headers, as `Destinations` takes them.
        baggage_to: Patterns of hosts that get baggage.
        budget: What the proxies on the way accept.
        rejections: Counts and warns.
    """

    def __init__(
        self, *, propagate_to: Sequence[str], baggage_to: Sequence[str], budget: HeaderBudget, rejections: Rejections
    ) -> None:
        self._propagate_to = Destinations(propagate_to)
        self._baggage_to = Destinations(baggage_to)
        self._budget = budget
        self._rejections = rejections
        self._named: set[str] = set()

    def narrow(
        self, host: str, headers: dict[str, str], carried: dict[str, str], stale: frozenset[str]
    ) -> tuple[dict[str, str], frozenset[str]]:
        """Return what of the headers goes to a host, and the names of those that must not stay on the request.

        Args:
            host: The request's host, without its port.
            headers: The propagation headers that would be written; they may be changed.
            carried: The headers to pass on; they go where baggage goes, and the request id where trace headers go.
            stale: The names of headers to remove first.
        """
        if not self._propagate_to.matches(host):
            return {}, PROPAGATION_HEADERS | {SENT_HEADER}
        if SENT_HEADER not in stale:
            stale |= {SENT_HEADER}
        if self._baggage_to.matches(host):
            headers.update(carried)
            # Only there: to strangers our own header says nothing.
            if "traceparent" in headers:
                headers[SENT_HEADER] = headers["traceparent"][_SPAN_AND_FLAGS]
            return headers, stale
        if "x-request-id" in carried:
            headers["x-request-id"] = carried["x-request-id"]
        if headers.pop("baggage", None) is not None:
            self._say_withheld(host)
        return headers, stale | {"baggage"}

    def fit(self, headers: Pairs, method: str, target: bytes) -> Pairs:
        """Return the headers with as much baggage as the proxies on the way accept; the last members go first."""
        cut = self._budget.cut(headers, request_line_bytes(method, target))
        if cut is None:
            return headers
        consequence = (
            f"- {cut.dropped_members} members are not sent: the request had {cut.bytes_before} bytes and "
            f"{cut.headers_before} headers, now {cut.bytes_after} and {cut.headers_after}"
        )
        if not cut.fits:
            consequence += "; other headers alone are too big, a proxy may answer 431"
        self._rejections.record("baggage", "header_budget", consequence)
        return cut.apply(headers)

    def _say_withheld(self, host: str) -> None:
        if host in self._named or len(self._named) >= _HOSTS_NAMED:
            return
        self._named.add(host)
        LOGGER.warning(
            "baggage is not sent to %s, which is not in the mesh; MESHMW_BAGGAGE_TO names the hosts that get it",
            excerpt(host),
        )
