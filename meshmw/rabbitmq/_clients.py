"""`instrument()`, and the channels, exchanges and queues of two clients that trace what they publish and hand out."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, Self, TypeVar, Unpack

from opentelemetry.trace import Span, StatusCode

from meshmw._lifecycle.clients import AsyncBlock, Block, Instrumented, Kinds, instrumented
from meshmw._lifecycle.messaging import Options
from meshmw._lifecycle.operation import OperationScope
from meshmw._lifecycle.rpc import stand_contrib_down
from meshmw.rabbitmq._headers import Message
from meshmw.rabbitmq._spans import RABBITMQ, begin_process, begin_send, server_of, write

C = TypeVar("C")
OnMessage = Callable[[Any, Any, Any, Any], object]


def instrument(client: C, *, keep_existing: bool = False, **options: Unpack[Options]) -> C:
    """Return a channel, exchange or queue that works as *client*, and traces what it publishes or hands out.

    What is published carries the trace, and has a PRODUCER span. A callback runs in a span that processes its message.
    What `basic_get`, `get` and iterators hand out has a `receive` span. The work on it has a span where you use
    `consumer_span` or `consume`: no iterator knows when that work ends.

    The result has every attribute of the client's object, but is not an instance of its class. Code that needs one gets
    the object itself as `__wrapped__`. Other channels do not change.

    Args:
        client: pika's channel, of a blocking connection or of one with callbacks; or aio-pika's channel, whose
            exchanges and queues trace then, or an exchange or a queue alone.
        keep_existing: As for `inject`.
        **options: As for `consumer_span`.

    Raises:
        ValueError: `parent` is none of its words.
        TypeError: *client* is none of these; or an option is not known, or holds no propagator or tracer provider.
    """
    messaging = RABBITMQ.with_options(options, server=server_of(client), keep_existing=keep_existing)
    return instrumented(
        client, _KINDS, messaging, takes="a channel of pika, or a channel, exchange or queue of aio-pika"
    )


class _Tracing(Instrumented):
    """Begins the operations of messages that are published or handed out."""

    def _sending(
        self, exchange: str, routing_key: str, properties: Any, body: Any
    ) -> AbstractContextManager[Span, None]:
        return OperationScope(partial(begin_send, self._messaging, exchange, routing_key, properties, body))

    def _carrying(self, properties: Any) -> Any:
        """Return a copy of properties or a message that carries what is current."""
        return write(self._messaging, properties, None)

    def _processing(self, message: Message) -> AbstractContextManager[Span, None]:
        return OperationScope(partial(begin_process, self._messaging, message))

    def _got(self, message: Any, queue: str, operation: str) -> Any:
        """Make a `receive` span for a message that is handed out, if it is one, and return it."""
        begin_process(self._messaging, Message.from_client(message, queue=queue), operation, "receive").end()
        return message


class PikaChannel(_Tracing):
    """Wraps the channel of a `SelectConnection` or another connection with callbacks."""

    def basic_publish(
        self, exchange: str, routing_key: str, body: Any, properties: Any = None, mandatory: bool = False
    ) -> Any:
        """Publish a message that carries the trace.

        On a blocking channel with confirms the span ends when the broker has answered; else when it is written.
        """
        with self._sending(exchange, routing_key, properties, body):
            carrying = self._carrying(_new_properties() if properties is None else properties)
            # Contrib's instrumentation wraps the channel behind a blocking one too.
            with stand_contrib_down(threading.get_ident, "opentelemetry.instrumentation.pika"):
                return self._own("basic_publish")(exchange, routing_key, body, carrying, mandatory)

    def basic_consume(self, queue: str, on_message_callback: OnMessage, *args: Any, **kwargs: Any) -> Any:
        """Consume, and call back for each message in a span that processes it."""
        return self._own("basic_consume")(queue, self._within_span(on_message_callback, queue), *args, **kwargs)

    def basic_get(self, queue: str, callback: OnMessage, *args: Any, **kwargs: Any) -> Any:
        """Ask for one message, and call back in a span that processes it."""
        return self.__wrapped__.basic_get(queue, self._within_span(callback, queue), *args, **kwargs)

    def __int__(self) -> int:
        return int(self.__wrapped__)

    def _within_span(self, callback: OnMessage, queue: str) -> OnMessage:
        def on_message(_: Any, method: Any, properties: Any, body: Any) -> object:
            with self._processing(Message.from_client(method, properties, body, queue)):
                # With this channel, so that what the callback publishes is traced too.
                return callback(self, method, properties, body)

        return on_message


class PikaBlockingChannel(PikaChannel, Block):
    """Wraps the channel of a `BlockingConnection`."""

    def basic_get(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        """Return one message."""
        return self._got(self.__wrapped__.basic_get(queue, *args, **kwargs), queue, "get")

    def consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        """Return the channel's own generator of messages, each with a span that says that it was received."""
        return _PikaMessages(self, self.__wrapped__.consume(queue, *args, **kwargs), queue)


class _PikaMessages(_Tracing):
    """Wraps a blocking channel's generator of messages."""

    def __init__(self, channel: PikaBlockingChannel, messages: Any, queue: str) -> None:
        super().__init__(messages, channel._messaging)
        self._queue = queue

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._got(next(self.__wrapped__), self._queue, "receive")


