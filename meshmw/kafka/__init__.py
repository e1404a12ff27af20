"""Kafka: the trace goes on from the producer's span to the consumer's, with any of three clients and none imported.

kafka-python 3, aiokafka and confluent-kafka. Other instrumentations of Kafka stay off beside this one.
"""

from __future__ import annotations

from typing import Any, Final

from opentelemetry import trace

from meshmw._lifecycle.clients import Kinds, instrumented
from meshmw._runtime import MessagingParent
from meshmw.kafka._consumers import (
    AiokafkaConsumer,
    ConfluentAsyncConsumer,
    ConfluentConsumer,
    KafkaPythonConsumer,
    aconsume,
    consume,
)
from meshmw.kafka._headers import KafkaGetter, KafkaSetter
from meshmw.kafka._producers import AiokafkaProducer, ConfluentProducer, KafkaPythonProducer
from meshmw.kafka._spans import KAFKA, batch_span, consumer_span, extract, inject, producer_span, server_of
from meshmw.propagator import MeshPropagator

# `instrument()`: a producer or consumer that traces by itself, around the client's own object.


def instrument(
    client: Any,
    *,
    keep_existing: bool = False,
    parent: MessagingParent | None = None,
    propagator: MeshPropagator | None = None,
    tracer_provider: trace.TracerProvider | None = None,
) -> Any:
    """Return a producer or consumer that works as *client*, and traces what it sends or fetches.

    A producer's records carry the trace, and each has a PRODUCER span that ends when the broker has answered. What a
    consumer fetches has a `receive` span, if it is anything; the application's own work on a record begins where
    `consumer_span` or `consume` says, because no iterator can tell when that ends.

    The result has every attribute of the client, and is no instance of its class: what asks for one gets
    `__wrapped__`, the client itself. Nothing is changed for other producers and consumers.

    Args:
        client: A producer or consumer of kafka-python, aiokafka or confluent-kafka.
        keep_existing: For a producer, as for `inject`.
        parent: For a consumer, as for `consumer_span`.
        propagator: Reads and writes the headers; by default the one that `configure()` made.
        tracer_provider: Makes the spans; the global one by default.

    Raises:
        TypeError: *client* is none of them, or one that cannot send headers.
    """
    of = KAFKA.with_options(propagator, tracer_provider, parent, server_of(client))
    return instrumented(client, _KINDS, of, keep_existing=keep_existing, takes=_TAKES)


def _no_headers(client: Any, *_: object) -> Any:
    raise TypeError(f"{type(client).__qualname__} sends no headers, so no trace either; use confluent_kafka.Producer")


_TAKES: Final = "a producer or consumer of kafka-python, aiokafka or confluent-kafka"
# `cimpl` is confluent-kafka's C part.
_KINDS: Final[Kinds] = {
    ("kafka", "KafkaProducer"): KafkaPythonProducer,
    ("kafka", "KafkaConsumer"): KafkaPythonConsumer,
    ("aiokafka", "AIOKafkaProducer"): AiokafkaProducer,
    ("aiokafka", "AIOKafkaConsumer"): AiokafkaConsumer,
    ("cimpl", "Producer"): ConfluentProducer,
    ("cimpl", "Consumer"): ConfluentConsumer,
    ("confluent_kafka", "AIOConsumer"): ConfluentAsyncConsumer,
    ("confluent_kafka", "AIOProducer"): _no_headers,
}

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
