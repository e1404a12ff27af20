"""Iterators over what a consumer gets, each message with the block in which to process it.

A generator that made a span current around its `yield` would make it current for whoever consumes it, and could not
take it back where the loop ends early. So nothing is current, and no span begun, until the loop's body says where.
Knows how messages are iterated over. Must not import a client.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from typing import Any

from opentelemetry import trace

from meshmw.boundary.messaging import Delivery, Messaging
from meshmw.boundary.operation import Operation
from meshmw.propagator import MeshPropagator
from meshmw.rabbitmq.messages import Message
from meshmw.rabbitmq.spans import begin_process, messaging
from meshmw.runtime import MessagingParent

Begin = Callable[[Any], Operation]


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
    return Deliveries(messages, _begins(messaging(propagator, tracer_provider, parent), queue))


def aconsume(
    messages: AsyncIterable[Any],
    *,
    queue: str | None = None,
    parent: MessagingParent | None = None,
    propagator: MeshPropagator | None = None,
    tracer_provider: trace.TracerProvider | None = None,
) -> AsyncIterator[Delivery[Any]]:
    """Do as `consume`, for aio-pika's queue, whose name needs not be said, or what its `iterator()` opened."""
    name = queue or getattr(messages, "name", None)
    return AsyncDeliveries(messages, _begins(messaging(propagator, tracer_provider, parent), name))


class Deliveries(Iterator[Delivery[Any]]):
    """Asks an iterator for one message at a time."""

    def __init__(self, messages: Iterable[Any], begin: Begin) -> None:
        self._begin = begin
        self._next = iter(messages).__next__

    def __next__(self) -> Delivery[Any]:
        message = self._next()
        return Delivery(message, partial(self._begin, message))


class AsyncDeliveries(AsyncIterator[Delivery[Any]]):
    """Asks an asynchronous iterator for one message at a time."""

    def __init__(self, messages: AsyncIterable[Any], begin: Begin) -> None:
        self._begin = begin
        self._next = aiter(messages).__anext__

    async def __anext__(self) -> Delivery[Any]:
        message = await self._next()
        return Delivery(message, partial(self._begin, message))


def _begins(of: Messaging, queue: str | None) -> Begin:
    return lambda message: begin_process(of, Message.of(message, queue=queue))
