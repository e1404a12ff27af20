"""RabbitMQ's headers and spans: what is written on a message, what is read of it, and the blocks around both.

Knows messages and the messaging life cycle. Must not import a client.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar, overload

from opentelemetry import trace
from opentelemetry.context import Context

from meshmw.boundary.message_headers import OWNED_HEADERS
from meshmw.boundary.messaging import Messaging
from meshmw.boundary.operation import Operation
from meshmw.boundary.operation_scope import OperationScope
from meshmw.propagation.extraction import Extraction
from meshmw.propagator import MeshPropagator
from meshmw.rabbitmq.headers import headers_of, lines_of, name_of
from meshmw.rabbitmq.messages import Message, property_attributes
from meshmw.runtime import MessagingParent
from meshmw.semconv.messaging import OperationType, rabbitmq_attributes
from meshmw.semconv.rabbitmq import destination

RABBITMQ: Final = Messaging("rabbitmq")

P = TypeVar("P")


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


@overload
def inject(
    headers: Mapping[str, Any] | None = None,
    context: Context | None = None,
    *,
    keep_existing: bool = False,
    propagator: MeshPropagator | None = None,
) -> dict[str, Any]: ...
@overload
def inject(
    headers: P, context: Context | None = None, *, keep_existing: bool = False, propagator: MeshPropagator | None = None
) -> P: ...
def inject(
    headers: Any = None,
    context: Context | None = None,
    *,
    keep_existing: bool = False,
    propagator: MeshPropagator | None = None,
) -> Any:
    """Return new headers that carry the trace, as str, the one type that every AMQP client sends.

    Every propagation header among *headers*, in any case, is replaced; all others stay as they are.

    Args:
        headers: What the message has beside it: a mapping, pika's `BasicProperties` or aio-pika's `Message`, of which
            a copy with the new headers is returned. Not changed.
        context: What to write; the current context by default.
        keep_existing: Whether a valid parent among *headers* stays the message's creation context. One that is
            malformed never stays.
        propagator: Writes the headers; by default the one that `configure()` settled.

    Raises:
        TypeError: *headers* is none of these.
    """
    return written(RABBITMQ.with_options(propagator, None), headers, context, keep_existing=keep_existing)


def extract(message_or_headers: object, *, propagator: MeshPropagator | None = None) -> Context:
    """Return a context with the trace and the baggage that a message carries, and nothing else; never raises.

    Args:
        message_or_headers: aio-pika's message, pika's properties or tuple, a mapping of headers, or None.
        propagator: Reads the headers; by default the one that `configure()` settled.
    """
    return read(RABBITMQ.with_options(propagator, None), message_or_headers).into({})


def producer_span(
    exchange: str,
    routing_key: str,
    *,
    operation: str = "publish",
    tracer_provider: trace.TracerProvider | None = None,
) -> OperationScope:
    """Return a block in which one message is published, with the headers that `inject()` returns within it.

    Args:
        exchange: Where the message goes; empty for the default exchange.
        routing_key: What the exchange routes it by.
        operation: What the application calls it.
        tracer_provider: Makes the span; the global one by default.
    """
    of = RABBITMQ.with_options(None, tracer_provider)
    return OperationScope(lambda: begin_send(of, exchange, routing_key, operation=operation))


def consumer_span(
    message: Any,
    properties: Any = None,
    body: bytes | None = None,
    *,
    queue: str | None = None,
    operation: str = "process",
    parent: MessagingParent | None = None,
    propagator: MeshPropagator | None = None,
    tracer_provider: trace.TracerProvider | None = None,
) -> OperationScope:
    """Return a block in which one message is processed: its trace and baggage are current there, and only there.

    What the block raises is recorded and goes on. Each message needs a block of its own. One that was delivered before
    says how often.

    Args:
        message: aio-pika's message; pika's method, with what it hands out beside it; or its tuple of all three.
        properties: pika's.
        body: pika's.
        queue: The queue that the message comes from, which clients do not tell: it is in the span's name.
        operation: What the application calls it.
        parent: Whether the span is a child of the message's producer, or a new trace with a `link` to it; the
            setting `messaging_parent` by default.
        propagator: Reads the headers; by default the one that `configure()` settled.
        tracer_provider: Makes the span; the global one by default.
    """
    of = RABBITMQ.with_options(propagator, tracer_provider, parent)
    return OperationScope(lambda: begin_process(of, Message.of(message, properties, body, queue), operation))


def batch_span(
    messages: Iterable[Any],
    *,
    queue: str | None = None,
    operation: str = "process",
    propagator: MeshPropagator | None = None,
    tracer_provider: trace.TracerProvider | None = None,
) -> OperationScope:
    """Return a block in which several messages are processed: a new trace that links to the trace of each.

    Where there are no messages there is no span. Within it, `consumer_span(message)` continues the trace of one.

    Args:
        messages: aio-pika's messages, or pika's tuples.
        queue: The queue that they come from.
        operation: What the application calls it.
        propagator: Reads the headers; by default the one that `configure()` settled.
        tracer_provider: Makes the span; the global one by default.
    """
    of = RABBITMQ.with_options(propagator, tracer_provider)
    found = [Message.of(message, queue=queue) for message in messages]
    return OperationScope(lambda: begin_batch(of, found, operation))


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
    return of.begin_process(
        read(of, message.properties),
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
