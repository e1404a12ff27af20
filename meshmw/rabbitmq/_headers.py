"""RabbitMQ's messages, and their headers: a mapping whose keys know case, and whose values have types of their own.

The attributes are those of the RabbitMQ conventions (1.44, development), and under `meshmw.message` what these leave
out: how often a message was delivered.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from opentelemetry.propagators.textmap import Getter

from meshmw._context.carriers import Lines
from meshmw._lifecycle.messaging import header_lines, message_attributes, name_of
from meshmw._lifecycle.operation import AttributeValue

_DEFAULT_EXCHANGE: Final = "amq.default"
# Names that brokers and aio-pika make up: no two are alike, so that they name no span.
_MADE_UP: Final = ("amq.gen-", "amq.rabbitmq.reply-to", "amq_")
# A routing key may hold a user's id, or whatever else whoever publishes has put there; in AMQP it has 255 bytes.
_MOST_ROUTING_KEYS: Final = 64
_MOST_PLACES: Final = 256
_routing_keys: Final[dict[tuple[str, str], set[str]]] = {}
# Reasons for which a message is dead-lettered only after somebody got it.
_AFTER_DELIVERY: Final = frozenset({"rejected", "delivery_limit"})
# Any sender can write these headers. With a value that it cannot encode, an exporter would lose a batch of spans.
_MOST: Final = 1_000_000
_LONGEST: Final = 255  # bytes of a name in AMQP


class RabbitMQGetter(Getter[Any]):
    """Reads a message, properties or headers for any OpenTelemetry propagator, which the default getter cannot."""

    def get(self, carrier: Any, key: str) -> list[str] | None:
        """Return a header's last value as text, or all of one that is a list, joined; None where there is none."""
        found = header_lines(headers_of(carrier), (key.lower(),)).get(key.lower())
        return None if found is None else [",".join(found)]

    def keys(self, carrier: Any) -> list[str]:
        """Return the names of all headers."""
        return [str(key) for key in headers_of(carrier)]


def headers_of(carrier: object) -> Mapping[Any, Any]:
    """Return the headers of a message, of its properties, or of what are headers already; empty where there are none.

    Args:
        carrier: A mapping, something with `headers`, or a tuple with one of these in it, as pika returns.
    """
    if isinstance(carrier, Mapping):
        return carrier
    if isinstance(carrier, tuple):
        return next((headers_of(each) for each in carrier if hasattr(each, "headers")), {})
    found = getattr(carrier, "headers", None)
    return found if isinstance(found, Mapping) else {}


class CleanHeaders(dict[Any, Any]):
    """Holds a message's headers without what is malformed of them.

    A message is cleaned when it is received, and what was malformed is told when it is processed.

    Attributes:
        lines: What the headers said before, by name in lower case.
    """

    lines: Lines


def lines_before(headers: Mapping[Any, Any], wanted: Collection[str]) -> Lines:
    """Return what headers said before they were cleaned, if they were; else what `header_lines` returns."""
    return headers.lines if isinstance(headers, CleanHeaders) else header_lines(headers, wanted)


def clean(holder: object, lines: Lines, rewrites: Mapping[str, str | None]) -> None:
    """Rewrite the headers of a message or of properties.

    Args:
        holder: What has `headers`; whatever else there is stays as it is.
        lines: What the headers say.
        rewrites: For each header that must not stay as it came: the text to put in its place, or None to remove it.
    """
    kept = CleanHeaders({key: value for key, value in headers_of(holder).items() if name_of(key) not in rewrites})
    kept.update({name: text for name, text in rewrites.items() if text is not None})
    kept.lines = lines
    # aio-pika locks a message that is settled, so that nobody takes it for one to send.
    object.__setattr__(holder, "headers", kept)


class Destination(NamedTuple):
    """Says where a message goes, or where it comes from.

    Attributes:
        name: All that is known: `{exchange}:{routing key}:{queue}`, without what is empty or said twice.
        span_name: The same without names that were made up for one connection, and without a routing key that is one of
            too many; None where nothing is left.
        is_anonymous: Whether there are names that were made up for one connection.
    """

    name: str
    span_name: str | None
    is_anonymous: bool

    def attributes(self) -> dict[str, AttributeValue]:
        """Return what a span says of a destination that does not name the span as it is."""
        if self.name == self.span_name:
            return {}
        found: dict[str, AttributeValue] = {"messaging.destination.name": self.name}
        return found | {"messaging.destination.anonymous": True} if self.is_anonymous else found


