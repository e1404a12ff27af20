"""What only Apache Kafka shows: transactions, tombstones, stored batches, its own group protocol, a restart."""

from __future__ import annotations

import asyncio
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiokafka
import confluent_kafka
import confluent_kafka.admin
import kafka
import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from meshmw import kafka as ours
from tests.contracts.messaging.client import Inline, MessagingClient
from tests.contracts.messaging.conftest import no_detach_errors, no_forgotten_connections  # noqa: F401 - autouse
from tests.contracts.messaging.kafka_clients import CLIENTS
from tests.real.apache_kafka import ApacheKafka
from tests.real.install import real_server

SECONDS = 60


class Transactions(ABC):
    """An instrumented producer with a transactional id, and a consumer that reads what is committed."""

    def __init__(self, client: MessagingClient, topic: str) -> None:
        self.client, self.topic = client, topic
        self.id = f"of-{topic}"

    @abstractmethod
    def opened(self) -> AbstractAsyncContextManager[Any]:
        """Return a block with a producer in a transaction."""

    @abstractmethod
    async def send(self, producer: Any, body: bytes) -> None:
        """Send a message, and wait until it is there."""

    @abstractmethod
    def committed(self) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """Return a block with what comes of committed transactions."""


class ConfluentTransactions(Transactions):
    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Any]:
        producer = confluent_kafka.Producer({"bootstrap.servers": self.client.broker, "transactional.id": self.id})
        producer.init_transactions(SECONDS)
        yield ours.instrument(producer, **self.client.options)
        producer.close()

    async def send(self, producer: Any, body: bytes) -> None:
        producer.produce(self.topic, body, partition=0)
        assert producer.flush(SECONDS) == 0

    @asynccontextmanager
    async def committed(self) -> AsyncIterator[AsyncIterator[Any]]:
        options = {"bootstrap.servers": self.client.broker, "group.id": "none", "isolation.level": "read_committed"}
        with closing(confluent_kafka.Consumer(options)) as consumer:
            consumer.assign([confluent_kafka.TopicPartition(self.topic, 0, 0)])
            yield Inline(ours.consume(consumer, **self.client.options))


class KafkaPythonTransactions(Transactions):
    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Any]:
        producer = kafka.KafkaProducer(bootstrap_servers=self.client.broker, transactional_id=self.id)
        producer.init_transactions()
        yield ours.instrument(producer, **self.client.options)
        producer.close(timeout=SECONDS)

    async def send(self, producer: Any, body: bytes) -> None:
        producer.send(self.topic, body, partition=0).get(SECONDS)

    @asynccontextmanager
    async def committed(self) -> AsyncIterator[AsyncIterator[Any]]:
        consumer = kafka.KafkaConsumer(
            bootstrap_servers=self.client.broker,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            group_id=None,
            consumer_timeout_ms=SECONDS * 1000,
        )
        with closing(consumer):
            consumer.assign([kafka.TopicPartition(self.topic, 0)])
            yield Inline(ours.consume(consumer, **self.client.options))


class AiokafkaTransactions(Transactions):
    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Any]:
        producer = aiokafka.AIOKafkaProducer(bootstrap_servers=self.client.broker, transactional_id=self.id)
        await producer.start()
        yield ours.instrument(producer, **self.client.options)
        await producer.stop()

    async def send(self, producer: Any, body: bytes) -> None:
        await producer.send_and_wait(self.topic, body, partition=0)

    @asynccontextmanager
    async def committed(self) -> AsyncIterator[AsyncIterator[Any]]:
        consumer = aiokafka.AIOKafkaConsumer(
            bootstrap_servers=self.client.broker,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            group_id=None,
        )
        await consumer.start()
        consumer.assign([aiokafka.TopicPartition(self.topic, 0)])
        try:
            yield ours.aconsume(consumer, **self.client.options)
        finally:
            await consumer.stop()


TRANSACTIONS = {
    "kafka-python": KafkaPythonTransactions,
    "aiokafka": AiokafkaTransactions,
    "confluent-kafka": ConfluentTransactions,
}


@pytest.fixture
def topic(apache_kafka: str) -> str:
    """A topic of this test's own, with one partition."""
    return create(apache_kafka, 1)


def create(broker: str, partitions: int, **config: str) -> str:
    """Make a topic."""
    name = f"alone-{secrets.token_hex(4)}"
    admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": broker})
    for done in admin.create_topics([confluent_kafka.admin.NewTopic(name, partitions, config=config)]).values():
        done.result(SECONDS)
    return name


@pytest.fixture(params=CLIENTS)
def name(request: pytest.FixtureRequest) -> str:
    """Each client library."""
    return str(request.param)


