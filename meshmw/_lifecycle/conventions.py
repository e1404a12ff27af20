"""What the attributes of every kind of span have in common: their types, addresses, and the name of an error."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping
from typing import Final, Literal
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


# Messaging semantic conventions, 1.44 (development): what a span says of messages, and never what is in them.
#
#  Keys of
# messages are left out, because they are the application's data as much as the bodies.


OperationType = Literal["create", "send", "receive", "process", "settle"]


def messaging_span_name(operation: str, destination: str | None) -> str:
    """Return `{operation} {destination}`, or the operation alone where the destination has no name."""
    return f"{operation} {destination}" if destination else operation


def messaging_attributes(
    system: str,
    operation: str,
    operation_type: OperationType,
    destination: str | None,
    *,
    batch: int | None = None,
) -> dict[str, AttributeValue]:
    """Return the attributes that every messaging span has.

    Args:
        system: `kafka`, `rabbitmq`.
        operation: What the system calls the operation, such as `send`, `publish`, `poll`, `process`, `ack`.
        operation_type: Which of the conventions' types that is.
        destination: The name of the topic, exchange or queue.
        batch: How many messages one operation is about; None where the operation is about one message by its nature.
    """
    found: dict[str, AttributeValue] = {
        "messaging.system": system,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation_type,
    }
    if destination:
        found["messaging.destination.name"] = destination
    if batch is not None:
        found["messaging.batch.message_count"] = batch
    return found


def broker_attributes(host: object, port: object) -> dict[str, AttributeValue]:
    """Return the attributes of the broker's address, as far as it is one; what a client tells may be anything."""
    if not isinstance(host, str) or not host:
        return {}
    found: dict[str, AttributeValue] = {"server.address": host}
    return found | {"server.port": port} if isinstance(port, int) and 0 < port < 65_536 else found


def message_attributes(
    *,
    partition: str | int | None = None,
    message_id: str | None = None,
    conversation_id: str | None = None,
    body_size: int | None = None,
    client_id: str | None = None,
    consumer_group: str | None = None,
    subscription: str | None = None,
) -> dict[str, AttributeValue]:
    """Return the attributes of one message that are the same in every system; what is None is left out."""
    found: dict[str, AttributeValue | None] = {
        "messaging.destination.partition.id": None if partition is None else str(partition),
        "messaging.message.id": message_id,
        "messaging.message.conversation_id": conversation_id,
        "messaging.message.body.size": body_size,
        "messaging.client.id": client_id,
        "messaging.consumer.group.name": consumer_group,
        "messaging.destination.subscription.name": subscription,
    }
    return {name: value for name, value in found.items() if value is not None}


def kafka_attributes(*, offset: int | None = None, tombstone: bool = False) -> dict[str, AttributeValue]:
    """Return what only Kafka's messages have: an offset, and a body that may be null, which is a tombstone."""
    found: dict[str, AttributeValue] = {} if offset is None else {"messaging.kafka.offset": offset}
    return found | {"messaging.kafka.message.tombstone": True} if tombstone else found


def rabbitmq_attributes(
    *, routing_key: str | None = None, delivery_tag: int | None = None
) -> dict[str, AttributeValue]:
    """Return what only RabbitMQ's messages have: a routing key, and the number by which they are settled."""
    found: dict[str, AttributeValue] = {}
    if routing_key:
        found["messaging.rabbitmq.destination.routing_key"] = routing_key
    if delivery_tag is not None:
        found["messaging.rabbitmq.message.delivery_tag"] = delivery_tag
    return found
