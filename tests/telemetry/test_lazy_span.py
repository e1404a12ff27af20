"""A lazy span says what the SDK's span says, whatever is done to it: held equal step by step."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider, _disable_tracer_configurator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    StaticSampler,
    TraceIdRatioBased,
)
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    get_current_span,
)

from meshmw._lazy_span import LazyTracer
from meshmw._otel import add_plain_event
from meshmw._telemetry.span import RemoteParentSampler
from tests.telemetry.twin_spans import PARENTS, STATE, TRACE_ID, parent, same


class Text(str):
    """A text with a class of its own."""


class Number(enum.IntEnum):
    """A number with a name."""

    ONE = 1


class Silent:
    """Says nothing of itself."""


class Odd:
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Failure(Exception):
    """Has no text either."""

    def __str__(self) -> str:
        raise ValueError("no text")


KEYS = st.sampled_from(["a", "b", "c", "d", "url.path", "", Text("t"), 1, None, "ü", "k" * 40]) | st.text(max_size=3)
PLAIN = st.one_of(
    st.text(max_size=20), st.sampled_from(["x" * 300, "\ud800", ""]), st.integers(), st.booleans(), st.floats()
)
SIMPLE = PLAIN | st.sampled_from([None, b"bytes", b"\xff", Text("t"), Number.ONE, 2**70, -(2**63)])
# Each is made anew for each span: what is changed later must be its own.
ODD = st.sampled_from([Silent, Odd, object, set, dict, list])
VALUES = st.recursive(
    SIMPLE.map(lambda value: lambda: value) | ODD,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda made: lambda: [each() for each in made])
        | st.dictionaries(st.sampled_from(["x", "", 1]), inner, max_size=2).map(
            lambda made: lambda: {key: each() for key, each in made.items()}
        )
    ),
    max_leaves=4,
)
MAPPINGS = st.dictionaries(KEYS, VALUES, max_size=6).map(
    lambda made: lambda: {key: value() for key, value in made.items()}
)
NO_ATTRIBUTES = st.sampled_from([lambda: None, dict])
ATTRIBUTES = (
    NO_ATTRIBUTES
    | MAPPINGS
    | st.dictionaries(st.text(min_size=1, max_size=3), PLAIN, max_size=6).map(lambda made: lambda: dict(made))
)
TIMES = st.none() | st.integers(0, 10**18)
IDS = st.sampled_from(
    [
        SpanContext(TRACE_ID, 7, True, TraceFlags(1)),
        SpanContext(0, 0, True),
        SpanContext(0, 0, True, None, STATE),
        SpanContext(2**130, 1, False),
        None,
    ]
)
LINKS = st.lists(st.tuples(IDS, ATTRIBUTES), max_size=4).map(
    lambda made: lambda: [Link(ids, attributes()) for ids, attributes in made]
)
CODES = st.sampled_from([*StatusCode, None, "OK"])


def do(method: str, *strategies: Any) -> Any:
    """Return a strategy of calls of a span's method."""
    return st.tuples(*strategies).map(
        lambda given: (
            lambda: lambda span: getattr(span, method)(*(make() if callable(make) else make for make in given))
        )
    )


def read(name: str) -> Any:
    """Return a step that reads an attribute of the span."""
    return lambda: lambda span: getattr(span, name)


def leave(error: Any) -> Any:
    """Return a step that leaves the span as a block."""

    def block(span: Any) -> None:
        with span:
            if error is not None:
                raise error()

    return lambda: block


def change(span: Any) -> None:
    """Change in place what was set before."""
    for value in kept:
        value.append("changed")


kept: list[Any] = []


def keep(span: Any) -> None:
    """Set a list that is changed later."""
    kept.append(["first"])
    span.set_attribute("kept", kept[-1])


def copied(span: Any) -> None:
    """Do as processors do that go through attributes and set others."""
    for key, value in span.attributes.items():
        span.set_attribute(f"copy.{key}", value)


def replaced(span: Any) -> None:
    """Do as processors do that put attributes of their own in their place, which are private."""
    span._attributes = {"replaced": True}
    span._instrumentation_scope = None


