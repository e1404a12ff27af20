"""Outbound: which hosts get what, and how much of it, checked for every single hop.

`OutboundScope` is asked for each call. `Destinations` tells it where trace headers and baggage may go, and
`HeaderBudget` how much baggage the proxies on the way accept. `passable` says which inbound headers may go out again as
they came.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import translate
from functools import cache, lru_cache
from typing import Final, NamedTuple, TypeAlias

from meshmw._notices import LOGGER, Rejections, Throttle, quoted
from meshmw._policy.patterns import Networks, parse_address
from meshmw._policy.words import limit_of
from meshmw._regex import compiled_late
from meshmw.wire.headers import PROPAGATION_HEADERS, SENT_HEADER

Pair: TypeAlias = tuple[bytes, bytes]
Pairs: TypeAlias = list[Pair]

# Of a traceparent: parent-id and trace-flags.
_SPAN_AND_FLAGS: Final = slice(36, 55)

# A service talks to few hosts, and a crawler must not fill the memory with the others.
_CACHED_HOSTS: Final = 1024
# RFC 1035, section 2.3.4, and a trailing dot; an address with brackets and a zone is shorter.
_MAX_CHARACTERS: Final = 254
# Not str.lower(): that makes a `k` of U+212A, and so one name of two that differ in DNS.
_LOWER: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
# Letters beyond ASCII may stand in a name: a client may not have encoded them yet.
_CHARACTER: Final = r"""[^\x00-\x20\x7f-\xa0\ud800-\udfff"#%&'()*+,./:;<=>?@\[\\\]^`{|}]"""
_NAME: Final = compiled_late(rf"{_CHARACTER}++(?:\.{_CHARACTER}++)*+")
_GLOB: Final = compiled_late(rf"(?:{_CHARACTER}|[.*?])++")
# `10.0.*` would also be the name 10.0.attacker.example.
_ADDRESS_LIKE: Final = compiled_late(r"(?=[^0-9]*+[0-9])[0-9.*?]++")
# Resolvers read `134744072`, `0x8.8.8.8` and `8.8.2056` as addresses, so no text whose last label is a number is a
# name.                                                                                          WHATWG URL, 3.5
_NUMBER: Final = compiled_late(r"[0-9]++|0x[0-9a-f]*+")

_MESH_SUFFIXES: Final = (".local", ".internal", ".svc", ".localhost")
_MESH_NETWORKS: Final = (
    "127.0.0.0/8",
    "::1/128",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "fe80::/10",
    "fc00::/7",
)

# Envoy's defaults: `max_request_headers_kb` and `max_headers_count`.
DEFAULT_HEADER_BUDGET: Final = (61_440, 100)
DEFAULT_PROPAGATE_TO: Final = ("*",)
DEFAULT_BAGGAGE_TO: Final = ("mesh",)
# Envoy joins its logs and its sampling by it.
DEFAULT_PASSTHROUGH_HEADERS: Final = ("x-request-id",)
# What proxies add before the last of them counts: an Envoy edge 5 headers of 181 bytes together, a tracer a few more.
# The room beyond is for meshes that also add the client's certificate and metadata of the peer.
RESERVED_BYTES: Final = 2_048
RESERVED_HEADERS: Final = 10
# Envoy counts what is on the wire of HTTP/1.1: each line with its `: ` and CRLF, the request line, the empty line.
_PER_HEADER: Final = 4
_EMPTY_LINE: Final = 2
_REQUEST_LINE: Final = len("  HTTP/1.1\r\n")

# RFC 9110, section 5.6.2: the characters of a header's name, in lower case.
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]++")
# The propagator writes these, once each.
_WRITTEN: Final = PROPAGATION_HEADERS | {SENT_HEADER}
# These belong to one connection or one message.
_OF_ONE_HOP: Final = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade"}
    | {"keep-alive", "proxy-connection"}
)
# A client takes credentials off a redirect to another host; passed through, they would come back at every hop.
_CREDENTIALS: Final = frozenset(
    {"authorization", "proxy-authorization", "cookie", "set-cookie", "x-forwarded-client-cert"}
)
_NEVER: Final = _WRITTEN | _OF_ONE_HOP | _CREDENTIALS


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
        self._withheld = Throttle()

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
            return {}, _WRITTEN
        if self._baggage_to.matches(host):
            headers.update(carried)
            # Only there: to strangers our own header says nothing.
            if "traceparent" in headers:
                headers[SENT_HEADER] = headers["traceparent"][_SPAN_AND_FLAGS]
            return headers, stale
        if "x-request-id" in carried:
            headers["x-request-id"] = carried["x-request-id"]
        if headers.pop("baggage", None) is not None and self._withheld.opens(host) is not None:
            LOGGER.warning(
                "baggage is not sent to %s, which is not in the mesh; MESHMW_BAGGAGE_TO names the hosts that get it",
                quoted(host),
            )
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


