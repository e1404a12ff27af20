"""Every assumption about what another package calls private, on an object that the real package has made."""

from contextlib import closing

import aio_pika
import aiokafka
import confluent_kafka
import kafka
import pika
import pytest
from confluent_kafka.serializing_producer import SerializingProducer
from yarl import URL

from meshmw import _foreign

NOWHERE = "127.0.0.1:9"


def test_kafka_pythons_clients_show_the_servers_that_they_were_made_with(kafka_broker):
    for make in (kafka.KafkaProducer, kafka.KafkaConsumer):
        with closing(make(bootstrap_servers=kafka_broker)) as client:
            assert _foreign.kafka_servers(client) == [kafka_broker]


@pytest.mark.asyncio
async def test_aiokafkas_clients_show_them_too_and_those_of_confluent_kafka_do_not():
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=f"{NOWHERE}, b:1")
    consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=[NOWHERE])
    assert _foreign.kafka_servers(producer) == [NOWHERE, "b:1"]
    assert _foreign.kafka_servers(consumer) == [NOWHERE]
    await producer.stop()
    await consumer.stop()
    assert _foreign.kafka_servers(confluent_kafka.Producer({"bootstrap.servers": NOWHERE, "log_level": 0})) == []


@pytest.mark.parametrize("make", [confluent_kafka.Producer, SerializingProducer])
def test_a_producer_of_confluent_kafka_holds_the_callbacks_that_its_configuration_names(make):
    options = {"bootstrap.servers": NOWHERE, "log_level": 0}
    assert not _foreign.has_delivery_callback(make(options))
    assert _foreign.has_delivery_callback(make({**options, "on_delivery": lambda *_: None}))
    assert not _foreign.has_delivery_callback(7)


def test_pikas_channels_show_where_their_broker_is(rabbitmq_broker):
    parameters = pika.URLParameters(rabbitmq_broker)
    with pika.BlockingConnection(parameters) as blocking:
        assert _foreign.amqp_address(blocking.channel()) == (parameters.host, parameters.port)
    connection = pika.SelectConnection(parameters, internal_connection_workflow=False)
    channel = pika.channel.Channel(connection, 1, lambda _: None)
    assert _foreign.amqp_address(channel) == (parameters.host, parameters.port)
    connection.ioloop.close()


@pytest.mark.asyncio
async def test_aio_pikas_channels_exchanges_and_queues_show_where_their_broker_is():
    channel = aio_pika.Channel(aio_pika.Connection(URL("amqp://broker:1234/")))
    exchange = aio_pika.Exchange(channel, "orders")
    queue = aio_pika.Queue(channel, "orders", False, False, False, None)
    assert {_foreign.amqp_address(each) for each in (channel, exchange, queue)} == {("broker", 1234)}


class Hostile:
    def __getattr__(self, name):
        raise RuntimeError(name)


def test_a_client_that_shows_nothing_or_raises_has_no_address():
    for client in (object(), 7, Hostile()):
        assert _foreign.kafka_servers(client) == []
        assert _foreign.amqp_address(client) == (None, None)
