"""Order events over RabbitMQ, with aio-pika: how checkout-service sends them, and how the worker processes them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
from aio_pika.abc import AbstractRobustConnection

from meshmw.rabbitmq import aconsume, instrument

QUEUE = "orders"


async def connect(url: str) -> AbstractRobustConnection:
    """Connect as soon as the broker is there, and again whenever it comes back."""
    return await aio_pika.connect_robust(url, fail_fast=False, reconnect_interval=0.2)


@asynccontextmanager
async def publisher(url: str) -> AsyncIterator[Callable[[str], Awaitable[Any]]]:
    """Yield a function that publishes the order of an item."""
    async with await connect(url) as connection:
        channel = instrument(await connection.channel())
        await channel.declare_queue(QUEUE)
        yield lambda item: channel.default_exchange.publish(aio_pika.Message(item.encode()), QUEUE)


async def process(url: str, handle: Callable[[str], Awaitable[None]]) -> None:
    """Process orders, each in its own trace, until the task is cancelled."""
    async with await connect(url) as connection:
        queue = await (await connection.channel()).declare_queue(QUEUE)
        async with queue.iterator() as messages:
            async for delivery in aconsume(messages, queue=QUEUE):
                with delivery as message:
                    # An order that cannot be handled is not lost: it goes back into the queue.
                    async with message.process(requeue=True):
                        await handle(message.body.decode())
