"""IP addresses and networks as hosts, peers and settings spell them.

Pure, and the standard library alone. Must not know names, headers or what an address is trusted with.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

# `ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255`, in brackets and with the name of an interface.
_MAX_CHARACTERS = 80


def parse_address(text: str) -> Address | None:
    """Return the address that a text spells, or None; brackets and an IPv6 zone are allowed, a port is not.

    An IPv4-mapped IPv6 address is returned as the IPv4 address that it stands for.
    """
    if len(text) > _MAX_CHARACTERS:
        return None
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    try:
        # Without its zone: Python's addresses of one network but of different zones are not equal.
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv4Address):
        return None if "%" in text else address
    return address.ipv4_mapped or address


def parse_network(text: str) -> Network:
    """Return the network that a text spells: a CIDR, or one address.

    Raises:
        ValueError: It is neither; or it has a zone, or bits beyond the prefix, which is most often a slip.
    """
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    if "%" in text:
        raise ValueError(f"no address and no network: {text!r} has a zone, which is this host's own")
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ValueError(f"no address and no network: {error}") from None
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network


class Networks:
    """Is a set of IPv4 and IPv6 networks.

    Args:
        cidrs: Such as `10.0.0.0/8`, `fd00::/8`, `192.0.2.7`.

    Raises:
        ValueError: One of them is no network; it is named.
    """

    def __init__(self, cidrs: Sequence[str] = ()) -> None:
        self._networks = tuple(parse_network(cidr) for cidr in cidrs)

    def __contains__(self, address: Address) -> bool:
        return any(address in network for network in self._networks)