def run(broker: str, name: str, use: Callable[[MessagingClient], Awaitable[None]]) -> None:
    """Run a test's coroutine function with an open client."""

    async def whole() -> None:
        client = CLIENTS[name](broker)
        await client.open()
        try:
            await asyncio.wait_for(use(client), SECONDS * 5)
        finally:
            await client.close()

    asyncio.run(whole())


async def now(answer: Any) -> None:
    """Wait for what an async client returns; another has done it."""
    if asyncio.iscoroutine(answer):
        await answer


def test_what_a_transaction_gave_up_is_never_processed_and_the_rest_is_in_its_own_trace(
    apache_kafka: str, name: str, topic: str
) -> None:
    async def use(client: MessagingClient) -> None:
        transactions = TRANSACTIONS[name](client, topic)
        async with transactions.opened() as producer:
            for body, end in (b"aborted", "abort_transaction"), (b"committed", "commit_transaction"):
                with client.provider.get_tracer("app").start_as_current_span(body.decode()):
                    await now(producer.begin_transaction())
                    await transactions.send(producer, body)
                    await now(getattr(producer, end)())
        async with transactions.committed() as deliveries:
            with await anext(deliveries) as message:
                assert client.body_of(message) == b"committed"
                current = trace.get_current_span().get_span_context()
        aborted, committed = (span for span in client.spans if span.kind is SpanKind.PRODUCER)
        assert aborted.parent.span_id == client.span("aborted").context.span_id
        assert committed.parent.span_id == client.span("committed").context.span_id
        (processed,) = (span for span in client.spans if span.kind is SpanKind.CONSUMER)
        assert processed.context == current
        assert processed.parent.span_id == committed.context.span_id

    run(apache_kafka, name, use)


