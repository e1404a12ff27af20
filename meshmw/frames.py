"""Trace context in messages that have no headers: binary protocols, WebSocket messages, JSON documents.

In a JSON object, one key holds the headers (`inject_json`, `extract_json`). Before any other message, a frame of bytes
holds them (`encode`, `decode`). For a format that has fields of bytes, give the propagator a `BytesSetter` and a
`BytesGetter`. Whatever arrives, nothing here raises: what does not follow its form is counted and warned of, and the
message starts a new trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, Final, TypeVar

from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter, Setter, default_getter

from meshmw import _runtime
from meshmw._context.carriers import header_lines
from meshmw._context.current import Current
from meshmw._runtime import checked_propagator
from meshmw.errors import InvalidHeaderError
from meshmw.propagator import MeshPropagator

__all__ = ["JSON_KEY", "BytesGetter", "BytesSetter", "decode", "encode", "extract_json", "inject_json", "using"]

Data = TypeVar("Data", bytes, bytearray, memoryview)

JSON_KEY: Final = "trace_context"
_FRESH: Final = "- the message starts a new trace"

# Header fields as bytes before a message, for protocols that have no headers.
#
#     frame  = magic version size *field      magic: 4D 57, version: 01, size: of all fields, 2 bytes
#     field  = length name length text        the first length has 1 byte, the second 2; all big-endian
MAGIC: Final = b"MW"
VERSION: Final = 1
PREFIX_BYTES: Final = len(MAGIC) + 1 + 2
MAX_FRAME_BYTES: Final = 16_384
MAX_FIELDS: Final = 32
MAX_NAME_BYTES: Final = 64
MAX_TEXT_BYTES: Final = 8_192


def inject_json(
    message: MutableMapping[str, Any],
    context: Context | None = None,
    *,
    key: str = JSON_KEY,
    propagator: MeshPropagator | None = None,
) -> None:
    """Write the trace headers of a context into a JSON object, under one key, in place of what was there.

    Args:
        message: The object to send; where there is nothing to write, the key is removed.
        context: What to write; the current context by default.
        key: Where.
        propagator: Writes the headers; by default the one that `configure()` made.

    Raises:
        TypeError: *message* is not a mapping that can be changed.
    """
    if not isinstance(message, MutableMapping):
        raise TypeError(f"inject_json() takes a JSON object, not {type(message).__name__}")
    headers: dict[str, str] = {}
    _or_configured(propagator).inject(headers, context)
    if headers:
        message[key] = headers
    else:
        message.pop(key, None)


def extract_json(
    message: object,
    context: Context | None = None,
    *,
    key: str = JSON_KEY,
    propagator: MeshPropagator | None = None,
) -> Context:
    """Return *context* with what a message's headers say; never raises for what a parser of JSON returns.

    What is malformed of the headers, of any format, is removed from the message.

    Args:
        message: The message as it was parsed, whatever it is.
        context: What to add to; an empty one by default.
        key: Where the sender has put the headers.
        propagator: Reads the headers; by default the one that `configure()` made.
    """
    ours = _or_configured(propagator)
    headers = message.get(key) if isinstance(message, Mapping) else None
    if headers is not None and not isinstance(headers, Mapping):
        ours.rejections.record("json", "not_an_object", _FRESH)
        headers = None
    extracted = ours.extract(headers or {}, context, _TextGetter(ours))
    if isinstance(headers, MutableMapping):
        _clean(headers, ours)
    return extracted


def _clean(headers: MutableMapping[Any, Any], ours: MeshPropagator) -> None:
    rewrites = ours.check(header_lines(headers, default_getter, ours.names_checked)).rewrites
    for name in [name for name in headers if isinstance(name, str) and name.lower() in rewrites]:
        del headers[name]
        if (text := rewrites[name.lower()]) is not None:
            headers[name] = text


def encode(context: Context | None = None, *, propagator: MeshPropagator | None = None) -> bytes:
    """Return the trace headers of a context as bytes to put before a message; 16,384 at most.

    There is always a frame, even one without fields: a receiver that expects one must not take a message's own first
    bytes for it.

    Args:
        context: What to write; the current context by default.
        propagator: Writes the headers; by default the one that `configure()` made.
    """
    ours = _or_configured(propagator)
    headers: dict[str, str] = {}
    ours.inject(headers, context)
    # Shortest first: where not everything fits, the longest one, baggage, is left out.
    frame, left_out = format_frame(dict(sorted(headers.items(), key=lambda item: len(item[1]))))
    for name in left_out:
        ours.rejections.record(name, "frame_too_long", "- the message goes without it")
    return frame


def decode(
    data: Data, context: Context | None = None, *, propagator: MeshPropagator | None = None
) -> tuple[Context, Data]:
    """Return *context* with what the frame at the beginning of *data* says, and the message behind the frame.

    Where there is no frame that ends within *data*, the message is all of it. Never raises for what the bytes are.

    Args:
        data: What arrived; of a memoryview the message is a view too, and nothing is copied.
        context: What to add to; an empty one by default.
        propagator: Reads the headers; by default the one that `configure()` made.

    Raises:
        TypeError: *data* is not bytes, but the text of a WebSocket message for example.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"decode() takes bytes, not {type(data).__name__}")
    ours = _or_configured(propagator)
    view = memoryview(data).cast("B")
    fields: dict[str, list[str]] = {}
    size = 0
    try:
        size = frame_size(view)
        fields = parse_frame(bytes(view[:size]))
    except InvalidHeaderError as fault:
        ours.rejections.record("frame", fault.reason, _FRESH)
    return ours.extract(fields, context), _behind(data, size)


