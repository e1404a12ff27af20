"""RabbitMQ: a trace goes on from the publisher's span to the consumer's, with pika or aio-pika.

    channel = rabbitmq.instrument(connection.channel())
    channel.basic_publish("", "orders", b"teapot")  # carries the trace

    for delivery in rabbitmq.consume(channel.consume("orders"), queue="orders"):
        with delivery as (method, properties, body):  # goes on in the message's trace
            handle(body)

By hand: `properties=inject(BasicProperties())` within `producer_span(exchange, routing_key)`, and
`consumer_span(message)` or `batch_span(messages)` around the work. No client is imported here. Install no other
instrumentation of RabbitMQ beside this one: both would write headers.
"""

from __future__ import annotations

from meshmw._lifecycle.clients import Delivery
from meshmw._lifecycle.messaging import Options
from meshmw.rabbitmq._clients import instrument
from meshmw.rabbitmq._headers import RabbitMQGetter
from meshmw.rabbitmq._spans import aconsume, batch_span, consume, consumer_span, extract, inject, producer_span

__all__ = [
    "Delivery",
    "Options",
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


def __dir__() -> list[str]:
    return sorted(__all__)
