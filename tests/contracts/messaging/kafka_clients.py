"""Binds the messaging contract to kafka-python, aiokafka and confluent-kafka, each with one partition per topic."""

from __future__ import annotations

import abc
import asyncio
import selectors
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, closing
from typing import Any

import aiokafka
import confluent_kafka
import kafka
from opentelemetry.trace import Span

from meshmw import kafka as ours
from tests.contracts.messaging.client import Clients, Headers, Inline, MessagingClient

BROKER = "kafka_broker"
SECONDS = 60
KEY = b"key"  # two clients send no message that has neither a body nor a key


class ClosingSelector(selectors.DefaultSelector):
    """Closes, at its own end, every socket that it has watched.

    kafka-python forgets a connection that it is to close while a request waits to be sent, and one that it is still
    opening: the collector finds the socket later, in the test of a stranger, and warns of it there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._watched: set[Any] = set()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self._watched.add(fileobj)
        return super().register(fileobj, events, data)

    def close(self) -> None:
        super().close()
        for each in self._watched:
            each.close()


class KafkaClient(MessagingClient):
    system = "kafka"
    ours = ours
    repeats_headers = True

    def encoded(self, headers: Headers) -> list[tuple[str, bytes | None]]:
        return [(name, value.encode() if isinstance(value, str) else value) for name, value in headers]

    def producer_span(self, destination: str) -> AbstractContextManager[Span]:
        return ours.producer_span(destination, tracer_provider=self.provider)

    def headers_of(self, message: Any) -> Any:
        return message.headers

    def pairs_of(self, headers: Any) -> list[tuple[str, bytes | None]]:
        return list(headers or ())

    def body_of(self, message: Any) -> bytes | None:
        return message.value


class SyncKafkaClient(KafkaClient):
    """A client whose consumer is iterated over without `async`."""

    @abc.abstractmethod
    def consumer(self, destination: str) -> Any:
        """Return a consumer of a topic from its beginning."""

    @abc.abstractmethod
    def taken(self, consumer: Any, count: int) -> list[Any]:
        """Return the next messages."""

    async def receive(self, destination: str, count: int = 1) -> list[Any]:
        with closing(self.consumer(destination)) as consumer:
            return self.taken(consumer, count)

    @asynccontextmanager
    async def deliveries(self, destination: str) -> AsyncIterator[AsyncIterator[Any]]:
        with closing(self.consumer(destination)) as consumer:
            yield Inline(ours.consume(consumer, **self.options))


class KafkaPythonClient(SyncKafkaClient):
    async def open(self) -> None:
        self.producer = kafka.KafkaProducer(bootstrap_servers=self.broker)

    async def close(self) -> None:
        self.producer.close(timeout=SECONDS)

    async def send_plain(self, destination: str, body: bytes | None = b"body", headers: Headers = ()) -> None:
        # This client cannot send a header without a value; another one can.
        if any(value is None for _, value in headers):
            produce_by_confluent(self.broker, destination, body, self.encoded(headers))
        else:
            self.producer.send(destination, body, KEY, headers=self.encoded(headers), partition=0).get(SECONDS)

    async def send(self, destination: str, body: bytes | None = b"body", headers: Any = None) -> None:
        with self.producer_span(destination):
            self.producer.send(destination, body, headers=self.inject(headers), partition=0).get(SECONDS)

    async def send_instrumented(self, destination: str, body: bytes | None = b"body", headers: Any = None) -> None:
        producer = ours.instrument(self.producer, **self.options)
        producer.send(destination, body, None, headers, partition=0).get(SECONDS)

    def consumer(self, destination: str) -> kafka.KafkaConsumer:
        consumer = kafka.KafkaConsumer(
            bootstrap_servers=self.broker,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            group_id=None,
            consumer_timeout_ms=SECONDS * 1000,
        )
        consumer.assign([kafka.TopicPartition(destination, 0)])
        return consumer

    def taken(self, consumer: kafka.KafkaConsumer, count: int) -> list[Any]:
        return [next(consumer) for _ in range(count)]


class AiokafkaClient(KafkaClient):
    async def open(self) -> None:
        self.producer = aiokafka.AIOKafkaProducer(bootstrap_servers=self.broker)
        await self.producer.start()

    async def close(self) -> None:
        await self.producer.stop()

    async def send_plain(self, destination: str, body: bytes | None = b"body", headers: Headers = ()) -> None:
        await self.producer.send_and_wait(destination, body, KEY, headers=self.encoded(headers), partition=0)

    async def send(self, destination: str, body: bytes | None = b"body", headers: Any = None) -> None:
        with self.producer_span(destination):
            await self.producer.send_and_wait(destination, body, headers=self.inject(headers), partition=0)

    async def send_instrumented(self, destination: str, body: bytes | None = b"body", headers: Any = None) -> None:
        await ours.instrument(self.producer, **self.options).send_and_wait(destination, body, None, 0, None, headers)

    @asynccontextmanager
    async def consumer(self, destination: str) -> AsyncIterator[aiokafka.AIOKafkaConsumer]:
        consumer = aiokafka.AIOKafkaConsumer(
            bootstrap_servers=self.broker, auto_offset_reset="earliest", enable_auto_commit=False, group_id=None
        )
        await consumer.start()
        consumer.assign([aiokafka.TopicPartition(destination, 0)])
        try:
            yield consumer
        finally:
            await consumer.stop()

    async def receive(self, destination: str, count: int = 1) -> list[Any]:
        async with self.consumer(destination) as consumer:
            return [await asyncio.wait_for(consumer.getone(), SECONDS) for _ in range(count)]

    @asynccontextmanager
    async def deliveries(self, destination: str) -> AsyncIterator[AsyncIterator[Any]]:
        async with self.consumer(destination) as consumer:
            yield ours.aconsume(consumer, **self.options)


class ConfluentClient(SyncKafkaClient):
    closed = RuntimeError

    async def open(self) -> None:
        self.producer = confluent_kafka.Producer({"bootstrap.servers": self.broker, "linger.ms": 0})

    async def close(self) -> None:
        self.producer.flush(SECONDS)
        self.producer.close()

    async def send_plain(self, destination: str, body: bytes | None = b"body", headers: Headers = ()) -> None:
        self.producer.produce(destination, body, headers=self.encoded(headers), partition=0)
        assert self.producer.flush(SECONDS) == 0

    async def send(self, destination: str, body: bytes | None = b"body", headers: Any = None) -> None:
        with self.producer_span(destination):
            self.producer.produce(destination, body, headers=self.inject(headers), partition=0)
            assert self.producer.flush(SECONDS) == 0

    async def send_instrumented(self, destination: str, body: bytes | None = b"body", headers: Any = None) -> None:
        producer = ours.instrument(self.producer, **self.options)
        producer.produce(destination, body, None, 0, **({} if headers is None else {"headers": headers}))
        assert producer.flush(SECONDS) == 0

    def consumer(self, destination: str) -> confluent_kafka.Consumer:
        consumer = confluent_kafka.Consumer(
            {
                "bootstrap.servers": self.broker,
                "group.id": "none",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
            }
        )
        # A number: to ask for the beginning costs this client half a second.
        consumer.assign([confluent_kafka.TopicPartition(destination, 0, 0)])
        return consumer

    def taken(self, consumer: confluent_kafka.Consumer, count: int) -> list[Any]:
        found: list[Any] = []
        deadline = time.monotonic() + SECONDS
        while len(found) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} messages came"
            message = consumer.poll(0.1)
            if message is not None and message.error() is None:
                found.append(message)
        return found

    def headers_of(self, message: Any) -> Any:
        return message.headers()

    def body_of(self, message: Any) -> bytes | None:
        return message.value()


def produce_by_confluent(
    broker: str, destination: str, body: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    producer = confluent_kafka.Producer({"bootstrap.servers": broker})
    producer.produce(destination, body, headers=headers, partition=0)
    assert producer.flush(SECONDS) == 0
    producer.close()


CLIENTS: Clients = {
    "kafka-python": KafkaPythonClient,
    "aiokafka": AiokafkaClient,
    "confluent-kafka": ConfluentClient,
}
