"""Spans on standard output, as a tree that a person can read: one block for each request that this process served.

A block is written when the request's own span ends, which is after those that it is the parent of. Its first line says
the trace id, by which any backend finds the rest of the trace, and whether the trace began here.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from meshmw._notices import shown

# So many spans wait for the end of their requests, then all are written as they are; and so many are remembered.
_MOST: Final = 2_048
_SAID: Final = ("http.response.status_code", "rpc.response.status_code")


class TreeSpanExporter(SpanExporter):
    """Writes spans to standard output: kind, name, milliseconds, status, each below its parent."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[ReadableSpan]] = {}
        # Span ids: what ends after its parent, such as a background task, waits for nothing.
        self._written: deque[int] = deque(maxlen=_MOST)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write each trace whose first span of this process is among the spans."""
        for span in spans:
            trace_id, parent = span.context.trace_id, span.parent
            self._waiting.setdefault(trace_id, []).append(span)
            if parent is None or parent.is_remote or parent.span_id in self._written:
                self._write(trace_id)
        if sum(map(len, self._waiting.values())) > _MOST:
            self.shutdown()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Write what still waits for the end of its request."""
        for trace_id in list(self._waiting):
            self._write(trace_id)

    def _write(self, trace_id: int) -> None:
        spans = self._waiting.pop(trace_id)
        self._written.extend(span.context.span_id for span in spans)
        print("\n".join(_lines(spans)), file=sys.stdout, flush=True)


def _lines(spans: Sequence[ReadableSpan]) -> list[str]:
    ids = {span.context.span_id for span in spans}
    below: dict[int, list[ReadableSpan]] = {}
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        parent = span.parent.span_id if span.parent is not None and span.parent.span_id in ids else 0
        below.setdefault(parent, []).append(span)
    rows = [row for top in below[0] for row in _rows(top, below)]
    width = max(len(text) for text, _ in rows)
    first = f"trace {format_trace_id(spans[0].context.trace_id)}  {_origin(below[0][0])}"
    return ["", first, *(f"  {text.ljust(width)}  {end}" for text, end in rows)]


def _rows(top: ReadableSpan, below: dict[int, list[ReadableSpan]]) -> Iterator[tuple[str, str]]:
    # A stack rather than recursion: spans may lie within each other by the thousand.
    waiting = [(top, "", "")]
    while waiting:
        span, lead, rest = waiting.pop()
        kind = "" if span.kind is SpanKind.INTERNAL else f"{span.kind.name} "
        yield f"{lead}{kind}{shown(span.name, 80)}", _end(span)
        children = below.pop(span.context.span_id, [])[::-1]
        # The stack is emptied from its end: the last child, which has the corner, lies at the bottom.
        waiting += [(child, f"{rest}└─ ", f"{rest}   ") for child in children[:1]]
        waiting += [(child, f"{rest}├─ ", f"{rest}│  ") for child in children[1:]]


def _end(span: ReadableSpan) -> str:
    attributes = span.attributes or {}
    # Whom a client called is not in its span's name.
    names = ("server.address", *_SAID) if span.kind is SpanKind.CLIENT else _SAID
    said = [str(attributes[name]) for name in names if name in attributes]
    if span.status.status_code is StatusCode.ERROR:
        said.append(f"ERROR {attributes.get('error.type', '')}".rstrip())
    milliseconds = ((span.end_time or 0) - (span.start_time or 0)) / 1e6
    return "  ".join([f"{milliseconds:.1f} ms".rjust(10), *(shown(text, 80) for text in said)])


def _origin(span: ReadableSpan) -> str:
    if span.parent is None:
        return "began here"
    if span.parent.is_remote:
        return f"continues the caller's span {format_span_id(span.parent.span_id)}"
    return f"below the span {format_span_id(span.parent.span_id)}, which was written before, or has not ended"
