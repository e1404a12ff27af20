"""Spans as the bytes of OTLP's `ExportTraceServiceRequest`, written without an object of protobuf for each part.

The SDK's encoder makes one for every attribute, and encoding a span then costs more than serving a request. The
numbers of fields here are those of opentelemetry-proto 1 (`trace.proto`, `common.proto`), which never change; the wire
format is https://protobuf.dev/programming-guides/encoding. As the SDK does, it groups spans by resource and scope,
leaves out what is at its default, and sets no flags but those that say where the parent is.

Only what is plain is written here. The SDK's own encoder writes each span that holds anything else, so that all that is
odd (other types, numbers of more than 64 bits, half characters) comes out, is left out or raises as it decides. It
writes resources and scopes too. `tests/telemetry/test_otlp.py` holds both equal, byte by byte, on random spans; run
as a program it does so for as long as one likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from gc import get_referents
from struct import Struct
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode

from meshmw._otel_exporters import encode_span, encodes_none

T = TypeVar("T")

# A tag is the number of a field, times 8, and how its value is written: 0 a varint, 1 eight bytes, 2 a length and so
# many bytes, 5 four bytes.
_RESOURCE_SPANS: Final = b"\x0a"
_RESOURCE: Final = b"\x0a"
_SCOPE_SPANS: Final = b"\x12"
_RESOURCE_SCHEMA: Final = b"\x1a"
_SCOPE: Final = b"\x0a"
_SPANS: Final = b"\x12"
_SCOPE_SCHEMA: Final = b"\x1a"
_TRACE_STATE: Final = b"\x1a"
_NAME: Final = b"\x2a"
_ATTRIBUTES: Final = b"\x4a"
_DROPPED_ATTRIBUTES: Final = b"\x50"
_EVENTS: Final = b"\x5a"
_DROPPED_EVENTS: Final = b"\x60"
_LINKS: Final = b"\x6a"
_DROPPED_LINKS: Final = b"\x70"
_STATUS: Final = b"\x7a"
_EVENT_NAME: Final = b"\x12"
_EVENT_ATTRIBUTES: Final = b"\x1a"
_EVENT_DROPPED: Final = b"\x20"
_LINK_ATTRIBUTES: Final = b"\x22"
_LINK_DROPPED: Final = b"\x28"
_STATUS_MESSAGE: Final = b"\x12"
_KEY: Final = b"\x0a"
_VALUE: Final = b"\x12"
_ITEM: Final = b"\x0a"
_TEXT: Final = b"\x0a"
_INTEGER: Final = b"\x18"
_DOUBLE: Final = b"\x21"
_ARRAY: Final = b"\x2a"
_MAPPING: Final = b"\x32"
_BYTES: Final = b"\x3a"

# Big endian, as ids are sent, with the tags and the lengths before them.
_IDS: Final = Struct(">2sQQ2sQ").pack
_PARENT_ID: Final = Struct(">2sQ").pack
# Little endian, as protobuf has all of its own numbers.
_TIME: Final = Struct("<cQ").pack
_FLOAT: Final = Struct("<d").pack
_HALF: Final = (1 << 64) - 1
_LARGEST_COUNT: Final = (1 << 32) - 1

# OpenTelemetry's API counts kinds from 0, and its protocol from 1.
_KINDS: Final = {kind: bytes((0x30, kind.value + 1)) for kind in SpanKind}
_CODES: Final = {StatusCode.UNSET: b"", StatusCode.OK: b"\x18\x01", StatusCode.ERROR: b"\x18\x02"}
_BOOLEANS: Final = {False: b"\x10\x00", True: b"\x10\x01"}
# `flags`, the last field of a span and of a link: it is known whether the parent is remote, and it is.
_SPAN_FLAGS: Final = {False: b"\x85\x01\x00\x01\x00\x00", True: b"\x85\x01\x00\x03\x00\x00"}
_LINK_FLAGS: Final = {False: b"\x35\x00\x01\x00\x00", True: b"\x35\x00\x03\x00\x00"}

# Of each key so many values are remembered as they are written, none longer than that. Strangers choose some of them.
_MOST_KEYS: Final = 128
_MOST_VALUES: Final = 32
_LONGEST_VALUE: Final = 64
# Resources and scopes, and their bytes.
_MOST_HEADS: Final = 1_024
_LONGEST_HEAD: Final = 4_096
_NO_RESOURCE: Final = Resource({})
_NO_CONTEXT: Final = SpanContext(1, 1, False)
# protobuf itself refuses what is nested 100 deep, and each level of ours is two of its own.
_DEEPEST: Final = 16


class _OddError(Exception):
    """Says that something is for the SDK's encoder to judge."""


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


