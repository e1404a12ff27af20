"""Laws 4 and 6 beside contrib's instrumentations: one span for each operation, and one parent on a message."""

import asyncio

import pytest
from opentelemetry.instrumentation.aio_pika import AioPikaInstrumentor
from opentelemetry.instrumentation.aiokafka import AIOKafkaInstrumentor
from opentelemetry.instrumentation.confluent_kafka import ConfluentKafkaInstrumentor
from opentelemetry.instrumentation.kafka import KafkaInstrumentor
from opentelemetry.instrumentation.pika import PikaInstrumentor

from meshmw import kafka, rabbitmq
from tests.contracts.messaging.test_unhappy import HAND_OUT

SECONDS = 60
INSTRUMENTORS = {
    "KafkaPythonClient": KafkaInstrumentor,
    "AiokafkaClient": AIOKafkaInstrumentor,
    "ConfluentClient": ConfluentKafkaInstrumentor,
    "PikaClient": PikaInstrumentor,
    "AioPikaClient": AioPikaInstrumentor,
}


@pytest.fixture
def instrumented(make):
    """Runs a test's coroutine function with a client whose library contrib has instrumented as a whole."""

    def run(use, first=None):
        async def whole():
            if first is not None:
                plain = make()
                await plain.open()
                await first(plain)
                await plain.close()
            client = make()
            instrumentor = INSTRUMENTORS[type(client).__name__]()
            instrumentor.instrument(tracer_provider=client.provider)
            try:
                await client.open()
                try:
                    return await asyncio.wait_for(use(client), 120)
                finally:
                    await client.close()
            finally:
                instrumentor.uninstrument()

        return asyncio.run(whole())

    return run


def scopes(client):
    return [span.instrumentation_scope.name for span in client.spans]


def test_contrib_is_there(instrumented, destination):
    async def use(client):
        await client.send_plain(destination)
        assert {scope.startswith("opentelemetry.instrumentation.") for scope in scopes(client)} == {True}

    instrumented(use)


def test_what_is_sent_has_one_span_and_names_one_parent(instrumented, destination):
    async def use(client):
        await client.send_instrumented(destination, headers=None)
        assert scopes(client) == ["meshmw"]
        (span,) = client.spans
        (message,) = await client.receive(destination)
        (parent,) = client.lines_of(client.headers_of(message))["traceparent"]
        assert parent.decode().split("-")[2] == f"{span.context.span_id:016x}"

    instrumented(use)


@pytest.mark.parametrize("junk", ["junk", b"\xff\xfe"])
def test_what_is_received_has_one_span_and_no_byte_raises(instrumented, destination, junk):
    async def send(client):
        await client.send_plain(destination, headers=[("traceparent", junk), ("id", "7")])

    async def use(client):
        if type(client).__name__ in ("PikaClient", "AioPikaClient"):
            seen = await CALL_BACK[type(client).__name__](client, destination)
        else:
            seen = await HAND_OUT[type(client).__name__](client, destination)
        assert all(client.lines_of(client.headers_of(message)) == {"id": [b"7"]} for message in seen)
        assert scopes(client) == ["meshmw"] * len(seen)

    instrumented(use, send)


async def by_pika(client, destination):
    seen = []
    channel = rabbitmq.instrument(client.channel, **client.options)

    def on_message(_, method, properties, body):
        seen.append((method, properties, body))
        client.channel.stop_consuming()

    channel.basic_consume(destination, on_message, auto_ack=True)
    client.channel.start_consuming()
    return seen


async def by_aio_pika(client, destination):
    got = asyncio.get_running_loop().create_future()
    queue = await rabbitmq.instrument(client.channel, **client.options).get_queue(destination)
    tag = await queue.consume(got.set_result, no_ack=True)
    message = await asyncio.wait_for(got, SECONDS)
    await queue.cancel(tag)
    return [message]


CALL_BACK = {"PikaClient": by_pika, "AioPikaClient": by_aio_pika}


def test_what_others_have_wrapped_is_still_called(kafka_broker, destination):
    import kafka as library
    import wrapt

    called = []

    def wrapper(wrapped, _instance, args, kwargs):
        called.append(args)
        return wrapped(*args, **kwargs)

    producer = library.KafkaProducer(bootstrap_servers=kafka_broker)
    try:
        wrapt.wrap_function_wrapper(producer, "send", wrapper)
        kafka.instrument(producer).send(destination, b"a", partition=0).get(SECONDS)
    finally:
        producer.close(timeout=SECONDS)
    assert called == [(destination, b"a")]
