"""What a RabbitMQ message says of itself, whichever client handed it out.

Knows the shapes of messages. Must not know a span's life, nor import a client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from meshmw.rabbitmq.headers import headers_of
from meshmw.semconv.attributes import AttributeValue
from meshmw.semconv.messaging import message_attributes, rabbitmq_attributes
from meshmw.semconv.rabbitmq import Destination, destination, redelivery_attributes

# Reasons for which a message is dead-lettered only after somebody got it.
_AFTER_DELIVERY: Final = frozenset({"rejected", "delivery_limit"})
# Any sender can write these headers: what an exporter cannot encode would cost all spans that go with it.
_MOST: Final = 1_000_000
_LONGEST: Final = 255  # bytes of a name in AMQP


class Message(NamedTuple):
    """Is one message that was delivered.

    Attributes:
        method: What holds its delivery tag, exchange and routing key: pika's method, or aio-pika's message.
        properties: What holds its headers, message id and correlation id.
        body: Its body.
        queue: The queue that it comes from, if anybody has said so.
    """

    method: Any
    properties: Any
    body: Any
    queue: str | None

    @classmethod
    def of(cls, message: Any, properties: Any = None, body: Any = None, queue: str | None = None) -> Message:
        """Return one that was given in any of the ways in which clients hand it out."""
        if isinstance(message, tuple):
            message, properties, body = (*message, None, None, None)[:3]
        if properties is None:
            return cls(message, message, getattr(message, "body", body), queue)
        return cls(message, properties, body, queue)

    @property
    def destination(self) -> Destination:
        """Return where it comes from."""
        return destination(_text(self.method, "exchange"), _text(self.method, "routing_key"), self.queue or "")

    def attributes(self) -> dict[str, AttributeValue]:
        """Return what a span says of it."""
        tag = getattr(self.method, "delivery_tag", None)
        return {
            **self.destination.attributes(),
            **rabbitmq_attributes(routing_key=_text(self.method, "routing_key"), delivery_tag=tag),
            **property_attributes(self.properties, self.body),
            **self._redelivery(),
        }

    def _redelivery(self) -> dict[str, AttributeValue]:
        redelivered = getattr(self.method, "redelivered", False) is True
        headers = headers_of(self.properties)
        deaths = [each for each in _list(headers.get("x-death")) if isinstance(each, Mapping)]
        # Quorum queues count how often it came back to them; classic queues say only that it did.
        before = _count(headers.get("x-delivery-count")) or int(redelivered)
        before += sum(_count(each.get("count")) for each in deaths if _text_of(each.get("reason")) in _AFTER_DELIVERY)
        last = deaths[0] if deaths else {}
        return redelivery_attributes(
            delivery_count=before + 1,
            redelivered=redelivered,
            dead_letter_count=sum(_count(each.get("count")) for each in deaths),
            dead_letter_reason=_text_of(last.get("reason"))[:_LONGEST],
            dead_letter_queue=_text_of(last.get("queue"))[:_LONGEST],
        )


def property_attributes(properties: object, body: object) -> dict[str, AttributeValue]:
    """Return what a span says of a message that is sent or delivered, beside where that is."""
    return message_attributes(
        message_id=_text(properties, "message_id") or None,
        conversation_id=_text(properties, "correlation_id") or None,
        body_size=len(body) if isinstance(body, bytes | bytearray | memoryview) else None,
    )


def _text(holder: object, name: str) -> str:
    return _text_of(getattr(holder, name, None))


def _text_of(value: object) -> str:
    return value if isinstance(value, str) else ""


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _count(value: object) -> int:
    return min(int(value), _MOST) if isinstance(value, int) and value > 0 else 0
