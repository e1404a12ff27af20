"""What the services share that use the OpenTelemetry contrib packages in meshmw's place, as those document it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import aio_pika
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.aio_pika import AioPikaInstrumentor
from opentelemetry.instrumentation.aiokafka import AIOKafkaInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from sample_apps.orders import Brokers
from sample_apps.orders_kafka import TOPIC
from sample_apps.orders_rabbitmq import QUEUE, connect


def set_up(service_name: str) -> None:
    """Set a tracer provider, and instrument the clients that any of the services has."""
    provider = TracerProvider(resource=Resource.create({"service.name": service_name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    for instrumentor in (HTTPXClientInstrumentor, AIOKafkaInstrumentor, AioPikaInstrumentor):
        instrumentor().instrument()


@asynccontextmanager
async def publishing() -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """Yield a function that publishes the order of an item to every broker."""
    brokers = Brokers()
    async with AsyncExitStack() as stack:
        producer = exchange = None
        if brokers.kafka_broker:
            producer = await stack.enter_async_context(AIOKafkaProducer(bootstrap_servers=brokers.kafka_broker))
        if brokers.rabbitmq_url:
            connection = await stack.enter_async_context(await connect(brokers.rabbitmq_url))
            channel = await connection.channel()
            await channel.declare_queue(QUEUE)
            exchange = channel.default_exchange

        async def publish(item: str) -> None:
            if producer is not None:
                await producer.send_and_wait(TOPIC, item.encode(), partition=0)
            if exchange is not None:
                await exchange.publish(aio_pika.Message(item.encode()), QUEUE)

        yield publish


async def process_orders(handle: Callable[[str], Awaitable[None]]) -> None:
    """Process the orders of every broker until the task is cancelled."""
    brokers = Brokers()
    async with asyncio.TaskGroup() as tasks:
        if brokers.kafka_broker:
            tasks.create_task(process_kafka(brokers.kafka_broker, handle))
        if brokers.rabbitmq_url:
            tasks.create_task(process_rabbitmq(brokers.rabbitmq_url, handle))


async def process_kafka(broker: str, handle: Callable[[str], Awaitable[None]]) -> None:
    async with AIOKafkaConsumer(bootstrap_servers=broker, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(TOPIC, 0)])
        async for record in consumer:
            await handle(record.value.decode())


async def process_rabbitmq(url: str, handle: Callable[[str], Awaitable[None]]) -> None:
    async def on_message(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        async with message.process(requeue=True):
            await handle(message.body.decode())

    async with await connect(url) as connection:
        queue = await (await connection.channel()).declare_queue(QUEUE)
        await queue.consume(on_message)
        await asyncio.Future()