class Destinations:
    """Says whether a host is among those that a list of patterns names. Case and a trailing dot do not matter.

    - `*` is every host, whatever it looks like.
    - `mesh` is every name that a mesh resolves for itself: one of a single label, `localhost`, and whatever ends in
      `.local` (so `.cluster.local`), `.internal`, `.svc` or `.localhost`; and every loopback, private, link-local,
      carrier-grade NAT or unique local address. `name.namespace` is not: it looks like a domain of the internet.
    - `10.0.0.0/8`, `fd00::/8`, `192.0.2.7` are addresses. `::ffff:10.0.0.1` is the address 10.0.0.1.
    - `.example.com` is that domain and all below it.
    - `*.svc.cluster.local`, `api-?.internal` are names, in which `*` is any text, dots too, and `?` is one character.
    - Everything else is exactly one name. Names are compared as they are spelt, with no conversion to punycode or back.

    Args:
        patterns: Any number of them; none match nothing.

    Raises:
        ValueError: A pattern is none of these; it is named.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        wanted = [_normal(pattern) for pattern in patterns]
        self._everything = "*" in wanted
        self._mesh = "mesh" in wanted
        rest = [pattern for pattern in wanted if pattern not in ("*", "mesh")]
        self._networks = Networks([pattern for pattern in rest if _is_network(pattern)])
        names = [_checked_name(pattern) for pattern in rest if not _is_network(pattern)]
        globs = [name for name in names if _is_glob(name)]
        self._globs = re.compile("|".join(map(translate, globs))) if globs else None
        self._names = frozenset(names)
        self._domains = tuple(name for name in names if name.startswith(".") and name not in globs)
        self._decide = lru_cache(_CACHED_HOSTS)(self._is_meant)

    def matches(self, host: str) -> bool:
        """Say whether one of the patterns means a host: a name or an address, without a port. Never raises."""
        return self._everything or (len(host) <= _MAX_CHARACTERS and self._decide(host))

    def _is_meant(self, host: str) -> bool:
        name = _normal(host)
        address = parse_address(name)
        if address is not None:
            return address in self._networks or (self._mesh and address in _mesh_networks())
        if not _is_name(name):
            return False
        if self._mesh and _is_mesh_name(name):
            return True
        if name in self._names or f".{name}".endswith(self._domains):
            return True
        return self._globs is not None and self._globs.match(name) is not None


@cache
def _mesh_networks() -> Networks:
    return Networks(_MESH_NETWORKS)


def _normal(text: str) -> str:
    return text.translate(_LOWER).removesuffix(".")


def _is_name(text: str) -> bool:
    return _NAME().fullmatch(text) is not None and _NUMBER().fullmatch(text.rpartition(".")[2]) is None


def _is_mesh_name(name: str) -> bool:
    # Clients that encode a name make dots of some characters beyond ASCII, as of U+3002.
    return name.endswith(_MESH_SUFFIXES) or ("." not in name and name.isascii())


def _is_network(pattern: str) -> bool:
    return "/" in pattern or parse_address(pattern) is not None


def _is_glob(pattern: str) -> bool:
    return "*" in pattern or "?" in pattern


def _checked_name(pattern: str) -> str:
    if _is_glob(pattern):
        if not _GLOB().fullmatch(pattern) or _ADDRESS_LIKE().fullmatch(pattern):
            raise ValueError(f"{quoted(pattern)} is no pattern of host names; addresses are written as in 10.0.0.0/8")
    elif not _is_name(pattern.removeprefix(".")):
        raise ValueError(f"{quoted(pattern)} is no host name")
    return pattern


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

    def apply(self, headers: Iterable[Pair]) -> Pairs:
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

    def __init__(self, max_bytes: int = DEFAULT_HEADER_BUDGET[0], max_headers: int = DEFAULT_HEADER_BUDGET[1]) -> None:
        self._bytes = max_bytes - RESERVED_BYTES
        self._headers = max_headers - RESERVED_HEADERS
        if self._bytes <= 0 or self._headers <= 0:
            raise ValueError(f"a header budget must be over {RESERVED_BYTES} bytes and {RESERVED_HEADERS} headers")

    @classmethod
    def parse(cls, value: object) -> HeaderBudget:
        """Return the budget that a caller was given: bytes and a number of headers, or bytes alone.

        Raises:
            ValueError: It is neither, or too small.
        """
        budget = completed_budget(value)
        if not isinstance(budget, tuple) or len(budget) != 2:
            raise ValueError(f"header_budget takes bytes, or bytes and a number of headers, not {quoted(value)}")
        return cls(*(limit_of(each, "header_budget") for each in budget))

    def cut(self, headers: Sequence[Pair], request_line: int = 0) -> Cut | None:
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


def completed_budget(value: object) -> object:
    """Return a header budget with the default number of headers where it has bytes alone; anything else as it is."""
    if isinstance(value, int):
        value = (value,)
    return (*value, DEFAULT_HEADER_BUDGET[1]) if isinstance(value, tuple) and len(value) == 1 else value


def request_line_bytes(method: str, target: bytes) -> int:
    """Return how many bytes the first line of an HTTP/1.1 request takes: method, target, version and CRLF."""
    return len(method) + len(target) + _REQUEST_LINE


def passable(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of headers to pass through, in lower case.

    Raises:
        ValueError: One is no header's name, a header that the propagator writes, one of a single hop, or a credential.
    """
    lowered = tuple(name.lower() for name in names)
    unfit = [name for name in lowered if name in _NEVER or not _HEADER_NAME.fullmatch(name)]
    if unfit:
        raise ValueError(f"headers that are not passed through: {', '.join(map(quoted, unfit))}")
    return lowered
