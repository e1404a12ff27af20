"""The broker goes away while a message is processed, and comes back: no message is lost, and no trace."""

import asyncio
import logging

import aio_pika
import pika
import pika.exceptions
import pytest
from opentelemetry import context as otel_context
from opentelemetry.context import Context

from meshmw import rabbitmq
from tests.contracts.messaging.rabbitmq_broker import require_rabbitmq, running_node
from tests.contracts.messaging.rabbitmq_clients import SECONDS, AioPikaClient, PikaClient

TRACE_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736
VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
AGAIN = {"meshmw.message.redelivered": True, "meshmw.message.delivery_count": 2}


@pytest.fixture
def node(pytestconfig, tmp_path):
    """A node that no other test has to do without."""
    require_rabbitmq(pytestconfig)
    with running_node(tmp_path) as running:
        yield running


def connect(node, queue):
    connection = pika.BlockingConnection(pika.URLParameters(node.url()))
    channel = connection.channel()
    channel.queue_declare(queue, durable=True)
    channel.confirm_delivery()
    return connection, channel


def test_a_message_in_hand_when_the_broker_goes_comes_again_in_its_trace(node, caplog):
    # They say much of it, and of objects that cannot be printed any more.
    caplog.set_level(logging.CRITICAL, "aio_pika")
    caplog.set_level(logging.CRITICAL, "aiormq")
    blocking, asynchronous = PikaClient(node.url()), AioPikaClient(node.url())

    async def use():
        held, back = asyncio.Event(), asyncio.Event()
        _, channel = connect(node, "blocking")
        connect(node, "asynchronous")[0].close()
        persistent = pika.BasicProperties(headers={"traceparent": VALID}, delivery_mode=2)
        for queue in ("blocking", "asynchronous"):
            channel.basic_publish("", queue, b"1", persistent)

        async def on_message(message):
            held.set()
            if message.redelivered:
                await message.ack()
                back.set()
            else:
                await asyncio.Event().wait()

        robust = await aio_pika.connect_robust(node.url(), reconnect_interval=0.1)
        own_channel = rabbitmq.instrument(await robust.channel(), **asynchronous.options)
        await (await own_channel.get_queue("asynchronous")).consume(on_message)
        await held.wait()
        deliveries = rabbitmq.consume(channel.consume("blocking"), queue="blocking", **blocking.options)

        with pytest.raises(pika.exceptions.AMQPError), next(deliveries) as (method, _, _):
            await asyncio.to_thread(node.stop)
            channel.basic_ack(method.delivery_tag)
            channel.connection.process_data_events(SECONDS)
        with pytest.raises(pika.exceptions.AMQPError):
            rabbitmq.instrument(channel, **blocking.options).basic_publish("", "blocking", b"2")
        while not asynchronous.spans:  # noqa: ASYNC110 - it ends once aio-pika has noticed
            await asyncio.sleep(0.01)
        exchange = rabbitmq.instrument(own_channel.default_exchange.__wrapped__, **asynchronous.options)
        with pytest.raises((aio_pika.exceptions.AMQPError, RuntimeError, TimeoutError, OSError)):
            await exchange.publish(aio_pika.Message(b"2"), "asynchronous", timeout=0.5)
        assert otel_context.get_current() == Context()

        await asyncio.to_thread(node.start)
        await back.wait()
        connection, channel = connect(node, "blocking")
        with next(rabbitmq.consume(channel.consume("blocking"), queue="blocking", **blocking.options)) as (
            method,
            _,
            body,
        ):
            assert body == b"1"
            channel.basic_ack(method.delivery_tag)
        connection.close()
        await robust.close()

    asyncio.run(asyncio.wait_for(use(), 3 * SECONDS))
    for client, queue in ((blocking, "blocking"), (asynchronous, "asynchronous")):
        first, publish, second = client.spans
        assert first.context.trace_id == second.context.trace_id == TRACE_ID
        assert (first.name, publish.name, second.name) == (f"process {queue}", f"publish {queue}", f"process {queue}")
        assert "error.type" in publish.attributes
        assert not AGAIN.items() & first.attributes.items()
        assert AGAIN.items() <= second.attributes.items()
