"""Binds the messaging contract to pika and aio-pika, on queues of the default exchange."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any

import aio_pika
import pika
from opentelemetry.trace import Span

from meshmw import rabbitmq as ours
from tests.contracts.messaging.client import Clients, Headers, Inline, MessagingClient

BROKER = "rabbitmq_broker"
SECONDS = 60


class RabbitMQClient(MessagingClient):
    system = "rabbitmq"
    ours = ours
    send_operation = "publish"
    null_bodies = False
    closed = StopAsyncIteration

    def producer_span(self, destination: str) -> AbstractContextManager[Span]:
        return ours.producer_span("", destination, tracer_provider=self.provider)

    def pairs_of(self, headers: Any) -> list[tuple[str, bytes | None]]:
        return [(name, _as_bytes(value)) for name, value in (headers or {}).items()]


class PikaClient(RabbitMQClient):
    async def open(self) -> None:
        self.connection = pika.BlockingConnection(pika.URLParameters(self.broker))
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()

    async def close(self) -> None:
        self.connection.close()

    def publish(self, channel: Any, destination: str, body: bytes | None, headers: Any) -> None:
        self.channel.queue_declare(destination)
        properties = None if headers is None else pika.BasicProperties(headers=headers)
        channel.basic_publish("", destination, body or b"", properties, mandatory=True)

    async def send_plain(self, destination: str, body: bytes | None = b"body", headers: Headers = ()) -> None:
        self.publish(self.channel, destination, body, dict(headers) if headers else None)

    async def send(self, destination: str, body: bytes | None = b"body", headers: Any = None) -> None:
        with self.producer_span(destination):
            self.publish(self.channel, destination, body, self.inject(headers))

    async def send_instrumented(self, destination: str, body: bytes | None = b"body", headers: Any = None) -> None:
        self.publish(ours.instrument(self.channel, **self.options), destination, body, headers)

    async def receive(self, destination: str, count: int = 1) -> list[Any]:
        deadline = time.monotonic() + SECONDS
        found: list[Any] = []
        while len(found) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} messages came"
            message = self.channel.basic_get(destination, auto_ack=True)
            if message[0] is not None:
                found.append(message)
        return found

    @asynccontextmanager
    async def deliveries(self, destination: str) -> AsyncIterator[AsyncIterator[Any]]:
        channel = self.connection.channel()
        channel.queue_declare(destination)
        try:
            yield Inline(ours.consume(channel.consume(destination), queue=destination, **self.options))
        finally:
            channel.cancel()
            channel.close()

    def headers_of(self, message: Any) -> Any:
        return message[1].headers

    def body_of(self, message: Any) -> bytes | None:
        return message[2]


class AioPikaClient(RabbitMQClient):
    async def open(self) -> None:
        self.connection = await aio_pika.connect(self.broker)
        self.channel = await self.connection.channel()

    async def close(self) -> None:
        await self.connection.close()

    async def publish(self, channel: Any, destination: str, body: bytes | None, headers: Any) -> None:
        await self.channel.declare_queue(destination)
        await channel.default_exchange.publish(aio_pika.Message(body or b"", headers=headers), destination)

    async def send_plain(self, destination: str, body: bytes | None = b"body", headers: Headers = ()) -> None:
        # Of bytes it sends only this kind.
        sendable = {name: bytearray(value) if isinstance(value, bytes) else value for name, value in headers}
        await self.publish(self.channel, destination, body, sendable or None)

    async def send(self, destination: str, body: bytes | None = b"body", headers: Any = None) -> None:
        with self.producer_span(destination):
            await self.publish(self.channel, destination, body, self.inject(headers))

    async def send_instrumented(self, destination: str, body: bytes | None = b"body", headers: Any = None) -> None:
        await self.publish(ours.instrument(self.channel, **self.options), destination, body, headers)

    async def receive(self, destination: str, count: int = 1) -> list[Any]:
        queue = await self.channel.get_queue(destination)
        found: list[Any] = []
        async with asyncio.timeout(SECONDS), queue.iterator(no_ack=True) as messages:
            while len(found) < count:
                found.append(await anext(messages))
        return found

    @asynccontextmanager
    async def deliveries(self, destination: str) -> AsyncIterator[AsyncIterator[Any]]:
        queue = await self.channel.declare_queue(destination)
        async with queue.iterator() as messages:
            yield ours.aconsume(messages, queue=destination, **self.options)

    def headers_of(self, message: Any) -> Any:
        return message.headers

    def body_of(self, message: Any) -> bytes | None:
        return message.body


def _as_bytes(value: Any) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    return value.encode() if isinstance(value, str) else bytes(value)


CLIENTS: Clients = {"pika": PikaClient, "aio-pika": AioPikaClient}