_VARINTS: Final = tuple(map(_varint, range(1024)))


def _length(number: int) -> bytes:
    return _VARINTS[number] if number < 1024 else _varint(number)


def _framed(body: bytes) -> bytes:
    return _length(len(body)) + body


def _text(tag: bytes, text: str) -> bytes:
    # Called by the class, which refuses all that is no text and asks no subclass.
    encoded = str.encode(text)
    return tag + _framed(encoded) if encoded else b""


@lru_cache(128)
def _name(name: str) -> bytes:
    return _text(_NAME, name)


def _count(tag: bytes, number: int) -> bytes:
    if type(number) is not int or not 0 <= number <= _LARGEST_COUNT:
        raise _OddError
    return tag + _varint(number) if number else b""


def _integer(value: int) -> bytes:
    if 0 <= value < 1024:
        return _INTEGER + _VARINTS[value]
    if not -1 << 63 <= value < 1 << 63:
        raise _OddError
    return _INTEGER + _varint(value & _HALF)


def _none(_: None) -> bytes:
    # An SDK that has no form for it logs that.
    return {True: b""}[encodes_none()]


# Each returns an `AnyValue` of a value of this type. The order is that in which the SDK looks for one.
_PLAIN: Final[dict[type, Callable[[Any], bytes]]] = {
    type(None): _none,
    bool: _BOOLEANS.__getitem__,
    str: lambda value: _TEXT + _framed(str.encode(value)),
    int: _integer,
    float: lambda value: _DOUBLE + _FLOAT(value),
    bytes: lambda value: _BYTES + _framed(b"".join((value,))),
}


def _value(value: Any, depth: int = 0) -> bytes:
    write = _PLAIN.get(type(value))
    if write is not None:
        return write(value)
    if depth > _DEEPEST:
        raise _OddError
    if type(value) is tuple or type(value) is list:
        items = _ITEM.join([b"", *(_framed(_value(each, depth + 1)) for each in value)])
        return _ARRAY + _framed(items)
    if type(value) is dict:
        pairs = _ITEM.join([b"", *(_framed(_key(key) + _nested(each, depth + 1)) for key, each in value.items())])
        return _MAPPING + _framed(pairs)
    return _subclassed(value)


def _subclassed(value: Any) -> bytes:
    # protobuf reads the number itself of an `HTTPStatus`, whatever its class makes of it.
    for kind, write in _PLAIN.items():
        if isinstance(value, kind):
            return write(int.__index__(value) if kind is int else value)  # type: ignore[arg-type]  # it is one
    raise _OddError


def _nested(value: Any, depth: int) -> bytes:
    return _VALUE + _framed(_value(value, depth))


def _key(key: str) -> bytes:
    # The SDK writes `str` of a key within a value.
    if type(key) is not str:
        raise _OddError
    return _text(_KEY, key)


class _Pairs(dict[Any, bytes]):
    """Writes the values of one attribute's key, and remembers the short ones that recur.

    Texts and integers alone are remembered: 1.0 and True equal 1, and -0.0 equals 0.0.
    """

    def __init__(self, key: str) -> None:
        self._key = _text(_KEY, key)

    def __missing__(self, value: Any) -> bytes:
        pair = self.write(value)
        if type(value) is int or len(value) <= _LONGEST_VALUE:
            if len(self) >= _MOST_VALUES:
                self.clear()
            self[value] = pair
        return pair

    def write(self, value: Any) -> bytes:
        written = _value(value)
        size = _length(len(written))
        length = _length(len(self._key) + 1 + len(size) + len(written))
        return b"%b%b%b%b%b" % (length, self._key, _VALUE, size, written)


_known: Final[dict[str, _Pairs]] = {}


def _pairs(key: str) -> _Pairs:
    pairs = _Pairs(key)
    if len(key) <= _LONGEST_VALUE:
        if len(_known) >= _MOST_KEYS:
            _known.clear()
        _known[key] = pairs
    return pairs