def test_a_hop_that_commits_its_offset_in_its_transaction_is_in_one_trace(apache_kafka: str, topic: str) -> None:
    """Exactly once: the offset of what was read is part of the transaction that sends what was made of it."""

    async def use(client: MessagingClient) -> None:
        beyond = create(apache_kafka, 1)
        await client.send(topic, b"order")
        options = {
            "bootstrap.servers": apache_kafka,
            "group.id": topic,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
        transactions = ConfluentTransactions(client, beyond)
        consumer: Any = ours.instrument(confluent_kafka.Consumer(options), **client.options)
        async with transactions.opened() as producer:
            consumer.subscribe([topic])
            producer.begin_transaction()
            (message,) = consumer.consume(1, SECONDS)
            with client.consumer_span(message):
                await transactions.send(producer, b"made of it")
            producer.send_offsets_to_transaction(
                consumer.position(consumer.assignment()), consumer.consumer_group_metadata(), SECONDS
            )
            producer.commit_transaction(SECONDS)
        (held,) = consumer.committed([confluent_kafka.TopicPartition(topic, 0)], SECONDS)
        consumer.close()
        assert held.offset == 1
        async with transactions.committed() as deliveries:
            with await anext(deliveries):
                pass
        names = [f"send {topic}", f"process {topic}", f"send {beyond}", f"process {beyond}"]
        chain = [client.span(each) for each in names]
        assert len({span.context.trace_id for span in chain}) == 1
        assert [span.parent.span_id for span in chain[1:]] == [span.context.span_id for span in chain[:-1]]

    run(apache_kafka, "confluent-kafka", use)


def test_a_tombstone_of_a_compacted_topic_is_processed_in_the_trace_of_who_deleted(
    apache_kafka: str, name: str
) -> None:
    async def use(client: MessagingClient) -> None:
        compacted = create(apache_kafka, 1, **{"cleanup.policy": "compact"})
        produce(apache_kafka, compacted, b"value", [])
        with client.provider.get_tracer("app").start_as_current_span("delete") as deleting:
            headers = client.inject()
        produce(apache_kafka, compacted, None, headers)
        *_, last = await client.receive(compacted, 2)
        assert client.body_of(last) is None
        with client.consumer_span(last) as processed:
            assert processed.parent.span_id == deleting.get_span_context().span_id
        assert client.span(f"process {compacted}").attributes["messaging.kafka.message.tombstone"] is True

    run(apache_kafka, name, use)


def produce(broker: str, topic: str, body: bytes | None, headers: Any) -> None:
    """Send a message with a key, which a compacted topic demands."""
    producer = confluent_kafka.Producer({"bootstrap.servers": broker})
    producer.produce(topic, body, b"key", partition=0, headers=headers)
    assert producer.flush(SECONDS) == 0
    producer.close()


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_each_message_of_a_stored_batch_keeps_its_own_trace(apache_kafka: str, topic: str, codec: str) -> None:
    """The broker stores what was sent together as one batch, compressed as a whole, headers and all."""

    async def use(client: MessagingClient) -> None:
        options = {"bootstrap.servers": apache_kafka, "linger.ms": 1000, "compression.type": codec}
        producer: Any = ours.instrument(confluent_kafka.Producer(options), **client.options)
        for number in range(50):
            with client.provider.get_tracer("app").start_as_current_span(f"order {number}"):
                producer.produce(topic, b"order %d" % number, partition=0)
        assert producer.flush(SECONDS) == 0
        messages = await client.receive(topic, 50)
        sent = [span for span in client.spans if span.kind is SpanKind.PRODUCER]
        with client.batch_span(messages):
            for message in messages:
                with client.consumer_span(message):
                    pass
        processed = [span for span in client.spans if span.kind is SpanKind.CONSUMER and span.parent is not None]
        assert [span.parent.span_id for span in processed] == [span.context.span_id for span in sent]
        assert len({span.context.trace_id for span in processed}) == 50
        (whole,) = [span for span in client.spans if "messaging.batch.message_count" in span.attributes]
        assert [link.context.span_id for link in whole.links] == [span.context.span_id for span in sent]

    run(apache_kafka, "confluent-kafka", use)


def test_its_own_group_protocol_moves_partitions_in_mid_batch(apache_kafka: str) -> None:
    """The broker assigns (KIP-848): nobody stops, and what is in hand is processed in its trace."""
    shared = create(apache_kafka, 2)
    options = {"bootstrap.servers": apache_kafka, "group.id": shared, "group.protocol": "consumer"}
    options |= {"auto.offset.reset": "earliest", "enable.auto.commit": False}

    async def use(client: MessagingClient) -> None:
        for number in (1, 2):
            produce(apache_kafka, shared, b"order", [("traceparent", f"00-{number:032x}-{number:016x}-01".encode())])
        members: list[Any] = []

        def shares() -> list[int]:
            return [len(each.assignment()) for each in members]

        try:
            for _ in range(2):
                members.append(ours.instrument(confluent_kafka.Consumer(options), **client.options))
                members[-1].subscribe([shared])
                if len(members) == 1:
                    batch = await taken(members[0], 2)
            with client.batch_span(batch):
                await until(lambda: not any(each.poll(0.05) for each in members) and shares() == [1, 1])
                for message in batch:
                    with client.consumer_span(message):
                        pass
            assert not trace.get_current_span().get_span_context().is_valid
        finally:
            for each in members:
                each.close()
        processed = [span for span in client.spans if span.name == f"process {shared}" and span.parent is not None]
        assert [span.context.trace_id for span in processed] == [1, 2]

    async def taken(consumer: Any, count: int) -> list[Any]:
        found: list[Any] = []
        await until(lambda: found.extend(consumer.consume(count, 0.1)) or len(found) >= count)
        return found

    run(apache_kafka, "confluent-kafka", use)


async def until(true: Callable[[], Any]) -> None:
    """Ask until the answer is yes."""
    deadline = time.monotonic() + SECONDS
    while true() is not True:
        assert time.monotonic() < deadline, "it has not come to that"
        await asyncio.sleep(0.02)


@pytest.fixture
def fickle(pytestconfig: pytest.Config, tmp_path: Path) -> Iterator[ApacheKafka]:
    """A node of this test's own, that can go away."""
    node = ApacheKafka(real_server(pytestconfig, "kafka"), tmp_path)
    try:
        node.start()
        yield node
    finally:
        node.stop()


def test_iterators_go_on_when_their_broker_is_back_with_all_that_it_had(fickle: ApacheKafka) -> None:
    """A message that was sent before the outage is processed after it, in its own trace, by every client."""

    async def use() -> None:
        async with AsyncExitStack() as stack:
            going = []
            for name, kind in CLIENTS.items():
                topic = create(fickle.address, 1)
                client = kind(fickle.address)
                await client.open()
                stack.push_async_callback(client.close)
                for number in (1, 2):
                    await client.send_plain(topic, name.encode(), [("traceparent", f"00-{number:032x}-{1:016x}-01")])
                deliveries = await stack.enter_async_context(client.deliveries(topic))
                with await anext(deliveries):
                    pass
                going.append((client, topic, deliveries))
            fickle.stop()
            assert otel_context.get_current() == Context()
            await asyncio.to_thread(fickle.start)
            for client, topic, deliveries in going:
                with await asyncio.wait_for(anext(deliveries), SECONDS):
                    pass
                await client.send_plain(topic, b"later", [("traceparent", f"00-{3:032x}-{1:016x}-01")])
                with await asyncio.wait_for(anext(deliveries), SECONDS):
                    pass
                assert [span.context.trace_id for span in client.spans] == [1, 2, 3]

    asyncio.run(use())
