"""What `meshmw._otel` assumes of OpenTelemetry: one test for each private name, with the real package.

A release that breaks an assumption fails here, with a message that names it. Each function is also shown without the
name, where it must fall back and hurt nobody.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
import threading
from importlib.metadata import version
from types import SimpleNamespace

import opentelemetry.context as otel_context
import pytest
import requests
import wrapt
from opentelemetry import baggage, trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as sdk_encode_spans
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.metrics import Counter, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ConsoleMetricExporter,
    InMemoryMetricReader,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import SumAggregation
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from opentelemetry.trace import TraceState as OTelTraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from meshmw import _otel, _otel_exporters
from meshmw._lifecycle.operation import StandDown, is_suppressed
from meshmw._otel import W3CTraceState
from meshmw._telemetry.otlp import request_bytes
from meshmw._telemetry.span import UNKNOWN, plain_size
from meshmw.wire import TraceState
from tests.programs import run_parts

SPAN = NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1)))


def test_the_module_loads_no_sdk():
    run_parts("import sys, meshmw._otel; assert 'opentelemetry.sdk' not in sys.modules")


class TestContext:
    def test_a_span_in_a_context_has_one_key(self):
        context = Context({_otel.SPAN_KEY: SPAN})
        assert trace.get_current_span(context) is SPAN, "a span is no longer under the key that a context shows"
        assert trace.set_span_in_context(SPAN, Context()) == context

    def test_baggage_in_a_context_has_one_key_and_is_a_mapping(self):
        context = Context({_otel.BAGGAGE_KEY: {"a": "1"}})
        assert baggage.get_all(context) == {"a": "1"}, "baggage is no longer under the key that a context shows"
        assert baggage.set_baggage("a", "1", Context()) == context

    def test_contribs_packages_look_for_this_key_before_they_do_anything(self):
        utils = pytest.importorskip("opentelemetry.instrumentation.utils")
        token = attach(Context({_otel.SUPPRESS_KEY: True}))
        try:
            assert not utils.is_instrumentation_enabled(), f"contrib no longer stands back for {_otel.SUPPRESS_KEY!r}"
        finally:
            detach(token)
        assert utils.is_instrumentation_enabled()


@pytest.mark.parametrize("suppress", ["suppress_instrumentation", "suppress_http_instrumentation"])
def test_what_contrib_suppresses_is_suppressed_for_us(suppress):
    utils = importlib.import_module("opentelemetry.instrumentation.utils")
    assert not is_suppressed(Context())
    with getattr(utils, suppress)():
        around = otel_context.get_current()
        assert is_suppressed(around, http=True), f"{suppress}() of contrib no longer writes the keys we look for"
        assert is_suppressed(around) is (suppress == "suppress_instrumentation")


def test_what_the_sdks_exporters_suppress_is_suppressed_for_us():
    found = []
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter := InMemorySpanExporter()))
    exporter.export = lambda spans: found.append(is_suppressed(otel_context.get_current()))
    provider.get_tracer("app").start_span("work").end()
    assert found == [True], "the SDK no longer suppresses instrumentation around an export"


def test_what_we_say_to_others_further_in_says_nothing_to_us():
    assert not is_suppressed(Context({_otel.SUPPRESS_KEY: StandDown()}))


def test_contribs_servers_are_known_by_their_modules_when_they_ask(monkeypatch):
    utils = importlib.import_module("opentelemetry.instrumentation.utils")
    assert _otel.IS_CONTRIB_LOADED()
    found = []

    class Asked(StandDown):
        def __bool__(self):
            found.append(_otel.is_asked_by_server())
            return False

    async def app(scope, receive, send):
        pass

    token = attach(Context({_otel.SUPPRESS_HTTP_KEY: Asked()}))
    try:
        asgi = importlib.import_module("opentelemetry.instrumentation.asgi")
        asyncio.run(asgi.OpenTelemetryMiddleware(app)({"type": "http", "method": "GET", "path": "/"}, None, None))
        assert found == [True], "contrib's ASGI middleware no longer asks by its utils, from a module of that name"
        assert utils.is_http_instrumentation_enabled()
    finally:
        detach(token)
    assert found == [True, False]
    monkeypatch.delitem(sys.modules, "opentelemetry.instrumentation.utils")
    assert not _otel.IS_CONTRIB_LOADED()


def test_what_an_exception_event_says_can_be_changed_once_the_span_has_ended():
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with pytest.raises(KeyError), provider.get_tracer("app").start_as_current_span("work") as span:
        span.add_event("other", {"exception.message": "stays"})
        raise KeyError("s3cret")
    (ended,) = exporter.get_finished_spans()
    (said,) = _otel.exception_events(ended)
    said["exception.message"] = "REDACTED"
    assert [event.attributes["exception.message"] for event in ended.events] == ["stays", "REDACTED"], (
        "the SDK no longer keeps the attributes of an event in `_dict`"
    )
    assert (
        list(_otel.exception_events(SimpleNamespace(events=[SimpleNamespace(name="exception", attributes={})]))) == []
    )


def test_the_text_of_a_status_can_be_changed_once_the_span_has_ended():
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with pytest.raises(KeyError), provider.get_tracer("app").start_as_current_span("work"):
        raise KeyError("s3cret")
    (ended,) = exporter.get_finished_spans()
    _otel.change_status_text(ended, str.upper)
    assert ended.status.description == "KEYERROR: 'S3CRET'", "the SDK no longer keeps a status' text in `_description`"
    _otel.change_status_text(SimpleNamespace(status=None), str.upper)


def test_names_that_no_message_holds_are_escaped_once_the_span_has_ended():
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for name in ("half \ud83d", "a whole one \U0001f600", "plain"):
        span = provider.get_tracer("app").start_span(name)
        span.add_event(name)
        span.end()
    for ended in exporter.get_finished_spans():
        _otel.make_encodable(ended)
    names = [(ended.name, ended.events[0].name) for ended in exporter.get_finished_spans()]
    assert names == [("half \\ud83d",) * 2, ("a whole one \U0001f600",) * 2, ("plain",) * 2]
    _otel.make_encodable(SimpleNamespace(events=()))


def test_what_the_encoder_raises_is_told_from_others():
    with pytest.raises(Exception) as raised:  # noqa: PT011
        sdk_encode_spans([SimpleNamespace(get_span_context=lambda: 1)])
    assert _otel_exporters.is_unwritable(raised.value)
    with pytest.raises(ValueError, match="no such") as raised:
        raise ValueError("no such channel")
    assert not _otel_exporters.is_unwritable(raised.value)
    # The group of such a resource cannot be found, whoever writes.
    with pytest.raises(TypeError, match="unhashable") as raised:
        request_bytes([ReadableSpan("s", SpanContext(1, 1, False), resource=[], start_time=1, end_time=2)])
    assert _otel_exporters.is_unwritable(raised.value)


def test_an_exporter_that_makes_its_client_otherwise_is_not_watched():
    _otel_exporters.watch_answers(exporter := SimpleNamespace(), print, print)
    assert exporter == SimpleNamespace()


def encode_spans(spans):
    return pytest.fail("the SDK's encoder was called")


def other_encoder(spans):
    return "encoded"


class OverHttp:
    def export(self, spans):
        return encode_spans(spans).SerializePartialToString()


class Otherwise:
    def export(self, spans):
        return other_encoder(spans)


class InC:
    export = len


def test_an_exporter_sends_what_is_written_for_it():
    _otel_exporters.write_by(exporter := OverHttp(), lambda spans: b"written", 9)
    assert _otel_exporters.room_of(exporter) == 9
    assert exporter.export([]) == b"written"
    with pytest.raises(pytest.fail.Exception):
        OverHttp().export([])


def test_an_exporter_keeps_the_defaults_of_its_arguments():
    class Later:
        def export(self, spans, timeout=3, *, retry=True):
            return encode_spans(spans), timeout, retry

    _otel_exporters.write_by(exporter := Later(), lambda spans: b"written", 9)
    assert exporter.export([])[1:] == (3, True)


@pytest.mark.parametrize("kind", [Otherwise, InC])
def test_an_exporter_that_encodes_otherwise_goes_on_as_it_is(kind):
    _otel_exporters.write_by(exporter := kind(), pytest.fail, 9)
    assert _otel_exporters.room_of(exporter) == 0
    assert vars(exporter) == {}


@pytest.mark.parametrize(
    ("trailers", "expected"),
    [((("google.rpc.retryinfo-bin", b""),), True), ((("other", ""),), False), ((), False), (None, False)],
)
def test_who_asks_to_wait_says_so_in_a_trailer(trailers, expected):
    assert _otel_exporters.asks_to_wait(SimpleNamespace(trailing_metadata=lambda: trailers)) is expected
    assert not _otel_exporters.asks_to_wait(ValueError())


def test_what_grpc_says_of_a_failed_call():
    assert _otel_exporters.words_of(SimpleNamespace(code=lambda: "CODE", details=lambda: "why")) == "CODE, why"
    assert _otel_exporters.words_of(ValueError("why")) == ""


def test_contribs_wrappers_are_passed_by_and_those_of_others_are_not():
    def contribs(wrapped, _, args, kwargs):
        return "contrib"

    def anothers(wrapped, _, args, kwargs):
        return "another"

    contribs.__module__ = "opentelemetry.instrumentation.kafka.utils"

    class Client:
        def send(self):
            return "client"

    class Wrapped(Client):
        send = wrapt.FunctionWrapper(wrapt.FunctionWrapper(Client.send, contribs), contribs)

    class WrappedByAnother(Client):
        send = wrapt.FunctionWrapper(Wrapped.send, anothers)

    assert Wrapped().send() == "contrib"
    assert _otel.past_contrib(Wrapped().send)() == "client"
    assert _otel.past_contrib(WrappedByAnother().send)() == "another"
    assert _otel.past_contrib(Client().send)() == "client"


def test_contribs_function_in_the_place_of_that_of_requests_is_passed_by():
    send = requests.Session.send
    RequestsInstrumentor().instrument()
    try:
        assert requests.Session.send is not send
        assert _otel.past_contrib(requests.Session.send) is send
    finally:
        RequestsInstrumentor().uninstrument()


class TestTraceState:
    """OpenTelemetry's `TraceState` keeps its members in `_dict`, and reads there."""

    STATE = W3CTraceState(TraceState((("0tenant", "1"), ("b", "2"))))

    def test_its_own_constructor_refuses_keys_of_level_2(self):
        assert len(OTelTraceState([("0tenant", "1")])) == 0, "it takes them now: the subclass may go"

    def test_its_inherited_methods_see_the_members(self):
        message = "OpenTelemetry's TraceState no longer reads its members in `_dict`"
        assert list(self.STATE.items()) == [("0tenant", "1"), ("b", "2")], message
        assert (self.STATE["b"], self.STATE.get("c"), "b" in self.STATE, len(self.STATE)) == ("2", None, True, 2)

    def test_its_own_constructor_fills_the_same_attribute(self):
        assert dict(OTelTraceState([("a", "1")])._dict) == {"a": "1"}, "TraceState has no `_dict` any more"


