"""Producers of three clients that trace what they send.

A record's span ends when its client says what became of it: by a future (kafka-python, aiokafka) or by a report to a
callback (confluent-kafka).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from meshmw._foreign import has_delivery_callback
from meshmw._lifecycle.clients import AsyncBlock, Block, Instrumented
from meshmw._lifecycle.messaging import Messaging
from meshmw._lifecycle.operation import Operation
from meshmw.kafka._headers import field
from meshmw.kafka._spans import begin_send, write


class _Sending(Instrumented):
    """Begins PRODUCER operations, and puts their headers among a call's arguments."""

    _method = "send"
    _null: bytes | None = None

    def __init__(self, client: Any, messaging: Messaging) -> None:
        super().__init__(client, messaging)
        self._signature = signature_of(client, self._method)

    def _begin(self, args: Any, kwargs: Any) -> tuple[Operation, dict[str, Any]]:
        """Return what was begun, and the call's arguments by name, with headers that carry it."""
        given = dict(self._signature.bind(*args, **kwargs).arguments)
        partition = given.get("partition")
        # confluent-kafka's word for "any" is -1.
        operation = begin_send(self._messaging, given["topic"], None if partition == -1 else partition)
        try:
            given["headers"] = write(self._messaging, given.get("headers"), operation.context, self._null)
        except BaseException as error:
            end_failed(operation, error)
            raise
        return operation, given

    def _replace(self, headers: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return a call's arguments as they were, but for the headers."""
        at = list(self._signature.parameters).index("headers")
        if len(args) > at:
            return (*args[:at], headers, *args[at + 1 :]), kwargs
        return args, {**kwargs, "headers": headers}


class KafkaPythonProducer(_Sending, Block):
    """Stands for kafka-python's producer."""

    _null = b""

    def send(self, *args: Any, **kwargs: Any) -> Any:
        """Send a record that carries the trace; the span ends when the future has its result."""
        operation, given = self._begin(args, kwargs)
        args, kwargs = self._replace(given["headers"], args, kwargs)
        with HandOver(operation):
            future = self._own("send")(*args, **kwargs)
        future.add_callback(lambda metadata: end_confirmed(operation, metadata))
        future.add_errback(lambda error: end_failed(operation, error))
        return future


class AiokafkaProducer(_Sending, AsyncBlock):
    """Stands for aiokafka's producer."""

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        """Queue a record that carries the trace; the span ends when the future that this returns has its result."""
        operation, given = self._begin(args, kwargs)
        args, kwargs = self._replace(given["headers"], args, kwargs)
        with HandOver(operation):
            future = await self._own("send")(*args, **kwargs)
        future.add_done_callback(lambda done: end_as(operation, done))
        return future

    async def send_and_wait(self, *args: Any, **kwargs: Any) -> Any:
        """Send a record that carries the trace, and wait for the broker."""
        return await (await self.send(*args, **kwargs))


class ConfluentProducer(_Sending, Block):
    """Stands for confluent-kafka's producer."""

    _method = "produce"

    def produce(self, *args: Any, **kwargs: Any) -> Any:
        """Queue a record that carries the trace; the span ends when `poll` or `flush` reports the delivery.

        Where the call names no callback, and the producer's configuration may, the span ends at once: a report of our
        own would silence the configuration's callback.
        """
        operation, given = self._begin(args, kwargs)
        callback = given.pop("callback", None) or given.pop("on_delivery", None)
        is_reported = callback is not None or not has_delivery_callback(self.__wrapped__)
        if is_reported:
            given["on_delivery"] = DeliveryReport(operation, callback)
        with HandOver(operation):
            # By name, because what stood before a place that is empty now would slip into it.
            result = self._own("produce")(**given)
        if not is_reported:
            operation.end()
        return result

    def __len__(self) -> int:
        return len(self.__wrapped__)

    def __bool__(self) -> bool:
        return bool(self.__wrapped__)


class HandOver:
    """Makes a send current while its record is handed to the client, and ends it only where that raises.

    Args:
        operation: The send.
    """

    __slots__ = ("_current", "_operation")

    def __init__(self, operation: Operation) -> None:
        self._operation = operation
        self._current = operation.current()

    def __enter__(self) -> None:
        self._current.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._current.__exit__(kind, error, at)
        if error is not None:
            end_failed(self._operation, error)


def end_failed(operation: Operation, error: BaseException) -> None:
    """End a send that failed."""
    operation.fail(error)
    operation.end()


def end_confirmed(operation: Operation, metadata: Any) -> None:
    """End a send that the broker has confirmed, with the place that it gave the record."""
    if operation.is_open:
        offset, partition = field(metadata, "offset"), field(metadata, "partition")
        if isinstance(partition, int):
            operation.span.set_attribute("messaging.destination.partition.id", str(partition))
        if isinstance(offset, int) and offset >= 0:
            operation.span.set_attribute("messaging.kafka.offset", offset)
    operation.end()


def end_as(operation: Operation, future: Any) -> None:
    """End a send as its future ended."""
    if future.cancelled():
        operation.end()
    elif (error := future.exception()) is not None:
        end_failed(operation, error)
    else:
        end_confirmed(operation, future.result())


class DeliveryReport:
    """Takes the report of a delivery from librdkafka, hands it on to the application's callback, and ends the send.

    The send ends at the latest when librdkafka lets go of this object: it may be configured to report failures alone.

    Args:
        operation: The send.
        callback: The application's own, if it has given one.
    """

    __slots__ = ("_callback", "_operation")

    def __init__(self, operation: Operation, callback: Callable[[Any, Any], object] | None) -> None:
        self._operation = operation
        self._callback = callback

    def __call__(self, error: Any, message: Any) -> object:
        """Take what librdkafka reports: an error, or the message as the broker has it."""
        if error is None:
            end_confirmed(self._operation, message)
        else:
            from confluent_kafka import KafkaException

            end_failed(self._operation, KafkaException(error))
        return None if self._callback is None else self._callback(error, message)

    def __del__(self) -> None:
        self._operation.end()


# confluent-kafka's method is written in C, and does not show its parameters.
_PRODUCE: Final = inspect.Signature(
    [
        inspect.Parameter("topic", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        *(
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)
            for name in ("value", "key", "partition", "callback", "on_delivery", "timestamp", "headers")
        ),
    ]
)


def signature_of(client: Any, name: str) -> inspect.Signature:
    """Return a sending method's parameters; those of one that it overrides, where it passes on whatever it is given.

    Raises:
        TypeError: The method takes no headers.
    """
    inherited = [vars(cls)[name].__get__(client) for cls in type(client).__mro__ if name in vars(cls)]
    methods = map(_parameters, (getattr(client, name), *inherited))
    found = next((each for each in methods if _takes_headers(each) or not _takes_all(each)), None)
    if found is None or not _takes_headers(found):
        raise TypeError(f"{type(client).__qualname__}.{name} takes no topic and headers by these names")
    return found


def _parameters(method: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(method)
    except ValueError:
        return _PRODUCE


def _takes_headers(parameters: inspect.Signature) -> bool:
    return {"topic", "headers"} <= parameters.parameters.keys()


def _takes_all(parameters: inspect.Signature) -> bool:
    return any(each.kind is each.VAR_KEYWORD for each in parameters.parameters.values())
