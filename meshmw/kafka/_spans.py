"""Kafka by hand: `inject` and `extract`, and the blocks and iterators in which records are sent and processed.

Below them stand the steps that the instrumented clients take too: headers read and written, operations begun.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, Unpack

from opentelemetry import trace
from opentelemetry.context import Context

from meshmw._context.carriers import Lines
from meshmw._context.extraction import Extraction
from meshmw._foreign import kafka_servers
from meshmw._lifecycle.clients import AsyncDeliveries, Deliveries, Delivery
from meshmw._lifecycle.decide import OperationType
from meshmw._lifecycle.http_conventions import address_attributes
from meshmw._lifecycle.messaging import OWNED_HEADERS, Messaging, Options, message_attributes
from meshmw._lifecycle.operation import Attributes, Operation, OperationScope
from meshmw.kafka._headers import (
    SentHeaders,
    batch_attributes,
    cleaned,
    common_field,
    flattened,
    header_lines,
    lines_before,
    record_attributes,
    sendable,
    topic_of,
)
from meshmw.propagator import MeshPropagator

KAFKA: Final = Messaging("kafka")

# How long one poll of confluent-kafka waits before Ctrl-C is looked at.
_POLL_SECONDS: Final = 1.0
# librdkafka's `_PARTITION_EOF`: there are no more records for now.
_END_OF_PARTITION: Final = -191


def inject(
    headers: Any = None,
    context: Context | None = None,
    *,
    keep_existing: bool = False,
    propagator: MeshPropagator | None = None,
) -> SentHeaders:
    """Return new headers that carry the trace, as the one shape that every client sends: a list of (str, bytes).

    Every propagation header among *headers*, in any case, is replaced; all others stay, in their order. A header
    without a value becomes an empty one, because kafka-python sends no other.

    Args:
        headers: What the record has beside it: pairs or a mapping, such as a received record's headers; not changed.
        context: What to write; the current context by default.
        keep_existing: Whether a valid parent among *headers* stays the message's creation context. One that is
            malformed never stays.
        propagator: Writes the headers; by default the one that `configure()` made.

    Raises:
        TypeError: What is no pair, a name that is no text, or a value that is neither bytes nor text.
    """
    return write(KAFKA.with_options({"propagator": propagator}, keep_existing=keep_existing), headers, context)


def extract(record_or_headers: Any, *, propagator: MeshPropagator | None = None) -> Context:
    """Return a context with the trace and the baggage that a record carries, and nothing else; never raises.

    Of several headers of one name the last counts; the lines of baggage and of tracestate are read as one.

    Args:
        record_or_headers: A record or message of any client, or its headers: pairs or a mapping, of str or bytes.
        propagator: Reads the headers; by default the one that `configure()` made.
    """
    return read(KAFKA.with_options({"propagator": propagator}), record_or_headers).into({})


def producer_span(
    topic: str,
    *,
    operation: str = "send",
    partition: int | None = None,
    client_id: str | None = None,
    tracer_provider: trace.TracerProvider | None = None,
) -> AbstractContextManager[trace.Span, None]:
    """Return a block in which one record is sent, with the headers that `inject()` returns within it.

    Args:
        topic: Where the record goes; it names the span.
        operation: What the application calls it.
        partition: The partition, where the application chooses it.
        client_id: The producer's client id.
        tracer_provider: Makes the span; the global one by default.
    """
    messaging = KAFKA.with_options({"tracer_provider": tracer_provider})
    return OperationScope(partial(begin_send, messaging, topic, partition, operation, client_id=client_id))


def consumer_span(
    record: Any,
    *,
    operation: str = "process",
    consumer_group: str | None = None,
    client_id: str | None = None,
    **options: Unpack[Options],
) -> AbstractContextManager[trace.Span, None]:
    """Return a block in which one record is processed: its trace and baggage are current there, and only there.

    What the block raises is recorded and goes on. Each record needs a block of its own.

    Args:
        record: A record or message of any client.
        operation: What the application calls it.
        consumer_group: The consumer's group.
        client_id: The consumer's client id.
        **options: `parent`, `propagator` and `tracer_provider`: see `Options`.

    Raises:
        ValueError: `parent` is none of its words.
        TypeError: An option is not known, or holds no propagator or tracer provider.
    """
    messaging = KAFKA.with_options(options)
    return OperationScope(
        partial(begin_process, messaging, record, operation, consumer_group=consumer_group, client_id=client_id)
    )


def batch_span(
    records: Any,
    *,
    operation: str = "process",
    consumer_group: str | None = None,
    client_id: str | None = None,
    propagator: MeshPropagator | None = None,
    tracer_provider: trace.TracerProvider | None = None,
) -> AbstractContextManager[trace.Span, None]:
    """Return a block in which several records are processed: a new trace that links to the trace of each.

    Where there are no records there is no span. Within it, `consumer_span(record)` continues the trace of one.

    Args:
        records: A list, or the mapping from partitions to lists that polls of two clients return.
        operation: What the application calls it.
        consumer_group: The consumer's group.
        client_id: The consumer's client id.
        propagator: Reads the headers; by default the one that `configure()` made.
        tracer_provider: Makes the span; the global one by default.
    """
    messaging = KAFKA.with_options({"propagator": propagator, "tracer_provider": tracer_provider})
    flat = flattened(records)
    return OperationScope(
        partial(begin_batch, messaging, flat, operation, consumer_group=consumer_group, client_id=client_id)
    )


def consume(
    consumer: Any, *, consumer_group: str | None = None, client_id: str | None = None, **options: Unpack[Options]
) -> Iterator[Delivery[Any]]:
    """Return an iterator over a consumer's records: `for delivery in consume(consumer): with delivery as record: ...`.

    Each record is processed in its `with` block, as by `consumer_span`. Nothing is prefetched, held back or current
    outside the block, so the loop can be left at any time and another one begun.

    Args:
        consumer: kafka-python's; confluent-kafka's, which is polled until it is closed, and whose errors are raised
            unless librdkafka retries; or any iterable of records.
        consumer_group: The consumer's group.
        client_id: The consumer's client id.
        **options: As for `consumer_span`.
    """
    messaging = KAFKA.with_options(options, server=server_of(consumer))
    fetch = iter(consumer).__next__ if hasattr(consumer, "__iter__") else partial(_poll, consumer)
    return Deliveries(fetch, partial(begin_process, messaging, consumer_group=consumer_group, client_id=client_id))


def aconsume(
    consumer: Any, *, consumer_group: str | None = None, client_id: str | None = None, **options: Unpack[Options]
) -> AsyncIterator[Delivery[Any]]:
    """Return what `consume` does, over aiokafka's consumer, confluent-kafka's `AIOConsumer`, or any async iterable."""
    messaging = KAFKA.with_options(options, server=server_of(consumer))
    fetch = aiter(consumer).__anext__ if hasattr(consumer, "__aiter__") else partial(_apoll, consumer)
    return AsyncDeliveries(fetch, partial(begin_process, messaging, consumer_group=consumer_group, client_id=client_id))


def write(
    messaging: Messaging, headers: Any, context: Context | None, null: bytes | None = b""
) -> list[tuple[str, Any]]:
    """Return headers to send: see `inject`; *null* stands for a header without a value."""
    pairs = sendable(headers, null)
    new = messaging.write(context, header_lines(pairs, messaging.propagator.names_read) if pairs else {})
    kept = [pair for pair in pairs if pair[0].lower() not in OWNED_HEADERS]
    return kept + [(name, text.encode("latin-1", "replace")) for name, text in new.items()]


def read(messaging: Messaging, carrier: Any, operation_type: OperationType = "process") -> Extraction:
    """Return what a record's headers say; never raises for what the record is."""
    return messaging.read(_lines(messaging, carrier, operation_type), operation_type)


