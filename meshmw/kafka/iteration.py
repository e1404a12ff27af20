"""Iterators over what a consumer gets, each record with the block in which to process it.

A generator that made a span current around its `yield` would make it current for whoever consumes it, and could not
take it back where the loop ends early. So nothing is current, and no span begun, until the loop's body says where.
Knows how consumers are asked for records. Must not import a client.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any, Final

from opentelemetry import trace

from meshmw.boundary.messaging import Delivery
from meshmw.boundary.operation import Operation
from meshmw.kafka.spans import begin_process, messaging
from meshmw.propagator import MeshPropagator
from meshmw.runtime import MessagingParent

# How long one poll of confluent-kafka waits before Ctrl-C is looked at.
POLL_SECONDS: Final = 1.0
_END_OF_PARTITION: Final = -191

Begin = Callable[[Any], Operation]


def consume(
    consumer: Any,
    *,
    consumer_group: str | None = None,
    client_id: str | None = None,
    parent: MessagingParent | None = None,
    propagator: MeshPropagator | None = None,
    tracer_provider: trace.TracerProvider | None = None,
) -> Iterator[Delivery[Any]]:
    """Return an iterator over a consumer's records: `for delivery in consume(consumer): with delivery as record: ...`.

    Each record is processed in its `with` block, as by `consumer_span`. Nothing is prefetched, held back or current
    outside the block, so the loop can be left at any time and another one begun.

    Args:
        consumer: kafka-python's; confluent-kafka's, which is polled until it is closed, and whose errors are raised
            unless librdkafka retries; or any iterable of records.
        consumer_group: The consumer's group.
        client_id: The consumer's.
        parent: As for `consumer_span`, and so the others.
        propagator: Reads the headers.
        tracer_provider: Makes the spans.
    """
    of = messaging(propagator, tracer_provider, parent)
    begin = partial(begin_process, of, consumer_group=consumer_group, client_id=client_id)
    return Deliveries(consumer, begin)


def aconsume(
    consumer: Any,
    *,
    consumer_group: str | None = None,
    client_id: str | None = None,
    parent: MessagingParent | None = None,
    propagator: MeshPropagator | None = None,
    tracer_provider: trace.TracerProvider | None = None,
) -> AsyncIterator[Delivery[Any]]:
    """Do as `consume`, for aiokafka's consumer, confluent-kafka's `AIOConsumer`, or any asynchronous iterable."""
    of = messaging(propagator, tracer_provider, parent)
    begin = partial(begin_process, of, consumer_group=consumer_group, client_id=client_id)
    return AsyncDeliveries(consumer, begin)


class Deliveries(Iterator[Delivery[Any]]):
    """Asks a consumer for one record at a time."""

    def __init__(self, consumer: Any, begin: Begin) -> None:
        self._begin = begin
        self._next: Callable[[], Any] = (
            iter(consumer).__next__ if hasattr(consumer, "__iter__") else partial(_poll, consumer)
        )

    def __next__(self) -> Delivery[Any]:
        record = self._next()
        return Delivery(record, partial(self._begin, record))


class AsyncDeliveries(AsyncIterator[Delivery[Any]]):
    """Asks an asynchronous consumer for one record at a time."""

    def __init__(self, consumer: Any, begin: Begin) -> None:
        self._begin = begin
        self._next: Callable[[], Any] = (
            aiter(consumer).__anext__ if hasattr(consumer, "__aiter__") else partial(_apoll, consumer)
        )

    async def __anext__(self) -> Delivery[Any]:
        record = await self._next()
        return Delivery(record, partial(self._begin, record))


def _poll(consumer: Any) -> Any:
    while True:
        message = consumer.poll(POLL_SECONDS)
        if _is_record(message):
            return message


async def _apoll(consumer: Any) -> Any:
    while True:
        message = await consumer.poll(POLL_SECONDS)
        if _is_record(message):
            return message


def _is_record(message: Any) -> bool:
    """Say whether a poll of confluent-kafka returned a record: else nothing, or an error to wait out.

    Raises:
        KafkaException: An error that librdkafka does not get over by itself.
    """
    error = None if message is None else message.error()
    if error is None:
        return message is not None
    if error.code() != _END_OF_PARTITION and not error.retriable():
        from confluent_kafka import KafkaException

        raise KafkaException(error)
    return False
