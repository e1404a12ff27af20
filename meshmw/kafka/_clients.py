"""`instrument()`, and the producers and consumers of three clients that trace what they send and fetch.

A record's PRODUCER span ends when its client says what became of it: by a future (kafka-python, aiokafka) or by a
report to a callback (confluent-kafka). What a consumer has fetched gets a `receive` span.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

from meshmw._foreign import has_delivery_callback
from meshmw._lifecycle.clients import AsyncBlock, Block, Instrumented, Kinds, instrumented
from meshmw._lifecycle.messaging import Messaging, Options
from meshmw._lifecycle.operation import Operation
from meshmw.kafka._headers import field, places
from meshmw.kafka._spans import KAFKA, begin_batch, begin_process, begin_send, server_of, take, write

C = TypeVar("C")


def instrument(client: C, *, keep_existing: bool = False, **options: Unpack[Options]) -> C:
    """Return a producer or consumer that works as *client*, and traces what it sends or fetches.

    A producer's records carry the trace, and each has a PRODUCER span that ends when the broker has answered. Each
    fetch of a consumer that returns something has a `receive` span. The work on a record has a span where you use
    `consumer_span` or `consume`: no iterator knows when that work ends.

    The result has every attribute of the client, but is not an instance of its class. Code that needs one gets the
    client itself as `__wrapped__`. Other producers and consumers do not change.

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
    """Wraps kafka-python's producer."""

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
    """Wraps aiokafka's producer."""

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
    """Wraps confluent-kafka's producer."""

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
            # By name: the callback has left its place, and what stood behind it would move up.
            result = self._own("produce")(**given)
        if not is_reported:
            operation.end()
        return result

    def __len__(self) -> int:
        return len(self.__wrapped__)

    def __bool__(self) -> bool:
        return bool(self.__wrapped__)


class HandOver:
    """Makes a send current while its record is handed to the client, and ends it only where that raises."""

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
    """Wraps kafka-python's consumer."""

    def poll(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch records."""
        began = time.time_ns()
        return self._got_some(self._own("poll")(*args, **kwargs), "poll", began)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._got_one(self._own("__next__")(), "receive")


class AiokafkaConsumer(_Fetching, AsyncBlock):
    """Wraps aiokafka's consumer."""

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
    """Wraps confluent-kafka's consumer."""

    def poll(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch a message."""
        return self._got_one(self._own("poll")(*args, **kwargs), "poll")

    def consume(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch messages."""
        began = time.time_ns()
        return self._got_some(self._own("consume")(*args, **kwargs), "poll", began)


class ConfluentAsyncConsumer(_Fetching, AsyncBlock):
    """Wraps confluent-kafka's asynchronous consumer."""

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