WRITES = st.one_of(
    do("set_attribute", KEYS, VALUES),
    do("set_attribute", st.sampled_from("abcd"), PLAIN),
    do("set_attribute", st.sampled_from("abcd"), PLAIN),
    do("set_attributes", MAPPINGS),
    do("add_event", st.text(max_size=5), ATTRIBUTES, TIMES),
    do("add_link", IDS, ATTRIBUTES),
    do("record_exception", st.sampled_from([ValueError("x"), Failure(), KeyboardInterrupt()]), ATTRIBUTES, TIMES),
    do("update_name", st.text(max_size=5)),
    do("set_status", CODES, st.none() | st.text(max_size=3)),
    do(
        "set_status",
        st.sampled_from([Status(StatusCode.ERROR, "why"), Status(StatusCode.OK), Status()]),
        st.none() | st.just("d"),
    ),
    st.sampled_from([lambda: keep, lambda: change, lambda: copied]),
)
# Of the SDK's spans, a processor has only what can be read when they have ended.
LOOKS = st.sampled_from(
    [
        read(name)
        for name in (
            "attributes",
            "events",
            "links",
            "status",
            "name",
            "dropped_attributes",
            "dropped_events",
            "dropped_links",
        )
    ]
    + [lambda: lambda span: span.to_json(None)]
)
READS = LOOKS | st.sampled_from(
    [
        lambda: repr,
        lambda: lambda span: span.is_recording(),
        lambda: lambda span: span.start(),
        lambda: lambda span: span._readable_span().attributes,
        lambda: replaced,
    ]
)
ENDS = st.one_of(
    do("end", TIMES), do("end"), st.sampled_from([leave(None), leave(ValueError), leave(Failure), leave(SystemExit)])
)
STEPS = st.lists(st.one_of(WRITES, WRITES, WRITES, READS, ENDS), max_size=14)


class Adding(Sampler):
    """Adds attributes, and sets a trace state; what is asked of it goes into both."""

    def __init__(self, decision: Decision, attributes: Any, state: TraceState | None) -> None:
        self._answer = decision, attributes, state

    def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, links=None, trace_state=None):
        decision, more, state = self._answer
        asked = {"asked": f"{trace_id} {name} {kind} {len(links or ())}", **(attributes or {}), **more}
        return SamplingResult(decision, asked, state)

    def get_description(self) -> str:
        return "adding"

    def __repr__(self) -> str:
        return "adding"


_RATIO = TraceIdRatioBased(0.5)
_RECORDING = StaticSampler(Decision.RECORD_ONLY)
_MANY = ParentBased(_RATIO, remote_parent_sampled=_RECORDING, local_parent_not_sampled=_RATIO)
_DEFAULT = ParentBased(ALWAYS_ON)
_OURS = RemoteParentSampler(_DEFAULT)
_OWNER = RemoteParentSampler(_DEFAULT, service_owns=True)
SAMPLERS = st.sampled_from([ALWAYS_ON, ALWAYS_OFF, _RECORDING, _RATIO, _DEFAULT, _MANY, _OURS, _OWNER]) | st.builds(
    Adding,
    st.sampled_from([Decision.RECORD_ONLY, Decision.RECORD_AND_SAMPLE, Decision.RECORD_AND_SAMPLE]),
    st.dictionaries(st.sampled_from(["a", "s", ""]), SIMPLE, max_size=2),
    st.sampled_from([None, STATE, TraceState()]),
)
COUNT = st.sampled_from([None, None, -1, 0, 1, 2, 3, 5])
LENGTH = st.sampled_from([None, None, -1, 0, 1, 4])
LIMITS = st.fixed_dictionaries(
    {
        "max_span_attributes": COUNT,
        "max_event_attributes": COUNT,
        "max_link_attributes": COUNT,
        "max_events": COUNT,
        "max_links": COUNT,
        "max_attribute_length": LENGTH,
        "max_span_attribute_length": LENGTH,
    }
)
ACTS = st.fixed_dictionaries({}, optional={"start": WRITES | READS, "ending": WRITES | READS, "end": LOOKS}).map(
    lambda made: lambda: {step: act() for step, act in made.items()}
)
BEGINS = st.tuples(
    st.sampled_from(PARENTS), st.sampled_from([*SpanKind]), ATTRIBUTES, LINKS, TIMES, st.booleans(), st.booleans()
)


