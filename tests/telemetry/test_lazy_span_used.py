"""Whose tracers make lazy spans: those of the SDK as it came, and nobody else's."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from opentelemetry.sdk import version
from opentelemetry.sdk.trace import Span, Tracer, TracerProvider
from opentelemetry.trace import NonRecordingSpan as Remote
from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider, SpanContext, TraceFlags, set_span_in_context

from meshmw import _lazy_span, _runtime
from meshmw._lazy_span import LazySpan, LazyTracer
from meshmw._otel import KNOWN_SDKS
from tests.programs import run_parts


class OtherTracer(Tracer):
    """A class of somebody else's."""


class OtherProvider:
    """Hands out a tracer."""

    def __init__(self, tracer):
        self._tracer = tracer

    def get_tracer(self, *_):
        return self._tracer


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


def test_a_tracer_with_a_method_of_its_own_makes_its_own():
    tracer = sdks()
    tracer.start_span = lambda *_: None
    assert _runtime.tracer_of(OtherProvider(tracer)) is tracer


@pytest.mark.parametrize(("kind", "name"), [(Tracer, "start_span"), (Span, "end"), (Span, "set_attribute")])
def test_where_a_method_of_the_sdk_was_replaced_its_spans_are_used(monkeypatch, kind, name):
    monkeypatch.setattr(kind, name, lambda *_, **__: None)
    assert not isinstance(_runtime.tracer_of(TracerProvider(shutdown_on_exit=False)), LazyTracer)


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
