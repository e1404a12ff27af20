"""Whose tracers make lazy spans: those of the SDK as it came, and nobody else's."""

from __future__ import annotations

import enum
import logging
import threading
from _thread import allocate_lock
from types import SimpleNamespace

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk import trace, version
from opentelemetry.sdk.trace import ReadableSpan, Span, Tracer, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, ParentBased, SamplingResult, StaticSampler
from opentelemetry.trace import NonRecordingSpan as Remote
from opentelemetry.trace import (
    NoOpTracerProvider,
    ProxyTracerProvider,
    SpanContext,
    SpanKind,
    TraceFlags,
    set_span_in_context,
)

from meshmw import _lazy_span, _runtime
from meshmw._lazy_span import LazySpan, LazyTracer
from meshmw._otel import KNOWN_SDKS
from meshmw._telemetry.span import RemoteParentSampler, ordinary_size
from tests.programs import run_parts


class OtherTracer(Tracer):
    """A class of somebody else's."""


class OtherProvider:
    """Hands out a tracer."""

    def __init__(self, tracer):
        self._tracer = tracer

    def get_tracer(self, *_):
        return self._tracer


class Key(enum.StrEnum):
    """A key that is equal to a text."""

    PATH = "app.path"


def sdks():
    return TracerProvider(shutdown_on_exit=False).get_tracer("t")


def test_the_sdks_own_tracer_makes_lazy_spans():
    tracer = _runtime.tracer_of(TracerProvider(shutdown_on_exit=False))
    assert type(tracer) is LazyTracer
    with tracer.start_as_current_span("block") as span:
        assert type(span) is LazySpan
    assert isinstance(span, Span)
    assert span.instrumentation_scope.name == "meshmw"
    assert span.end_time is not None


@pytest.mark.parametrize("provider", [NoOpTracerProvider(), ProxyTracerProvider()])
def test_a_provider_that_is_not_the_sdks_makes_its_own(provider):
    assert not isinstance(_runtime.tracer_of(provider), LazyTracer)


def test_a_tracer_of_another_class_makes_its_own():
    tracer = sdks()
    tracer.__class__ = OtherTracer
    assert _runtime.tracer_of(OtherProvider(tracer)) is tracer


def test_another_tracer_may_have_something_of_its_own_by_the_name_of_what_is_dropped():
    tracer = sdks()
    tracer.__class__ = OtherTracer
    tracer.dropped = tracer.recorded = 5
    effective = _runtime.Runtime(tracer=_runtime.tracer_of(OtherProvider(tracer)))
    assert effective.tracer is tracer
    assert effective.dropped(SpanContext(1, 2, True, TraceFlags(0))) is None
    assert effective.recorded(SpanContext(1, 2, True, TraceFlags(1)), "n", Context(), SpanKind.SERVER, {}) is None


def test_a_tracer_with_a_method_of_its_own_makes_its_own():
    tracer = sdks()
    tracer.start_span = lambda *_: None
    assert _runtime.tracer_of(OtherProvider(tracer)) is tracer


@pytest.mark.parametrize(("kind", "name"), [(Tracer, "start_span"), (Span, "end"), (Span, "set_attribute")])
def test_where_a_method_of_the_sdk_was_replaced_its_spans_are_used(monkeypatch, kind, name):
    monkeypatch.setattr(kind, name, lambda *_, **__: None)
    assert not isinstance(_runtime.tracer_of(TracerProvider(shutdown_on_exit=False)), LazyTracer)


class Wrapper:
    """Hands on what it is asked for, as a function that wrapt has wrapped."""

    def __init__(self, wrapped):
        self._wrapped = wrapped

    def __getattr__(self, name):
        return getattr(self._wrapped, name)


@pytest.mark.parametrize(("kind", "name"), [(Tracer, "start_span"), (Span, "end"), (Span, "_readable_span")])
def test_where_a_method_of_the_sdk_was_wrapped_its_spans_are_used(monkeypatch, kind, name):
    monkeypatch.setattr(kind, name, Wrapper(vars(kind)[name]))
    assert not isinstance(_runtime.tracer_of(TracerProvider(shutdown_on_exit=False)), LazyTracer)


