"""Kafka's own troubles: a rebalance in mid-batch, a broker that goes and comes back, and another broker's opinion."""

import asyncio
import time
from contextlib import asynccontextmanager

import aiokafka
import confluent_kafka
import kafka
import pytest
from opentelemetry import context as otel_context
from opentelemetry.context import Context

from tests.contracts.messaging.kafka_broker import KafkaBroker, require_tansu
from tests.contracts.messaging.kafka_clients import CLIENTS

each_client = pytest.mark.parametrize("make", list(CLIENTS), indirect=True)
SECONDS = 60


def parent_of(number):
    return f"00-{number + 1:032x}-{number + 1:016x}-01"


class KafkaPythonMember:
    """A member of a consumer group, that fetches without committing."""

    def __init__(self, broker, group, topic):
        self.consumer = kafka.KafkaConsumer(
            topic,
            bootstrap_servers=broker,
            group_id=group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=3000,
            heartbeat_interval_ms=200,
        )

    async def fetch(self):
        polled = await asyncio.to_thread(self.consumer.poll, timeout_ms=50)
        return [record for records in polled.values() for record in records]

    def partitions(self):
        return len(self.consumer.assignment())

    async def close(self):
        self.consumer.close()


class AiokafkaMember:
    def __init__(self, broker, group, topic):
        self.consumer = aiokafka.AIOKafkaConsumer(
            topic,
            bootstrap_servers=broker,
            group_id=group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=1000,
            heartbeat_interval_ms=200,
        )
        self.started = False

    async def fetch(self):
        if not self.started:
            self.started = True
            await self.consumer.start()
        polled = await self.consumer.getmany(timeout_ms=50)
        return [record for records in polled.values() for record in records]

    def partitions(self):
        return len(self.consumer.assignment())

    async def close(self):
        await self.consumer.stop()


class ConfluentMember:
    def __init__(self, broker, group, topic):
        self.consumer = confluent_kafka.Consumer(
            {
                "bootstrap.servers": broker,
                "group.id": group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "session.timeout.ms": 1000,
                "heartbeat.interval.ms": 200,
            }
        )
        self.consumer.subscribe([topic])

    async def fetch(self):
        return [message for message in self.consumer.consume(100, 0.05) if message.error() is None]

    def partitions(self):
        return len(self.consumer.assignment())

    async def close(self):
        self.consumer.close()


async def all_again(name, broker, topic):
    """Return what a new member of the group gets; one that cannot join a group that has just been left gives way."""
    for _ in range(4):
        member = MEMBERS[name](broker, topic, topic)
        try:
            return await until(member.fetch, lambda found: len(found) >= 4, SECONDS / 4)
        except AssertionError:
            continue
        finally:
            await member.close()
    raise AssertionError("no member got the messages again")


MEMBERS = {"kafka-python": KafkaPythonMember, "aiokafka": AiokafkaMember, "confluent-kafka": ConfluentMember}


async def until(fetch, is_enough, seconds=SECONDS):
    deadline = time.monotonic() + seconds
    found = []
    while not is_enough(found):
        assert time.monotonic() < deadline, found
        found += await fetch()
    return found


@pytest.mark.parametrize("name", list(MEMBERS))
def test_a_batch_goes_on_while_its_partitions_go_to_another_consumer(name, kafka_broker, destination):
    """Nobody commits: the other consumer gets every message again, in the trace that it had."""

    async def use():
        client = CLIENTS[name](kafka_broker)
        await client.open()
        for number in range(4):
            await client.send_plain(destination, headers=[("traceparent", parent_of(number))])
        first = MEMBERS[name](kafka_broker, destination, destination)
        batch = await until(first.fetch, lambda found: len(found) >= 4)
        second = MEMBERS[name](kafka_broker, destination, destination)

        async def both():
            # At once: a poll that waits to join would hold the other member up, until it is put out of the group.
            found = await asyncio.gather(second.fetch(), first.fetch())
            return found[0] + found[1]

        with client.batch_span(batch):
            await until(both, lambda _: second.partitions() and first.partitions())
            for message in batch:
                with client.consumer_span(message):
                    pass
        assert otel_context.get_current() == Context()
        await first.close()
        await second.close()
        for message in await all_again(name, kafka_broker, destination):
            with client.consumer_span(message):
                pass
        *firsts, whole = client.spans[:5]
        assert len(whole.links) == 4
        assert [span.context.trace_id for span in firsts] == [1, 2, 3, 4]
        assert [span.context.trace_id for span in client.spans[5:]] == [1, 2, 3, 4]
        await client.close()

    asyncio.run(use())


@pytest.fixture
def fickle(request, tmp_path):
    """A broker of this test's own, that can go away."""
    require_tansu(request)
    broker = KafkaBroker(tmp_path / "tansu.log")
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


@pytest.mark.parametrize("name", list(CLIENTS))
def test_an_iterator_goes_on_when_its_broker_is_back(name, fickle, destination):
    """The broker has forgotten everything, and the consumer waits for the message with the next number."""

    @asynccontextmanager
    async def opened():
        client = CLIENTS[name](fickle.address)
        await client.open()
        try:
            yield client
        finally:
            await client.close()

    async def use():
        async with opened() as client:
            for number in range(3):
                await client.send_plain(destination, headers=[("traceparent", parent_of(number))])
            async with client.deliveries(destination) as deliveries:
                for _ in range(3):
                    with await anext(deliveries):
                        pass
                fickle.stop()
                assert otel_context.get_current() == Context()
                fickle.start()
                async with opened() as again:
                    for number in range(4):
                        await again.send_plain(destination, headers=[("traceparent", parent_of(number))])
                    with await asyncio.wait_for(anext(deliveries), SECONDS):
                        pass
            assert [span.context.trace_id for span in client.spans] == [1, 2, 3, 4]

    asyncio.run(use())


@pytest.mark.parametrize("name", ["aiokafka", "confluent-kafka"])
def test_librdkafkas_own_broker_carries_the_same(name, destination):
    """kafka-python does not find its way into this one."""
    holder = confluent_kafka.Producer({"bootstrap.servers": "127.0.0.1:9", "test.mock.num.brokers": 1, "log_level": 0})
    address = ",".join(f"{each.host}:{each.port}" for each in holder.list_topics(timeout=SECONDS).brokers.values())

    async def use():
        client = CLIENTS[name](address)
        await client.open()
        await client.send(destination, headers=[("traceparent", b"stale"), ("id", b"7")])
        (message,) = await client.receive(destination)
        with client.consumer_span(message):
            pass
        sent, processed = client.spans
        assert (processed.context.trace_id, processed.parent.span_id) == (sent.context.trace_id, sent.context.span_id)
        assert [name for name, _ in client.pairs_of(client.headers_of(message))] == ["id", "traceparent"]
        await client.close()

    try:
        asyncio.run(use())
    finally:
        holder.close()
