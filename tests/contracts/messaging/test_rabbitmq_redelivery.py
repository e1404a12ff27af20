"""A message that comes again, from its queue or from one for dead letters, goes on in its trace and says how often."""

import asyncio
import inspect

import aio_pika
import pika
import pytest

from tests.contracts.messaging.rabbitmq_clients import SECONDS, AioPikaClient, PikaClient

TRACE_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736
VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
PREFIX = "meshmw.message."


async def until(ask, is_enough):
    """Ask again and again; the caller's own deadline ends it."""
    while True:
        answer = ask()
        answer = await answer if inspect.isawaitable(answer) else answer
        if is_enough(answer):
            return answer
        await asyncio.sleep(0.01)


class Pika(PikaClient):
    async def declare(self, queue, **arguments):
        durable = arguments.get("x-queue-type") == "quorum"
        self.channel.queue_declare(queue, durable=durable, arguments=arguments)

    async def send(self, queue):
        self.channel.basic_publish("", queue, b"1", pika.BasicProperties(headers={"traceparent": VALID}))

    async def take(self, queue, settle):
        message = await until(lambda: self.channel.basic_get(queue), lambda found: found[0] is not None)
        with self.consumer_span(message):
            getattr(self.channel, f"basic_{settle[0]}")(message[0].delivery_tag, **settle[1])


class AioPika(AioPikaClient):
    async def declare(self, queue, **arguments):
        durable = arguments.get("x-queue-type") == "quorum"
        await self.channel.declare_queue(queue, durable=durable, arguments=arguments)

    async def send(self, queue):
        message = aio_pika.Message(b"1", headers={"traceparent": VALID})
        await self.channel.default_exchange.publish(message, queue)

    async def take(self, queue, settle):
        found = await self.channel.get_queue(queue)
        message = await until(lambda: found.get(fail=False), lambda found: found is not None)
        with self.consumer_span(message):
            await getattr(message, settle[0])(**settle[1])


ACK = ("ack", {})
REQUEUE = ("nack", {"requeue": True})
REQUEUE_BY_REJECT = ("reject", {"requeue": True})
DROP = ("nack", {"requeue": False})
DROP_BY_REJECT = ("reject", {"requeue": False})


@pytest.fixture(params=[Pika, AioPika], ids=["pika", "aio-pika"])
def told(request, rabbitmq_broker):
    """Runs a test's steps, and returns what each delivery's span says of earlier ones."""

    def run(use):
        client = request.param(rabbitmq_broker)

        async def whole():
            await client.open()
            try:
                await asyncio.wait_for(use(client), SECONDS)
            finally:
                await client.close()

        asyncio.run(whole())
        assert {span.context.trace_id for span in client.spans} == {TRACE_ID}
        assert len({span.parent.span_id for span in client.spans}) == 1
        return [
            {name.removeprefix(PREFIX): value for name, value in span.attributes.items() if name.startswith(PREFIX)}
            for span in client.spans
        ]

    return run


def test_a_classic_queue_says_only_that_it_has_delivered_before(told, destination):
    async def use(client):
        await client.declare(destination)
        await client.send(destination)
        for settle in (REQUEUE, REQUEUE_BY_REJECT, ACK):
            await client.take(destination, settle)

    again = {"redelivered": True, "delivery_count": 2}
    assert told(use) == [{}, again, again]


def test_a_quorum_queue_counts_and_a_message_beyond_its_limit_is_a_dead_letter(told, destination):
    async def use(client):
        await client.declare(f"{destination}-dead")
        await client.declare(
            destination,
            **{
                "x-queue-type": "quorum",
                "x-delivery-limit": 2,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": f"{destination}-dead",
            },
        )
        await client.send(destination)
        for _ in range(3):
            await client.take(destination, REQUEUE)
        await client.take(f"{destination}-dead", ACK)

    dead = {"dead_letter.count": 1, "dead_letter.reason": "delivery_limit", "dead_letter.queue": destination}
    assert told(use) == [
        {},
        {"redelivered": True, "delivery_count": 2},
        {"redelivered": True, "delivery_count": 3},
        {"delivery_count": 2, **dead},
    ]


def test_a_retry_by_dead_letter_counts_how_often_it_was_refused(told, destination):
    retry = f"{destination}-retry"

    async def use(client):
        to = {"x-dead-letter-exchange": ""}
        await client.declare(destination, **to, **{"x-dead-letter-routing-key": retry})
        await client.declare(retry, **to, **{"x-dead-letter-routing-key": destination, "x-message-ttl": 1})
        await client.send(destination)
        for settle in (DROP, DROP_BY_REJECT, ACK):
            await client.take(destination, settle)

    # What was refused once had expired once in the queue that made it wait.
    last = {"dead_letter.reason": "expired", "dead_letter.queue": retry}
    assert told(use) == [
        {},
        {"delivery_count": 2, "dead_letter.count": 2, **last},
        {"delivery_count": 3, "dead_letter.count": 4, **last},
    ]
