"""Producers of three clients that trace what they send.

Knows the methods that send records, and how each tells what became of one. Must not import a client.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

from meshmw.boundary.delegation import AsyncBlock, Block, Instrumented
from meshmw.boundary.operation import Operation
from meshmw.kafka.records import field
from meshmw.kafka.spans import written
from meshmw.semconv.messaging import message_attributes

# confluent-kafka's method is written in C, and does not tell.
_PRODUCE: Final = inspect.Signature(
    [
        inspect.Parameter("topic", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        *(
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)
            for name in ("value", "key", "partition", "callback", "on_delivery", "timestamp", "headers")
        ),
    ]
)


class _Sending(Instrumented):
    """Begins PRODUCER operations, and puts their headers among a call's arguments."""

    _null: bytes | None = None

    def _begin(self, send: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Operation, inspect.BoundArguments]:
        call = _signature(send).bind(*args, **kwargs)
        topic, partition = call.arguments["topic"], call.arguments.get("partition")
        chosen = None if partition == -1 else partition
        operation = self._of.begin_send(topic, lambda: message_attributes(partition=chosen), operation="send")
        try:
            call.arguments["headers"] = written(
                self._of,
                call.arguments.get("headers"),
                operation.context,
                keep_existing=self._keep_existing,
                null=self._null,
            )
        except BaseException as error:
            _finish(operation, error)
            raise
        return operation, call


class KafkaPythonProducer(_Sending, Block):
    """Is kafka-python's producer."""

    _null = b""

    def send(self, *args: Any, **kwargs: Any) -> Any:
        """Send a record that carries the trace; the span ends when the future has its result."""
        operation, call = self._begin(self.__wrapped__.send, args, kwargs)
        try:
            with operation.current():
                future = self.__wrapped__.send(*call.args, **call.kwargs)
        except BaseException as error:
            _finish(operation, error)
            raise
        future.add_callback(lambda sent: _sent(operation, sent))
        future.add_errback(lambda error: _finish(operation, error))
        return future


class AiokafkaProducer(_Sending, AsyncBlock):
    """Is aiokafka's producer."""

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        """Queue a record that carries the trace; the span ends when the future that this returns has its result."""
        operation, call = self._begin(self.__wrapped__.send, args, kwargs)
        try:
            with operation.current():
                future = await self.__wrapped__.send(*call.args, **call.kwargs)
        except BaseException as error:
            _finish(operation, error)
            raise
        future.add_done_callback(lambda done: _done(operation, done))
        return future

    async def send_and_wait(self, *args: Any, **kwargs: Any) -> Any:
        """Send a record that carries the trace, and wait for the broker."""
        return await (await self.send(*args, **kwargs))


class ConfluentProducer(_Sending, Block):
    """Is confluent-kafka's producer."""

    def produce(self, *args: Any, **kwargs: Any) -> Any:
        """Queue a record that carries the trace; the span ends when `poll` or `flush` reports the delivery."""
        operation, call = self._begin(self.__wrapped__.produce, args, kwargs)
        given = call.arguments.pop("callback", None) or call.arguments.get("on_delivery")
        call.arguments["on_delivery"] = _reporting(operation, given)
        try:
            with operation.current():
                # By name, because what stood before a place that is empty now would slip into it.
                return self.__wrapped__.produce(**call.arguments)
        except BaseException as error:
            _finish(operation, error)
            raise

    def __len__(self) -> int:
        return len(self.__wrapped__)

    def __bool__(self) -> bool:
        return bool(self.__wrapped__)


def _signature(send: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(send)
    except ValueError:
        return _PRODUCE


def _finish(operation: Operation, error: BaseException) -> None:
    operation.fail(error)
    operation.end()


def _sent(operation: Operation, metadata: Any) -> None:
    """End a send that the broker has confirmed, with the place that it gave the record."""
    if operation.is_open:
        offset, partition = field(metadata, "offset"), field(metadata, "partition")
        if isinstance(partition, int):
            operation.span.set_attribute("messaging.destination.partition.id", str(partition))
        if isinstance(offset, int) and offset >= 0:
            operation.span.set_attribute("messaging.kafka.offset", offset)
    operation.end()


def _done(operation: Operation, future: Any) -> None:
    if future.cancelled():
        operation.end()
    elif (error := future.exception()) is not None:
        _finish(operation, error)
    else:
        _sent(operation, future.result())


def _reporting(operation: Operation, given: Callable[[Any, Any], object] | None) -> Callable[[Any, Any], object]:
    def on_delivery(error: Any, message: Any) -> object:
        if error is None:
            _sent(operation, message)
        else:
            from confluent_kafka import KafkaException

            _finish(operation, KafkaException(error))
        return None if given is None else given(error, message)

    return on_delivery