def using(context: Context) -> AbstractContextManager[None]:
    """Return a block in which a message's span and baggage are current, and the connection's are not.

    It must not contain a `yield`: what consumes the generator would be in the block too.

    Args:
        context: What `extract_json()` or `decode()` has returned.
    """
    return Current(context)


class BytesGetter(Getter[Mapping[str, bytes]]):
    """Reads fields with names of text and values of bytes: `propagator.extract(carrier, getter=BytesGetter())`."""

    def get(self, carrier: Mapping[str, bytes], key: str) -> list[str] | None:
        """Return a field's text, which no byte can make fail, or None where there is none."""
        value: object = carrier.get(key)
        if isinstance(value, bytes | bytearray | memoryview):
            return [str(value, "latin-1")]
        # Decoders of binary documents hand out whatever type the sender chose.
        return [value] if isinstance(value, str) else None

    def keys(self, carrier: Mapping[str, bytes]) -> list[str]:
        """Return the names of all fields."""
        return list(carrier)


class BytesSetter(Setter[MutableMapping[str, bytes]]):
    """Writes fields with names of text and values of bytes: `propagator.inject(carrier, setter=BytesSetter())`."""

    def set(self, carrier: MutableMapping[str, bytes], key: str, value: str) -> None:
        """Write one field, in place of one that was there."""
        carrier[key] = value.encode("latin-1")


def format_frame(fields: dict[str, str]) -> tuple[bytes, tuple[str, ...]]:
    """Return a frame of *fields*; one that is too long for it is left out whole, and costs only itself.

    Args:
        fields: Names and texts in the order in which they are wanted.

    Returns:
        The frame, and the names of the fields that are not in it.
    """
    block = bytearray()
    count = 0
    left_out = []
    for name, text in fields.items():
        field = _field(name, text)
        if field is None or count == MAX_FIELDS or PREFIX_BYTES + len(block) + len(field) > MAX_FRAME_BYTES:
            left_out.append(name)
            continue
        block += field
        count += 1
    return b"".join((MAGIC, bytes((VERSION,)), len(block).to_bytes(2, "big"), block)), tuple(left_out)


def frame_size(data: memoryview) -> int:
    """Return how many bytes at the beginning of *data* are the frame.

    Raises:
        InvalidHeaderError: There is no frame, or it does not end within *data*.
    """
    prefix = bytes(data[:PREFIX_BYTES])
    if prefix[: len(MAGIC)] != MAGIC:
        raise InvalidHeaderError("frame", "magic", 0)
    if len(prefix) < PREFIX_BYTES:
        raise InvalidHeaderError("frame", "truncated", len(prefix))
    if prefix[2] != VERSION:
        raise InvalidHeaderError("frame", "version", 2)
    size = PREFIX_BYTES + int.from_bytes(prefix[3:], "big")
    if size > MAX_FRAME_BYTES:
        raise InvalidHeaderError("frame", "too_long", 3)
    if size > len(data):
        raise InvalidHeaderError("frame", "truncated", len(data))
    return size


def parse_frame(frame: bytes) -> dict[str, list[str]]:
    """Read the fields of one whole frame: the texts by name in lower case, several of one name in order.

    Raises:
        InvalidHeaderError: The lengths do not add up, or a limit is exceeded.
    """
    fields: dict[str, list[str]] = {}
    for count, (name, text) in enumerate(_fields(frame)):
        if count == MAX_FIELDS:
            raise InvalidHeaderError("frame", "too_many_fields")
        fields.setdefault(name.decode("latin-1").lower(), []).append(text.decode("latin-1"))
    return fields


def _field(name: str, text: str) -> bytes | None:
    try:
        name_bytes, text_bytes = name.encode("latin-1"), text.encode("latin-1")
    except UnicodeEncodeError:
        return None
    if not 0 < len(name_bytes) <= MAX_NAME_BYTES or len(text_bytes) > MAX_TEXT_BYTES:
        return None
    return b"".join((bytes((len(name_bytes),)), name_bytes, len(text_bytes).to_bytes(2, "big"), text_bytes))


def _fields(frame: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = PREFIX_BYTES
    while at < len(frame):
        name, at = _part(frame, at, 1, MAX_NAME_BYTES)
        if not name:
            raise InvalidHeaderError("frame", "no_name", at)
        text, at = _part(frame, at, 2, MAX_TEXT_BYTES)
        yield name, text


def _part(frame: bytes, at: int, length_bytes: int, limit: int) -> tuple[bytes, int]:
    begin = at + length_bytes
    end = begin + int.from_bytes(frame[at:begin], "big")
    if begin > len(frame) or end > len(frame):
        raise InvalidHeaderError("frame", "truncated", at)
    if end - begin > limit:
        raise InvalidHeaderError("frame", "field_too_long", at)
    return frame[begin:end], end


class _TextGetter(Getter[Mapping[str, Any]]):
    """Reads what is text, and counts what a sender has put in its place."""

    def __init__(self, propagator: MeshPropagator) -> None:
        self._rejections = propagator.rejections

    def get(self, carrier: Mapping[str, Any], key: str) -> list[str] | None:
        value = carrier.get(key)
        if value is None or isinstance(value, str):
            return None if value is None else [value]
        self._rejections.record(key, "not_text", "- it is ignored")
        return None

    def keys(self, carrier: Mapping[str, Any]) -> list[str]:
        return list(carrier)


def _behind(data: Any, size: int) -> Any:
    # A memoryview may have larger items; a frame is counted in bytes.
    return data.cast("B")[size:] if isinstance(data, memoryview) else data[size:]


def _or_configured(propagator: MeshPropagator | None) -> MeshPropagator:
    return checked_propagator(propagator) or _runtime.current().propagator


def __dir__() -> list[str]:
    return sorted(__all__)
