"""RabbitMQ by hand: `inject`, `extract`, and the blocks in which messages are published or processed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar, overload

from opentelemetry import trace
from opentelemetry.context import Context

from meshmw._context.extraction import Extraction
from meshmw._lifecycle.clients import Instrumented
from meshmw._lifecycle.conventions import AttributeValue, OperationType, broker_attributes, rabbitmq_attributes
from meshmw._lifecycle.messaging import OWNED_HEADERS, Messaging
from meshmw._lifecycle.operation import Operation, OperationScope
from meshmw._runtime import MessagingParent
from meshmw.propagator import MeshPropagator
from meshmw.rabbitmq._headers import Message, destination, header_lines, headers_of, name_of, property_attributes

# What is done with RabbitMQ's messages: headers written and read, operations begun.


RABBITMQ: Final = Messaging("rabbitmq")


def written(of: Messaging, headers: Any, context: Context | None, *, keep_existing: bool = False) -> Any:
    """Return headers, properties or a message to send: see `inject`."""
    found = headers_of(headers)
    new = of.write(context, header_lines(found, of.wanted), keep=keep_existing)
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
    return of.read(header_lines(headers_of(carrier), of.wanted))


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
    lines = header_lines(headers_of(message.properties), of.wanted)
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


P = TypeVar("P")


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
        propagator: Writes the headers; by default the one that `configure()` made.

    Raises:
        TypeError: *headers* is none of these.
    """
    return written(RABBITMQ.with_options(propagator, None), headers, context, keep_existing=keep_existing)


def extract(message_or_headers: object, *, propagator: MeshPropagator | None = None) -> Context:
    """Return a context with the trace and the baggage that a message carries, and nothing else; never raises.

    Args:
        message_or_headers: aio-pika's message, pika's properties or tuple, a mapping of headers, or None.
        propagator: Reads the headers; by default the one that `configure()` made.
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
        propagator: Reads the headers; by default the one that `configure()` made.
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
        propagator: Reads the headers; by default the one that `configure()` made.
        tracer_provider: Makes the span; the global one by default.
    """
    of = RABBITMQ.with_options(propagator, tracer_provider)
    found = [Message.of(message, queue=queue) for message in messages]
    return OperationScope(lambda: begin_batch(of, found, operation))


# What a channel, an exchange or a queue does about each message.


class Tracing(Instrumented):
    """Begins the operations of messages that are published or handed out."""

    def _sending(self, exchange: str, routing_key: str, properties: Any, body: Any) -> OperationScope:
        return OperationScope(lambda: begin_send(self._of, exchange, routing_key, properties, body))

    def _carrying(self, properties: Any) -> Any:
        """Return a copy of properties or a message that carries what is current."""
        return written(self._of, properties, None, keep_existing=self._keep_existing)

    def _processing(self, message: Message) -> OperationScope:
        return OperationScope(lambda: begin_process(self._of, message))

    def _got(self, message: Any, queue: str, operation: str) -> Any:
        """Make a `receive` span for a message that is handed out, if it is one, and return it."""
        begin_process(self._of, Message.of(message, queue=queue), operation, "receive").end()
        return message


# Where a client's broker is, as far as the client tells.


def server_of(client: Any) -> Mapping[str, AttributeValue]:
    """Return what spans say of the server that a channel, an exchange or a queue is connected to; never raises."""
    try:
        connection = _connection_of(client) or _connection_of(client.channel)
        # pika's blocking connection has one with callbacks in it; aio-pika's has a URL.
        inner = getattr(connection, "_impl", connection)
        told = getattr(inner, "params", None) or getattr(inner, "url", None)
        return broker_attributes(getattr(told, "host", None), getattr(told, "port", None))
    except Exception:
        return {}


def _connection_of(channel: Any) -> Any:
    return getattr(channel, "connection", None) or getattr(channel, "_connection", None)
