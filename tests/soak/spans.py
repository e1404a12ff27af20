"""Every finished span of a soak in a file: written by the server without loss, read by whoever judges it."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import SpanKind

_FORM = struct.Struct(">qiBB16s8s8s16s8s")


class Span(NamedTuple):
    """Holds what a verdict needs to know of a span.

    Attributes:
        request: The number of the request that it belongs to, as the code that made it knew from its own variables.
        message: The number of the WebSocket message, or 0.
        is_server: Whether it is the SERVER span.
        is_apart: Whether it was meant to be the root of a trace of its own.
        link_trace: The trace of its first link, all zeros without one.
    """

    request: int
    message: int
    is_server: bool
    is_apart: bool
    trace: bytes
    span: bytes
    parent: bytes
    link_trace: bytes
    link_span: bytes


class Recorder(SpanProcessor):
    """Writes each span when it ends."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        self._lock = threading.Lock()

    def on_end(self, span: ReadableSpan) -> None:
        attributes, context, links = span.attributes or {}, span.get_span_context(), span.links
        assert context is not None
        asked = parse_qs(str(attributes.get("url.query", ""))).get("n", ["-1"])[0]
        record = _FORM.pack(
            int(attributes.get("soak.request", asked)),
            int(attributes.get("soak.message", 0)),
            span.kind is SpanKind.SERVER,
            bool(attributes.get("soak.apart", False)),
            context.trace_id.to_bytes(16, "big"),
            context.span_id.to_bytes(8, "big"),
            span.parent.span_id.to_bytes(8, "big") if span.parent else bytes(8),
            links[0].context.trace_id.to_bytes(16, "big") if links else bytes(16),
            links[0].context.span_id.to_bytes(8, "big") if links else bytes(8),
        )
        with self._lock:
            self._file.write(record)

    def flush(self) -> None:
        """Bring everything into the file."""
        with self._lock:
            self._file.flush()


def read(path: Path) -> Iterator[Span]:
    """Read the spans in the order in which they ended."""
    with path.open("rb") as file:
        while record := file.read(_FORM.size * 4096):
            for fields in _FORM.iter_unpack(record):
                request, message, is_server, is_apart, *ids = fields
                yield Span(request, message, bool(is_server), bool(is_apart), *ids)
