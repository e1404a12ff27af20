"""What is done with Kafka's records: headers written and read, operations begun.

Knows records and the messaging life cycle. Must not import a client.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from opentelemetry.context import Context

from meshmw.boundary.message_headers import OWNED_HEADERS
from meshmw.boundary.messaging import Messaging
from meshmw.boundary.operation import Operation
from meshmw.kafka.headers import lines_of, sendable
from meshmw.kafka.records import common, of_record, of_records, topic_of
from meshmw.propagation.extraction import Extraction

KAFKA: Final = Messaging("kafka")


def written(
    of: Messaging, headers: Any, context: Context | None, *, keep_existing: bool, null: bytes | None
) -> list[tuple[str, Any]]:
    """Return headers to send: see `inject`; *null* stands for a header without a value."""
    pairs = sendable(headers, null)
    new = of.write(context, lines_of(pairs, of.wanted), keep=keep_existing)
    kept = [pair for pair in pairs if pair[0].lower() not in OWNED_HEADERS]
    return kept + [(name, text.encode("latin-1", "replace")) for name, text in new.items()]


def read(of: Messaging, carrier: Any) -> Extraction:
    """Return what a record's headers say; never raises for what the record is."""
    try:
        lines = lines_of(carrier, of.wanted)
    except Exception:
        of.propagator.rejections.record("kafka", "no_headers", "- what was given has none; the message starts a trace")
        lines = {}
    return of.read(lines)


def peek(of: Messaging, carrier: Any) -> Extraction:
    """Do as `read` where the record is not processed yet: nothing is counted."""
    try:
        return of.check(lines_of(carrier, of.wanted))
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