def destination(exchange: str, routing_key: str, queue: str = "") -> Destination:
    """Return the destination of a producer, or with *queue* of a consumer (`messaging.destination.name`)."""
    parts = [part for part in (exchange, routing_key, queue if queue != routing_key else "") if part]
    # Behind the default exchange the routing key is the queue's name.
    names_spans = not exchange or _is_one_of_few(exchange, routing_key, queue)
    named = parts if names_spans else list(filter(None, [exchange, queue]))
    kept = [part for part in named if not _is_made_up(part)]
    name = ":".join(parts) or _DEFAULT_EXCHANGE
    return Destination(name, ":".join(kept) or (None if parts else name), any(map(_is_made_up, parts)))


def _is_made_up(name: str) -> bool:
    return name.startswith(_MADE_UP)


def _is_one_of_few(exchange: str, routing_key: str, queue: str) -> bool:
    """Say whether a routing key may name spans: whoever publishes chooses it, so the first 64 of each queue do."""
    place = (exchange, queue)
    if len(_routing_keys) >= _MOST_PLACES and place not in _routing_keys:
        return False
    known = _routing_keys.setdefault(place, set())
    if routing_key not in known:
        if len(known) >= _MOST_ROUTING_KEYS:
            return False
        known.add(routing_key)
    return True


class Message(NamedTuple):
    """Holds one message that was delivered.

    Attributes:
        method: What holds its delivery tag, exchange and routing key: pika's method, or aio-pika's message. None where
            nothing was delivered, as pika hands it out when its time is up.
        properties: What holds its headers, message id and correlation id.
        body: Its body.
        queue: The queue that it comes from, if anybody has said so.
    """

    method: Any
    properties: Any
    body: Any
    queue: str | None

    @classmethod
    def from_client(cls, message: Any, properties: Any = None, body: Any = None, queue: str | None = None) -> Message:
        """Make one of a client's message, of pika's three values, or of their tuple."""
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
        """Return a span's attributes for it."""
        tag = getattr(self.method, "delivery_tag", None)
        return {
            **self.destination.attributes(),
            **rabbitmq_attributes(routing_key=_text(self.method, "routing_key"), delivery_tag=tag),
            **property_attributes(self.properties, self.body),
            **self._redelivery_attributes(),
        }

    def _redelivery_attributes(self) -> dict[str, AttributeValue]:
        """Return what a span says of earlier deliveries: at least how many, and why the last one was given up."""
        redelivered = getattr(self.method, "redelivered", False) is True
        headers = headers_of(self.properties)
        deaths = [each for each in _list(headers.get("x-death")) if isinstance(each, Mapping)]
        # Quorum queues count how often a message came back to them; classic queues say only that it did.
        before = _count(headers.get("x-delivery-count")) or int(redelivered)
        before += sum(_count(each.get("count")) for each in deaths if _text_of(each.get("reason")) in _AFTER_DELIVERY)
        last = deaths[0] if deaths else {}
        found: dict[str, AttributeValue] = {
            "meshmw.message.redelivered": redelivered,
            "meshmw.message.delivery_count": before + 1 if before else 0,
            "meshmw.message.dead_letter.count": sum(_count(each.get("count")) for each in deaths),
            "meshmw.message.dead_letter.reason": _text_of(last.get("reason"))[:_LONGEST],
            "meshmw.message.dead_letter.queue": _text_of(last.get("queue"))[:_LONGEST],
        }
        return {name: value for name, value in found.items() if value}


def rabbitmq_attributes(
    *, routing_key: str | None = None, delivery_tag: int | None = None
) -> dict[str, AttributeValue]:
    """Return what only RabbitMQ's messages have: a routing key, and the number by which they are acknowledged."""
    found: dict[str, AttributeValue] = {}
    if routing_key:
        found["messaging.rabbitmq.destination.routing_key"] = routing_key
    if delivery_tag is not None:
        found["messaging.rabbitmq.message.delivery_tag"] = delivery_tag
    return found


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
