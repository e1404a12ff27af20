"""Finished spans as plain values, the tree that they make, and assertions that show it when they fail.

`ReceivedSpan` is a span whether a collector received it or an in-memory exporter of the SDK held it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from meshmw._notices import quoted

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedSpan:
    """Holds one finished span.

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
        """Return how long the span took."""
        return (self.end_ns - self.start_ns) / 1e6

    def __str__(self) -> str:
        return f"{self.service} {self.kind} {quoted(self.name)} ({self.span_id})"


@dataclass(frozen=True, slots=True)
class Event:
    """Holds one event of a span, at nanoseconds since 1970."""

    name: str
    time_ns: int = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Link:
    """Holds one link of a span; ids are lower-case hex digits, 32 and 16."""

    trace_id: str
    span_id: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


def from_sdk(span: ReadableSpan) -> ReceivedSpan:
    """Turn a finished span of the OpenTelemetry SDK into the form that the assertions take.

    Raises:
        ValueError: It has no span context, which no span lacks that a tracer made.
    """
    context, scope = span.get_span_context(), span.instrumentation_scope
    if context is None:
        raise ValueError(f"{quoted(span.name)} has no span context")
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
        links=tuple(_sdk_link(link.context, link.attributes) for link in span.links),
        status=span.status.status_code.name,
        status_message=span.status.description or "",
        scope="" if scope is None else scope.name,
        trace_state=context.trace_state.to_header(),
        flags=int(context.trace_flags),
        resource=dict(span.resource.attributes),
    )


def _sdk_link(context: SpanContext, attributes: Mapping[str, Any] | None) -> Link:
    return Link(f"{context.trace_id:032x}", f"{context.span_id:016x}", dict(attributes or {}))


def assert_one_trace(spans: Sequence[ReceivedSpan]) -> None:
    """Assert that the spans are one trace with one root and no orphan.

    Raises:
        AssertionError: They are not. The message shows the tree.
    """
    traces = {span.trace_id for span in spans}
    tops = roots(spans)
    orphans = [span for span in tops if span.parent_id]
    _require(len(traces) == 1, lambda: f"{len(traces)} traces, wanted one:\n{render_tree(spans)}")
    _require(not orphans, lambda: f"{orphans[0]} has a parent that is missing:\n{render_tree(spans)}")
    _require(len(tops) == 1, lambda: f"{len(tops)} roots, wanted one:\n{render_tree(spans)}")


def assert_child_of(child: ReceivedSpan, parent: ReceivedSpan) -> None:
    """Assert that one span is the direct child of another, in the same trace.

    Raises:
        AssertionError: It is not. The message shows both.
    """
    related = (child.trace_id, child.parent_id) == (parent.trace_id, parent.span_id)
    _require(related, lambda: f"{child} is not a child of {parent}:\n{render_tree([parent, child])}")


def assert_chain(spans: Sequence[ReceivedSpan], expected: Sequence[tuple[str, str]]) -> list[ReceivedSpan]:
    """Assert that the spans are one trace and one unbranched chain of calls, each the child of the one before it.

    Spans of kind INTERNAL are passed over: what hangs below one counts as hanging below its parent.

    Args:
        spans: The spans, in any order.
        expected: The service and the kind of each span, from the root down.

    Returns:
        The spans of the chain from the root down.

    Raises:
        AssertionError: They are anything else. The message shows the tree.
    """
    assert_one_trace(spans)
    calls = _without_internal(spans)
    chain = _only_children(calls)
    got = [(span.service, span.kind) for span in chain]
    _require(got == list(expected), lambda: f"the chain is {got}, wanted {list(expected)}:\n{render_tree(spans)}")
    beside = [span for span in calls if span not in chain]
    _require(not beside, lambda: f"{beside[0]} is beside the chain:\n{render_tree(spans)}")
    return [span for link in chain for span in spans if span.span_id == link.span_id]


def _without_internal(spans: Sequence[ReceivedSpan]) -> list[ReceivedSpan]:
    by_id = {span.span_id: span for span in spans}

    def caller_id(span: ReceivedSpan) -> str:
        # No more steps than there are spans: two spans of one id can make a circle.
        for _ in spans:
            parent = by_id.get(span.parent_id)
            if parent is None or parent.kind != "INTERNAL":
                break
            span = parent
        return span.parent_id

    return [replace(span, parent_id=caller_id(span)) for span in spans if span.kind != "INTERNAL"]


def _only_children(spans: Sequence[ReceivedSpan]) -> list[ReceivedSpan]:
    """Return the root, its child, the child's child and so on, as far as each is the only one."""
    below, chain = _by_parent(spans), roots(spans)[:1]
    while chain and len(chain) <= len(spans):
        found = below.get((chain[-1].trace_id, chain[-1].span_id), [])
        if len(found) != 1:
            break
        chain += found
    return chain


