"""Which hosts may be sent something: names, suffixes, patterns, networks, and the word `mesh`.

Pure, and the standard library alone. Must not know what is sent, nor look a name up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate
from functools import lru_cache
from typing import Final

from meshmw.policy.addresses import Networks, parse_address

# A service talks to few hosts, and a crawler must not fill the memory with the others.
_CACHED_HOSTS: Final = 1024
# RFC 1035, section 2.3.4, and a trailing dot; an address with brackets and a zone is shorter.
_MAX_CHARACTERS: Final = 254

# Not str.lower(): that makes a `k` of U+212A, and so one name of two that differ in DNS.
_LOWER: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
# Letters beyond ASCII may stand in a name: a client may not have encoded them yet.
_CHARACTER: Final = r"""[^\x00-\x20\x7f-\xa0\ud800-\udfff"#%&'()*+,./:;<=>?@\[\\\]^`{|}]"""
_NAME: Final = re.compile(rf"{_CHARACTER}+(?:\.{_CHARACTER}+)*")
_PATTERN: Final = re.compile(rf"(?:{_CHARACTER}|[.*?])+")
# `10.0.*` would also be the name 10.0.attacker.example.
_ADDRESS_LIKE: Final = re.compile(r"(?=.*[0-9])[0-9.*?]+")
# Resolvers read `134744072`, `0x8.8.8.8` and `8.8.2056` as addresses, so no such text is a name.    WHATWG URL, 3.5
_ENDS_IN_NUMBER: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)", re.DOTALL)

_MESH_SUFFIXES: Final = (".local", ".internal", ".svc", ".localhost")
_MESH_NETWORKS: Final = Networks(
    [
        "127.0.0.0/8",
        "::1/128",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "fe80::/10",
        "fc00::/7",
    ]
)


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
        cidrs = [pattern for pattern in rest if _is_network(pattern)]
        self._networks = Networks(cidrs)
        expressions = [_expression(pattern) for pattern in rest if pattern not in cidrs]
        self._names = re.compile("|".join(expressions)) if expressions else None
        self._decide = lru_cache(_CACHED_HOSTS)(self._is_meant)

    def matches(self, host: str) -> bool:
        """Say whether one of the patterns means a host: a name or an address, without a port. Never raises."""
        return self._everything or (len(host) <= _MAX_CHARACTERS and self._decide(host))

    def _is_meant(self, host: str) -> bool:
        name = _normal(host)
        address = parse_address(name)
        if address is not None:
            return address in self._networks or (self._mesh and address in _MESH_NETWORKS)
        if not _NAME.fullmatch(name) or _ENDS_IN_NUMBER.fullmatch(name):
            return False
        if self._mesh and _is_mesh_name(name):
            return True
        return self._names is not None and self._names.fullmatch(name) is not None


def _normal(text: str) -> str:
    return text.translate(_LOWER).removesuffix(".")


def _is_mesh_name(name: str) -> bool:
    # Clients that encode a name make dots of some characters beyond ASCII, as of U+3002.
    return name.endswith(_MESH_SUFFIXES) or ("." not in name and name.isascii())


def _is_network(pattern: str) -> bool:
    return "/" in pattern or parse_address(pattern) is not None


def _expression(pattern: str) -> str:
    if "*" in pattern or "?" in pattern:
        if not _PATTERN.fullmatch(pattern) or _ADDRESS_LIKE.fullmatch(pattern):
            raise ValueError(f"{pattern!r} is no pattern of host names; addresses are written as in 10.0.0.0/8")
        return translate(pattern)
    name = pattern.removeprefix(".")
    if not _NAME.fullmatch(name) or _ENDS_IN_NUMBER.fullmatch(name):
        raise ValueError(f"{pattern!r} is no host name")
    return rf"(?:.*\.)?{re.escape(name)}" if pattern != name else re.escape(name)
