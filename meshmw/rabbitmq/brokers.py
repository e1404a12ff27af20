"""Where a client's broker is, as far as the client tells.

Knows where channels, exchanges and queues keep their connection. Must not import a client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshmw.semconv.attributes import AttributeValue
from meshmw.semconv.messaging import server_attributes


def server_of(client: Any) -> Mapping[str, AttributeValue]:
    """Return what spans say of the server that a channel, an exchange or a queue is connected to; never raises."""
    try:
        connection = _connection_of(client) or _connection_of(client.channel)
        # pika's blocking connection has one with callbacks in it; aio-pika's has a URL.
        inner = getattr(connection, "_impl", connection)
        told = getattr(inner, "params", None) or getattr(inner, "url", None)
        return server_attributes(getattr(told, "host", None), getattr(told, "port", None))
    except Exception:
        return {}


def _connection_of(channel: Any) -> Any:
    return getattr(channel, "connection", None) or getattr(channel, "_connection", None)
