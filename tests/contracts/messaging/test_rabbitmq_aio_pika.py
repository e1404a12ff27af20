"""What is aio-pika's own: callbacks, `get` and iterators of queues, exchanges, returns, cancellation."""

import asyncio
import functools

import aio_pika
import aio_pika.exceptions
import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, StatusCode

from meshmw import rabbitmq
from tests.contracts.messaging.rabbitmq_clients import SECONDS, AioPikaClient

TRACE_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736
VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def within(rabbitmq_broker):
    """Runs a test's coroutine function with an open client, and a channel that traces by itself."""

    def run(use):
        async def whole():
            client = AioPikaClient(rabbitmq_broker)
            await client.open()
            try:
                channel = rabbitmq.instrument(client.channel, **client.options)
                await asyncio.wait_for(use(client, channel), SECONDS)
                assert otel_context.get_current() == Context()
            finally:
                await client.close()

        asyncio.run(whole())

    return run


async def ended(client, count):
    """The spans, once there are so many: one ends a step after its callback has."""
    while True:
        if len(client.spans) >= count:
            return client.spans
        await asyncio.sleep(0)


def current_trace():
    return trace.get_current_span().get_span_context().trace_id


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_callback_runs_in_its_message_s_trace_and_what_it_publishes_goes_on_in_it(within, destination, asynchronous):
    async def use(client, channel):
        done = asyncio.get_running_loop().create_future()
        await client.publish(client.channel, destination, b"1", {"traceparent": VALID, "baggage": "n=1"})
        queue = await channel.declare_queue(destination)
        following = await channel.declare_queue(f"{destination}-next")

        def handle(message):
            return message.body, current_trace(), baggage.get_baggage("n")

        async def handle_and_publish(message):
            async with message.process():
                await channel.default_exchange.publish(message, following.name)
                assert message.headers == {"traceparent": VALID, "baggage": "n=1"}
                done.set_result(handle(message))

        async def on_message(message):
            return await handle_and_publish(message)

        # A function that returns what can be awaited is as good as one that is asynchronous.
        tag = await queue.consume(on_message if asynchronous else functools.partial(handle_and_publish))
        assert await done == (b"1", TRACE_ID, "1")
        await queue.cancel(tag)
        published, processed = await ended(client, 2)
        assert (published.name, processed.name) == (f"publish {destination}-next", f"process {destination}")
        assert (published.kind, processed.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
        assert published.parent.span_id == processed.context.span_id
        sent = await (await client.channel.get_queue(following.name)).get()
        assert f"{published.context.span_id:016x}" in sent.headers["traceparent"]
        await sent.ack()

    within(use)


def test_what_a_callback_that_is_not_asynchronous_returns_is_passed_on(within, destination):
    async def use(client, channel):
        seen = asyncio.get_running_loop().create_future()
        await client.publish(client.channel, destination, b"1", {"traceparent": VALID})
        queue = await channel.get_queue(destination)
        await queue.consume(lambda message: seen.set_result(current_trace()), no_ack=True)
        assert await seen == TRACE_ID

    within(use)


def test_what_is_pulled_is_received_in_its_message_s_trace_and_nothing_stays_current(within, destination):
    async def use(client, channel):
        for _ in range(3):
            await client.publish(client.channel, destination, b"1", {"traceparent": VALID})
        queue = await channel.declare_queue(destination)
        assert str(queue) == destination
        message = await queue.get(no_ack=True)
        assert (message.body, current_trace()) == (b"1", 0)
        async with queue.iterator(no_ack=True) as messages:
            async for message in messages:
                assert (message.body, current_trace()) == (b"1", 0)
                break
            assert messages.consumer_tag
        assert await (await channel.get_queue(f"{destination}")).get(fail=False, no_ack=True) is None
        assert [span.name for span in client.spans] == [f"get {destination}", f"receive {destination}"]
        assert {span.kind for span in client.spans} == {SpanKind.CLIENT}
        assert {span.context.trace_id for span in client.spans} == {TRACE_ID}

    within(use)


def test_a_queue_is_iterated_over_as_it_is(within, destination):
    async def use(client, channel):
        await client.publish(client.channel, destination, b"1", {"traceparent": VALID})
        async for message in await channel.get_queue(destination):
            await message.ack()
            break
        await client.publish(client.channel, f"{destination}-2", b"1", {"traceparent": VALID})
        async for delivery in rabbitmq.aconsume(await client.channel.get_queue(f"{destination}-2"), **client.options):
            with delivery as message:
                assert current_trace() == TRACE_ID
                await message.ack()
            break
        assert [span.name for span in client.spans] == [f"receive {destination}", f"process {destination}-2"]

    within(use)


def test_exchanges_trace_and_can_be_bound_to_each_other_and_to_queues(within, destination):
    async def use(client, channel):
        outer = await channel.declare_exchange(f"{destination}-outer", aio_pika.ExchangeType.FANOUT)
        inner = await channel.get_exchange((await channel.declare_exchange(f"{destination}-inner")).name)
        queue = await channel.declare_queue(destination)
        await inner.bind(outer, "red")
        await queue.bind(inner, "red")
        await queue.bind(outer.name, "red")
        await queue.unbind(outer.name, "red")
        await outer.publish(aio_pika.Message(b"1", message_id="7", correlation_id="8"), "red")
        with client.consumer_span(await queue.get(no_ack=True)):
            pass
        await queue.unbind(inner, "red")
        await inner.unbind(outer, "red")
        published, received, processed = client.spans
        assert published.name == f"publish {destination}-outer:red"
        assert received.name == f"get {destination}-outer:red:{destination}"
        assert processed.name == f"process {destination}-outer:red"
        for span in client.spans:
            assert span.attributes["messaging.rabbitmq.destination.routing_key"] == "red"
            assert span.attributes["messaging.message.id"] == "7"
            assert span.attributes["messaging.message.conversation_id"] == "8"

    within(use)


def test_a_message_that_no_queue_takes_makes_its_span_an_error(within):
    async def use(client, channel):
        returned = await channel.default_exchange.publish(aio_pika.Message(b"1"), "nobody")
        assert returned.delivery.reply_text == "NO_ROUTE"
        raising = await rabbitmq.instrument(client.connection.channel(on_return_raises=True), **client.options)
        exchange = raising.default_exchange
        with pytest.raises(aio_pika.exceptions.PublishError):
            await exchange.publish(aio_pika.Message(b"1"), "nobody")
        first, second = client.spans
        assert first.attributes["error.type"] == "NO_ROUTE"
        assert second.attributes["error.type"].endswith("PublishError")
        assert {span.status.status_code for span in client.spans} == {StatusCode.ERROR}

    within(use)


def test_a_message_that_the_broker_refuses_makes_its_span_an_error(within, destination):
    async def use(client, channel):
        arguments = {"x-max-length": 0, "x-overflow": "reject-publish"}
        await client.channel.declare_queue(destination, arguments=arguments)
        with pytest.raises(aio_pika.exceptions.DeliveryError):
            await channel.default_exchange.publish(aio_pika.Message(b"1"), destination)
        assert client.span(f"publish {destination}").attributes["error.type"].endswith("DeliveryError")

    within(use)


def test_an_exception_of_a_callback_is_recorded_and_the_message_comes_again(within, destination):
    async def use(client, channel):
        again = asyncio.get_running_loop().create_future()
        await client.publish(client.channel, destination, b"1", {"traceparent": VALID})

        async def on_message(message):
            async with message.process(requeue=True):
                if not message.redelivered:
                    raise KeyError("teapot")
            again.set_result(None)

        await (await channel.get_queue(destination)).consume(on_message)
        await again
        failed, processed = await ended(client, 2)
        assert failed.attributes["error.type"] == "KeyError"
        assert processed.attributes["meshmw.message.delivery_count"] == 2
        assert {span.context.trace_id for span in client.spans} == {TRACE_ID}

    within(use)


def test_a_channel_that_closes_while_callbacks_run_leaves_no_context_and_loses_no_message(within, destination):
    async def use(client, _):
        begun = asyncio.Event()
        await client.publish(client.channel, destination, b"1", {"traceparent": VALID})
        async with rabbitmq.instrument(await client.connection.channel(), **client.options) as channel:

            async def on_message(message):
                begun.set()
                await asyncio.Event().wait()

            await (await channel.get_queue(destination)).consume(on_message)
            await begun.wait()
        (cancelled,) = await ended(client, 1)
        assert "error.type" not in cancelled.attributes
        (message,) = await client.receive(destination)
        assert message.redelivered

    within(use)
