"""RabbitMQ by hand: `inject` and `extract`, and the blocks and iterators in which messages are published and processed.

Below them stand the steps that the instrumented clients take too: headers read and written, operations begun.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, TypeVar, Unpack, overload

from opentelemetry import trace
from opentelemetry.context import Context

from meshmw._context.extraction import Extraction
from meshmw._foreign import amqp_address
from meshmw._lifecycle.clients import AsyncDeliveries, Deliveries, Delivery
from meshmw._lifecycle.decide import OperationType
from meshmw._lifecycle.messaging import OWNED_HEADERS, Messaging, Options, header_lines, name_of
from meshmw._lifecycle.operation import Attributes, AttributeValue, Operation, OperationScope
from meshmw.propagator import MeshPropagator
from meshmw.rabbitmq._headers import (
    Message,
    clean,
    destination,
    headers_of,
    lines_before,
    property_attributes,
    rabbitmq_attributes,
)

P = TypeVar("P")
T = TypeVar("T")

RABBITMQ: Final = Messaging("rabbitmq")


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
    return write(RABBITMQ.with_options({"propagator": propagator}, keep_existing=keep_existing), headers, context)


def extract(message_or_headers: object, *, propagator: MeshPropagator | None = None) -> Context:
    """Return a context with the trace and the baggage that a message carries, and nothing else; never raises.

    Args:
        message_or_headers: aio-pika's message, pika's properties or tuple, a mapping of headers, or None.
        propagator: Reads the headers; by default the one that `configure()` made.
    """
    return read(RABBITMQ.with_options({"propagator": propagator}), message_or_headers).into({})


def producer_span(
    exchange: str,
    routing_key: str,
    *,
    operation: str = "publish",
    tracer_provider: trace.TracerProvider | None = None,
) -> AbstractContextManager[trace.Span, None]:
    """Return a block in which one message is published, with the headers that `inject()` returns within it.

    Args:
        exchange: Where the message goes; empty for the default exchange.
        routing_key: What the exchange routes it by.
        operation: What the application calls it.
        tracer_provider: Makes the span; the global one by default.
    """
    messaging = RABBITMQ.with_options({"tracer_provider": tracer_provider})
    return OperationScope(partial(begin_send, messaging, exchange, routing_key, operation=operation))


def consumer_span(
    message: Any,
    properties: Any = None,
    body: bytes | None = None,
    *,
    queue: str | None = None,
    operation: str = "process",
    **options: Unpack[Options],
) -> AbstractContextManager[trace.Span, None]:
    """Return a block in which one message is processed: its trace and baggage are current there, and only there.

    What the block raises is recorded and goes on. Each message needs a block of its own. The span of one that was
    delivered before says how often.

    Args:
        message: aio-pika's message; pika's method, with what it hands out beside it; or its tuple of all three.
        properties: pika's.
        body: pika's.
        queue: The queue that the message comes from, for the span's name; no client notes it on the message.
        operation: What the application calls it.
        **options: `parent`, `propagator` and `tracer_provider`: see `Options`.

    Raises:
        ValueError: `parent` is none of its words.
        TypeError: An option is not known, or holds no propagator or tracer provider.
    """
    delivered = Message.from_client(message, properties, body, queue)
    return OperationScope(partial(begin_process, RABBITMQ.with_options(options), delivered, operation))


def batch_span(
    messages: Iterable[Any],
    *,
    queue: str | None = None,
    operation: str = "process",
    propagator: MeshPropagator | None = None,
    tracer_provider: trace.TracerProvider | None = None,
) -> AbstractContextManager[trace.Span, None]:
    """Return a block in which several messages are processed: a new trace that links to the trace of each.

    Where there are no messages there is no span. Within it, `consumer_span(message)` continues the trace of one.

    Args:
        messages: aio-pika's messages, or pika's tuples.
        queue: The queue that they come from.
        operation: What the application calls it.
        propagator: Reads the headers; by default the one that `configure()` made.
        tracer_provider: Makes the span; the global one by default.
    """
    messaging = RABBITMQ.with_options({"propagator": propagator, "tracer_provider": tracer_provider})
    delivered = [Message.from_client(message, queue=queue) for message in messages]
    return OperationScope(partial(begin_batch, messaging, delivered, operation))


def consume(messages: Iterable[T], *, queue: str | None = None, **options: Unpack[Options]) -> Iterator[Delivery[T]]:
    """Return an iterator over messages: `for delivery in consume(channel.consume("orders"), queue="orders"): ...`.

    Each is processed in a block, `with delivery as (method, properties, body): ...`, as by `consumer_span`. Nothing is
    prefetched, held back or current outside the block, so the loop can be left at any time. Where pika's
    `inactivity_timeout` is up, what it hands out has a block without a span.

    Args:
        messages: What pika's `channel.consume()` returns, or any iterable of such tuples or of messages.
        queue: The queue that they come from.
        **options: As for `consumer_span`.
    """
    messaging = RABBITMQ.with_options(options)
    return Deliveries(
        iter(messages).__next__, lambda message: begin_process(messaging, Message.from_client(message, queue=queue))
    )


def aconsume(
    messages: AsyncIterable[T], *, queue: str | None = None, **options: Unpack[Options]
) -> AsyncIterator[Delivery[T]]:
    """Return what `consume` does, over what aio-pika's `queue.iterator()` opened, or over a queue.

    Of a queue of aio-pika, the name is its own.
    """
    messaging, queue = RABBITMQ.with_options(options), queue or getattr(messages, "name", None)
    return AsyncDeliveries(
        aiter(messages).__anext__, lambda message: begin_process(messaging, Message.from_client(message, queue=queue))
    )


def write(messaging: Messaging, headers: Any, context: Context | None) -> Any:
    """Return headers, properties or a message to send: see `inject`."""
    found = headers_of(headers)
    new = messaging.write(context, header_lines(found, messaging.propagator.names_read))
    carrying = {key: value for key, value in found.items() if name_of(key) not in OWNED_HEADERS} | new
    if headers is None or isinstance(headers, Mapping):
        return carrying
    if not hasattr(headers, "headers"):
        raise TypeError(f"headers are a mapping, properties or a message, not {type(headers).__name__}")
    copied = copy.copy(headers)
    copied.headers = carrying
    return copied


def read(messaging: Messaging, carrier: object, operation_type: OperationType = "process") -> Extraction:
    """Return what a message's headers say; never raises for what the message is."""
    return messaging.read(lines_before(headers_of(carrier), messaging.propagator.names_checked), operation_type)


