"""Metadata as a carrier: what inbound metadata say, what goes out and how much of it, and where it goes.

`OutgoingMetadata` writes what a client sends. `header_lines` and `header_text` read what a server was sent, and
`rewrite_metadata` removes from it what a handler must not see. `parse_target` and `peer_address` read grpcio's two
spellings of an address.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

from opentelemetry.context import Context

from meshmw._foreign import metadata_pair
from meshmw._policy.outbound import RESERVED_BYTES, Cut, HeaderBudget
from meshmw._policy.words import limit_of
from meshmw.propagator import MeshPropagator
from meshmw.wire.headers import PROPAGATION_HEADERS, SENT_HEADER

Pairs: TypeAlias = list[tuple[str, str | bytes]]
# As grpcio hands them out and takes them: pairs of a name and of a text or, for `-bin`, bytes.
Metadata: TypeAlias = Iterable[tuple[str, Any]]

# grpcio refuses calls at random from 8 KiB of metadata on, and all of them from 16 KiB on (`grpc.max_metadata_size`).
MAX_METADATA_BYTES: Final = 8_192

# RFC 7541, section 4.1: what each header counts beyond its name and value.
_PER_HEADER: Final = 32
_HEADER_BUDGET_COUNTS: Final = 4
# gRPC over HTTP/2, "Custom-Metadata": one illegal byte makes grpcio fail the whole call.
_KEY: Final = re.compile(r"[0-9a-z_.-]+")
_VALUE: Final = re.compile(r"[\x20-\x7e]*")

# gRPC Name Resolution, "Name Syntax": what is before the colon of a target that is no plain host and port.
_SCHEMES: Final = frozenset({"dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds", "google-c2p"})
_TARGET: Final = re.compile(r"(?:(?P<scheme>[a-z][a-z0-9+.-]*):)?(?://[^/]*/)?(?P<endpoint>.*)", re.DOTALL)
_HOST_PORT: Final = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*):(?P<port>[0-9]{1,5})")


def header_lines(metadata: Metadata | None, passthrough: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the lines of the headers that a server reads, by name; grpcio itself keeps only the last of several."""
    wanted = _wanted(passthrough)
    lines: dict[str, list[str]] = {}
    for key, value in metadata or ():
        if key in wanted:
            lines.setdefault(key, []).append(value if isinstance(value, str) else value.decode("latin-1"))
    return lines


@lru_cache(maxsize=64)
def _wanted(passthrough: tuple[str, ...]) -> frozenset[str]:
    return PROPAGATION_HEADERS | {SENT_HEADER, "user-agent", *passthrough}


def header_text(metadata: Metadata | None, name: str) -> str | None:
    """Return a header's text, several lines joined with commas (RFC 9110, 5.3), or None."""
    lines = [value for key, value in metadata or () if key == name and isinstance(value, str)]
    return ",".join(lines) if lines else None


def rewrite_metadata(metadata: Any, rewrites: Mapping[str, str | None]) -> Any:
    """Return inbound metadata with every line of the named headers replaced by one line, or by none."""
    if not rewrites or not metadata:
        return metadata
    kept = [pair for pair in metadata if pair[0] not in rewrites]
    return (*kept, *(metadata_pair(metadata, name, text) for name, text in rewrites.items() if text is not None))


