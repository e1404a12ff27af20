"""Spans of `instrument`ed clients say where the broker is, where the client tells; and what is refused counts once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from urllib.parse import urlsplit

import aio_pika
import pytest

from meshmw import MeshPropagator, kafka, rabbitmq
from meshmw.kafka._spans import KAFKA as KAFKA_MESSAGING
from meshmw.kafka._spans import read
from meshmw.kafka._spans import server_of as kafka_server_of
from meshmw.rabbitmq._spans import server_of as rabbitmq_server_of
from tests.contracts.messaging.kafka_clients import AiokafkaClient
from tests.contracts.messaging.rabbitmq_clients import CLIENTS, AioPikaClient, PikaClient

SECONDS = 60
KAFKA = ["kafka-python", "aiokafka"]
RABBITMQ = list(CLIENTS)


def address_in(broker):
    address = urlsplit(broker if "://" in broker else f"//{broker}")
    return {"server.address": address.hostname, "server.port": address.port}


def told(span):
    return {name: value for name, value in span.attributes.items() if name.startswith("server.")}


@pytest.mark.parametrize("make", [*KAFKA, *RABBITMQ], indirect=True)
def test_a_publishers_spans_say_where_the_broker_is(run, destination):
    async def use(client):
        await client.send_instrumented(destination)
        (span,) = client.spans
        assert told(span) == address_in(client.broker)

    run(use)


@pytest.mark.parametrize("make", ["confluent-kafka"], indirect=True)
def test_confluent_kafka_does_not_tell(run, destination):
    async def use(client):
        await client.send_instrumented(destination)
        assert told(client.spans[0]) == {}

    run(use)


@pytest.mark.parametrize("of", ["exchange", "queue"])
def test_an_exchange_or_a_queue_alone_tells_it_too(rabbitmq_broker, destination, of):
    async def main():
        client = AioPikaClient(rabbitmq_broker)
        await client.open()
        try:
            queue = await client.channel.declare_queue(destination)
            if of == "exchange":
                exchange = rabbitmq.instrument(client.channel.default_exchange, **client.options)
                await exchange.publish(aio_pika.Message(b"body"), destination)
            else:
                await client.send_plain(destination)
                await rabbitmq.instrument(queue, **client.options).get(timeout=SECONDS, fail=True)
        finally:
            await client.close()
        return client.spans

    (span,) = asyncio.run(asyncio.wait_for(main(), SECONDS))
    assert told(span) == address_in(rabbitmq_broker)


def test_a_malformed_record_counts_once_though_it_is_received_and_processed(kafka_broker, destination):
    async def main():
        client = AiokafkaClient(kafka_broker)
        await client.open()
        try:
            await client.send_plain(destination, headers=[("traceparent", "junk")])
            async with client.consumer(destination) as consumer:
                receiving = kafka.instrument(consumer, **client.options)
                delivery = await anext(kafka.aconsume(receiving, **client.options))
                with delivery:
                    pass
        finally:
            await client.close()
        return client

    client = asyncio.run(asyncio.wait_for(main(), SECONDS))
    received, processed = client.spans
    assert [span.name.partition(" ")[0] for span in client.spans] == ["receive", "process"]
    assert [[event.name for event in span.events] for span in client.spans] == [["meshmw.header.refused"]] * 2
    assert client.propagator.rejections.counts == {("traceparent", "hex"): 1}
    assert told(received) == told(processed) == address_in(kafka_broker)


def test_a_malformed_message_counts_once_though_it_is_received_and_processed(rabbitmq_broker, destination):
    async def main():
        client = PikaClient(rabbitmq_broker)
        await client.open()
        try:
            client.channel.queue_declare(destination)
            await client.send_plain(destination, headers=[("traceparent", "junk")])
            channel = rabbitmq.instrument(client.channel, **client.options)
            message = (None,)
            while message[0] is None:
                message = channel.basic_get(destination, auto_ack=True)
            with rabbitmq.consumer_span(message, queue=destination, **client.options):
                pass
        finally:
            await client.close()
        return client

    client = asyncio.run(main())
    assert [span.name.partition(" ")[0] for span in client.spans] == ["get", "process"]
    assert client.propagator.rejections.counts == {("traceparent", "hex"): 1}
    assert told(client.spans[0]) == address_in(rabbitmq_broker)


@pytest.mark.parametrize(
    ("servers", "expected"),
    [
        ("kafka:9093", {"server.address": "kafka", "server.port": 9093}),
        (["kafka"], {"server.address": "kafka"}),
        ("[::1]:9092", {"server.address": "::1", "server.port": 9092}),
        ("a:1,b:1", {}),
        (["a:1", "b:1"], {}),
        ("", {}),
        ([], {}),
        ("kafka:none", {}),
        (7, {}),
        ([None], {}),
    ],
)
def test_of_one_server_the_address_is_told_and_of_several_none(servers, expected):
    assert kafka_server_of(SimpleNamespace(config={"bootstrap_servers": servers})) == expected
    assert kafka_server_of(SimpleNamespace(client=SimpleNamespace(_bootstrap_servers=servers))) == expected


class Hostile:
    def __getattr__(self, name):
        raise RuntimeError(name)


@pytest.mark.parametrize("server_of", [kafka_server_of, rabbitmq_server_of])
def test_a_client_that_tells_nothing_or_raises_is_used_all_the_same(server_of):
    assert server_of(object()) == server_of(Hostile()) == {}


@pytest.mark.parametrize(("host", "port"), [(None, 5672), ("", 1), (b"broker", 5672), (7, 7)])
def test_what_is_no_host_is_not_told(host, port):
    connection = SimpleNamespace(params=SimpleNamespace(host=host, port=port))
    assert rabbitmq_server_of(SimpleNamespace(connection=connection)) == {}


@pytest.mark.parametrize("port", [None, 0, "5672", 65_536])
def test_what_is_no_port_is_not_told(port):
    connection = SimpleNamespace(url=SimpleNamespace(host="broker", port=port))
    assert rabbitmq_server_of(SimpleNamespace(_connection=connection)) == {"server.address": "broker"}


@pytest.mark.parametrize("record", [7, SimpleNamespace(headers=7)])
def test_a_record_without_headers_is_received_and_nothing_counted_yet(record):
    propagator = MeshPropagator()
    messaging = KAFKA_MESSAGING.with_options({"propagator": propagator})
    assert read(messaging, record, "receive").span_context is None
    assert propagator.rejections.counts == {}
