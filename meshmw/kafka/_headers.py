"""Kafka's records and headers, in every shape that kafka-python, aiokafka and confluent-kafka take and hand out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from opentelemetry.propagators.textmap import Getter, Setter

from meshmw._context.carriers import Lines
from meshmw._lifecycle.messaging import collect_lines, message_attributes
from meshmw._lifecycle.operation import Attributes
from meshmw._notices import quoted

SentHeaders: TypeAlias = list[tuple[str, bytes]]

# Each header is asked for them, and to write a union costs as much as to ask.
_PAIRS: Final = (tuple, list)
_BYTES: Final = (bytes, bytearray, memoryview)


class KafkaGetter(Getter[Any]):
    """Reads a record or its headers for any OpenTelemetry propagator: `extract(record, getter=KafkaGetter())`."""

    def get(self, carrier: Any, key: str) -> list[str] | None:
        """Return a header's last value as text, or all of one that is a list, joined; None where there is none."""
        found = header_lines(carrier, (key.lower(),)).get(key.lower())
        return None if found is None else [",".join(found)]

    def keys(self, carrier: Any) -> list[str]:
        """Return the names of all headers."""
        return list(dict.fromkeys(name for name, _ in sendable(carrier)))


class KafkaSetter(Setter[list[tuple[str, bytes]]]):
    """Writes into a list of headers for any OpenTelemetry propagator: `inject(headers, setter=KafkaSetter())`."""

    def set(self, carrier: SentHeaders, key: str, value: str) -> None:
        """Write one header, in place of every one of that name in any case."""
        carrier[:] = [pair for pair in carrier if pair[0].lower() != key.lower()]
        carrier.append((key, value.encode("utf-8")))


def headers_of(carrier: Any) -> Iterable[Any]:
    """Return the headers of a record or message, or of what are headers already.

    Raises:
        TypeError: It is neither.
    """
    # kafka-python's records are tuples too, so that a record's attribute is looked for before its items.
    found = carrier if isinstance(carrier, list) else getattr(carrier, "headers", carrier)
    if callable(found):
        found = found()
    # What every client hands out; to ask for a mapping or an iterable costs twenty times as much.
    if isinstance(found, _PAIRS):
        return found
    if found is None:
        return ()
    if isinstance(found, Mapping):
        return found.items()
    if isinstance(found, str | bytes | bytearray | memoryview) or not isinstance(found, Iterable):
        raise TypeError(f"headers are pairs of name and value or a mapping, not {type(found).__name__}")
    return found


def header_lines(carrier: Any, wanted: Collection[str]) -> dict[str, list[str]]:
    """Return the wanted headers as lines by name in lower case: the last one of each, and all that are lists.

    Headers without a value, or of a type that no client hands out, are left out.

    Raises:
        Whatever *carrier* raises.
    """
    return collect_lines(_texts(carrier, wanted))


def _texts(carrier: Any, wanted: Collection[str]) -> Iterator[tuple[str, str]]:
    for pair in headers_of(carrier):
        if not isinstance(pair, _PAIRS) or len(pair) != 2:
            continue
        name, value = pair
        if isinstance(name, bytes):
            name = name.decode("latin-1")
        if not isinstance(name, str) or (name := name.lower()) not in wanted:
            continue
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, _BYTES):
            # No byte fails to decode as latin-1; what is no header's text is refused by the header's grammar.
            yield name, str(value, "latin-1")


class CleanList(list[Any]):
    """Holds a record's headers without what is malformed of them.

    A record is cleaned when it is received, and what was malformed is told when it is processed.

    Attributes:
        lines: What the headers said before, by name in lower case.
    """

    lines: Lines


class CleanTuple(tuple[Any, ...]):
    """Does the same for a client whose records have tuples."""

    lines: Lines


def lines_before(carrier: Any, wanted: Collection[str]) -> Lines:
    """Return what a record's headers said before they were cleaned, if they were; else what `header_lines` returns."""
    found = carrier if isinstance(carrier, list) else headers_of(carrier)
    return found.lines if isinstance(found, CleanList | CleanTuple) else header_lines(carrier, wanted)