class OutgoingMetadata:
    """Replaces the trace headers in the metadata of outbound calls, and keeps them within what servers accept.

    Args:
        max_bytes: What every server on the way accepts of metadata, in bytes as HTTP/2 counts them. 2,048 of them are
            kept for what gRPC and the proxies add.

    Raises:
        ValueError: The limit is no whole number, or not greater than those.
    """

    def __init__(self, max_bytes: int = MAX_METADATA_BYTES) -> None:
        self._room = limit_of(max_bytes, "max_metadata_bytes") - RESERVED_BYTES
        self._budget = HeaderBudget(max_bytes, max_headers=1_000_000)

    def replace(
        self,
        metadata: Metadata | None,
        context: Context,
        propagator: MeshPropagator,
        *,
        method: str,
        host: str,
    ) -> Pairs:
        """Return a call's metadata with the trace headers of *context* in place of all that were there.

        Args:
            metadata: What the caller gave, in order; it is not changed.
            context: What the call runs in.
            propagator: Writes the headers.
            method: The call's path, which counts as a header too.
            host: Where the call goes.
        """
        pairs: Pairs = [(key, value) for key, value in metadata or ()]
        present = [(_text(key), _text(value)) for key, value in pairs if _bytes(key).lower() in propagator.watched]
        headers, stale = propagator.outgoing(context, present, host)
        if present:
            pairs = [pair for pair in pairs if _text(pair[0]) not in stale]
        for name, text in headers.items():
            if _KEY.fullmatch(name) and _VALUE.fullmatch(text):
                pairs.append((name, text))
            else:
                consequence = f"- {name} is not passed on to a gRPC server"
                propagator.rejections.record("context", "metadata", consequence)
        return self._fit(pairs, method, propagator)

    def _fit(self, pairs: Pairs, method: str, propagator: MeshPropagator) -> Pairs:
        size = len(method) + sum([len(_text(key)) + _length(key, value) + _PER_HEADER for key, value in pairs])
        cut = self._cut(pairs, method) if size > self._room else None
        if cut is None:
            return pairs
        if cut.dropped_members:
            consequence = (
                f"- {cut.dropped_members} members are not sent: the metadata had {cut.bytes_before} bytes, "
                f"now {cut.bytes_after}; a gRPC server would have refused the call"
            )
            propagator.rejections.record("baggage", "header_budget", consequence)
        pairs = [pair for pair in pairs if pair[0] != "baggage"]
        if cut.baggage is not None:
            pairs.append(("baggage", cut.baggage.decode("latin-1")))
        if not cut.fits and any(key == "tracestate" for key, _ in pairs):
            pairs = _without_tracestate(pairs, cut.bytes_after, propagator)
        return pairs

    def _cut(self, pairs: Pairs, method: str) -> Cut | None:
        # The budget counts a header as HTTP/1.1 does.
        more = len(method) + (_PER_HEADER - _HEADER_BUDGET_COUNTS) * len(pairs)
        return self._budget.cut([(_bytes(key), _counted(key, value)) for key, value in pairs], more)


def _without_tracestate(pairs: Pairs, size: int, propagator: MeshPropagator) -> Pairs:
    """Give up the tracestate too, where other metadata alone are too big; what the caller gave is the caller's."""
    consequence = (
        f"- it is not sent: without any baggage the metadata still have {size} bytes; a gRPC server may refuse the call"
    )
    propagator.rejections.record("tracestate", "header_budget", consequence)
    return [pair for pair in pairs if pair[0] != "tracestate"]


def _text(given: object) -> str:
    """Return a key or a value as text: grpcio takes bytes and None too, and has its own words for anything else."""
    return given if isinstance(given, str) else given.decode("latin-1") if isinstance(given, bytes) else ""


def _bytes(key: object) -> bytes:
    return _text(key).encode("latin-1", "replace")


def _length(key: object, value: object) -> int:
    length = len(value) if isinstance(value, str | bytes) else 0
    # Binary values travel in base64.
    return (length + 2) // 3 * 4 if _text(key).endswith("-bin") else length


def _counted(key: object, value: object) -> bytes:
    """Return a value as the budget is to see it; only the text of baggage matters, of all others the length."""
    if isinstance(value, str) and key == "baggage":
        return value.encode("latin-1")
    return bytes(_length(key, value))


class Target(NamedTuple):
    """Says where a channel's calls go.

    Attributes:
        host: The name or address that decides which headers are sent; a socket of this machine counts as `localhost`.
        address: What `server.address` holds: the host, or the socket's path.
        port: The port, or None where the target names none.
    """

    host: str
    address: str
    port: int | None


def parse_target(target: str) -> Target:
    """Return what a target says. Of several addresses the first is taken.

    Raises:
        ValueError: The target is empty.
    """
    if not target:
        raise ValueError("the target is the text that the channel was made with, such as 'pricing:50051', not ''")
    found = _TARGET.fullmatch(target)
    scheme = found["scheme"] if found else None
    endpoint = found["endpoint"] if found and scheme in _SCHEMES else target
    if scheme in ("unix", "unix-abstract", "vsock"):
        return Target("localhost", target.removeprefix(f"{scheme}:").removeprefix("//"), None)
    # gRPC takes no user's name and password; who writes them all the same is not to read them in spans.
    first = endpoint.partition(",")[0].rpartition("@")[2]
    split = _HOST_PORT.fullmatch(first)
    host = (split["host"] if split else first).strip("[]")
    return Target(host, host, int(split["port"]) if split else None)


# One connection carries many calls.
@lru_cache(maxsize=256)
def peer_address(peer: str) -> tuple[str, int | None] | None:
    """Return address and port of what grpcio calls a peer: `ipv4:10.0.0.9:41000`, `ipv6:%5B::1%5D:41000`, `unix:`."""
    scheme, _, rest = peer.partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return (rest, None) if rest else None
    address, _, port = rest.partition(",")[0].rpartition(":")
    address = address.replace("%5B", "").replace("%5D", "").strip("[]")
    return (address, int(port)) if address and port.isdecimal() else None
