"""What a host of the server contract is: one way to put meshmw around an application, driven without a network.

A host serves the same routes whatever its framework: `/items/{item}` answers, `/fail` raises, `/stream` sends three
chunks. Whenever its code runs it calls `visit`, which notes what the application sees and what it would send on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from meshmw import MeshPropagator

Headers = Sequence[tuple[str, str]]
FORMATS = ("tracecontext", "baggage", "b3", "b3multi")


@dataclass
class Visit:
    """What one step of the application saw."""

    headers: dict[str, list[str]]
    span_id: int
    trace_id: int
    sampled: bool
    baggage: dict[str, object]
    outbound: dict[str, str]


@dataclass
class Reply:
    """What the client of one request got."""

    status: int | None = None
    body: bytes = b""
    error: BaseException | None = None
    sent: list[str] = field(default_factory=list)


@dataclass
class Host(ABC):
    """Serves requests through meshmw in one framework, with providers of its own."""

    formats: Sequence[str] = FORMATS
    tracer_provider: trace.TracerProvider | None = None
    exclude: Sequence[str] | None = None
    visits: list[Visit] = field(default_factory=list)
    during: Callable[[], None] | None = None
    error: BaseException = field(default_factory=lambda: LookupError("out of stock"))

    # Whether the SERVER span is meshmw's own where the host's telemetry is on.
    own_span = True
    # Whether an exception of the application reaches the server, rather than being answered by the framework.
    raises = True

    def __post_init__(self) -> None:
        self.propagator = MeshPropagator(self.formats)
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer_provider = self.tracer_provider or provider
        self.options: dict[str, Any] = {
            "propagator": self.propagator,
            "tracer_provider": self.tracer_provider,
            "exclude": self.exclude,
        }
        self.app = self.build()

    @abstractmethod
    def build(self) -> Any:
        """Return the application."""

    @abstractmethod
    def get(self, path: str = "/items/7", headers: Headers = (), **options: Any) -> Reply:
        """Ask it for a path in its own protocol."""

    def visit(self, headers: Sequence[tuple[str, str]]) -> Visit:
        lines: dict[str, list[str]] = {}
        for name, value in headers:
            lines.setdefault(name.lower(), []).append(value)
        outbound: dict[str, str] = {}
        self.propagator.inject(outbound)
        current = trace.get_current_span().get_span_context()
        seen = Visit(
            lines,
            current.span_id,
            current.trace_id,
            current.trace_flags.sampled,
            dict(baggage.get_all()),
            outbound,
        )
        self.visits.append(seen)
        if self.during is not None:
            self.during()
        return seen

    @property
    def seen(self) -> Visit:
        """What the application saw, in the only step that it made."""
        (only,) = self.visits
        return only

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    @property
    def server_spans(self) -> list[ReadableSpan]:
        return [span for span in self.spans if span.kind is SpanKind.SERVER]

    @property
    def server_span(self) -> ReadableSpan:
        (only,) = self.server_spans
        return only

    @property
    def refusals(self) -> dict[tuple[str, str], int]:
        return self.propagator.rejections.counts


@contextmanager
def attached(context: Context | None) -> Iterator[None]:
    """A task or thread in which an earlier request left *context*; whoever runs there must leave it as it was."""
    token = None if context is None else otel_context.attach(context)
    before = otel_context.get_current()
    try:
        yield
        assert otel_context.get_current() == before, "the request left its context behind"
    finally:
        if token is not None:
            otel_context.detach(token)