def begun(given: Any) -> Any:
    """Return what starts a span."""
    where, kind, attributes, links, start, record, status = given

    def begin() -> Any:
        options = {"attributes": attributes(), "links": links()}
        return lambda tracer: tracer.start_span(
            "name",
            parent(where),
            kind,
            start_time=start,
            record_exception=record,
            set_status_on_exception=status,
            **options,
        )

    return begin


@settings(max_examples=150, deadline=None)
@given(BEGINS, STEPS, ACTS, LIMITS, SAMPLERS)
def test_nothing_tells_a_lazy_span_from_the_sdks(begin, steps, acts, limits, sampler):
    def made() -> Any:
        kept.clear()
        return [step() for step in steps]

    same(begun(begin), made, acts, limits, lambda: sampler)


DEFAULT = ("sampled", SpanKind.SERVER, dict, list, None, True, True)


def with_attributes(**attributes: Any) -> Any:
    """Return what starts a span with some attributes."""
    return begun(("sampled", SpanKind.SERVER, lambda: dict(attributes), list, None, True, True))


def others_parts(span: Any) -> None:
    """Put other lists in the place of events and links, as processors of others do."""
    span._events, span._links = BoundedList(1), BoundedList(1)
    span.add_event("mine")


def set_many(span: Any) -> None:
    """Set more attributes than there is room for, one of them twice."""
    for key in "abcab":
        span.set_attribute(key, key)


@pytest.mark.parametrize(
    ("begin", "step", "limits"),
    [
        (with_attributes(a=1), set_many, {"max_span_attributes": 2}),
        (with_attributes(a=1, b=2, c=3), set_many, {"max_span_attributes": 2}),
        (with_attributes(a=1), set_many, {"max_span_attributes": 0}),
        (with_attributes(a="long"), set_many, {"max_span_attribute_length": 2}),
        (with_attributes(a="x" * 5_000), set_many, {"max_span_attribute_length": 2_048}),
        (with_attributes(a="x" * 5_000), set_many, {"max_span_attribute_length": 4_096}),
        (with_attributes(a="ab"), lambda span: span.set_attribute("b", "long"), {"max_span_attribute_length": 2}),
        (with_attributes(**{"": 1}), set_many, {}),
        (begun(("sampled", SpanKind.SERVER, lambda: {1: 1}, list, None, True, True)), set_many, {}),
        (begun(DEFAULT), others_parts, {}),
        (begun(DEFAULT), lambda span: [span.update_name("new"), span.end(), span.update_name("late"), span.end()], {}),
        (begun(DEFAULT), lambda span: [change(span), keep(span), change(span), copied(span), replaced(span)], {}),
    ],
)
def test_at_limits_and_with_parts_of_others(begin, step, limits):
    def steps() -> Any:
        kept.clear()
        return [step, lambda span: span.end(), set_many]

    same(begin, steps, limits=limits)


@pytest.mark.parametrize(
    "limits",
    [
        *({}, {"max_events": 1}, {"max_event_attributes": 1}, {"max_event_attributes": 2}),
        *({"max_attribute_length": 6}, {"max_attribute_length": 7}),
    ],
)
def test_an_event_of_plain_attributes_is_the_sdks_event(limits):
    def add(span: Any) -> None:
        add_plain_event(span, "refused", {"header": "baggage", "reason": "key"})

    def steps() -> Any:
        return [add, lambda span: span.add_event("other", {"header": 1}), add, lambda span: span.end(), add]

    same(begun(DEFAULT), steps, limits=limits)


@pytest.mark.parametrize("where", PARENTS)
@pytest.mark.parametrize("sampler", [_DEFAULT, _MANY, _OURS, _OWNER, ALWAYS_OFF])
def test_the_spans_that_the_sdk_counts_are_counted(monkeypatch, where, sampler):
    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    counted = same(
        lambda: lambda tracer: [tracer.start_span("n", parent(where), attributes={"a": 1}) for _ in range(3)][-1],
        lambda: [lambda span: span.end()],
        sampler=lambda: sampler,
    )
    assert "otel.sdk.span.started" in repr(counted[-1])