class AioPikaChannel(_Tracing, AsyncBlock):
    """Wraps aio-pika's channel; its exchanges and queues trace."""

    def __await__(self) -> Generator[Any, Any, Self]:
        yield from self.__wrapped__.__await__()
        return self

    @property
    def default_exchange(self) -> AioPikaExchange:
        """Return the exchange that routes by the name of the queue."""
        return AioPikaExchange(self.__wrapped__.default_exchange, self._messaging)

    async def declare_exchange(self, *args: Any, **kwargs: Any) -> AioPikaExchange:
        """Return an exchange that is there afterwards."""
        return AioPikaExchange(await self.__wrapped__.declare_exchange(*args, **kwargs), self._messaging)

    async def get_exchange(self, *args: Any, **kwargs: Any) -> AioPikaExchange:
        """Return an exchange that is there."""
        return AioPikaExchange(await self.__wrapped__.get_exchange(*args, **kwargs), self._messaging)

    async def declare_queue(self, *args: Any, **kwargs: Any) -> AioPikaQueue:
        """Return a queue that is there afterwards."""
        return AioPikaQueue(await self.__wrapped__.declare_queue(*args, **kwargs), self._messaging)

    async def get_queue(self, *args: Any, **kwargs: Any) -> AioPikaQueue:
        """Return a queue that is there."""
        return AioPikaQueue(await self.__wrapped__.get_queue(*args, **kwargs), self._messaging)


class AioPikaExchange(_Tracing):
    """Wraps aio-pika's exchange."""

    async def publish(self, message: Any, routing_key: str, *args: Any, **kwargs: Any) -> Any:
        """Publish a message that carries the trace; the span ends when the broker has answered.

        A message that the broker returns, because no queue gets it, makes the span an error.
        """
        with self._sending(self.__wrapped__.name, routing_key, message, getattr(message, "body", None)) as span:
            answer = await self._own("publish")(self._carrying(message), routing_key, *args, **kwargs)
            _record_return(span, answer)
            return answer

    async def bind(self, exchange: Any, *args: Any, **kwargs: Any) -> Any:
        """Bind the exchange to another one."""
        return await self.__wrapped__.bind(_unwrapped(exchange), *args, **kwargs)

    async def unbind(self, exchange: Any, *args: Any, **kwargs: Any) -> Any:
        """Undo `bind`."""
        return await self.__wrapped__.unbind(_unwrapped(exchange), *args, **kwargs)


class AioPikaQueue(_Tracing):
    """Wraps aio-pika's queue."""

    async def consume(self, callback: Callable[[Any], Any], *args: Any, **kwargs: Any) -> Any:
        """Consume, and call back for each message in a span that processes it."""

        async def on_message(message: Any) -> Any:
            with self._processing(Message.from_client(message, queue=self.__wrapped__.name)):
                result = callback(message)
                return await result if inspect.isawaitable(result) else result

        return await self._own("consume")(on_message, *args, **kwargs)

    async def get(self, *args: Any, **kwargs: Any) -> Any:
        """Return one message."""
        return self._got(await self.__wrapped__.get(*args, **kwargs), self.__wrapped__.name, "get")

    def iterator(self, **kwargs: Any) -> _AioPikaMessages:
        """Return the queue's own iterator, each message with a span that says that it was received."""
        return _AioPikaMessages(self, self.__wrapped__.iterator(**kwargs))

    def __aiter__(self) -> _AioPikaMessages:
        return self.iterator()

    async def bind(self, exchange: Any, *args: Any, **kwargs: Any) -> Any:
        """Bind the queue to an exchange."""
        return await self.__wrapped__.bind(_unwrapped(exchange), *args, **kwargs)

    async def unbind(self, exchange: Any, *args: Any, **kwargs: Any) -> Any:
        """Undo `bind`."""
        return await self.__wrapped__.unbind(_unwrapped(exchange), *args, **kwargs)


class _AioPikaMessages(_Tracing, AsyncBlock):
    """Wraps a queue's iterator."""

    def __init__(self, queue: AioPikaQueue, messages: Any) -> None:
        super().__init__(messages, queue._messaging)
        self.name = queue.name

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        return self._got(await self.__wrapped__.__anext__(), self.name, "receive")


def _new_properties() -> Any:
    # The channel is pika's, so pika is installed.
    from pika import BasicProperties  # type: ignore[import-untyped]

    return BasicProperties()


def _unwrapped(exchange: Any) -> Any:
    """Return what the client's own methods take for an exchange: their object, or a name."""
    return exchange.__wrapped__ if isinstance(exchange, Instrumented) else exchange


def _record_return(span: Span, answer: Any) -> None:
    reason = getattr(getattr(answer, "delivery", None), "reply_text", None)
    if isinstance(reason, str):
        span.set_attribute("error.type", reason)
        span.set_status(StatusCode.ERROR)


_KINDS: Final[Kinds] = {
    ("pika", "BlockingChannel"): PikaBlockingChannel,
    ("pika", "Channel"): PikaChannel,
    ("aio_pika", "Channel"): AioPikaChannel,
    ("aio_pika", "Exchange"): AioPikaExchange,
    ("aio_pika", "Queue"): AioPikaQueue,
}
