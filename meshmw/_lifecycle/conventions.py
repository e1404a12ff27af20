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


# RPC semantic conventions, release candidate of 2026: what a span says of a remote procedure call.


# A server is to blame for these alone; of a client's span, everything but OK is an error.       gRPC spans, span status
SERVER_ERRORS: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)


def method_name(full_method: str) -> str:
    """Return `rpc.method`, which is also the span's name: `package.Service/Method`, without the slash in front."""
    return full_method.removeprefix("/")


def is_error(code: str, *, server: bool) -> bool:
    """Say whether a status code, by name, makes a span an error."""
    return code in SERVER_ERRORS if server else code != "OK"


def rpc_server_attributes(
    full_method: str, peer: tuple[str, int | None] | None, user_agent: str | None
) -> dict[str, AttributeValue]:
    """Return the attributes of an RPC server span that are known when the call arrives.

    Args:
        full_method: The path, such as `/package.Service/Method`.
        peer: The address and port of whoever is at the other end of the connection; a Unix socket has no port.
        user_agent: The client's own name.
    """
    found: dict[str, AttributeValue] = {"rpc.system.name": "grpc", "rpc.method": method_name(full_method)}
    if peer is not None:
        found["network.peer.address"] = found["client.address"] = peer[0]
        if peer[1] is not None:
            found["network.peer.port"] = found["client.port"] = peer[1]
    if user_agent:
        found["user_agent.original"] = user_agent
    return found


def rpc_client_attributes(full_method: str, address: str, port: int | None) -> dict[str, AttributeValue]:
    """Return the attributes of an RPC client span that are known when the call begins.

    Args:
        full_method: The path, such as `/package.Service/Method`.
        address: The host, address or socket path that the channel was made for.
        port: The server's port, where the channel names one.
    """
    found: dict[str, AttributeValue] = {
        "rpc.system.name": "grpc",
        "rpc.method": method_name(full_method),
        "server.address": address,
    }
    return found | {"server.port": port} if port is not None else found
