"""Iterators over what a consumer gets, each message with the block in which to process it.

Knows how messages are iterated over. Must not import a client.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any

from opentelemetry import trace

from meshmw.boundary.deliveries import AsyncDeliveries, Begin, Deliveries, Delivery
from meshmw.boundary.messaging import Messaging
from meshmw.propagator import MeshPropagator
from meshmw.rabbitmq.messages import Message
from meshmw.rabbitmq.operations import RABBITMQ, begin_process
from meshmw.runtime import MessagingParent


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
