"""RPC semantic conventions, release candidate of 2026: what a span says of a remote procedure call.

Knows attribute names and values, and gRPC's status codes by name. Must not know OpenTelemetry's objects, nor grpcio.
"""

from __future__ import annotations

from typing import Final

from meshmw.semconv.attributes import AttributeValue

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


def server_attributes(
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


def client_attributes(full_method: str, address: str, port: int | None) -> dict[str, AttributeValue]:
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
