"""`instrument()`, and the consumers of three clients that trace what they fetch. The producers are in `_producers`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final, Self, TypeVar, Unpack

from meshmw._lifecycle.clients import AsyncBlock, Block, Instrumented, Kinds, instrumented
from meshmw._lifecycle.messaging import Options
from meshmw.kafka._headers import field, places
from meshmw.kafka._producers import AiokafkaProducer, ConfluentProducer, KafkaPythonProducer
from meshmw.kafka._spans import KAFKA, begin_batch, begin_process, server_of, take

C = TypeVar("C")


def instrument(client: C, *, keep_existing: bool = False, **options: Unpack[Options]) -> C:
    """Return a producer or consumer that works as *client*, and traces what it sends or fetches.

    A producer's records carry the trace, and each has a PRODUCER span that ends when the broker has answered. What a
    consumer fetches has a `receive` span, if it is anything; the application's own work on a record begins where
    `consumer_span` or `consume` says, because no iterator can tell when that ends.

    The result has every attribute of the client, and is no instance of its class: what asks for one gets
    `__wrapped__`, the client itself. Nothing is changed for other producers and consumers.

    Args:
        client: A producer or consumer of kafka-python, aiokafka or confluent-kafka.
        keep_existing: For a producer, as for `inject`.
        **options: As for `consumer_span`.

    Raises:
        ValueError: `parent` is none of its words.
        TypeError: *client* is none of them, or one that cannot send headers; or an option is not known, or holds no
            propagator or tracer provider.
    """
    messaging = KAFKA.with_options(options, server=server_of(client), keep_existing=keep_existing)
    return instrumented(
        client, _KINDS, messaging, takes="a producer or consumer of kafka-python, aiokafka or confluent-kafka"
    )


class _Fetching(Instrumented):
    """Makes `receive` spans for what a client has fetched."""

    def _got_one(self, record: Any, operation: str) -> Any:
        if record is None or _is_error(record):
            return record
        extraction, record = take(self._messaging, record, "receive")
        begin_process(self._messaging, record, operation, "receive", extraction).end()
        return record

    def _got_some(self, fetched: Any, operation: str, began: int) -> Any:
        records, extractions = [], []
        for some, at in places(fetched):
            if not _is_error(some[at]):
                extraction, record = take(self._messaging, some[at], "receive")
                if record is not some[at]:
                    some[at] = record
                records.append(record)
                extractions.append(extraction)
        begin_batch(self._messaging, records, operation, "receive", began, extractions).end()
        return fetched


class KafkaPythonConsumer(_Fetching, Block):
    """Stands for kafka-python's consumer."""

    def poll(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch records."""
        began = time.time_ns()
        return self._got_some(self._own("poll")(*args, **kwargs), "poll", began)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._got_one(self._own("__next__")(), "receive")


class AiokafkaConsumer(_Fetching, AsyncBlock):
    """Stands for aiokafka's consumer."""

    async def getone(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch a record."""
        return self._got_one(await self._own("getone")(*args, **kwargs), "receive")

    async def getmany(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch records."""
        began = time.time_ns()
        return self._got_some(await self._own("getmany")(*args, **kwargs), "poll", began)

    def __aiter__(self) -> Self:
        self.__wrapped__.__aiter__()
        return self

    async def __anext__(self) -> Any:
        # The client's own, which asks for one record after the other: of this object, which traces them.
        return await type(self.__wrapped__).__anext__(self)


class ConfluentConsumer(_Fetching, Block):
    """Stands for confluent-kafka's consumer."""

    def poll(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch a message."""
        return self._got_one(self._own("poll")(*args, **kwargs), "poll")

    def consume(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch messages."""
        began = time.time_ns()
        return self._got_some(self._own("consume")(*args, **kwargs), "poll", began)


class ConfluentAsyncConsumer(_Fetching, AsyncBlock):
    """Stands for confluent-kafka's asynchronous consumer."""

    async def poll(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch a message."""
        return self._got_one(await self._own("poll")(*args, **kwargs), "poll")

    async def consume(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch messages."""
        began = time.time_ns()
        return self._got_some(await self._own("consume")(*args, **kwargs), "poll", began)


def _is_error(record: Any) -> bool:
    """Say whether a client hands out an error in the place of a record, as confluent-kafka does."""
    return field(record, "error") is not None


def _refuse(client: Any, _: object) -> Any:
    raise TypeError(f"{type(client).__qualname__} sends no headers, so no trace either; use confluent_kafka.Producer")


# `cimpl` is confluent-kafka's C part.
_KINDS: Final[Kinds] = {
    ("kafka", "KafkaProducer"): KafkaPythonProducer,
    ("kafka", "KafkaConsumer"): KafkaPythonConsumer,
    ("aiokafka", "AIOKafkaProducer"): AiokafkaProducer,
    ("aiokafka", "AIOKafkaConsumer"): AiokafkaConsumer,
    ("cimpl", "Producer"): ConfluentProducer,
    ("cimpl", "Consumer"): ConfluentConsumer,
    ("confluent_kafka", "AIOConsumer"): ConfluentAsyncConsumer,
    ("confluent_kafka", "AIOProducer"): _refuse,
}