def take(messaging: Messaging, record: Any, operation_type: OperationType = "process") -> tuple[Extraction, Any]:
    """Return what a record's headers say, and the record without what is malformed of them (law 2)."""
    lines = _lines(messaging, record, operation_type)
    extraction = messaging.read(lines, operation_type)
    if not extraction.rewrites.keys().isdisjoint(lines):
        # It need not be a client's record, and a client may refuse the change.
        with contextlib.suppress(Exception):
            record = cleaned(record, lines, extraction.rewrites)
    return extraction, record


def _lines(messaging: Messaging, carrier: Any, operation_type: OperationType) -> Lines:
    try:
        return lines_before(carrier, messaging.propagator.names_checked)
    except Exception:
        if operation_type == "process":
            consequence = "- what was given has none; the message starts a trace"
            messaging.propagator.rejections.record("kafka", "no_headers", consequence)
        return {}


def begin_send(
    messaging: Messaging, topic: str, partition: int | None, operation: str = "send", **more: Any
) -> Operation:
    """Begin to send one record, and say *more* of what `message_attributes` takes."""
    return messaging.begin_send(topic, partial(message_attributes, partition=partition, **more), operation=operation)


def begin_process(
    messaging: Messaging,
    record: Any,
    operation: str = "process",
    operation_type: OperationType = "process",
    extraction: Extraction | None = None,
    **more: Any,
) -> Operation:
    """Begin to process one record, and say *more* of what `message_attributes` takes.

    Its headers are taken here, unless they have been.
    """
    if extraction is None:
        extraction, _ = take(messaging, record, operation_type)
    return messaging.begin_process(
        extraction,
        topic_of(record),
        partial(record_attributes, record, **more),
        operation=operation,
        operation_type=operation_type,
    )


def begin_batch(
    messaging: Messaging,
    records: Sequence[Any],
    operation: str,
    operation_type: OperationType = "process",
    start_time: int | None = None,
    extractions: Sequence[Extraction] | None = None,
    **more: Any,
) -> Operation:
    """Begin to process several records; none of them is an operation without a span."""
    if not records:
        return messaging.begin_nothing()
    return messaging.begin_batch(
        [take(messaging, record, operation_type)[0] for record in records] if extractions is None else extractions,
        common_field(records, "topic"),
        partial(batch_attributes, records, **more),
        operation=operation,
        operation_type=operation_type,
        start_time=start_time,
    )


def server_of(client: Any) -> Attributes:
    """Return the address of the server that a producer or consumer was made with, as attributes; never raises.

    With several servers, nothing here knows which one takes a record, so there are no attributes.
    """
    servers = kafka_servers(client)
    return address_attributes("server", servers[0], "kafka") if len(servers) == 1 else {}


def _poll(consumer: Any) -> Any:
    while True:
        message = consumer.poll(_POLL_SECONDS)
        if _is_record(message):
            return message


async def _apoll(consumer: Any) -> Any:
    while True:
        message = await consumer.poll(_POLL_SECONDS)
        if _is_record(message):
            return message


def _is_record(message: Any) -> bool:
    """Say whether a poll of confluent-kafka returned a record: else nothing, or an error to wait out.

    Raises:
        KafkaException: An error that librdkafka does not get over by itself.
    """
    error = None if message is None else message.error()
    if error is None:
        return message is not None
    if error.code() != _END_OF_PARTITION and not error.retriable():
        from confluent_kafka import KafkaException

        raise KafkaException(error)
    return False
