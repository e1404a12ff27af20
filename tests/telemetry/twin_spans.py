"""The same done to a span of the SDK's and to a lazy one, and all that both say: what must be equal."""

from __future__ import annotations

import copy
import itertools
import logging
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import opentelemetry.sdk.trace
from opentelemetry import baggage
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan as Remote
from opentelemetry.trace import SpanContext, TraceFlags, TraceState, get_current_span, set_span_in_context

from meshmw import _lazy_span
from meshmw._context.extraction import B3_KEY
from meshmw._lazy_span import LazySpan, LazyTracer
from meshmw._otel import ATTRIBUTES_LOGGER

RESOURCE = Resource({"service.name": "twin"})
_ADDRESS = re.compile("0x[0-9a-f]{6,}")
STATE = TraceState([("congo", "t61")])
SPAN_ID = 0xB7AD6B7169203331
TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C


def parent(kind: str) -> Context | None:
    """Return the context of a parent, by a word for it."""
    if kind == "current":
        return None
    if kind == "none":
        return Context()
    bits = {"unsampled": 0, "sampled": 1, "random": 3, "unsampled random": 2}[
        kind.removeprefix("local ").removeprefix("b3 ")
    ]
    ids = SpanContext(TRACE_ID, SPAN_ID, not kind.startswith("local"), TraceFlags(bits), STATE)
    context = baggage.set_baggage("user", "alice", set_span_in_context(Remote(ids), Context()))
    return Context({**context, B3_KEY: "whatever"}) if kind.startswith("b3") else context


PARENTS = (
    "none",
    "current",
    "sampled",
    "unsampled",
    "random",
    "unsampled random",
    "local sampled",
    "local unsampled",
    "b3 sampled",
)


class Ids(RandomIdGenerator):
    """Counts."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def generate_span_id(self) -> int:
        return next(self._numbers)

    def generate_trace_id(self) -> int:
        return next(self._numbers)


class Watching(SpanProcessor):
    """Notes what it is told and what a span says then; writes where a step has something to do."""

    def __init__(self, noted: list[Any], acts: dict[str, Callable[[Any], object]]) -> None:
        self.noted, self.acts = noted, acts

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        context = parent_context and (sorted(parent_context), get_current_span(parent_context).get_span_context())
        self._note("start", span, context)

    def _on_ending(self, span: Span) -> None:
        self._note("ending", span)

    def on_end(self, span: ReadableSpan) -> None:
        self._note("end", span)

    def _note(self, step: str, span: Any, *more: object) -> None:
        act = self.acts.get(step)
        told = None if act is None else outcome(lambda: act(span))
        self.noted.append((step, isinstance(span, ReadableSpan), told, *more, seen(span) if step == "end" else None))


class Lines(logging.Handler):
    """Notes log lines."""

    def __init__(self, noted: list[Any]) -> None:
        super().__init__()
        self._noted = noted

    def emit(self, record: logging.LogRecord) -> None:
        self._noted.append((record.name, record.levelname, shown(record.getMessage())))


def outcome(call: Callable[[], object]) -> object:
    """Return what a call returns or raises, as text."""
    try:
        return shown(call())
    except (Exception, SystemExit) as error:
        return type(error).__name__, shown(error.args)


def shown(value: object) -> str:
    """Return a text that is the same for what is the same, not a number included."""
    text = repr(value).replace("LazySpan(", "_Span(").encode("utf-8", "backslashreplace").decode()
    return _ADDRESS.sub("0x", text)


def seen(span: Any) -> dict[str, object]:
    """Return all that a readable span says."""
    return {
        "context": span.context,
        "parent": span.parent,
        "kind": span.kind,
        "times": (span.start_time, span.end_time),
        "name": shown(span.name),
        "status": (span.status.status_code, shown(span.status.description)),
        "attributes": outcome(lambda: dict(span.attributes)),
        "types": [type(value).__name__ for value in span.attributes.values()],
        "order": shown([*span.attributes]),
        "dropped": (span.dropped_attributes, span.dropped_events, span.dropped_links),
        "events": [(shown(e.name), e.timestamp, shown(dict(e.attributes)), e.dropped_attributes) for e in span.events],
        "links": [(link.context, shown(dict(link.attributes)), link.dropped_attributes) for link in span.links],
        "resource": span.resource is RESOURCE,
        "scope": span.instrumentation_scope,
        "json": outcome(span.to_json),
        "bytes": outcome(lambda: encode_spans([span]).SerializeToString(deterministic=True)),
    }


def looked_at(span: Any) -> object:
    """Return what is private or rare about a span, and what can be done with a copy."""
    snapshot, end = span._readable_span(), span.end_time
    return (
        seen(snapshot),
        span.is_recording(),
        shown(span._attributes),
        shown([span._events, span._links]),
        shown([span._sampler, span._limits, span._trace_config, span._instrumentation_info]),
        outcome(lambda: seen(copy.copy(span))),
        outcome(lambda: seen(copy.deepcopy(span if end is not None and isinstance(span, LazySpan) else snapshot))),
        isinstance(outcome(lambda: pickle.dumps(span)), tuple),
    )


def tracers(noted: list[Any], acts: dict[str, Callable[[Any], object]], limits: dict[str, Any], sampler: Any) -> Any:
    """Return the SDK's tracer of a provider of its own, and the reader of its metrics."""
    reader = InMemoryMetricReader()
    provider = TracerProvider(
        sampler(),
        RESOURCE,
        shutdown_on_exit=False,
        id_generator=Ids(),
        span_limits=SpanLimits(**limits),
        meter_provider=MeterProvider([reader], shutdown_on_exit=False),
    )
    for _ in range(2):
        provider.add_span_processor(Watching(noted, acts))
    return provider.get_tracer("twin", "1", "https://example.com", {"a": 1}), reader


