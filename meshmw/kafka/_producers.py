"""Producers of three clients that trace what they send."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from meshmw._lifecycle.clients import AsyncBlock, Block, Instrumented
from meshmw._lifecycle.conventions import message_attributes
from meshmw._lifecycle.messaging import Messaging
from meshmw._lifecycle.operation import Operation
from meshmw.kafka._headers import field
from meshmw.kafka._spans import written

# What became of a record that was handed to a client, and the end of its span.


class HandOver:
    """Is a block in which a record is handed to its client: the send is current, and over only where that raises.

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
            failed(self._operation, error)


def failed(operation: Operation, error: BaseException) -> None:
    """End a send that failed."""
    operation.fail(error)
    operation.end()


def confirmed(operation: Operation, metadata: Any) -> None:
    """End a send that the broker has confirmed, with the place that it gave the record."""
    if operation.is_open:
        offset, partition = field(metadata, "offset"), field(metadata, "partition")
        if isinstance(partition, int):
            operation.span.set_attribute("messaging.destination.partition.id", str(partition))
        if isinstance(offset, int) and offset >= 0:
            operation.span.set_attribute("messaging.kafka.offset", offset)
    operation.end()


def confirm(operation: Operation, future: Any) -> None:
    """End a send as its future ended."""
    if future.cancelled():
        operation.end()
    elif (error := future.exception()) is not None:
        failed(operation, error)
    else:
        confirmed(operation, future.result())


class DeliveryReport:
    """Takes the report of a delivery, hands it on, and ends the send.

    It ends at the latest when librdkafka lets go of it, which may be told to report nothing that went well.
    """

    __slots__ = ("_given", "_operation")

    def __init__(self, operation: Operation, given: Callable[[Any, Any], object] | None) -> None:
        self._operation = operation
        self._given = given

    def __call__(self, error: Any, message: Any) -> object:
        """Take what librdkafka reports: an error, or the message as the broker has it."""
        if error is None:
            confirmed(self._operation, message)
        else:
            from confluent_kafka import KafkaException

            failed(self._operation, KafkaException(error))
        return None if self._given is None else self._given(error, message)

    def __del__(self) -> None:
        self._operation.end()


# What a producer's sending method takes, and under which names.


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


def signature_of(client: Any, name: str) -> inspect.Signature:
    """Return a method's parameters; those of one that it overrides, where it passes on whatever it is given.

    Raises:
        TypeError: The method takes no headers.
    """
    inherited = [vars(cls)[name].__get__(client) for cls in type(client).__mro__ if name in vars(cls)]
    methods = map(_parameters, (getattr(client, name), *inherited))
    found = next((each for each in methods if _names_its_own(each) or not _takes_all(each)), None)
    if found is None or not _names_its_own(found):
        raise TypeError(f"{type(client).__qualname__}.{name} takes no topic and headers by these names")
    return found


def _parameters(method: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(method)
    except ValueError:
        return _PRODUCE


def _names_its_own(parameters: inspect.Signature) -> bool:
    return {"topic", "headers"} <= parameters.parameters.keys()


def _takes_all(parameters: inspect.Signature) -> bool:
    return any(each.kind is each.VAR_KEYWORD for each in parameters.parameters.values())


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
        future.add_done_callback(lambda over: confirm(operation, over))
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