def test_where_a_property_or_the_class_of_spans_was_replaced_the_sdks_are_used(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(ReadableSpan, "attributes", property(lambda _: {}))
        assert not isinstance(_runtime.tracer_of(TracerProvider(shutdown_on_exit=False)), LazyTracer)
    monkeypatch.setattr(trace, "_Span", type("_Span", (trace._Span,), {}))
    assert not isinstance(_runtime.tracer_of(TracerProvider(shutdown_on_exit=False)), LazyTracer)


class Stricter(RemoteParentSampler):
    """Decides otherwise than the class that it comes from."""

    def should_sample(self, *_, **__):
        return SamplingResult(Decision.DROP)


def with_method(sampler):
    sampler.should_sample = lambda *_, **__: SamplingResult(Decision.DROP)
    return sampler


@pytest.mark.parametrize(
    "sampler",
    [
        Stricter(ParentBased(ALWAYS_ON)),
        with_method(ParentBased(ALWAYS_ON)),
        ParentBased(ALWAYS_ON, remote_parent_sampled=with_method(StaticSampler(Decision.RECORD_AND_SAMPLE))),
    ],
)
def test_a_sampler_that_may_decide_otherwise_is_asked(sampler):
    tracer = LazyTracer(TracerProvider(sampler, shutdown_on_exit=False).get_tracer("t"))
    context = set_span_in_context(Remote(SpanContext(1, 2, True, TraceFlags(1))))
    assert not tracer.start_span("name", context).is_recording()


def test_to_load_the_room_runs_no_resource_detectors():
    program = """
        import opentelemetry.sdk.resources as resources
        def create(*_, **__): raise AssertionError("detectors run")
        resources.Resource.create = create
        import meshmw._lazy_span
        print("loaded")
    """
    assert run_parts(program).stdout == "loaded\n"


def test_the_lock_of_a_span_is_the_one_that_threading_has_by_then(monkeypatch):
    made = []
    monkeypatch.setattr(threading, "Lock", lambda: made.append(allocate_lock()) or made[-1])
    assert LazyTracer(sdks()).start_span("name")._lock is made[-1]


def test_an_sdk_that_is_not_known_makes_its_own_and_that_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(version, "__version__", "1.99.2")
    _runtime._say_unknown.cache_clear()
    with caplog.at_level(logging.DEBUG, "meshmw"):
        for _ in range(3):
            assert not isinstance(_runtime.tracer_of(TracerProvider(shutdown_on_exit=False)), LazyTracer)
    (record,) = [each for each in caplog.records if "1.99" in each.getMessage()]
    assert record.levelname == "DEBUG"


def test_the_installed_sdk_is_known():
    assert ".".join(version.__version__.split(".")[:2]) in KNOWN_SDKS


def test_a_process_without_the_sdk_loads_none_of_it():
    program = 'import sys, meshmw.asgi; assert "meshmw._lazy_span" not in sys.modules'
    assert run_parts(program, 'print("opentelemetry.sdk.trace" in sys.modules)').stdout == "False\n"


def test_a_parent_that_is_no_span_context_is_left_to_the_sdk():
    tracer = LazyTracer(sdks())
    context = set_span_in_context(Remote(SimpleNamespace()))
    with pytest.raises(TypeError, match="SpanContext"):
        tracer.start_span("name", context)


def test_parts_belong_to_the_span_and_are_looked_up_in_its_tracer():
    provider = TracerProvider(shutdown_on_exit=False)
    span = LazyTracer(provider.get_tracer("t")).start_span("name")
    assert span._sampler is provider.sampler
    span._limits = None
    assert span._limits is None


def test_keys_that_strangers_choose_are_known_up_to_a_number(monkeypatch):
    monkeypatch.setattr(_lazy_span, "_KEYS", set())
    monkeypatch.setattr(_lazy_span, "_MOST_KEYS", 3)
    context = set_span_in_context(Remote(SpanContext(1, 2, True, TraceFlags(1))))
    for number in range(9):
        span = LazyTracer(sdks()).start_span("name", context, attributes={f"key{number}": number})
        assert span.plain == {f"key{number}": number}
    assert len(_lazy_span._KEYS) == 3


def test_long_keys_are_not_remembered(monkeypatch):
    monkeypatch.setattr(_lazy_span, "_KEYS", set())
    span = LazyTracer(sdks()).start_span("name", attributes={"k" * 65: 1})
    assert (span.plain, _lazy_span._KEYS) == ({"k" * 65: 1}, set())


def test_a_key_that_is_equal_to_a_known_one_is_not_taken_for_it():
    tracer = LazyTracer(sdks())
    assert tracer.start_span("name", attributes={"app.path": 1}).plain == {"app.path": 1}
    span = tracer.start_span("name", attributes={Key.PATH: 1})
    span.end()
    assert span.plain is None
    assert ordinary_size(span) is None