def cleaned(record: Any, lines: Lines, rewrites: Mapping[str, str | None]) -> Any:
    """Return a record whose headers are rewritten: the same one where its client lets it be changed, else a copy.

    Args:
        record: Of any client.
        lines: What its headers say.
        rewrites: For each header that must not stay as it came: the line to put in its place, or None to remove it.

    Raises:
        Whatever *record* raises where it is no record of a client.
    """
    found = headers_of(record)
    kept = [pair for pair in found if _name_in(pair) not in rewrites]
    kept += [(name, text.encode("latin-1")) for name, text in rewrites.items() if text is not None]
    clean: Any = CleanTuple(kept) if isinstance(found, tuple) else CleanList(kept)
    clean.lines = lines
    if hasattr(record, "set_headers"):
        record.set_headers(clean)
    elif isinstance(record, tuple):
        # Whoever has kafka-python's record already sees the change in its list.
        found[:] = kept  # type: ignore[index]
        return record._replace(headers=clean)  # type: ignore[attr-defined]
    else:
        record.headers = clean
    return record


def _name_in(pair: Any) -> str:
    return _name(pair[0]).lower() if isinstance(pair, _PAIRS) and pair else ""


def sendable(headers: Any, null: bytes | None = b"") -> list[tuple[str, Any]]:
    """Return headers as a new list of exact tuples, text as UTF-8 and every other value as bytes.

    Args:
        headers: What a client takes or has handed out.
        null: What stands for a header without a value; kafka-python cannot send one that it has read.

    Raises:
        TypeError: What is no pair, a name that is no text, or a value that is neither bytes nor text.
    """
    return [(_name(name), _value(name, value, null)) for name, value in map(_pair, headers_of(headers))]


def _pair(header: Any) -> tuple[Any, Any]:
    if not isinstance(header, _PAIRS) or len(header) != 2:
        raise TypeError(f"a header is a pair of name and value, not {type(header).__name__}")
    return header[0], header[1]


def _name(name: object) -> str:
    if isinstance(name, bytes):
        return name.decode("utf-8", "replace")
    if not isinstance(name, str):
        raise TypeError(f"a header's name is text, not {type(name).__name__}")
    return name


def _value(name: object, value: object, null: bytes | None) -> bytes | None:
    if type(value) is bytes:
        return value
    if value is None:
        return null
    if isinstance(value, str):
        return value.encode("utf-8")
    if isinstance(value, _BYTES):
        return bytes(value)
    raise TypeError(f"the value of header {quoted(name)} is bytes or text, not {type(value).__name__}")


def record_attributes(record: Any, **more: Any) -> Attributes:
    """Return what a span says of one record, and *more* of what `message_attributes` takes."""
    value = field(record, "value")
    size = _body_size(record, value)
    found = dict(message_attributes(partition=field(record, "partition"), body_size=size, **more))
    if (offset := field(record, "offset")) is not None:
        found["messaging.kafka.offset"] = offset
    if size is None and value is None:
        found["messaging.kafka.message.tombstone"] = True
    return found


def batch_attributes(records: Sequence[Any], **more: Any) -> Attributes:
    """Return what a span says of several records, and *more* of what `message_attributes` takes."""
    return message_attributes(partition=common_field(records, "partition"), **more)


def _body_size(record: Any, value: object) -> int | None:
    """Return the bytes of the body as the broker has it; a deserializer may have made anything of it, or nothing."""
    size = getattr(record, "serialized_value_size", None)
    if isinstance(size, int) and size >= 0:
        return size
    return len(value) if isinstance(value, bytes) else None


def topic_of(record: Any) -> str | None:
    """Return the record's topic, or None where it has none."""
    topic = field(record, "topic")
    return topic if isinstance(topic, str) else None


def field(record: Any, name: str) -> Any:
    """Return a field of a record: an attribute of two clients' records, a method of confluent-kafka's messages."""
    found = getattr(record, name, None)
    # A deserialized value may be callable too, and only the application may call that.
    return found() if callable(getattr(type(record), name, None)) and callable(found) else found


def common_field(records: Sequence[Any], name: str) -> Any:
    """Return a field that is the same in all records, else None."""
    values = {field(record, name) for record in records}
    return values.pop() if len(values) == 1 else None


def flattened(records: Any) -> list[Any]:
    """Return the records of a poll: of a list, of one record, or of a mapping from partitions to lists."""
    if records is None:
        return []
    if isinstance(records, Mapping):
        return [record for some in records.values() for record in some]
    return list(records) if isinstance(records, Iterable) and not hasattr(records, "topic") else [records]


def places(fetched: Any) -> list[tuple[list[Any], int]]:
    """Return the place of each record of a poll, as a list and an index: of a list, or a mapping to lists."""
    lists = fetched.values() if isinstance(fetched, Mapping) else [fetched or []]
    return [(some, at) for some in lists for at in range(len(some))]
