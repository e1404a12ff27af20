"""Kafka: the trace goes on from the producer's span to the consumer's, with any of three clients and none imported.

kafka-python 3, aiokafka and confluent-kafka. Other instrumentations of Kafka stay off beside this one.
"""

from __future__ import annotations

from meshmw.kafka.headers import KafkaGetter, KafkaSetter
from meshmw.kafka.instrumented import instrument
from meshmw.kafka.iteration import aconsume, consume
from meshmw.kafka.spans import batch_span, consumer_span, extract, inject, producer_span

__all__ = [
    "KafkaGetter",
    "KafkaSetter",
    "aconsume",
    "batch_span",
    "consume",
    "consumer_span",
    "extract",
    "inject",
    "instrument",
    "producer_span",
]
