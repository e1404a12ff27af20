"""aio-pika's channels, exchanges and queues that trace what they publish and what they hand out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator
from typing import Any, Self

from opentelemetry.trace import Span, StatusCode

from meshmw._lifecycle.clients import AsyncBlock, Block, Instrumented
from meshmw.rabbitmq._headers import Message
from meshmw.rabbitmq._spans import Tracing


class AioPikaExchange(Tracing):
    """Is an exchange."""

    async def publish(self, message: Any, routing_key: str, *args: Any, **kwargs: Any) -> Any:
        """Publish a message that carries the trace; the span ends when the broker has answered.

        A message that the broker returns, because no queue gets it, makes the span an error.
        """
        with self._sending(self.__wrapped__.name, routing_key, message, getattr(message, "body", None)) as span:
            answer = await self.__wrapped__.publish(self._carrying(message), routing_key, *args, **kwargs)
            _tell_return(span, answer)
            return answer

    async def bind(self, exchange: Any, *args: Any, **kwargs: Any) -> Any:
        """Bind the exchange to another one."""
        return await self.__wrapped__.bind(_bare(exchange), *args, **kwargs)

    async def unbind(self, exchange: Any, *args: Any, **kwargs: Any) -> Any:
        """Undo `bind`."""
        return await self.__wrapped__.unbind(_bare(exchange), *args, **kwargs)


class AioPikaQueue(Tracing):
    """Is a queue."""

    async def consume(self, callback: Callable[[Any], Any], *args: Any, **kwargs: Any) -> Any:
        """Consume, and call back for each message in a span that processes it."""

        async def on_message(message: Any) -> Any:
            with self._processing(Message.of(message, queue=self.__wrapped__.name)):
                result = callback(message)
                return await result if inspect.isawaitable(result) else result

        return await self.__wrapped__.consume(on_message, *args, **kwargs)

    async def get(self, *args: Any, **kwargs: Any) -> Any:
        """Return one message."""
        return self._got(await self.__wrapped__.get(*args, **kwargs), self.__wrapped__.name, "get")

    def iterator(self, **kwargs: Any) -> _Messages:
        """Return the queue's own iterator, each message with a span that says that it was received."""
        return _Messages(self, self.__wrapped__.iterator(**kwargs))

    def __aiter__(self) -> _Messages:
        return self.iterator()

    async def bind(self, exchange: Any, *args: Any, **kwargs: Any) -> Any:
        """Bind the queue to an exchange."""
        return await self.__wrapped__.bind(_bare(exchange), *args, **kwargs)

    async def unbind(self, exchange: Any, *args: Any, **kwargs: Any) -> Any:
        """Undo `bind`."""
        return await self.__wrapped__.unbind(_bare(exchange), *args, **kwargs)


class AioPikaChannel(Tracing, AsyncBlock):
    """Is a channel, whose exchanges and queues trace."""

    def __await__(self) -> Generator[Any, Any, Self]:
        yield from self.__wrapped__.__await__()
        return self

    @property
    def default_exchange(self) -> AioPikaExchange:
        """The exchange that routes by the name of the queue."""
        return AioPikaExchange(self.__wrapped__.default_exchange, self._of, self._keep_existing)

    async def declare_exchange(self, *args: Any, **kwargs: Any) -> AioPikaExchange:
        """Return an exchange that is there afterwards."""
        exchange = await self.__wrapped__.declare_exchange(*args, **kwargs)
        return AioPikaExchange(exchange, self._of, self._keep_existing)

    async def get_exchange(self, *args: Any, **kwargs: Any) -> AioPikaExchange:
        """Return an exchange that is there."""
        exchange = await self.__wrapped__.get_exchange(*args, **kwargs)
        return AioPikaExchange(exchange, self._of, self._keep_existing)

    async def declare_queue(self, *args: Any, **kwargs: Any) -> AioPikaQueue:
        """Return a queue that is there afterwards."""
        return AioPikaQueue(await self.__wrapped__.declare_queue(*args, **kwargs), self._of, self._keep_existing)

    async def get_queue(self, *args: Any, **kwargs: Any) -> AioPikaQueue:
        """Return a queue that is there."""
        return AioPikaQueue(await self.__wrapped__.get_queue(*args, **kwargs), self._of, self._keep_existing)


class _Messages(Tracing, AsyncBlock):
    """Is a queue's iterator."""

    def __init__(self, queue: AioPikaQueue, messages: Any) -> None:
        super().__init__(messages, queue._of, queue._keep_existing)
        self.name = queue.name

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        return self._got(await self.__wrapped__.__anext__(), self.name, "receive")


def _bare(exchange: Any) -> Any:
    """Return what the client's own methods take for an exchange: their object, or a name."""
    return exchange.__wrapped__ if isinstance(exchange, Instrumented) else exchange


def _tell_return(span: Span, answer: Any) -> None:
    reason = getattr(getattr(answer, "delivery", None), "reply_text", None)
    if isinstance(reason, str):
        span.set_attribute("error.type", reason)
        span.set_status(StatusCode.ERROR)


# pika's channels that trace what they publish and what they hand out.


OnMessage = Callable[[Any, Any, Any, Any], object]


class PikaChannel(Tracing):
    """Is the channel of a `SelectConnection` or another connection with callbacks."""

    def basic_publish(
        self, exchange: str, routing_key: str, body: Any, properties: Any = None, mandatory: bool = False
    ) -> Any:
        """Publish a message that carries the trace.

        On a blocking channel with confirms the span ends when the broker has answered; else when it is written.
        """
        with self._sending(exchange, routing_key, properties, body):
            carrying = self._carrying(_new_properties() if properties is None else properties)
            return self.__wrapped__.basic_publish(exchange, routing_key, body, carrying, mandatory)

    def basic_consume(self, queue: str, on_message_callback: OnMessage, *args: Any, **kwargs: Any) -> Any:
        """Consume, and call back for each message in a span that processes it."""
        return self.__wrapped__.basic_consume(queue, self._within_span(on_message_callback, queue), *args, **kwargs)

    def basic_get(self, queue: str, callback: OnMessage, *args: Any, **kwargs: Any) -> Any:
        """Ask for one message, and call back in a span that processes it."""
        return self.__wrapped__.basic_get(queue, self._within_span(callback, queue), *args, **kwargs)

    def __int__(self) -> int:
        return int(self.__wrapped__)

    def _within_span(self, callback: OnMessage, queue: str) -> OnMessage:
        def on_message(_: Any, method: Any, properties: Any, body: Any) -> object:
            with self._processing(Message.of(method, properties, body, queue)):
                # What it publishes there is traced too.
                return callback(self, method, properties, body)

        return on_message


class PikaBlockingChannel(PikaChannel, Block):
    """Is the channel of a `BlockingConnection`."""

    def basic_get(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        """Return one message."""
        return self._got(self.__wrapped__.basic_get(queue, *args, **kwargs), queue, "get")

    def consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        """Return the channel's own generator of messages, each with a span that says that it was received."""
        return _ChannelMessages(self, self.__wrapped__.consume(queue, *args, **kwargs), queue)


class _ChannelMessages(Tracing):
    """Is a blocking channel's generator of messages."""

    def __init__(self, channel: PikaBlockingChannel, messages: Any, queue: str) -> None:
        super().__init__(messages, channel._of, channel._keep_existing)
        self._queue = queue

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._got(next(self.__wrapped__), self._queue, "receive")


def _new_properties() -> Any:
    # Who has a channel has pika.
    from pika import BasicProperties  # type: ignore[import-untyped]

    return BasicProperties()
