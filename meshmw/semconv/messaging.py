"""Messaging semantic conventions, 1.44 (development): what a span says of messages, and never what is in them.

Knows attribute names and values. Must not know OpenTelemetry's objects, brokers' clients or headers of ours. Keys of
messages are left out, because they are the application's data as much as the bodies.
"""

from __future__ import annotations

from typing import Literal

from meshmw.semconv.attributes import AttributeValue

OperationType = Literal["create", "send", "receive", "process", "settle"]


def span_name(operation: str, destination: str | None) -> str:
    """Return `{operation} {destination}`, or the operation alone where the destination has no name."""
    return f"{operation} {destination}" if destination else operation


def operation_attributes(
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


def server_attributes(host: object, port: object) -> dict[str, AttributeValue]:
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
