"""What a Kafka record says of itself, whichever client handed it out.

Knows the shapes of records. Must not know a span's life, nor import a client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from meshmw.semconv.attributes import AttributeValue
from meshmw.semconv.messaging import kafka_attributes, message_attributes


def field(record: Any, name: str) -> Any:
    """Return a field of a record: an attribute of two clients' records, a method of confluent-kafka's messages."""
    found = getattr(record, name, None)
    # What a deserializer has made may be callable too, and is the application's own to call.
    return found() if callable(getattr(type(record), name, None)) and callable(found) else found


def topic_of(record: Any) -> str | None:
    """Return the record's topic, or None where it has none."""
    topic = field(record, "topic")
    return topic if isinstance(topic, str) else None


def flattened(records: Any) -> list[Any]:
    """Return the records of a poll: of a list, of one record, or of a mapping from partitions to lists."""
    if records is None:
        return []
    if isinstance(records, Mapping):
        return [record for some in records.values() for record in some]
    return list(records) if isinstance(records, Iterable) and not hasattr(records, "topic") else [records]


def common(records: Sequence[Any], name: str) -> Any:
    """Return a field that is the same in all records, else None."""
    values = {field(record, name) for record in records}
    return values.pop() if len(values) == 1 else None


def of_record(record: Any, **more: Any) -> Callable[[], Mapping[str, AttributeValue]]:
    """Return what builds the attributes of one record, and *more* of a message's."""
    return partial(_of_record, record, more)


def of_records(records: Sequence[Any], **more: Any) -> Callable[[], Mapping[str, AttributeValue]]:
    """Return what builds the attributes of several records, and *more* of a message's."""
    return lambda: message_attributes(partition=common(records, "partition"), **more)


def _of_record(record: Any, more: Mapping[str, Any]) -> Mapping[str, AttributeValue]:
    value = field(record, "value")
    size = _body_size(record, value)
    return {
        **message_attributes(partition=field(record, "partition"), body_size=size, **more),
        **kafka_attributes(offset=field(record, "offset"), tombstone=size is None and value is None),
    }


def _body_size(record: Any, value: object) -> int | None:
    """Return the bytes of the body as the broker has it; a deserializer may have made anything of it, or nothing."""
    size = getattr(record, "serialized_value_size", None)
    if isinstance(size, int) and size >= 0:
        return size
    return len(value) if isinstance(value, bytes) else None
