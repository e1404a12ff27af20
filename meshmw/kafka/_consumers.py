"""Consumers of three clients that trace what they fetch."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, Final, Self

from opentelemetry import trace

from meshmw._lifecycle.clients import AsyncBlock, AsyncDeliveries, Block, Deliveries, Delivery, Instrumented
from meshmw._runtime import MessagingParent
from meshmw.kafka._headers import common, field, flattened, of_record, of_records, topic_of
from meshmw.kafka._spans import KAFKA, begin_process, peek, server_of
from meshmw.propagator import MeshPropagator


class _Fetching(Instrumented):
    """Makes `receive` spans for what a client has fetched."""

    def _got_one(self, record: Any, operation: str) -> Any:
        if record is not None and not _is_error(record):
            self._of.begin_process(
                peek(self._of, record),
                topic_of(record),
                of_record(record),
                operation=operation,
                operation_type="receive",
            ).end()
        return record

    def _got_some(self, fetched: Any, operation: str, began: int) -> Any:
        records = [record for record in flattened(fetched) if not _is_error(record)]
        if records:
            self._of.begin_batch(
                [peek(self._of, record) for record in records],
                common(records, "topic"),
                of_records(records),
                operation=operation,
                operation_type="receive",
                start_time=began,
            ).end()
        return fetched


class KafkaPythonConsumer(_Fetching, Block):
    """Is kafka-python's consumer."""

    def poll(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch records."""
        began = time.time_ns()
        return self._got_some(self.__wrapped__.poll(*args, **kwargs), "poll", began)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._got_one(next(self.__wrapped__), "receive")


class AiokafkaConsumer(_Fetching, AsyncBlock):
    """Is aiokafka's consumer."""

    async def getone(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch a record."""
        return self._got_one(await self.__wrapped__.getone(*args, **kwargs), "receive")

    async def getmany(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch records."""
        began = time.time_ns()
        return self._got_some(await self.__wrapped__.getmany(*args, **kwargs), "poll", began)

    def __aiter__(self) -> Self:
        self.__wrapped__.__aiter__()
        return self

    async def __anext__(self) -> Any:
        return self._got_one(await self.__wrapped__.__anext__(), "receive")


class ConfluentConsumer(_Fetching, Block):
    """Is confluent-kafka's consumer."""

    def poll(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch a message."""
        return self._got_one(self.__wrapped__.poll(*args, **kwargs), "poll")

    def consume(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch messages."""
        began = time.time_ns()
        return self._got_some(self.__wrapped__.consume(*args, **kwargs), "poll", began)


class ConfluentAsyncConsumer(_Fetching, AsyncBlock):
    """Is confluent-kafka's asynchronous consumer."""

    async def poll(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch a message."""
        return self._got_one(await self.__wrapped__.poll(*args, **kwargs), "poll")

    async def consume(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch messages."""
        began = time.time_ns()
        return self._got_some(await self.__wrapped__.consume(*args, **kwargs), "poll", began)


def _is_error(record: Any) -> bool:
    """Say whether a client hands out an error in the place of a record, as confluent-kafka does."""
    return field(record, "error") is not None


# Iterators over what a consumer gets, each record with the block in which to process it.


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
