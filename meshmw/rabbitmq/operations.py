"""What is done with RabbitMQ's messages: headers written and read, operations begun.

Knows messages and the messaging life cycle. Must not import a client.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from opentelemetry.context import Context

from meshmw.boundary.message_headers import OWNED_HEADERS
from meshmw.boundary.messaging import Messaging
from meshmw.boundary.operation import Operation
from meshmw.propagation.extraction import Extraction
from meshmw.rabbitmq.headers import headers_of, lines_of, name_of
from meshmw.rabbitmq.messages import Message, property_attributes
from meshmw.semconv.messaging import OperationType, rabbitmq_attributes
from meshmw.semconv.rabbitmq import destination

RABBITMQ: Final = Messaging("rabbitmq")


def written(of: Messaging, headers: Any, context: Context | None, *, keep_existing: bool = False) -> Any:
    """Return headers, properties or a message to send: see `inject`."""
    found = headers_of(headers)
    new = of.write(context, lines_of(found, of.wanted), keep=keep_existing)
    carrying = {key: value for key, value in found.items() if name_of(key) not in OWNED_HEADERS} | new
    if headers is None or isinstance(headers, Mapping):
        return carrying
    if not hasattr(headers, "headers"):
        raise TypeError(f"headers are a mapping, properties or a message, not {type(headers).__name__}")
    copied = copy.copy(headers)
    copied.headers = carrying
    return copied


def read(of: Messaging, carrier: object) -> Extraction:
    """Return what a message's headers say; never raises for what the message is."""
    return of.read(lines_of(headers_of(carrier), of.wanted))


def begin_send(
    of: Messaging, exchange: str, routing_key: str, properties: Any = None, body: Any = None, operation: str = "publish"
) -> Operation:
    """Begin to publish one message."""
    where = destination(exchange, routing_key)
    return of.begin_send(
        where.lasting,
        lambda: {
            **where.attributes(),
            **rabbitmq_attributes(routing_key=routing_key),
            **property_attributes(properties, body),
        },
        operation=operation,
    )


def begin_process(
    of: Messaging, message: Message, operation: str = "process", operation_type: OperationType = "process"
) -> Operation:
    """Begin to process one message; none, which pika hands out when its time is up, is an operation without a span."""
    if message.method is None:
        return of.begin_nothing()
    lines = lines_of(headers_of(message.properties), of.wanted)
    return of.begin_process(
        of.read(lines) if operation_type == "process" else of.check(lines),
        message.destination.lasting,
        message.attributes,
        operation=operation,
        operation_type=operation_type,
    )


def begin_batch(of: Messaging, messages: Sequence[Message], operation: str) -> Operation:
    """Begin to process several messages; none of them is an operation without a span."""
    messages = [message for message in messages if message.method is not None]
    if not messages:
        return of.begin_nothing()
    places = {message.destination for message in messages}
    where = places.pop() if len(places) == 1 else None
    specific: Callable[[], Mapping[str, Any]] = where.attributes if where else dict
    extractions = [read(of, message.properties) for message in messages]
    return of.begin_batch(extractions, where.lasting if where else None, specific, operation=operation)