class TestLoggers:
    # The exporter for HTTP retries in here as of 1.45.
    NEW = "opentelemetry.exporter.otlp.common.http"

    @pytest.mark.parametrize("name", _otel_exporters.EXPORTER_LOGGERS)
    def test_each_is_the_logger_of_a_module_that_is_there(self, name):
        if name == self.NEW and tuple(map(int, version("opentelemetry-sdk").split(".")[:2])) < (1, 45):
            pytest.skip("this OpenTelemetry is older")
        importlib.import_module(name)
        assert isinstance(logging.root.manager.loggerDict.get(name), logging.Logger), f"nothing logs as {name} any more"

    def test_an_attribute_that_cannot_be_encoded_is_said_by_the_encoders(self, caplog):
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

        provider = TracerProvider(shutdown_on_exit=False)
        (span := provider.get_tracer("t").start_span("s", attributes={"odd": "half a pair: \ud800"})).end()
        encode_spans([span])
        loggers = {record.name for record in caplog.records}
        assert loggers == {_otel_exporters.ENCODER_LOGGER}, "the encoder has another logger"


class TestProxies:
    """What is made before there is a provider stands for what comes later. Providers are set once in a process."""

    def test_an_instrument_keeps_the_real_one_in_real_instrument(self):
        run_parts(
            """
            from opentelemetry import metrics
            from opentelemetry.sdk.metrics import MeterProvider
            from meshmw._otel import liveness_of
            counter = metrics.get_meter("t").create_counter("c")
            assert not liveness_of(counter)(), "an instrument without a provider keeps no None in `_real_instrument`"
            metrics.set_meter_provider(MeterProvider())
            assert liveness_of(counter)(), "an instrument no longer keeps the real one in `_real_instrument`"
            """
        )

    def test_an_instrument_of_a_provider_is_live_and_so_is_one_without_the_name(self):
        assert _otel.liveness_of(MeterProvider(shutdown_on_exit=False).get_meter("t").create_counter("c"))()
        assert _otel.liveness_of(object())()

    def test_what_stands_for_a_meter_provider_is_known_by_its_class(self):
        run_parts(
            """
            from opentelemetry import metrics
            from opentelemetry.sdk.metrics import MeterProvider
            from meshmw._otel import has_meter_provider
            assert not has_meter_provider(), "what stands for a provider is no longer a `_ProxyMeterProvider`"
            metrics.set_meter_provider(MeterProvider())
            assert has_meter_provider()
            """
        )


