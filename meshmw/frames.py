"""Trace context in messages that have no headers: binary protocols, WebSocket messages, JSON documents.

Whatever arrives, nothing here raises: what does not follow its form is counted and warned of, and means a new trace.
Knows the forms and OpenTelemetry's carriers. Must not know who sends the messages.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, Final, TypeVar

from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter, Setter

from meshmw import runtime
from meshmw.boundary.operation import Current
from meshmw.errors import InvalidHeaderError
from meshmw.propagator import MeshPropagator
from meshmw.wire.frame import format_frame, frame_size, parse_frame

Data = TypeVar("Data", bytes, bytearray, memoryview)

JSON_KEY: Final = "trace_context"
_FRESH: Final = "- the message starts a new trace"


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
        propagator: Writes the headers; by default the one that `configure()` settled.

    Raises:
        TypeError: *message* is no object that can be changed.
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
    """Return *context* with what a message's envelope says; never raises for what a parser of JSON returns.

    Args:
        message: The message as it was parsed, whatever it is.
        context: What to add to; an empty one by default.
        key: Where the sender has put the headers.
        propagator: Reads the headers; by default the one that `configure()` settled.
    """
    ours = _or_configured(propagator)
    envelope = message.get(key) if isinstance(message, Mapping) else None
    if envelope is not None and not isinstance(envelope, Mapping):
        ours.rejections.record("json", "not_an_object", _FRESH)
        envelope = None
    return ours.extract(envelope or {}, context, _TextGetter(ours))


def encode(context: Context | None = None, *, propagator: MeshPropagator | None = None) -> bytes:
    """Return the trace headers of a context as bytes to put before a message; 16,384 at most.

    There is always a frame, if one without fields: a receiver that expects one must not take a message's own first
    bytes for it.

    Args:
        context: What to write; the current context by default.
        propagator: Writes the headers; by default the one that `configure()` settled.
    """
    ours = _or_configured(propagator)
    headers: dict[str, str] = {}
    ours.inject(headers, context)
    # Where not all fits, it is the longest that stays behind: baggage.
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
        propagator: Reads the headers; by default the one that `configure()` settled.

    Raises:
        TypeError: *data* is no bytes, such as the text of a WebSocket message.
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


def _behind(data: Any, size: int) -> Any:
    # A view of larger items is cut by bytes all the same.
    return data.cast("B")[size:] if isinstance(data, memoryview) else data[size:]


def _or_configured(propagator: MeshPropagator | None) -> MeshPropagator:
    return runtime.current().propagator if propagator is None else propagator
