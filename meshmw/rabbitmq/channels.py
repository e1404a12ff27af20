"""pika's channels that trace what they publish and what they hand out.

Knows the methods of both of pika's channels. Must not import a client before one has come along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from meshmw.boundary.delegation import Block
from meshmw.rabbitmq.messages import Message
from meshmw.rabbitmq.tracing import Tracing

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
        return _Messages(self, self.__wrapped__.consume(queue, *args, **kwargs), queue)


class _Messages(Tracing):
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
