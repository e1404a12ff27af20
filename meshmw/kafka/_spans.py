"""Kafka by hand: `inject`, `extract`, and the blocks in which records are sent or processed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context

from meshmw._context.extraction import Extraction
from meshmw._lifecycle.conventions import AttributeValue, broker_attributes, message_attributes
from meshmw._lifecycle.messaging import OWNED_HEADERS, Messaging
from meshmw._lifecycle.operation import Operation, OperationScope
from meshmw._runtime import MessagingParent
from meshmw.kafka._headers import Pairs, common, flattened, header_lines, of_record, of_records, sendable, topic_of
from meshmw.propagator import MeshPropagator

# What is done with Kafka's records: headers written and read, operations begun.


KAFKA: Final = Messaging("kafka")


def written(
    of: Messaging, headers: Any, context: Context | None, *, keep_existing: bool, null: bytes | None
) -> list[tuple[str, Any]]:
    """Return headers to send: see `inject`; *null* stands for a header without a value."""
    pairs = sendable(headers, null)
    new = of.write(context, header_lines(pairs, of.wanted), keep=keep_existing)
    kept = [pair for pair in pairs if pair[0].lower() not in OWNED_HEADERS]
    return kept + [(name, text.encode("latin-1", "replace")) for name, text in new.items()]


def read(of: Messaging, carrier: Any) -> Extraction:
    """Return what a record's headers say; never raises for what the record is."""
    try:
        lines = header_lines(carrier, of.wanted)
    except Exception:
        of.propagator.rejections.record("kafka", "no_headers", "- what was given has none; the message starts a trace")
        lines = {}
    return of.read(lines)


def peek(of: Messaging, carrier: Any) -> Extraction:
    """Do as `read` where the record is not processed yet: nothing is counted."""
    try:
        return of.check(header_lines(carrier, of.wanted))
    except Exception:
        return of.check({})


def begin_process(of: Messaging, record: Any, operation: str = "process", **more: str | None) -> Operation:
    """Begin to process one record."""
    return of.begin_process(read(of, record), topic_of(record), of_record(record, **more), operation=operation)


def begin_batch(of: Messaging, records: Sequence[Any], operation: str, **more: str | None) -> Operation:
    """Begin to process several records; none of them is an operation without a span."""
    if not records:
        return of.begin_nothing()
    extractions = [read(of, record) for record in records]
    return of.begin_batch(extractions, common(records, "topic"), of_records(records, **more), operation=operation)


def inject(
    headers: Any = None,
    context: Context | None = None,
    *,
    keep_existing: bool = False,
    propagator: MeshPropagator | None = None,
) -> Pairs:
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
    of = KAFKA.with_options(propagator, None)
    return written(of, headers, context, keep_existing=keep_existing, null=b"")


def extract(record_or_headers: Any, *, propagator: MeshPropagator | None = None) -> Context:
    """Return a context with the trace and the baggage that a record carries, and nothing else; never raises.

    Of several headers of one name the last counts; the lines of baggage and of tracestate are read as one.

    Args:
        record_or_headers: A record or message of any client, or its headers: pairs or a mapping, of str or bytes.
        propagator: Reads the headers; by default the one that `configure()` made.
    """
    return read(KAFKA.with_options(propagator, None), record_or_headers).into({})


def producer_span(
    topic: str,
    *,
    operation: str = "send",
    partition: int | None = None,
    client_id: str | None = None,
    tracer_provider: trace.TracerProvider | None = None,
) -> OperationScope:
    """Return a block in which one record is sent, with the headers that `inject()` returns within it.

    Args:
        topic: Where the record goes; it names the span.
        operation: What the application calls it.
        partition: Where the application has chosen it.
        client_id: The producer's.
        tracer_provider: Makes the span; the global one by default.
    """
    of = KAFKA.with_options(None, tracer_provider)
    return OperationScope(
        lambda: of.begin_send(
            topic, lambda: message_attributes(partition=partition, client_id=client_id), operation=operation
        )
    )


def consumer_span(
    record: Any,
    *,
    operation: str = "process",
    consumer_group: str | None = None,
    client_id: str | None = None,
    parent: MessagingParent | None = None,
    propagator: MeshPropagator | None = None,
    tracer_provider: trace.TracerProvider | None = None,
) -> OperationScope:
    """Return a block in which one record is processed: its trace and baggage are current there, and only there.

    What the block raises is recorded and goes on. Each record needs a block of its own.

    Args:
        record: A record or message of any client.
        operation: What the application calls it.
        consumer_group: The consumer's group.
        client_id: The consumer's.
        parent: Whether the span is a child of the record's producer, or a new trace with a `link` to it; the
            setting `messaging_parent` by default.
        propagator: Reads the headers; by default the one that `configure()` made.
        tracer_provider: Makes the span; the global one by default.
    """
    of = KAFKA.with_options(propagator, tracer_provider, parent)
    return OperationScope(
        lambda: begin_process(of, record, operation, consumer_group=consumer_group, client_id=client_id)
    )


def batch_span(
    records: Any,
    *,
    operation: str = "process",
    consumer_group: str | None = None,
    client_id: str | None = None,
    propagator: MeshPropagator | None = None,
    tracer_provider: trace.TracerProvider | None = None,
) -> OperationScope:
    """Return a block in which several records are processed: a new trace that links to the trace of each.

    Where there are no records there is no span. Within it, `consumer_span(record)` continues the trace of one.

    Args:
        records: A list, or the mapping from partitions to lists that polls of two clients return.
        operation: What the application calls it.
        consumer_group: The consumer's group.
        client_id: The consumer's.
        propagator: Reads the headers; by default the one that `configure()` made.
        tracer_provider: Makes the span; the global one by default.
    """
    of, flat = KAFKA.with_options(propagator, tracer_provider), flattened(records)
    more = {"consumer_group": consumer_group, "client_id": client_id}
    return OperationScope(lambda: begin_batch(of, flat, operation, **more))


# Where a client's broker is, as far as the client tells.


def server_of(client: Any) -> Mapping[str, AttributeValue]:
    """Return what spans say of the server that a producer or consumer was told of; never raises.

    Of several servers nobody knows here which one takes a record, so none is named.
    """
    try:
        servers = _bootstrap_servers(client)
        if len(servers) != 1:
            return {}
        address = urlsplit(f"//{servers[0].strip()}")
        return broker_attributes(address.hostname, address.port)
    except Exception:
        return {}


def _bootstrap_servers(client: Any) -> list[str]:
    # kafka-python's, and aiokafka's producer and consumer.
    inner = getattr(client, "client", None) or getattr(client, "_client", None)
    config = getattr(client, "config", None)
    found = config["bootstrap_servers"] if isinstance(config, Mapping) else getattr(inner, "_bootstrap_servers", ())
    return found.split(",") if isinstance(found, str) else list(found)
