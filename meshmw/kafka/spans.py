"""Kafka by hand: `inject`, `extract`, and the blocks in which records are sent or processed.

Knows the options that users give. Must not know how an operation lives, nor import a client.
"""

from __future__ import annotations

from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context

from meshmw.boundary.operation_scope import OperationScope
from meshmw.kafka.headers import Pairs
from meshmw.kafka.operations import KAFKA, begin_batch, begin_process, read, written
from meshmw.kafka.records import flattened
from meshmw.propagator import MeshPropagator
from meshmw.runtime import MessagingParent
from meshmw.semconv.messaging import message_attributes


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
        propagator: Writes the headers; by default the one that `configure()` settled.

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
        propagator: Reads the headers; by default the one that `configure()` settled.
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
        propagator: Reads the headers; by default the one that `configure()` settled.
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
        propagator: Reads the headers; by default the one that `configure()` settled.
        tracer_provider: Makes the span; the global one by default.
    """
    of, flat = KAFKA.with_options(propagator, tracer_provider), flattened(records)
    more = {"consumer_group": consumer_group, "client_id": client_id}
    return OperationScope(lambda: begin_batch(of, flat, operation, **more))
