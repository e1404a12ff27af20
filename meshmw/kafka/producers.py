"""Producers of three clients that trace what they send.

Knows the methods that send records. Must not import a client.
"""

from __future__ import annotations

import gc
from typing import Any

from meshmw.boundary.delegation import AsyncBlock, Block, Instrumented
from meshmw.boundary.messaging import Messaging
from meshmw.boundary.operation import Operation
from meshmw.kafka.confirmations import DeliveryReport, HandOver, confirmed, failed, settled
from meshmw.kafka.operations import written
from meshmw.kafka.signatures import signature_of
from meshmw.semconv.messaging import message_attributes


class _Sending(Instrumented):
    """Begins PRODUCER operations, and puts their headers among a call's arguments."""

    _method = "send"
    _null: bytes | None = None

    def __init__(self, client: Any, of: Messaging, keep_existing: bool) -> None:
        super().__init__(client, of, keep_existing)
        self._signature = signature_of(client, self._method)

    def _begin(self, args: Any, kwargs: Any) -> tuple[Operation, dict[str, Any]]:
        """Return what was begun, and the call's arguments by name, with headers that carry it."""
        given = dict(self._signature.bind(*args, **kwargs).arguments)
        partition = given.get("partition")
        chosen = None if partition == -1 else partition
        operation = self._of.begin_send(given["topic"], lambda: message_attributes(partition=chosen))
        try:
            given["headers"] = written(
                self._of,
                given.get("headers"),
                operation.context,
                keep_existing=self._keep_existing,
                null=self._null,
            )
        except BaseException as error:
            failed(operation, error)
            raise
        return operation, given

    def _with(self, headers: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return a call's arguments as they were, but for the headers."""
        at = list(self._signature.parameters).index("headers")
        if len(args) > at:
            return (*args[:at], headers, *args[at + 1 :]), kwargs
        return args, {**kwargs, "headers": headers}


class KafkaPythonProducer(_Sending, Block):
    """Is kafka-python's producer."""

    _null = b""

    def send(self, *args: Any, **kwargs: Any) -> Any:
        """Send a record that carries the trace; the span ends when the future has its result."""
        operation, given = self._begin(args, kwargs)
        args, kwargs = self._with(given["headers"], args, kwargs)
        with HandOver(operation):
            future = self.__wrapped__.send(*args, **kwargs)
        future.add_callback(lambda metadata: confirmed(operation, metadata))
        future.add_errback(lambda error: failed(operation, error))
        return future


class AiokafkaProducer(_Sending, AsyncBlock):
    """Is aiokafka's producer."""

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        """Queue a record that carries the trace; the span ends when the future that this returns has its result."""
        operation, given = self._begin(args, kwargs)
        args, kwargs = self._with(given["headers"], args, kwargs)
        with HandOver(operation):
            future = await self.__wrapped__.send(*args, **kwargs)
        future.add_done_callback(lambda over: settled(operation, over))
        return future

    async def send_and_wait(self, *args: Any, **kwargs: Any) -> Any:
        """Send a record that carries the trace, and wait for the broker."""
        return await (await self.send(*args, **kwargs))


class ConfluentProducer(_Sending, Block):
    """Is confluent-kafka's producer."""

    _method = "produce"

    def produce(self, *args: Any, **kwargs: Any) -> Any:
        """Queue a record that carries the trace; the span ends when `poll` or `flush` reports the delivery.

        Where the call names no callback, and the producer's configuration may, the span ends at once.
        """
        operation, given = self._begin(args, kwargs)
        callback = given.pop("callback", None) or given.pop("on_delivery", None)
        reported = callback is not None or not _has_callbacks(self.__wrapped__)
        if reported:
            given["on_delivery"] = DeliveryReport(operation, callback)
        with HandOver(operation):
            # By name, because what stood before a place that is empty now would slip into it.
            result = self.__wrapped__.produce(**given)
        if not reported:
            operation.end()
        return result

    def __len__(self) -> int:
        return len(self.__wrapped__)

    def __bool__(self) -> bool:
        return bool(self.__wrapped__)


def _has_callbacks(client: Any) -> bool:
    """Say whether the configuration named a callback: a report of our own would silence one for deliveries.

    The client tells neither whether nor which; the garbage collector knows what it holds.
    """
    return any(callable(each) and not isinstance(each, type) for each in gc.get_referents(client))