class TestPartsOfAPropagator:
    def test_a_composite_keeps_them_in_propagators(self):
        parts = [TraceContextTextMapPropagator(), TraceContextTextMapPropagator()]
        message = "a CompositePropagator no longer keeps its parts in `_propagators`"
        assert _otel.parts_of(CompositePropagator(parts)) == tuple(parts), message

    @pytest.mark.parametrize("parts", [{}, {"_propagators": 7}, {"_propagators": "text"}])
    def test_another_has_none_whatever_it_has_under_that_name(self, parts):
        assert _otel.parts_of(type("Other", (), parts)()) == ()


@pytest.fixture
def provider():
    provider = TracerProvider(shutdown_on_exit=False)
    yield provider
    provider.shutdown()


LONG_STATE = trace.SpanContext(1, 1, True, trace.TraceFlags(1), trace.TraceState([(f"k{n}", "v") for n in range(4)]))


class TestSpanProcessors:
    def test_a_providers_exporters_are_found(self, provider):
        batching, simple = InMemorySpanExporter(), InMemorySpanExporter()
        bare = SpanProcessor()
        for each in (BatchSpanProcessor(batching), SimpleSpanProcessor(simple), bare):
            provider.add_span_processor(each)
        message = "one of `_active_span_processor`, `_span_processors`, `_batch_processor`, `_exporter` is gone"
        assert list(_otel.exporters_of(provider)) == [batching, simple, bare], message

    def test_a_provider_without_these_names_has_none(self):
        assert list(_otel.exporters_of(trace.NoOpTracerProvider())) == []

    def test_the_sdk_announces_a_spans_end_by_on_ending(self, provider):
        announced = []

        class Processor(SpanProcessor):
            def _on_ending(self, span):
                announced.append(span.name)

        provider.add_span_processor(Processor())
        provider.get_tracer("t").start_span("s").end()
        assert announced == ["s"], "the SDK no longer calls `_on_ending`"
        _otel.announce_ending(Processor(), type("Span", (), {"name": "again"}))
        assert announced == ["s", "again"]

    def test_a_processor_without_on_ending_is_told_nothing(self):
        _otel.announce_ending(object(), SPAN)

    def test_a_step_that_the_base_class_leaves_out_is_known(self):
        class Starting(SpanProcessor):
            def on_start(self, span, parent_context=None):
                pass

        class Ending(SpanProcessor):
            def _on_ending(self, span):
                pass

        message = "the SDK no longer calls `_on_ending`"
        assert hasattr(SpanProcessor, "_on_ending"), message
        for processor, starts, ends in ((Starting(), True, False), (Ending(), False, True), (object(), False, False)):
            assert _otel.overrides(processor, SpanProcessor, "on_start") is starts
            assert _otel.overrides(processor, SpanProcessor) is ends, message

    def test_a_simple_span_is_measured_by_private_names(self, provider):
        ended = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(ended))
        tracer = provider.get_tracer("t")
        tracer.start_span("name", attributes={"key": "value", "n": 1}).end()
        tracer.start_span("name" * 250, attributes={"k" * 1_000: "v" * 1_000}).end()
        with tracer.start_as_current_span(
            "name", links=[trace.Link(SPAN.get_span_context(), {"key": "v" * 500})]
        ) as span:
            span.add_event("e" * 500, {"key": "v" * 500})
        link = trace.Link(SPAN.get_span_context(), {"key": ("a", "b")})
        for more in ({"attributes": {"key": ("a", "b")}}, {"links": [trace.Link(LONG_STATE)]}, {"links": [link]}):
            tracer.start_span("name", **more).end()
        tracer.start_span("name", trace.set_span_in_context(trace.NonRecordingSpan(LONG_STATE))).end()
        short, long, with_items, *complicated = [plain_size(span) for span in ended.get_finished_spans()]
        assert short < UNKNOWN, "one of `_attributes._dict`, `_events._dq`, `_links._dq`, `_name` is gone"
        assert 100 < short < 400 < 3_000 < long < 3_400
        assert 2_000 < with_items < 3_000
        assert [each >= UNKNOWN for each in complicated] == [True] * 4

    def test_what_is_no_span_of_the_sdk_is_not_simple(self):
        assert plain_size(object()) == UNKNOWN

    def test_what_exports_is_not_traced(self):
        assert not is_suppressed(otel_context.get_current())
        with _otel.suppressed():
            assert is_suppressed(otel_context.get_current())
        assert not is_suppressed(otel_context.get_current())


