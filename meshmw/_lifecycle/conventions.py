"""What the attributes of every kind of span have in common: their types, addresses, and the name of an error."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

AttributeValue = str | int
Attributes = Mapping[str, AttributeValue]

DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class LazyAttributes(Mapping[str, AttributeValue]):
    """Computes attributes when somebody first looks at them, so that an unsampled span costs none.

    Args:
        build: Returns the attributes; called at most once.
    """

    __slots__ = ("_build", "_built")

    def __init__(self, build: Callable[[], dict[str, AttributeValue]]) -> None:
        self._build = build
        self._built: dict[str, AttributeValue] | None = None

    def _attributes(self) -> dict[str, AttributeValue]:
        if self._built is None:
            self._built = self._build()
        return self._built

    def __getitem__(self, key: str) -> AttributeValue:
        return self._attributes()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._attributes())

    def __len__(self) -> int:
        return len(self._attributes())

    def items(self) -> ItemsView[str, AttributeValue]:
        """Return all at once: the SDK copies them, and `Mapping` would look each one up."""
        return self._attributes().items()

    def copy(self) -> dict[str, AttributeValue]:
        """Return all in a dictionary; older SDKs ask for this of whatever attributes a sampler has returned."""
        return dict(self._attributes())


def address_attributes(prefix: str, authority: str | None, scheme: str) -> dict[str, AttributeValue]:
    """Return `{prefix}.address` and `{prefix}.port` of a `host[:port]`, or nothing where it is malformed.

    A port that is not given is the scheme's own.
    """
    address, port = _host_and_port(authority) if authority else (None, None)
    if not address:
        return {}
    port = port or DEFAULT_PORTS.get(scheme)
    return {f"{prefix}.address": address, f"{prefix}.port": port} if port else {f"{prefix}.address": address}


def _host_and_port(authority: str) -> tuple[str | None, int | None]:
    try:
        url = urlsplit(f"//{authority}")
        address, port = url.hostname, url.port
    except ValueError:
        return None, None
    if url.path or url.query or url.fragment or url.username is not None:
        return None, None
    return address, port


def error_type(error: BaseException) -> str:
    """Return the fully qualified name of an exception's class, without `builtins`."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