def ids_in(context: Any) -> SpanContext:
    return get_current_span(context).get_span_context()


@pytest.mark.parametrize("where", ["sampled", "unsampled", "random", "unsampled random", "local unsampled"])
@pytest.mark.parametrize("sampler", [_DEFAULT, _MANY, _OURS, _OWNER, _RATIO, ALWAYS_OFF, ALWAYS_ON])
def test_what_is_dropped_for_its_parents_flags_is_named_and_counted_as_by_the_sdk(monkeypatch, where, sampler):
    def started(tracer: Any) -> Any:
        dropped = tracer.dropped(ids_in(parent(where))) if isinstance(tracer, LazyTracer) else None
        return dropped or tracer.start_span("n", parent(where))

    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    counted = same(lambda: started, lambda: [lambda span: span.end()], sampler=lambda: sampler)
    assert "otel.sdk.span.started" in repr(counted[-1])


@pytest.mark.parametrize("where", ["sampled", "unsampled", "random", "local sampled"])
@pytest.mark.parametrize("sampler", [_DEFAULT, _OURS, _OWNER, _RATIO, ALWAYS_OFF, ALWAYS_ON])
@pytest.mark.parametrize(
    ("limits", "value"),
    [
        *(({}, 5), ({}, [1, 2]), ({"max_span_attributes": 1}, 5), ({"max_span_attribute_length": 2}, "text")),
        *(({"max_span_attribute_length": longest}, "x" * 5_000) for longest in (2_048, 4_096)),
    ],
)
def test_what_is_recorded_for_its_parents_flags_is_the_sdks_span(monkeypatch, where, sampler, limits, value):
    def started(tracer: Any) -> Any:
        context, attributes = parent(where), {"a": 1, "b": value}
        is_lazy = isinstance(tracer, LazyTracer)
        recorded = tracer.recorded(ids_in(context), "n", context, SpanKind.SERVER, attributes) if is_lazy else None
        return recorded or tracer.start_span("n", context, SpanKind.SERVER, attributes)

    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    steps = [lambda span: span.set_attribute("c", "more"), lambda span: span.end()]
    counted = same(lambda: started, lambda: steps, sampler=lambda: sampler, limits=limits)
    assert "otel.sdk.span.started" in repr(counted[-1])


@pytest.mark.parametrize(("sampler", "is_known"), [(_DEFAULT, True), (_OURS, True), (_RATIO, False), (_OWNER, False)])
def test_a_parents_flags_alone_tell_for_known_samplers(sampler, is_known):
    tracer = LazyTracer(TracerProvider(sampler, shutdown_on_exit=False).get_tracer("t"))
    assert (tracer.dropped(ids_in(parent("unsampled"))) is not None) is is_known
    assert tracer.dropped(ids_in(parent("sampled"))) is None
    assert recorded(tracer, "unsampled") is None
    assert (recorded(tracer, "sampled") is not None) is is_known


def recorded(tracer: LazyTracer, where: str) -> Any:
    context = parent(where)
    return tracer.recorded(ids_in(context), "n", context, SpanKind.SERVER, {})


def test_a_tracer_that_is_disabled_starts_nothing():
    tracer = TracerProvider(shutdown_on_exit=False, _tracer_configurator=_disable_tracer_configurator).get_tracer("t")
    assert not LazyTracer(tracer).start_span("name", parent("sampled")).is_recording()
    assert LazyTracer(tracer).dropped(ids_in(parent("unsampled"))) is None
    assert recorded(LazyTracer(tracer), "sampled") is None


def test_attributes_that_cannot_be_copied_are_taken_as_the_sdk_takes_them():
    class Given(Mapping):
        def __getitem__(self, key):
            return {"a": 1}[key]

        def __iter__(self):
            return iter(["a"])

        def __len__(self):
            return 1

    span = LazyTracer(TracerProvider(shutdown_on_exit=False).get_tracer("t")).start_span(
        "name", parent("sampled"), attributes=Given()
    )
    assert dict(span.attributes) == {"a": 1}
