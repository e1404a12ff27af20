"""Consumers of three clients that trace what they fetch.

Knows the methods that fetch records. Must not import a client.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Self

from meshmw.boundary.delegation import AsyncBlock, Block, Instrumented
from meshmw.kafka.operations import peek
from meshmw.kafka.records import common, field, flattened, of_record, of_records, topic_of


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
