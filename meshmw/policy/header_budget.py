"""Keeps a request below what the proxies on its way accept: baggage gives way before a proxy answers 431.

Pure, and the standard library alone. Must not know a client, a setting or a log.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

# Envoy's defaults: `max_request_headers_kb` and `max_headers_count`.
MAX_BYTES: Final = 61_440
MAX_HEADERS: Final = 100

# What proxies add before the last of them counts: an Envoy edge 5 headers of 181 bytes together, a tracer a few more.
# The room beyond is for meshes that also add the client's certificate and metadata of the peer.
RESERVED_BYTES: Final = 2_048
RESERVED_HEADERS: Final = 10

# Envoy counts what is on the wire of HTTP/1.1: each line with its `: ` and CRLF, the request line, the empty line.
_PER_HEADER: Final = 4
_EMPTY_LINE: Final = 2
_REQUEST_LINE: Final = len("  HTTP/1.1\r\n")


def request_line_bytes(method: str, target: bytes) -> int:
    """Return how many bytes the first line of an HTTP/1.1 request takes: method, target, version and CRLF."""
    return len(method) + len(target) + _REQUEST_LINE


class Cut(NamedTuple):
    """Says what became of a request that was too big.

    Attributes:
        baggage: The baggage to send, in one line, or None if none of it fits.
        dropped_members: How many members are not sent.
        bytes_before: The bytes of the request's head as it was, request line included.
        headers_before: The headers that it had.
        bytes_after: The bytes of the request's head with *baggage* in it.
        headers_after: The headers that it has then.
        fits: Whether it now leaves the proxies their room; where it does not, other headers are too big.
    """

    baggage: bytes | None
    dropped_members: int
    bytes_before: int
    headers_before: int
    bytes_after: int
    headers_after: int
    fits: bool

    def apply(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return the headers with this baggage, in one line at the end, in place of theirs."""
        kept = [pair for pair in headers if pair[0].lower() != b"baggage"]
        return kept if self.baggage is None else [*kept, (b"baggage", self.baggage)]


class HeaderBudget:
    """Cuts baggage to whole members, the last ones first, where a request would be refused on its way.

    Of either limit a reserve is kept for what proxies add: 2,048 bytes and 10 headers.

    Args:
        max_bytes: What every proxy on the way accepts for a request's head, in bytes.
        max_headers: How many headers every proxy on the way accepts.

    Raises:
        ValueError: A limit is not greater than its reserve.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, max_headers: int = MAX_HEADERS) -> None:
        self._bytes = max_bytes - RESERVED_BYTES
        self._headers = max_headers - RESERVED_HEADERS
        if self._bytes <= 0 or self._headers <= 0:
            raise ValueError(f"a header budget must be over {RESERVED_BYTES} bytes and {RESERVED_HEADERS} headers")

    def cut(self, headers: Headers, request_line: int = 0) -> Cut | None:
        """Return what to send instead of the request's baggage, or None where the request may go as it is.

        Args:
            headers: Every header that would be sent, `host` included, in any case and order.
            request_line: The bytes of the request line, as `request_line_bytes` counts them.
        """
        size = request_line + _EMPTY_LINE + sum([len(name) + len(value) + _PER_HEADER for name, value in headers])
        if size <= self._bytes and len(headers) <= self._headers:
            return None
        lines = [pair for pair in headers if pair[0].lower() == b"baggage"]
        others = size - sum([len(name) + len(value) + _PER_HEADER for name, value in lines])
        count = len(headers) - len(lines)
        kept, dropped = self._kept([value for _, value in lines], others, count)
        after = others if kept is None else others + len(b"baggage") + len(kept) + _PER_HEADER
        after_count = count if kept is None else count + 1
        fits = after <= self._bytes and after_count <= self._headers
        return Cut(kept, dropped, size, len(headers), after, after_count, fits)

    def _kept(self, lines: Sequence[bytes], others: int, count: int) -> tuple[bytes | None, int]:
        """Return the members that fit beside *others*, joined, and how many did not."""
        room = self._bytes - others - len(b"baggage") - _PER_HEADER if count < self._headers else 0
        kept: list[bytes] = []
        members = [member for line in lines for member in line.split(b",") if member.strip(b" \t")]
        for member in members:
            room -= len(member) + (1 if kept else 0)
            if room < 0:
                break
            kept.append(member)
        return b",".join(kept) if kept else None, len(members) - len(kept)
