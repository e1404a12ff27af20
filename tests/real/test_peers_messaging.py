"""Messaging: a peer sends to us, and we send to the peer, in one trace with all that came with it."""

from __future__ import annotations

import abc
import secrets
from typing import Any, ClassVar

import confluent_kafka
import confluent_kafka.admin
import pika
import pytest

import meshmw.kafka
import meshmw.rabbitmq
from tests.real.peers import SECONDS, Journey, Peer, seen_here


class Broker(abc.ABC):
    """Ours at a broker: takes what a peer has sent, and sends to where the peer receives."""

    system: ClassVar[str]

    def __init__(self, address: str) -> None:
        self.address = address

    @abc.abstractmethod
    def prepare(self, destination: str) -> None:
        """Make a destination."""

    @abc.abstractmethod
    def forward(self, journey: Journey, source: str, destination: str, body: bytes | None) -> dict[str, str]:
        """Process the first message, send one on meanwhile, and return what was current."""


class RabbitMQ(Broker):
    system = "rabbitmq"

    def prepare(self, destination: str) -> None:
        with pika.BlockingConnection(pika.URLParameters(self.address)) as connection:
            connection.channel().queue_declare(destination)

    def forward(self, journey: Journey, source: str, destination: str, body: bytes | None) -> dict[str, str]:
        with pika.BlockingConnection(pika.URLParameters(self.address)) as connection:
            channel = connection.channel()
            message = next(channel.consume(source, auto_ack=True, inactivity_timeout=SECONDS))
            with meshmw.rabbitmq.consumer_span(message, queue=source, **journey.options):
                here = seen_here()
                sender = meshmw.rabbitmq.producer_span(
                    "", destination, tracer_provider=journey.options["tracer_provider"]
                )
                with sender:
                    properties = meshmw.rabbitmq.inject(
                        pika.BasicProperties(), propagator=journey.options["propagator"]
                    )
                    channel.basic_publish("", destination, message[2], properties)
            assert message[2] == body
            return here


class Kafka(Broker):
    system = "kafka"

    def prepare(self, destination: str) -> None:
        admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": self.address})
        for done in admin.create_topics([confluent_kafka.admin.NewTopic(destination, 1)]).values():
            done.result(SECONDS)

    def forward(self, journey: Journey, source: str, destination: str, body: bytes | None) -> dict[str, str]:
        consumer = confluent_kafka.Consumer({"bootstrap.servers": self.address, "group.id": "none"})
        producer = confluent_kafka.Producer({"bootstrap.servers": self.address})
        try:
            consumer.assign([confluent_kafka.TopicPartition(source, 0, 0)])
            message = consumer.poll(SECONDS)
            assert message is not None
            assert message.error() is None, message.error()
            with meshmw.kafka.consumer_span(message, **journey.options):
                here = seen_here()
                instrumented: Any = meshmw.kafka.instrument(producer, **journey.options)
                instrumented.produce(destination, message.value(), b"key", partition=0)
                assert instrumented.flush(SECONDS) == 0
            assert message.value() == body
            return here
        finally:
            consumer.close()
            producer.close()


def through(peer: Peer, journey: Journey, broker: Broker, body: str | None) -> None:
    """From the peer to us and back, each message in a span of its own."""
    source, destination = (f"peer-{secrets.token_hex(4)}" for _ in range(2))
    for name in (source, destination):
        broker.prepare(name)
    where = {"protocol": broker.system, "address": broker.address}
    peer.ask("call", **where, destination=source, body=body, headers=journey.headers)
    here = broker.forward(journey, source, destination, None if body is None else body.encode())
    assert journey.check(here, peer) == f"{journey.span('CONSUMER').context.span_id:016x}"
    journey.check_ours("CONSUMER", "PRODUCER", peer)
    received = peer.ask("receive", **where, destination=destination)
    assert received["body"] == body
    there = journey.check(received["found"], peer)
    assert {*peer.path(there, f"{journey.span('PRODUCER').context.span_id:016x}")} == {"CONSUMER"}


@pytest.mark.parametrize("body", ["order", None], ids=["message", "tombstone"])
def test_a_peer_and_we_send_to_each_other_through_kafka(
    peer: Peer, journey: Journey, apache_kafka: str, body: str | None
) -> None:
    through(peer, journey, Kafka(apache_kafka), body)


def test_node_and_we_send_to_each_other_through_rabbitmq(
    node_peer: Peer, journey: Journey, rabbitmq_broker: str
) -> None:
    through(node_peer, journey, RabbitMQ(rabbitmq_broker), "order")