def _require(condition: bool, message: Callable[[], str]) -> None:
    # pytest rewrites the asserts of every package with a plugin, and would add its own view of both sides.
    if not condition:
        raise AssertionError(message())


def find_spans(
    spans: Iterable[ReceivedSpan], *, service: str | None = None, kind: str | None = None, name: str | None = None
) -> list[ReceivedSpan]:
    """Return the spans that match every criterion given, in their order."""
    wanted = {"service": service, "kind": kind, "name": name}
    criteria = {key: value for key, value in wanted.items() if value is not None}
    return [span for span in spans if all(getattr(span, key) == value for key, value in criteria.items())]


def find_span(
    spans: Sequence[ReceivedSpan], *, service: str | None = None, kind: str | None = None, name: str | None = None
) -> ReceivedSpan:
    """Return the one span that matches every criterion given.

    Raises:
        AssertionError: None matches, or several do. The message shows the tree.
    """
    found = find_spans(spans, service=service, kind=kind, name=name)
    wanted = f"service={quoted(service)} kind={quoted(kind)} name={quoted(name)}"
    _require(len(found) == 1, lambda: f"{len(found)} spans match {wanted}, wanted one:\n{render_tree(spans)}")
    return found[0]


def roots(spans: Iterable[ReceivedSpan]) -> list[ReceivedSpan]:
    """Return the spans whose parent is not among the spans, oldest first: roots and orphans."""
    all_spans = sorted(spans, key=lambda span: span.start_ns)
    present = {(span.trace_id, span.span_id) for span in all_spans}
    return [span for span in all_spans if (span.trace_id, span.parent_id) not in present]


def children(spans: Iterable[ReceivedSpan], parent: ReceivedSpan) -> list[ReceivedSpan]:
    """Return the direct children of a span, oldest first."""
    found = [span for span in spans if (span.trace_id, span.parent_id) == (parent.trace_id, parent.span_id)]
    return sorted(found, key=lambda span: span.start_ns)


def _by_parent(spans: Iterable[ReceivedSpan]) -> dict[tuple[str, str], list[ReceivedSpan]]:
    """Return the spans by the trace and the span that they hang below, the oldest first."""
    found: dict[tuple[str, str], list[ReceivedSpan]] = {}
    for span in sorted(spans, key=lambda span: span.start_ns):
        found.setdefault((span.trace_id, span.parent_id), []).append(span)
    return found


_Row: TypeAlias = tuple[str, tuple[str, ...]]


def render_tree(spans: Sequence[ReceivedSpan]) -> str:
    """Draw spans as a text tree, one block for each trace: service, kind, name, milliseconds.

    A span whose parent is not among them stands at the left and says so.
    """
    if not spans:
        return "(no spans)"
    tops, below = roots(spans), _by_parent(spans)
    rows = _aligned([row for top in tops for row in _tree_rows(top, below)])
    lines = []
    for trace_id in dict.fromkeys(span.trace_id for span in tops):
        lines += ["", f"trace {trace_id}", *(text for owner, text in rows if owner == trace_id)]
    return "\n".join(lines[1:])


def _tree_rows(top: ReceivedSpan, below: Mapping[tuple[str, str], list[ReceivedSpan]]) -> list[_Row]:
    # A stack rather than recursion: a request that a proxy sends round and round is a chain of thousands.
    rows: list[_Row] = []
    drawn: set[int] = set()
    waiting = [(top, "", "")]
    while waiting:
        span, lead, rest = waiting.pop()
        if id(span) in drawn:
            # Two spans of one id can make a circle.
            continue
        drawn.add(id(span))
        note = f"orphan: its parent {span.parent_id} is missing" if span.parent_id and not lead else ""
        milliseconds = f"{span.milliseconds:.1f} ms".rjust(9)
        rows.append((span.trace_id, (lead + span.service, span.kind, span.name, milliseconds, note)))
        from_last = below.get((span.trace_id, span.span_id), [])[::-1]
        # The stack is emptied from its end, so that the last child, which has the corner, lies at the bottom.
        waiting += [(child, rest + "└─ ", rest + "   ") for child in from_last[:1]]
        waiting += [(child, rest + "├─ ", rest + "│  ") for child in from_last[1:]]
    return rows


def _aligned(rows: Sequence[_Row]) -> list[tuple[str, str]]:
    widths = [max(map(len, column)) for column in zip(*(cells for _, cells in rows), strict=True)]
    return [
        (trace_id, "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
        for trace_id, cells in rows
    ]
