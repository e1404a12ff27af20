"""What a channel's target says of where calls go: `dns:///pricing:50051`, `ipv4:10.0.0.1:80`, `unix:/run/pricing`."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

# gRPC Name Resolution, "Name Syntax": what is before the colon of a target that is no plain host and port.
_SCHEMES: Final = frozenset({"dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds", "google-c2p"})
_TARGET: Final = re.compile(r"(?:(?P<scheme>[a-z][a-z0-9+.-]*):)?(?://[^/]*/)?(?P<endpoint>.*)", re.DOTALL)
_HOST_PORT: Final = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*):(?P<port>[0-9]{1,5})")


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
    first = endpoint.partition(",")[0]
    split = _HOST_PORT.fullmatch(first)
    host = (split["host"] if split else first).strip("[]")
    return Target(host, host, int(split["port"]) if split else None)
