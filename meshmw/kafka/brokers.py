"""Where a client's broker is, as far as the client tells.

Knows where two clients keep their configuration; the third keeps it to itself. Must not import a client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from meshmw.semconv.attributes import AttributeValue
from meshmw.semconv.messaging import server_attributes


def server_of(client: Any) -> Mapping[str, AttributeValue]:
    """Return what spans say of the server that a producer or consumer was told of; never raises.

    Of several servers nobody knows here which one takes a record, so none is named.
    """
    try:
        servers = _bootstrap_servers(client)
        if len(servers) != 1:
            return {}
        address = urlsplit(f"//{servers[0].strip()}")
        return server_attributes(address.hostname, address.port)
    except Exception:
        return {}


def _bootstrap_servers(client: Any) -> list[str]:
    # kafka-python's, and aiokafka's producer and consumer.
    inner = getattr(client, "client", None) or getattr(client, "_client", None)
    config = getattr(client, "config", None)
    found = config["bootstrap_servers"] if isinstance(config, Mapping) else getattr(inner, "_bootstrap_servers", ())
    return found.split(",") if isinstance(found, str) else list(found)