TRANSIENT = "Transient error StatusCode.RESOURCE_EXHAUSTED encountered while exporting traces to c:1, retrying in 1s."


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Failed to export traces to c:1, error code: StatusCode.RESOURCE_EXHAUSTED, error details: any", True),
        ("Failed to export traces to c:1, error code: StatusCode.OUT_OF_RANGE, error details: length too large", True),
        ("Failed to export traces to c:1, error code: StatusCode.UNKNOWN, error details: with status: 413", True),
        ("Failed to export span batch code: 413, reason: Payload Too Large", True),
        ("Dropping span batch: serialized size 9 bytes exceeds max_request_size 8 bytes.", True),
        (TRANSIENT, True),
        (TRANSIENT.replace("RESOURCE_EXHAUSTED", "UNAVAILABLE"), False),
        ("Failed to export traces to c:1, error code: StatusCode.UNAVAILABLE, error details: 413", False),
        ("Failed to export span batch code: 503, reason: Service Unavailable", False),
    ],
)
def test_a_refusal_for_its_size_is_told_from_others(said, expected):
    assert _otel_exporters.is_too_large(said) is expected


class TestResource:
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
    def test_a_forked_process_keeps_what_is_known(self):
        run_parts(
            """
            import os
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from meshmw._otel import keep_resource_in_forks
            known = Resource({"service.instance.id": "chosen"})
            provider = TracerProvider(resource=Resource.create().merge(known), shutdown_on_exit=False)
            keep_resource_in_forks(provider, known)
            child = os.fork()
            if not child:
                os._exit(provider.resource.attributes["service.instance.id"] != "chosen")
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert status == 0, "the SDK no longer renews a provider's resource by `_update_resource`"
            """
        )

    def test_a_provider_without_the_name_stays_as_it_is(self):
        provider = trace.NoOpTracerProvider()
        _otel.keep_resource_in_forks(provider, None)
        assert vars(provider) == {}


