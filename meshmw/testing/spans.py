"""Finished spans as plain values, whether a collector received them or an in-memory exporter held them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan


@dataclass(frozen=True, slots=True)
class Event:
    """Is one event of a span."""

    name: str
    time_ns: int = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Link:
    """Is one link of a span; ids are lower-case hex."""

    trace_id: str
    span_id: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedSpan:
    """Is one finished span.

    Attributes:
        service: The resource's `service.name`, empty if there is none.
        kind: `INTERNAL`, `SERVER`, `CLIENT`, `PRODUCER` or `CONSUMER`.
        trace_id: 32 lower-case hex digits.
        span_id: 16 lower-case hex digits.
        parent_id: 16 lower-case hex digits; empty for a root.
        start_ns: Nanoseconds since 1970.
        end_ns: Nanoseconds since 1970.
        status: `UNSET`, `OK` or `ERROR`.
        scope: The name of the instrumentation that made the span.
        trace_state: The span's tracestate as text.
        flags: OTLP's span flags: the low byte holds the trace flags. 0 where the exporter sent none.
        resource: The attributes of whoever made the span; empty from Zipkin.
    """

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str = ""
    start_ns: int = 0
    end_ns: int = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    links: tuple[Link, ...] = ()
    status: str = "UNSET"
    status_message: str = ""
    scope: str = ""
    trace_state: str = ""
    flags: int = 0
    resource: Mapping[str, Any] = field(default_factory=dict)

    @property
    def milliseconds(self) -> float:
        """How long the span took."""
        return (self.end_ns - self.start_ns) / 1e6

    def __str__(self) -> str:
        return f"{self.service} {self.kind} {self.name!r} ({self.span_id})"


def from_sdk(span: ReadableSpan) -> ReceivedSpan:
    """Turn a finished span of the OpenTelemetry SDK into the form that the assertions take.

    Raises:
        ValueError: If it has no span context, as no span that a tracer made.
    """
    context, scope = span.get_span_context(), span.instrumentation_scope
    if context is None:
        raise ValueError(f"{span.name!r} has no span context")
    return ReceivedSpan(
        service=str(span.resource.attributes.get("service.name", "")),
        name=span.name,
        kind=span.kind.name,
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        parent_id="" if span.parent is None else f"{span.parent.span_id:016x}",
        start_ns=span.start_time or 0,
        end_ns=span.end_time or 0,
        attributes=dict(span.attributes or {}),
        events=tuple(Event(event.name, event.timestamp, dict(event.attributes or {})) for event in span.events),
        links=tuple(
            Link(f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}", dict(link.attributes or {}))
            for link in span.links
        ),
        status=span.status.status_code.name,
        status_message=span.status.description or "",
        scope="" if scope is None else scope.name,
        trace_state=context.trace_state.to_header(),
        flags=int(context.trace_flags),
        resource=dict(span.resource.attributes),
    )
