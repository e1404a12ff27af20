"""Every name of httpx, grpcio or a broker's client that its owner calls private, one function each.

Nothing is imported here: each function looks at an object that the application has made. It says what it assumes and
falls back where that does not hold; `tests/test_foreign.py` has a test for each, with the real package. Names that
OpenTelemetry calls private are in `_otel`.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any


def kafka_servers(client: Any) -> list[str]:
    """Return the bootstrap servers that a Kafka producer or consumer was made with; none where it does not show them.

    kafka-python keeps them in `config`. aiokafka's producer has its connections in `client`, its consumer in `_client`,
    and they keep them in `_bootstrap_servers`. confluent-kafka shows nothing. Never raises.
    """
    try:
        connections = getattr(client, "client", None) or getattr(client, "_client", None)
        config = getattr(client, "config", None)
        if isinstance(config, Mapping):
            found = config["bootstrap_servers"]
        else:
            found = getattr(connections, "_bootstrap_servers", ())
        servers = found.split(",") if isinstance(found, str) else found
        return [each.strip() for each in servers if isinstance(each, str)]
    except Exception:
        return []


def has_delivery_callback(producer: Any) -> bool:
    """Say whether the configuration of confluent-kafka's producer named a callback.

    The client, which is written in C, tells neither whether nor which; the garbage collector knows what it holds. A
    producer that holds a callback for anything else counts too. Where it shows nothing, there is none.
    """
    return any(callable(each) and not isinstance(each, type) for each in gc.get_referents(producer))


def amqp_address(client: Any) -> tuple[object, object]:
    """Return the host and the port of the broker that a channel, an exchange or a queue is connected to.

    pika's channel has its connection in `connection`; that of a blocking one is in its `_impl`, and holds `params`.
    aio-pika's channel keeps its connection in `_connection`, whose `url` says both; exchanges and queues have the
    channel in `channel`. None stands for what is not there. Never raises.
    """
    try:
        connection = _connection_of(client) or _connection_of(client.channel)
        connection = getattr(connection, "_impl", connection)
        address = getattr(connection, "params", None) or getattr(connection, "url", None)
        return getattr(address, "host", None), getattr(address, "port", None)
    except Exception:
        return None, None


def _connection_of(channel: Any) -> Any:
    return getattr(channel, "connection", None) or getattr(channel, "_connection", None)
