"""RabbitMQ: the trace goes on from the publisher's span to the consumer's, with two clients and none imported.

pika and aio-pika. Other instrumentations of RabbitMQ stay off beside this one: both would write.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any, Final

from opentelemetry import trace

from meshmw._lifecycle.clients import AsyncDeliveries, Begin, Deliveries, Delivery, Kinds, instrumented
from meshmw._lifecycle.messaging import Messaging
from meshmw._runtime import MessagingParent
from meshmw.propagator import MeshPropagator
from meshmw.rabbitmq._clients import AioPikaChannel, AioPikaExchange, AioPikaQueue, PikaBlockingChannel, PikaChannel
from meshmw.rabbitmq._headers import Message, RabbitMQGetter
from meshmw.rabbitmq._spans import (
    RABBITMQ,
    batch_span,
    begin_process,
    consumer_span,
    extract,
    inject,
    producer_span,
    server_of,
)

# `instrument()`: a channel, exchange or queue that traces by itself, around the client's own object.


def instrument(
    client: Any,
    *,
    keep_existing: bool = False,
    parent: MessagingParent | None = None,
    propagator: MeshPropagator | None = None,
    tracer_provider: trace.TracerProvider | None = None,
) -> Any:
    """Return a channel, exchange or queue that works as *client*, and traces what it publishes or hands out.

    What is published carries the trace, and has a PRODUCER span. A callback runs in a span that processes its message.
    What `basic_get`, `get` and iterators hand out has a `receive` span; the application's own work on it begins where
    `consumer_span` or `consume` says, because no iterator can tell when that ends.

    The result has every attribute of the client's object, and is no instance of its class: what asks for one gets
    `__wrapped__`, the object itself. Nothing is changed for other channels.

    Args:
        client: pika's channel, of a blocking connection or of one with callbacks; or aio-pika's channel, whose
            exchanges and queues trace then, or an exchange or a queue alone.
        keep_existing: As for `inject`.
        parent: As for `consumer_span`.
        propagator: Reads and writes the headers; by default the one that `configure()` made.
        tracer_provider: Makes the spans; the global one by default.

    Raises:
        TypeError: *client* is none of these.
    """
    of = RABBITMQ.with_options(propagator, tracer_provider, parent, server_of(client))
    return instrumented(client, _KINDS, of, keep_existing=keep_existing, takes=_TAKES)


_TAKES: Final = "a channel of pika, or a channel, exchange or queue of aio-pika"
_KINDS: Final[Kinds] = {
    ("pika", "BlockingChannel"): PikaBlockingChannel,
    ("pika", "Channel"): PikaChannel,
    ("aio_pika", "Channel"): AioPikaChannel,
    ("aio_pika", "Exchange"): AioPikaExchange,
    ("aio_pika", "Queue"): AioPikaQueue,
}

# Iterators over what a consumer gets, each message with the block in which to process it.


def consume(
    messages: Iterable[Any],
    *,
    queue: str | None = None,
    parent: MessagingParent | None = None,
    propagator: MeshPropagator | None = None,
    tracer_provider: trace.TracerProvider | None = None,
) -> Iterator[Delivery[Any]]:
    """Return an iterator over messages: `for delivery in consume(channel.consume("orders"), queue="orders"): ...`.

    Each is processed in a block, `with delivery as (method, properties, body): ...`, as by `consumer_span`. Nothing is
    prefetched, held back or current outside the block, so the loop can be left at any time. Where pika's
    `inactivity_timeout` is up, what it hands out has a block without a span.

    Args:
        messages: What pika's `channel.consume()` returns, or any iterable of such tuples or of messages.
        queue: The queue that they come from.
        parent: As for `consumer_span`, and so the others.
        propagator: Reads the headers.
        tracer_provider: Makes the spans.
    """
    of = RABBITMQ.with_options(propagator, tracer_provider, parent)
    return Deliveries(iter(messages).__next__, _begins(of, queue))


def aconsume(
    messages: AsyncIterable[Any],
    *,
    queue: str | None = None,
    parent: MessagingParent | None = None,
    propagator: MeshPropagator | None = None,
    tracer_provider: trace.TracerProvider | None = None,
) -> AsyncIterator[Delivery[Any]]:
    """Do as `consume`, for aio-pika's queue, whose name needs not be said, or what its `iterator()` opened."""
    of = RABBITMQ.with_options(propagator, tracer_provider, parent)
    begin = _begins(of, queue or getattr(messages, "name", None))
    return AsyncDeliveries(aiter(messages).__anext__, begin)


def _begins(of: Messaging, queue: str | None) -> Begin:
    return lambda message: begin_process(of, Message.of(message, queue=queue))


__all__ = [
    "RabbitMQGetter",
    "aconsume",
    "batch_span",
    "consume",
    "consumer_span",
    "extract",
    "inject",
    "instrument",
    "producer_span",
]
