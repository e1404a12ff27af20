"""Every name of OpenTelemetry's exporters and their encoder that its owner calls private, one function each.

As in `_otel`: each function says what it assumes and falls back where that does not hold; `tests/test_otel.py` has a
test for each.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshmw._regex import compiled_late

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

# The SDK's encoder says of every attribute that it cannot encode so, with a traceback, and sends the span without it.
ENCODER_LOGGER: Final = "opentelemetry.exporter.otlp.proto.common._internal"
_ENCODERS: Final = ENCODER_LOGGER, "meshmw._telemetry.otlp"
# The loggers of the exporters and of what they are made of. A logger that is gone mutes nothing, and hurts nobody.
EXPORTER_LOGGERS: Final = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.common.http",
    ENCODER_LOGGER,
    "opentelemetry.sdk._shared_internal",
    "urllib3.connectionpool",
)
# The method of the protocol that sends spans.
_EXPORT: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
# The words of gRPC in several languages, of the exporter for HTTP, of its own limit, and of a proxy before a collector.
_TOO_LARGE: Final = compiled_late(
    r"RESOURCE_EXHAUSTED|larger than max|length too large|batch code: 413|status: 413|exceeds max_request_size"
)
_NOT_ENCODED: Final = compiled_late(r"Failed to encode \w+ batch")


def is_unwritable(failure: str | BaseException) -> bool:
    """Say whether an exporter's log line, or what it raised, says that something cannot be written as a message.

    What was raised tells it by the encoder's module. Where that has another name, it seems to be the collector.
    """
    if isinstance(failure, str):
        return _NOT_ENCODED().match(failure) is not None
    frames = (frame for frame, _ in traceback.walk_tb(failure.__traceback__))
    return any(frame.f_globals.get("__name__", "").startswith(_ENCODERS) for frame in frames)


def write_by(exporter: Any, write: Callable[[Sequence[ReadableSpan]], bytes], room: int) -> None:
    """Have an OTLP exporter of spans send what *write* returns, up to *room* bytes, in place of the SDK's encoder.

    An exporter for gRPC makes a request by `_translate_data` and sends it by a client that `_stub` makes of its
    `_channel`. One for HTTP does both in `export`, which calls the encoder by the name `encode_spans`; it gets a copy
    of that function, in which the name means *write*. Where these names are gone, or others have wrapped the function,
    it goes on as it is, which `room_of` tells.
    """
    if hasattr(exporter, "_translate_data") and hasattr(exporter, "_stub"):
        exporter._stub, exporter._translate_data = _BytesClient, write
        exporter._client = _BytesClient(exporter._channel)
        exporter.room = room
        return
    export = type(exporter).export
    if type(export) is FunctionType and "encode_spans" in export.__code__.co_names:
        names = {**export.__globals__, "encode_spans": lambda spans: _Written(write(spans))}
        copied = FunctionType(export.__code__, names, argdefs=export.__defaults__, closure=export.__closure__)
        copied.__kwdefaults__ = export.__kwdefaults__
        exporter.export, exporter.room = MethodType(copied, exporter), room


def room_of(exporter: object) -> int:
    """Return the room that `write_by` gave an exporter, or 0 where that took no effect."""
    room = getattr(exporter, "room", 0)
    return room if type(room) is int else 0


def encode_span(encode_spans: Callable[[Sequence[ReadableSpan]], Any], span: ReadableSpan) -> Any:
    """Return the message that the SDK's encoder makes of a span.

    Beside its function stands `_encode_span`, which encodes no resource and no scope. Where that name is gone or
    fails, the whole encoder decides.
    """
    try:
        return encode_spans.__globals__["_encode_span"](span)
    except Exception:
        return encode_spans([span]).resource_spans[0].scope_spans[0].spans[0]


@lru_cache
def encodes_none(encoder: str = ENCODER_LOGGER) -> bool:
    """Say whether the SDK's encoder has a form for None, an empty value; that of 1.40 leaves out what holds one.

    Its module writes values by `_encode_value`. Without that name the answer is no.
    """
    try:
        return bool(import_module(encoder)._encode_value(None).SerializeToString() == b"")
    except Exception:
        return False


class _BytesClient:
    """Sends what is a message already; otherwise it is the client that is generated for the service."""

    def __init__(self, channel: Any) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

        read = ExportTraceServiceResponse.FromString
        self.Export = channel.unary_unary(_EXPORT, response_deserializer=read)


class _Written(NamedTuple):
    """Stands for a message."""

    message: bytes

    def SerializePartialToString(self) -> bytes:  # noqa: N802 - the name of protobuf
        return self.message


def watch_answers(exporter: Any, see: Callable[[Any], None], see_error: Callable[[Any], None]) -> None:
    """Show each answer of the collector to *see*, and each failed call to *see_error*.

    An exporter for gRPC drops what its client's `Export` returns, and logs a failure in words. It makes that client by
    `_stub`, of its `_channel`, and again where the connection breaks. Without these names nothing is seen.
    """
    make, channel = getattr(exporter, "_stub", None), getattr(exporter, "_channel", None)
    if make is not None and channel is not None:
        exporter._stub = lambda channel: _WatchedClient(make(channel), see, see_error)
        exporter._client = exporter._stub(channel)


class _WatchedClient:
    def __init__(self, client: Any, see: Callable[[Any], None], see_error: Callable[[Any], None]) -> None:
        self._export, self._see, self._see_error = client.Export, see, see_error

    def Export(self, *given: Any, **options: Any) -> Any:  # noqa: N802 - the name in the protocol
        try:
            answer = self._export(*given, **options)
        except Exception as error:
            self._see_error(error)
            raise
        self._see(answer)
        return answer


def asks_to_wait(error: Any) -> bool:
    """Say whether a call failed with how long to wait before the next one, which gRPC tells in a trailer."""
    trailers: Callable[[], Any] = getattr(error, "trailing_metadata", tuple)
    return any(name == "google.rpc.retryinfo-bin" for name, _ in trailers() or ())


def words_of(error: Any) -> str:
    """Return the code and the details of a failed call of gRPC, and nothing of any other error."""
    return f"{error.code()}, {error.details()}" if hasattr(error, "code") and hasattr(error, "details") else ""


def is_too_large(said: str) -> bool:
    """Say whether an exporter's log line, or gRPC, says that the collector refused a batch for its size.

    gRPC's code for that also stands for a collector that is asked too often, which `asks_to_wait`.
    """
    return _TOO_LARGE().search(said) is not None


def preferences_of(exporter: object) -> tuple[Any, Any]:
    """Return the temporality and the aggregation that a metric exporter prefers, by kind of instrument.

    A reader looks for them in `_preferred_temporality` and `_preferred_aggregation`, where the exporter's constructor
    puts what its variables say. Without these names they are None, which stands for the SDK's defaults.
    """
    return getattr(exporter, "_preferred_temporality", None), getattr(exporter, "_preferred_aggregation", None)


def ticker_of(reader: object) -> object:
    """Return the thread in which a periodic metric reader exports, `_daemon_thread`.

    Without that name it is None, and whatever ends such a thread does.
    """
    return getattr(reader, "_daemon_thread", None)


def renew_export_lock(reader: Any) -> None:
    """Give a periodic metric reader, unless it is None, a new `_export_lock` in a forked process.

    The SDK starts the thread again and keeps the lock, which a thread of the parent's may have held.
    """
    if hasattr(reader, "_export_lock"):
        reader._export_lock = threading.Lock()
