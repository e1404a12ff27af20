"""Patterns that settings are made of: request paths, baggage keys, IP addresses and networks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network
from typing import Final, TypeAlias, TypeVar

from meshmw._notices import quoted, without_credentials
from meshmw._policy.words import items_of

Value = TypeVar("Value")
Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

# A key is a token (RFC 9110, section 5.6.2), which may hold a `*`; to that comes `?`.
_KEY_PATTERN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z?]++")
# `ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255`, in brackets and with the name of an interface.
_MAX_ADDRESS_CHARACTERS: Final = 80

# What looking for a URL in a target costs has a bound: one of so many characters is nobody's route.
_MOST_CHARACTERS: Final = 1_024
# Nor is one of so many: a pattern that holds a `*` would look through all of them for what comes behind it.
_MOST_OF_PATH: Final = 4_096
# Matches no text at all.
_NOTHING: Final = "(?!)"
DEFAULT_BAGGAGE_KEYS: Final = ("*",)


class PathPatterns:
    """Matches request paths: `/health` is that path and all below it; a pattern with `*` or `?` is a glob.

    Of a path the first 4,096 characters are looked at, with a colon in it 1,024. What is longer ends for no pattern:
    `/*.js` does not mean it.

    Args:
        patterns: Such as `/health`, `/metrics`, `/api/*/status`.
        name: What the caller calls them.

    Raises:
        ValueError: They are no list of texts; or one begins neither with `/` nor with `*`, and would never match.

    Attributes:
        are_none: Whether there is no pattern at all, so that nobody need ask for each path.
    """

    def __init__(self, patterns: Sequence[str] = (), name: str = "exclude") -> None:
        patterns = items_of(patterns, name)
        for pattern in patterns:
            if not pattern.startswith(("/", "*")):
                raise ValueError(f"{name}: {quoted(pattern)} is no pattern of paths: they begin with /")
        self._whole = re.compile("|".join(map(_path_expression, patterns)) or _NOTHING)
        self._cut = re.compile("|".join(map(_cut_expression, patterns)) or _NOTHING)
        self.are_none = not patterns

    def match(self, path: str) -> bool:
        """Say whether a path is meant by one of the patterns, in whatever form the request's target came."""
        has_colon = ":" in path
        is_cut = len(path) > (_MOST_CHARACTERS if has_colon else _MOST_OF_PATH)
        path = request_path(path) if has_colon else path[:_MOST_OF_PATH]
        return (self._cut if is_cut else self._whole).match(path) is not None


def path_of(target: str) -> str:
    """Return the path of a request, which a proxy is asked for by a whole URL (RFC 9112, section 3.2.2)."""
    if target.startswith("/") or "://" not in target:
        return target
    return "/" + target.partition("://")[2].partition("/")[2]


def request_path(target: str) -> str:
    """Return the path of a request's target, in whatever form that came, without the credentials of a URL in it.

    Some servers hand on an absolute-form target as the path, with the scheme and the authority before it; that of a
    CONNECT is the authority alone (RFC 9112, section 3.2). Of what holds a colon 1,024 characters are looked at.
    """
    target = target[:_MOST_CHARACTERS]
    if target.startswith("//"):
        return without_credentials(f"http:{target}").removeprefix("http:")
    shown = without_credentials(target)
    if shown.startswith("/"):
        return shown
    _, found, rest = shown.partition("://")
    return "/" + rest.partition("/")[2] if found else shown.rpartition("@")[2]


class BaggageKeys:
    """Says which keys pass: those that a pattern means, less those that a pattern with a `!` before it means.

    In a pattern `*` is any text and `?` is one character, such as a `!` that is the first of a key. Case matters, as it
    does in baggage. Where every pattern leaves keys out, all others pass; where there is no pattern, none does.

    Args:
        patterns: Such as `tenant`, `acme.*`, `!acme.secret`.
        opt_in: Whether some key must be asked for: patterns that only leave keys out are refused then.

    Raises:
        ValueError: A pattern holds a character that no key can hold; it is named. Or no key is asked for.

    Attributes:
        are_all: Whether every key passes, so that nobody need ask for each.
    """

    def __init__(self, patterns: Sequence[str] = DEFAULT_BAGGAGE_KEYS, *, opt_in: bool = False) -> None:
        left_out = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
        taken = [pattern for pattern in patterns if not pattern.startswith("!")]
        if left_out and not taken:
            if opt_in:
                raise ValueError("these patterns leave keys out, and none asks for a key")
            taken = ["*"]
        self._taken = _key_expression(taken)
        self._left_out = _key_expression(left_out)
        self.are_all = "*" in taken and not left_out

    def permits(self, key: str) -> bool:
        """Say whether a key passes."""
        return self._taken.match(key) is not None and self._left_out.match(key) is None

    def permitted(self, members: dict[str, Value]) -> dict[str, Value]:
        """Return the members whose keys pass, in their order."""
        return members if self.are_all else {key: value for key, value in members.items() if self.permits(key)}


class Networks:
    """Holds IPv4 and IPv6 networks, and says whether an address is in one of them.

    Args:
        cidrs: Such as `10.0.0.0/8`, `fd00::/8`, `192.0.2.7`.
        name: What the caller calls them.

    Raises:
        ValueError: They are no list of texts; or one of them is no network; it is named.
    """

    def __init__(self, cidrs: Sequence[str] = (), name: str = "trusted_peers") -> None:
        self._networks = tuple(parse_network(cidr) for cidr in items_of(cidrs, name))

    def __contains__(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def parse_address(text: str) -> Address | None:
    """Return the address that a text spells, or None; brackets and an IPv6 zone are allowed, a port is not.

    An IPv4-mapped IPv6 address is returned as the IPv4 address that it stands for.
    """
    if len(text) > _MAX_ADDRESS_CHARACTERS:
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
        raise ValueError(f"no address and no network: {quoted(text)} has a zone, which is this host's own")
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"no address and no network: {quoted(text)}") from None
    if ip_interface(text).ip != network.network_address:
        raise ValueError(f"no address and no network: {quoted(text)} has bits beyond its prefix")
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network


def _path_expression(pattern: str) -> str:
    if any(character in pattern for character in "*?["):
        return translate(pattern)
    return rf"{re.escape(pattern.rstrip('/'))}(?:/(?s:.*+))?\Z"


def _cut_expression(pattern: str) -> str:
    """Return what matches the beginning of a path; where it is cut, a stranger must not choose what a pattern finds."""
    if any(character in pattern for character in "*?["):
        return translate(pattern) if pattern.endswith("*") else _NOTHING
    return f"{re.escape(pattern.rstrip('/'))}/"


def _key_expression(patterns: Sequence[str]) -> re.Pattern[str]:
    for pattern in patterns:
        if not _KEY_PATTERN.fullmatch(pattern):
            raise ValueError(f"{quoted(pattern)} is no pattern of baggage keys")
    return re.compile("|".join(map(translate, patterns)) or _NOTHING)
