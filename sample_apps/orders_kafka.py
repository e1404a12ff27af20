"""Order events over Kafka, with aiokafka: how checkout-service sends them, and how the worker processes them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from meshmw.kafka import aconsume, instrument

TOPIC = "orders"


@asynccontextmanager
async def publisher(broker: str) -> AsyncIterator[Callable[[str], Awaitable[Any]]]:
    """Yield a function that publishes the order of an item."""
    async with instrument(AIOKafkaProducer(bootstrap_servers=broker)) as producer:
        yield lambda item: producer.send_and_wait(TOPIC, item.encode(), partition=0)


async def process(broker: str, handle: Callable[[str], Awaitable[None]]) -> None:
    """Process orders, each in its own trace, until the task is cancelled."""
    async with AIOKafkaConsumer(bootstrap_servers=broker, auto_offset_reset="earliest") as consumer:
        # One worker takes all. Several would share them as a group: group_id="workers", and subscribe([TOPIC]).
        consumer.assign([TopicPartition(TOPIC, 0)])
        async for delivery in aconsume(consumer):
            with delivery as record:
                await handle(record.value.decode())
