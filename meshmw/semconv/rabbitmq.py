"""RabbitMQ semantic conventions, 1.44 (development), and what these leave out: how often a message was delivered.

Knows attribute names and values. Must not know OpenTelemetry's objects, clients or the shapes of headers.
"""

from __future__ import annotations

from typing import NamedTuple

from meshmw.semconv.attributes import AttributeValue

DEFAULT_EXCHANGE = "amq.default"
# Names that brokers and aio-pika make up: no two are alike, so that they name no span.
_MADE_UP = ("amq.gen-", "amq.rabbitmq.reply-to", "amq_")


class Destination(NamedTuple):
    """Says where a message goes, or where it comes from.

    Attributes:
        name: All that is known: `{exchange}:{routing key}:{queue}`, without what is empty or said twice.
        lasting: The same without names that were made up for one connection; None where nothing is left.
    """

    name: str
    lasting: str | None

    def attributes(self) -> dict[str, AttributeValue]:
        """Return what a span says of a destination that does not name the span as it is."""
        if self.name == self.lasting:
            return {}
        return {"messaging.destination.name": self.name, "messaging.destination.anonymous": True}


def destination(exchange: str, routing_key: str, queue: str = "") -> Destination:
    """Return the destination of a producer, or with *queue* of a consumer (`messaging.destination.name`)."""
    parts = [part for part in (exchange, routing_key, queue if queue != routing_key else "") if part]
    lasting = [part for part in parts if not part.startswith(_MADE_UP)]
    name = ":".join(parts) or DEFAULT_EXCHANGE
    return Destination(name, ":".join(lasting) or (None if parts else name))


def redelivery_attributes(
    *,
    delivery_count: int = 1,
    redelivered: bool = False,
    dead_letter_count: int = 0,
    dead_letter_reason: str | None = None,
    dead_letter_queue: str | None = None,
) -> dict[str, AttributeValue]:
    """Return what a span says of a message that was delivered before; the conventions have no names for it.

    Args:
        delivery_count: How often it was delivered at least, this time included.
        redelivered: Whether the broker says that this queue has delivered it before.
        dead_letter_count: How often it was dead-lettered, for whatever reason.
        dead_letter_reason: Why it was the last time: `rejected`, `expired`, `maxlen`, `delivery_limit`.
        dead_letter_queue: Which queue it was in then.
    """
    found: dict[str, AttributeValue | None] = {
        "meshmw.message.redelivered": redelivered,
        "meshmw.message.delivery_count": delivery_count if delivery_count > 1 else None,
        "meshmw.message.dead_letter.count": dead_letter_count,
        "meshmw.message.dead_letter.reason": dead_letter_reason,
        "meshmw.message.dead_letter.queue": dead_letter_queue,
    }
    return {name: value for name, value in found.items() if value}
