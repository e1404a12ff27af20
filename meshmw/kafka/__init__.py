"""Kafka: a trace goes on from the producer's span to the consumer's, with kafka-python 3, aiokafka or confluent-kafka.

    producer = kafka.instrument(KafkaProducer(bootstrap_servers="kafka:9092"))
    producer.send("orders", b"teapot")  # carries the trace

    for delivery in kafka.consume(KafkaConsumer("orders", bootstrap_servers="kafka:9092")):
        with delivery as record:  # goes on in the record's trace
            handle(record.value)

By hand: `headers=inject()` within `producer_span(topic)`, and `consumer_span(record)` or `batch_span(records)` around
the work. No client is imported here. Install no other instrumentation of Kafka beside this one: both would write
headers.
"""

from __future__ import annotations

from meshmw._lifecycle.clients import Delivery
from meshmw._lifecycle.messaging import Options
from meshmw.kafka._clients import instrument
from meshmw.kafka._headers import KafkaGetter, KafkaSetter
from meshmw.kafka._spans import aconsume, batch_span, consume, consumer_span, extract, inject, producer_span

__all__ = [
    "Delivery",
    "KafkaGetter",
    "KafkaSetter",
    "Options",
    "aconsume",
    "batch_span",
    "consume",
    "consumer_span",
    "extract",
    "inject",
    "instrument",
    "producer_span",
]


def __dir__() -> list[str]:
    return sorted(__all__)