@contextmanager
def clock() -> Iterator[None]:
    """Have both tell the time by counting."""
    numbers = itertools.count(1_000)
    places = (opentelemetry.sdk.trace, _lazy_span)
    real = [place.time_ns for place in places]
    for place in places:
        place.time_ns = lambda: next(numbers)
    try:
        yield
    finally:
        for place, function in zip(places, real, strict=True):
            place.time_ns = function


def play(lazily: bool, begin: Any, steps: Any, acts: Any, limits: Any, sampler: Any) -> list[Any]:
    """Do the same to a span of one kind, and return all that could be seen."""
    noted: list[Any] = []
    handler = Lines(noted)
    logger = logging.getLogger("opentelemetry")
    level, logger.propagate = logger.level, False
    # An earlier test's `configure()` lets a line of this one out once a minute.
    attributes = logging.getLogger(ATTRIBUTES_LOGGER)
    filters, attributes.filters = attributes.filters, []
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        with clock():
            tracer, reader = tracers(noted, acts(), limits, sampler)
            try:
                span = begin(LazyTracer(tracer) if lazily else tracer)
            except Exception as error:
                return [*noted, type(error), shown(error.args)]
            noted.append(("begun", span.get_span_context(), span.is_recording()))
            assert not span.is_recording() or isinstance(span, LazySpan) is lazily
            for step in steps:
                noted.append(outcome(lambda step=step: step(span)))
            if isinstance(span, ReadableSpan):
                noted += [seen(span), looked_at(span)]
            noted.append(_metrics(reader))
    finally:
        attributes.filters = filters
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = True
    return noted


def _metrics(reader: InMemoryMetricReader) -> object:
    data = reader.get_metrics_data()
    return data and [
        (metric.name, [(shown(dict(point.attributes)), point.value) for point in metric.data.data_points])
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    ]


def same(begin: Any, steps: Any, acts: Any = dict, limits: Any = None, sampler: Any = lambda: None) -> list[Any]:
    """Do the same to both kinds of spans, and check that nothing tells one from the other.

    Args:
        begin: Starts a span of a tracer.
        steps: Functions of the span, each of which makes its own values.
        acts: Returns what processors do, by step.
        limits: Of `SpanLimits`.
        sampler: Makes the sampler; the SDK's default, if it returns None.
    """
    theirs = play(False, begin(), list(steps()), acts, limits or {}, sampler)
    ours = play(True, begin(), list(steps()), acts, limits or {}, sampler)
    for one, other in zip(theirs, ours, strict=False):
        assert one == other, f"{one}\n!=\n{other}"
    assert len(theirs) == len(ours)
    return ours
