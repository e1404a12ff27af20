"""RabbitMQ: the trace goes on from the publisher's span to the consumer's, with two clients and none imported.

pika and aio-pika. Other instrumentations of RabbitMQ stay off beside this one: both would write.
"""

from __future__ import annotations

from meshmw.rabbitmq.headers import RabbitMQGetter
from meshmw.rabbitmq.instrumented import instrument
from meshmw.rabbitmq.iteration import aconsume, consume
from meshmw.rabbitmq.spans import batch_span, consumer_span, extract, inject, producer_span

__all__ = [
    "RabbitMQGetter",
    "aconsume",
    "batch_span",
    "consume",
    "consumer_span",
    "extract",
    "inject",
    "instrument",
    "producer_span",
]
