"""Iterators over what a consumer gets, each record with the block in which to process it.

Knows how consumers are asked for records. Must not import a client.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, Final

from opentelemetry import trace

from meshmw.boundary.deliveries import AsyncDeliveries, Deliveries, Delivery
from meshmw.kafka.brokers import server_of
from meshmw.kafka.operations import KAFKA, begin_process
from meshmw.propagator import MeshPropagator
from meshmw.runtime import MessagingParent

# How long one poll of confluent-kafka waits before Ctrl-C is looked at.
POLL_SECONDS: Final = 1.0
_END_OF_PARTITION: Final = -191


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
    of = KAFKA.with_options(propagator, tracer_provider, parent, server_of(consumer))
    fetch = iter(consumer).__next__ if hasattr(consumer, "__iter__") else partial(_poll, consumer)
    return Deliveries(fetch, partial(begin_process, of, consumer_group=consumer_group, client_id=client_id))


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
    of = KAFKA.with_options(propagator, tracer_provider, parent, server_of(consumer))
    fetch = aiter(consumer).__anext__ if hasattr(consumer, "__aiter__") else partial(_apoll, consumer)
    return AsyncDeliveries(fetch, partial(begin_process, of, consumer_group=consumer_group, client_id=client_id))


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
