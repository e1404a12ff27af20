"""From what exporters send to `ReceivedSpan`: OTLP protobuf messages and Zipkin v2 JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from meshmw.testing.spans import Event, Link, ReceivedSpan

_STATUS = ("UNSET", "OK", "ERROR")


def spans_from_otlp(request: Any) -> list[ReceivedSpan]:
    """Read an `ExportTraceServiceRequest`."""
    return list(_otlp(request))


def _otlp(request: Any) -> Iterator[ReceivedSpan]:
    for resource_spans in request.resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield _otlp_span(resource, scope_spans.scope.name, span)


def _otlp_span(resource: dict[str, Any], scope: str, span: Any) -> ReceivedSpan:
    return ReceivedSpan(
        service=str(resource.get("service.name", "")),
        name=span.name,
        kind=type(span).SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        events=tuple(Event(event.name, event.time_unix_nano, _attributes(event.attributes)) for event in span.events),
        links=tuple(Link(link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes)) for link in span.links),
        status=_STATUS[span.status.code],
        status_message=span.status.message,
        scope=scope,
        trace_state=span.trace_state,
        flags=span.flags,
        resource=resource,
    )


def _attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    held = getattr(value, kind)
    if kind == "array_value":
        return [_value(item) for item in held.values]
    if kind == "kvlist_value":
        return _attributes(held.values)
    return held


def spans_from_zipkin(body: bytes) -> list[ReceivedSpan]:
    """Read Zipkin v2 JSON: a list of spans, with 64-bit trace ids padded to 128.

    Raises:
        ValueError: If it is not JSON.
        KeyError: If a span has no ids.
    """
    return [_zipkin_span(span) for span in json.loads(body)]


def _zipkin_span(span: dict[str, Any]) -> ReceivedSpan:
    start_ns = int(span.get("timestamp", 0)) * 1000
    tags = span.get("tags", {})
    return ReceivedSpan(
        service=span.get("localEndpoint", {}).get("serviceName", ""),
        name=span.get("name", ""),
        kind=span.get("kind", "INTERNAL"),
        trace_id=span["traceId"].lower().zfill(32),
        span_id=span["id"].lower().zfill(16),
        parent_id=span["parentId"].lower().zfill(16) if span.get("parentId") else "",
        start_ns=start_ns,
        end_ns=start_ns + int(span.get("duration", 0)) * 1000,
        attributes=tags,
        events=tuple(Event(note["value"], int(note["timestamp"]) * 1000) for note in span.get("annotations", [])),
        status="ERROR" if "error" in tags else "UNSET",
        scope="zipkin",
    )