def take(messaging: Messaging, carrier: object, operation_type: OperationType = "process") -> Extraction:
    """Return what a message's headers say, and take away from it what is malformed of them (law 2)."""
    lines = lines_before(headers_of(carrier), messaging.propagator.names_checked)
    extraction = messaging.read(lines, operation_type)
    if not extraction.rewrites.keys().isdisjoint(lines):
        # It need not be a client's message: what else is given may let nobody change it.
        with contextlib.suppress(Exception):
            clean(carrier, lines, extraction.rewrites)
    return extraction


def begin_send(
    messaging: Messaging,
    exchange: str,
    routing_key: str,
    properties: Any = None,
    body: Any = None,
    operation: str = "publish",
) -> Operation:
    """Begin to publish one message."""
    place = destination(exchange, routing_key)

    def describe() -> dict[str, AttributeValue]:
        return {
            **place.attributes(),
            **rabbitmq_attributes(routing_key=routing_key),
            **property_attributes(properties, body),
        }

    return messaging.begin_send(place.span_name, describe, operation=operation)


def begin_process(
    messaging: Messaging, message: Message, operation: str = "process", operation_type: OperationType = "process"
) -> Operation:
    """Begin to process one message; none, which pika hands out when its time is up, is an operation without a span."""
    if message.method is None:
        return messaging.begin_nothing()
    return messaging.begin_process(
        take(messaging, message.properties, operation_type),
        message.destination.span_name,
        message.attributes,
        operation=operation,
        operation_type=operation_type,
    )


def begin_batch(messaging: Messaging, messages: Sequence[Message], operation: str) -> Operation:
    """Begin to process several messages; none of them is an operation without a span."""
    messages = [message for message in messages if message.method is not None]
    if not messages:
        return messaging.begin_nothing()
    places = {message.destination for message in messages}
    place = places.pop() if len(places) == 1 else None
    describe: Callable[[], Attributes] = place.attributes if place else dict
    extractions = [take(messaging, message.properties) for message in messages]
    return messaging.begin_batch(extractions, place.span_name if place else None, describe, operation=operation)


def server_of(client: Any) -> Attributes:
    """Return the address of the server that a client's object is connected to, as attributes; never raises."""
    host, port = amqp_address(client)
    if not isinstance(host, str) or not host:
        return {}
    if isinstance(port, int) and 0 < port < 65_536:
        return {"server.address": host, "server.port": port}
    return {"server.address": host}