class TestMetricExporters:
    def test_what_an_exporter_prefers_is_where_readers_look(self):
        temporality, aggregation = {Counter: AggregationTemporality.DELTA}, {Counter: SumAggregation()}
        exporter = ConsoleMetricExporter(preferred_temporality=temporality, preferred_aggregation=aggregation)
        message = "exporters have no `_preferred_temporality` or `_preferred_aggregation` any more"
        assert _otel_exporters.preferences_of(exporter) == (temporality, aggregation), message

    def test_an_exporter_without_these_names_leaves_it_to_the_sdk(self):
        exporter = ConsoleMetricExporter(*_otel_exporters.preferences_of(object()))
        reader = PeriodicExportingMetricReader(exporter, export_interval_millis=float("inf"))
        assert reader._instrument_class_temporality == InMemoryMetricReader()._instrument_class_temporality


class TestMetricReaders:
    def test_the_thread_and_the_lock_of_one_that_reads_periodically_are_known(self):
        reader = PeriodicExportingMetricReader(ConsoleMetricExporter(), export_interval_millis=3_600_000)
        message = "a reader has no `_daemon_thread` or `_export_lock` any more"
        assert isinstance(_otel_exporters.ticker_of(reader), threading.Thread), message
        reader._export_lock.acquire()
        _otel_exporters.renew_export_lock(reader)
        assert reader._export_lock.acquire(blocking=False), message
        reader._export_lock.release()
        reader.shutdown()

    def test_without_these_names_nothing_is_done(self):
        assert _otel_exporters.ticker_of(object()) is None
        _otel_exporters.renew_export_lock(None)


class Counting:
    """Counts what the API asks of it."""

    def __init__(self, replaced):
        self.replaced, self.calls = replaced, []

    def __getattr__(self, name):
        self.calls.append(name)
        return getattr(self.replaced, name)


def test_the_api_calls_the_runtime_context_that_is_set():
    before = _otel.runtime_context()
    counting = Counting(before)
    _otel.set_runtime_context(counting)
    try:
        detach(attach(otel_context.get_current()))
    finally:
        _otel.set_runtime_context(before)
    assert counting.calls == ["get_current", "attach", "detach"]
    assert _otel.runtime_context() is before


def test_without_the_name_there_is_no_runtime_context(monkeypatch):
    with monkeypatch.context() as without:
        without.delattr(otel_context, "_RUNTIME_CONTEXT")
        assert _otel.runtime_context() is None
