"""A service in Node.js, with the current OpenTelemetry JS, understands what we send, and we what it sends."""

from __future__ import annotations

import secrets

import confluent_kafka
import confluent_kafka.admin
import pika
import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider

import meshmw.kafka
import meshmw.rabbitmq
from meshmw import MeshPropagator
from meshmw._context.current import Current

PRODUCER, CONSUMER = 3, 4  # span kinds, as the JS API counts them
SECONDS = 60


class RabbitMQ:
    system = "rabbitmq"

    def __init__(self, url, provider):
        self.address = url
        self._options = {"propagator": MeshPropagator(), "tracer_provider": provider}
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel = self._connection.channel()

    def prepare(self, destination):
        self._channel.queue_declare(destination)

    def send(self, destination):
        with meshmw.rabbitmq.producer_span("", destination, tracer_provider=self._options["tracer_provider"]) as span:
            properties = meshmw.rabbitmq.inject(pika.BasicProperties(), propagator=self._options["propagator"])
            self._channel.basic_publish("", destination, b"order", properties)
        return span

    def receive(self, destination):
        message = next(self._channel.consume(destination, auto_ack=True, inactivity_timeout=SECONDS))
        return meshmw.rabbitmq.consumer_span(message, queue=destination, **self._options)

    def close(self):
        self._connection.close()


class Kafka:
    system = "kafka"

    def __init__(self, address, provider):
        self.address = address
        self._options = {"propagator": MeshPropagator(), "tracer_provider": provider}
        self._producer = confluent_kafka.Producer({"bootstrap.servers": address})
        self._consumers = []

    def prepare(self, destination):
        admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": self.address})
        for done in admin.create_topics([confluent_kafka.admin.NewTopic(destination, 1)]).values():
            done.result(SECONDS)

    def send(self, destination):
        with meshmw.kafka.producer_span(destination, tracer_provider=self._options["tracer_provider"]) as span:
            headers = meshmw.kafka.inject(propagator=self._options["propagator"])
            self._producer.produce(destination, b"order", headers=headers, partition=0)
            assert self._producer.flush(SECONDS) == 0
        return span

    def receive(self, destination):
        consumer = confluent_kafka.Consumer({"bootstrap.servers": self.address, "group.id": "interop"})
        self._consumers.append(consumer)
        consumer.assign([confluent_kafka.TopicPartition(destination, 0, 0)])
        message = consumer.poll(SECONDS)
        assert message is not None
        assert message.error() is None, message.error()
        return meshmw.kafka.consumer_span(message, **self._options)

    def close(self):
        for consumer in self._consumers:
            consumer.close()


@pytest.fixture(params=[RabbitMQ, Kafka], ids=lambda kind: kind.system)
def broker(request):
    address = request.getfixturevalue(f"{request.param.system}_broker")
    opened = request.param(address, TracerProvider())
    yield opened
    opened.close()


@pytest.fixture
def destination(broker):
    name = f"interop-{secrets.token_hex(4)}"
    broker.prepare(name)
    return name


def test_node_continues_the_trace_of_what_we_send(broker, destination, node_peer):
    with Current(baggage.set_baggage("tenant", "Nord & Süd", Context())):
        sent = broker.send(destination).get_span_context()
    peer = node_peer("messaging.js", broker.system, broker.address)
    seen = peer.ask(command="receive", destination=destination)
    (span,) = peer.spans(CONSUMER)
    assert seen["body"] == "order"
    assert seen["trace_id"] == f"{sent.trace_id:032x}"
    assert seen["span_id"] == span["span_id"]
    assert span["parent_id"] == f"{sent.span_id:016x}"
    assert seen["baggage"] == {"tenant": "Nord & Süd"}


def test_we_continue_the_trace_of_what_node_sends(broker, destination, node_peer):
    peer = node_peer("messaging.js", broker.system, broker.address)
    order = peer.ask(command="send", destination=destination, body="order", baggage={"tenant": "Nord & Süd"})
    (span,) = peer.spans(PRODUCER)
    assert span["parent_id"] == order["span_id"]
    with broker.receive(destination) as processed:
        assert trace.get_current_span() is processed
        assert baggage.get_baggage("tenant") == "Nord & Süd"
    assert f"{processed.get_span_context().trace_id:032x}" == order["trace_id"]
    assert f"{processed.parent.span_id:016x}" == span["span_id"]
