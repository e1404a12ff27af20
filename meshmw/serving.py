"""What a server middleware was told, and what the process's settings say where it was told nothing.

Both middleware take the same options and begin a request in the same way; only where things stand differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from opentelemetry import trace
from opentelemetry.trace import Span

from meshmw import runtime
from meshmw.boundary import Operation, begin_server, begin_without_span
from meshmw.extraction import Extraction
from meshmw.paths import PathPatterns
from meshmw.propagator import MeshPropagator
from meshmw.reading import Lines
from meshmw.request_view import RequestView
from meshmw.runtime import Runtime, ServerSpans
from meshmw.semconv import Attributes
from meshmw.trust import Trust, TrustCallable, TrustPolicy

Rewrites: TypeAlias = Mapping[str, str | None]


class ServerOptions:
    """Holds the options of one middleware; each that is None is the settings' own, looked up per request.

    Args:
        exclude: Path patterns of requests that get no span.
        trust: How far callers are believed; a word, or a callable that gets a `RequestView`.
        server_spans: Who makes the SERVER span.
        propagator: Reads the headers.
        tracer_provider: Makes the spans.
        contrib: Whether this middleware has a mode in which contrib makes the span.
    """

    def __init__(
        self,
        *,
        exclude: Sequence[str] | None,
        trust: Trust | TrustCallable | None,
        server_spans: ServerSpans | None,
        propagator: MeshPropagator | None,
        tracer_provider: trace.TracerProvider | None,
        contrib: bool = True,
    ) -> None:
        self._contrib = contrib
        self._exclude = None if exclude is None else PathPatterns(exclude)
        self._runtime = None if propagator is None else Runtime(propagator=propagator)
        self._spans = server_spans
        self._tracer = None if tracer_provider is None else tracer_provider.get_tracer("meshmw")
        rejections = None if propagator is None else propagator.rejections
        self._trust = None if trust is None else TrustPolicy(trust, rejections=rejections)

    def settled(self) -> Runtime:
        """Return what this request is served with."""
        return self._runtime or runtime.current()

    def spans(self, settled: Runtime) -> ServerSpans:
        """Return who makes the SERVER span."""
        spans = self._spans or settled.server_spans
        return "auto" if spans == "contrib" and not self._contrib else spans

    def begin(
        self,
        lines: Lines,
        settled: Runtime,
        *,
        view: Callable[[], RequestView],
        path: str,
        method: str,
        attributes: Attributes,
        host_span: Callable[[bool], Span | None],
    ) -> tuple[Operation, Rewrites]:
        """Begin to serve a request; return the operation, and the headers to rewrite for the application.

        Args:
            lines: The request's header lines, by name in lower case.
            settled: What the request is served with.
            view: Makes what a trust decision looks at.
            path: The request's path.
            method: The request's method.
            attributes: Of the span, if one is made.
            host_span: Returns the span that the host marked as this request's; it is told whether one read the lines.
        """
        read, told = settled.propagator.read_once(lines)
        extraction = self._believed(read, told, settled, view)
        exclude = settled.exclude if self._exclude is None else self._exclude
        spans = self.spans(settled)
        if spans != "auto" or exclude.match(path):
            return begin_without_span(extraction, method, keep_parent=spans != "contrib"), extraction.rewrites
        operation = begin_server(
            extraction,
            propagator=settled.propagator,
            method=method,
            attributes=attributes,
            host_span=host_span(told is not None) if told is None or told is extraction else None,
            tracer=self._tracer,
        )
        return operation, extraction.rewrites

    def _believed(
        self, read: Extraction, told: Extraction | None, settled: Runtime, view: Callable[[], RequestView]
    ) -> Extraction:
        policy = self._trust or settled.trust
        extraction = read.believed(policy.static or policy.decide(view()))
        if told is None or told is extraction:
            return extraction
        if told == extraction:
            return told
        settled.propagator.rejections.record(
            "context",
            "host_trust",
            "- a host outside this middleware has trusted this caller otherwise: wrap the middleware around the host",
        )
        return extraction