def _attributes(tag: bytes, attributes: Mapping[str, Any] | None) -> bytes:
    """Return the pairs of some attributes, each behind the tag."""
    if not attributes:
        return b""
    pairs = [b""]
    for key, value in _items(attributes):
        # Only a plain text is equal to nothing but itself.
        known = _known.get(key) if type(key) is str else _Pairs(key)
        if known is None:
            known = _pairs(key)
        kind = type(value)
        pairs.append(known[value] if kind is str or kind is int else known.write(value))
    return tag.join(pairs)


def _items(attributes: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    # A copy of the dictionary within: the SDK's mapping would run Python for every pair. A mapping of any other class
    # may have rules of its own, such as to mask a password. Only the garbage collector tells what a view shows.
    held = get_referents(attributes)[0] if type(attributes) is MappingProxyType else attributes
    return (held.copy() if type(held) is dict or type(held) is BoundedAttributes else attributes).items()


def _event(event: Event) -> bytes:
    return _framed(
        b"".join(
            (
                _time(b"\x09", event.timestamp),
                _text(_EVENT_NAME, event.name),
                _attributes(_EVENT_ATTRIBUTES, event.attributes),
                _count(_EVENT_DROPPED, event.dropped_attributes),
            )
        )
    )


def _link(link: Link) -> bytes:
    context = link.context
    return _framed(
        b"".join(
            (
                _ids(context.trace_id, context.span_id),
                _attributes(_LINK_ATTRIBUTES, link.attributes),
                _count(_LINK_DROPPED, link.dropped_attributes),
                _LINK_FLAGS[context.is_remote],
            )
        )
    )


def _ids(trace_id: int, span_id: int) -> bytes:
    return _IDS(b"\x0a\x10", trace_id >> 64, trace_id & _HALF, b"\x12\x08", span_id)


def _time(tag: bytes, nanoseconds: int | None) -> bytes:
    if type(nanoseconds) is not int:
        raise _OddError
    return _TIME(tag, nanoseconds) if nanoseconds else b""


def _status(status: Status) -> bytes:
    said = status.description
    return _STATUS + _framed((b"" if said is None else _text(_STATUS_MESSAGE, said)) + _CODES[status.status_code])


def _plain_span(span: ReadableSpan) -> bytes:
    context, parent, events, links = span.get_span_context(), span.parent, span.events, span.links
    name = span.name
    state = context.trace_state  # type: ignore[union-attr]  # a span without is as odd as any
    return b"".join(
        (
            _ids(context.trace_id, context.span_id),  # type: ignore[union-attr]
            _text(_TRACE_STATE, ",".join([f"{key}={value}" for key, value in state.items()])) if state else b"",
            _PARENT_ID(b"\x22\x08", parent.span_id) if parent else b"",
            _name(name) if type(name) is str and len(name) <= _LONGEST_VALUE else _text(_NAME, name),
            _KINDS[span.kind],
            _time(b"\x39", span.start_time),
            _time(b"\x41", span.end_time),
            _attributes(_ATTRIBUTES, span.attributes),
            _count(_DROPPED_ATTRIBUTES, span.dropped_attributes),
            _EVENTS.join([b"", *map(_event, events)]) if events else b"",
            _count(_DROPPED_EVENTS, span.dropped_events),
            _LINKS.join([b"", *map(_link, links)]) if links else b"",
            _count(_DROPPED_LINKS, span.dropped_links),
            _status(span.status),
            _SPAN_FLAGS[parent.is_remote if parent else False],
        )
    )


def odd_span_bytes(span: ReadableSpan) -> bytes:
    """Return a span's message behind its length, as the SDK's encoder writes it.

    Raises:
        Exception: It cannot.
    """
    return _framed(encode_span(_sdk_encoder(), span).SerializeToString())


def _sdk_encoder() -> Callable[[Sequence[ReadableSpan]], Any]:
    # With the exporters, which are imported where somebody asks for them.
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    return encode_spans


def span_bytes(span: ReadableSpan, write_odd: Callable[[ReadableSpan], bytes] = odd_span_bytes) -> bytes:
    """Return a span's message behind its length, or what *write_odd* returns of a span that is not plain."""
    try:
        return _framed(_plain_span(span))
    except Exception:  # a part of it may be of any class
        return write_odd(span)


class WrittenBatch(list[ReadableSpan]):
    """Spans that leave together, as many as there is room for, and what is written of them; a slice keeps its own.

    Args:
        write_odd: Writes what is not plain; an empty text leaves the span out.
        room: The bytes that all spans may take together, of which the last one may take more.

    Attributes:
        room: The bytes that are left.
        written: What is written of each.
    """

    def __init__(self, write_odd: Callable[[ReadableSpan], bytes], room: int) -> None:
        super().__init__()
        self.room = room
        self.written: list[bytes] = []
        self._write_odd = write_odd

    def __getitem__(self, index: Any) -> Any:
        """Return a span, or a batch of some."""
        found = super().__getitem__(index)
        if not isinstance(index, slice):
            return found
        part = WrittenBatch(self._write_odd, self.room)
        part.extend(found)
        part.written = self.written[index]
        return part

    def add(self, span: ReadableSpan) -> None:
        """Write a span."""
        written = span_bytes(span, self._write_odd)
        if written:
            self.append(span)
            self.written.append(written)
            self.room -= len(written)


def request_bytes(spans: Sequence[ReadableSpan]) -> bytes:
    """Return the request that carries spans."""
    resources: dict[Resource, dict[InstrumentationScope | None, list[bytes]]] = {}
    # Equal ones are one group, and to compare resources takes as long as to write a span. What is known by its `id` is
    # kept as long.
    scopes_of: dict[int, tuple[dict[InstrumentationScope | None, list[bytes]], object]] = {}
    groups: dict[tuple[int, int], tuple[list[bytes], object]] = {}
    for span, written in zip(spans, _written(spans), strict=True):
        resource, scope = span.resource, span.instrumentation_scope
        ids = id(resource), id(scope)
        if ids not in groups:
            if id(resource) not in scopes_of:
                scopes_of[id(resource)] = resources.setdefault(resource, {}), resource
            groups[ids] = scopes_of[id(resource)][0].setdefault(scope or None, []), scope
        groups[ids][0].append(written)
    return b"".join([_RESOURCE_SPANS + _framed(_resource_spans(*each)) for each in resources.items()])


def _written(spans: Sequence[ReadableSpan]) -> Iterable[bytes]:
    return spans.written if isinstance(spans, WrittenBatch) else map(span_bytes, spans)


def _resource_spans(resource: Resource, scopes: dict[InstrumentationScope | None, list[bytes]]) -> bytes:
    head = _head(resource, _resource_head)
    parts = [head.before]
    for scope, written in scopes.items():
        of_scope = _head(scope, _scope_head)
        body = b"".join((of_scope.before, _SPANS, _SPANS.join(written), of_scope.after))
        parts += [_SCOPE_SPANS, _framed(body)]
    return b"".join((*parts, head.after))


class _Head(NamedTuple):
    """What is written before and after all that belongs to a resource or a scope."""

    before: bytes
    after: bytes


# With the resource or the scope, so that nothing else gets its `id`.
_heads_known: Final[dict[tuple[object, int], tuple[_Head, object]]] = {}


def _head(part: T, write: Callable[[T], _Head]) -> _Head:
    known = _heads_known.get((write, id(part)))
    if known is not None:
        return known[0]
    head = write(part)
    if len(head.before) + len(head.after) <= _LONGEST_HEAD:
        if len(_heads_known) >= _MOST_HEADS:
            _heads_known.clear()
        _heads_known[write, id(part)] = head, part
    return head


def _resource_head(resource: Resource) -> _Head:
    said = _blank(resource, None)
    return _Head(_RESOURCE + _framed(said.resource.SerializeToString()), _text(_RESOURCE_SCHEMA, said.schema_url))


def _scope_head(scope: InstrumentationScope | None) -> _Head:
    (said,) = _blank(_NO_RESOURCE, scope).scope_spans
    return _Head(_SCOPE + _framed(said.scope.SerializeToString()), _text(_SCOPE_SCHEMA, said.schema_url))


def _blank(resource: Resource, scope: InstrumentationScope | None) -> Any:
    blank = ReadableSpan("", _NO_CONTEXT, resource=resource, instrumentation_scope=scope)
    return _sdk_encoder()([blank]).resource_spans[0]
