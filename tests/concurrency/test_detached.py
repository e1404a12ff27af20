"""Detached and linked work: nothing of the request goes with it, but a link where one is asked for."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context, create_key
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from meshmw import __version__, _runtime
from meshmw._context.current import Current
from meshmw.concurrency import ThreadPoolExecutor, bind, detached, linked
from meshmw.propagator import MeshPropagator
from meshmw.testing._spans import from_sdk

pytestmark = pytest.mark.usefixtures("strict_context")

KEY = create_key("other")
PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"
ORIGIN = ("ab" * 16, "cd" * 8)


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider.get_tracer("test")
    provider.shutdown()


def request():
    """Return a block that is a request with a parent, baggage and a header to pass on."""
    headers = {"traceparent": PARENT, "baggage": "user=7", "x-request-id": "id-7"}
    return Current(MeshPropagator().extract(headers, Context({KEY: "other"})))


def nothing_of_the_request():
    headers = {}
    MeshPropagator().inject(headers)
    found = trace.get_current_span().get_span_context().is_valid, dict(baggage.get_all()), headers
    return found == (False, {}, {}) and otel_context.get_value(KEY) == "other"


def span_of(exporter):
    (span,) = exporter.get_finished_spans()
    return from_sdk(span)


def links(span):
    return [(link.trace_id, link.span_id, link.attributes) for link in span.links]


class TestDetached:
    def test_in_the_block_there_is_nothing_of_the_request_and_after_it_all_again(self):
        with request():
            before = otel_context.get_current()
            with detached() as nothing:
                assert nothing is None
                assert nothing_of_the_request()
            assert otel_context.get_current() is before

    def test_the_context_keeps_all_but_what_belongs_to_a_request(self):
        with request(), detached():
            assert otel_context.get_current() == {KEY: "other"}

    def test_as_a_decorator_it_is_a_block_for_each_call(self):
        @detached()
        def work(depth):
            """Works."""
            return nothing_of_the_request() and (depth == 0 or work(depth - 1))

        with request():
            assert work(2)
        assert (work.__name__, work.__doc__) == ("work", "Works.")

    def test_a_coroutine_is_detached_until_its_end_and_its_caller_never(self):
        @detached()
        async def work():
            await asyncio.sleep(0)
            return nothing_of_the_request()

        async def main():
            with request():
                tasks = [asyncio.create_task(work()) for _ in range(2)]
                assert not nothing_of_the_request()
                return [await task for task in tasks], await work()

        assert asyncio.iscoroutinefunction(work)
        assert asyncio.run(main()) == ([True, True], True)

    def test_a_span_in_it_begins_a_new_trace_without_a_link(self, tracer, exporter):
        with request(), detached(), tracer.start_as_current_span("work"):
            pass
        span = span_of(exporter)
        assert (span.parent_id, span.trace_id == ORIGIN[0], links(span)) == ("", False, [])

    def test_generator_functions_are_refused(self):
        def generator():
            yield

        async def async_generator():
            yield

        class Object:
            def __call__(self):
                yield

        for fn in generator, async_generator, Object():
            with pytest.raises(TypeError, match="a generator would take its consumer into the block"):
                detached()(fn)

    def test_one_block_cannot_be_entered_twice_at_once_but_again(self):
        block = detached()
        with block, pytest.raises(RuntimeError, match="entered already"):
            block.__enter__()
        with block:
            pass


class TestLinked:
    def test_it_is_a_new_trace_whose_root_links_to_the_request(self, tracer, exporter):
        with request():
            with linked("work", kind=SpanKind.CONSUMER, attributes={"n": 1}, tracer=tracer) as span:
                assert trace.get_current_span() is span
                assert (baggage.get_all(), otel_context.get_value(KEY)) == ({}, "other")
                assert not exporter.get_finished_spans()
            assert trace.get_current_span().get_span_context().span_id == int(ORIGIN[1], 16)
        span = span_of(exporter)
        assert (span.name, span.kind, span.parent_id, span.attributes) == ("work", "CONSUMER", "", {"n": 1})
        assert span.trace_id != ORIGIN[0]
        assert links(span) == [(*ORIGIN, {"meshmw.link": "origin"})]

    def test_without_an_origin_there_is_no_link(self, tracer, exporter):
        with linked("work", tracer=tracer):
            pass
        assert links(span_of(exporter)) == []

    def test_a_task_outlives_its_request_and_stays_linked_to_it(self, tracer, exporter):
        @linked("work", tracer=tracer)
        async def work(request_is_over):
            await request_is_over.wait()
            return trace.get_current_span().get_span_context().trace_id

        async def main():
            request_is_over = asyncio.Event()
            with request():
                task = asyncio.create_task(work(request_is_over))
            await asyncio.sleep(0)
            request_is_over.set()
            return await task

        trace_id = asyncio.run(main())
        span = span_of(exporter)
        assert span.trace_id == f"{trace_id:032x}"
        assert [link[:2] for link in links(span)] == [ORIGIN]

    def test_a_thread_is_linked_to_whoever_submitted_or_bound(self, tracer, exporter):
        work = linked("work", tracer=tracer)(lambda: None)
        with ThreadPoolExecutor(1) as ours, concurrent.futures.ThreadPoolExecutor(1) as standard, request():
            ours.submit(work).result(60)
            standard.submit(bind(work)).result(60)
            standard.submit(work).result(60)
        found = [[link[:2] for link in links(from_sdk(span))] for span in exporter.get_finished_spans()]
        assert found == [[ORIGIN], [ORIGIN], []]

    def test_an_exception_is_recorded_and_passes_unchanged(self, tracer, exporter):
        error = ValueError("from the work")
        with request(), pytest.raises(ValueError, match="from the work") as raised, linked("work", tracer=tracer):
            raise error
        assert raised.value is error
        span = span_of(exporter)
        assert (span.status, span.attributes["error.type"]) == ("ERROR", "ValueError")
        assert [event.name for event in span.events] == ["exception"]

    def test_cancellation_ends_the_span_and_is_no_error(self, tracer, exporter):
        @linked("work", tracer=tracer)
        async def work():
            await asyncio.sleep(60)

        async def main():
            task = asyncio.create_task(work())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert span_of(exporter).status == "UNSET"

    def test_a_coroutine_that_nobody_finishes_ends_its_span(self, tracer, exporter):
        @linked("work", tracer=tracer)
        async def work():
            await never()

        class never:
            def __await__(self):
                yield

        coroutine = work()
        coroutine.send(None)
        coroutine.close()
        del coroutine
        gc.collect()
        assert span_of(exporter).status == "UNSET"

    def test_each_call_is_a_trace_of_its_own(self, tracer, exporter):
        @linked("work", tracer=tracer)
        def work():
            pass

        with request():
            work()
            work()
        assert len({span.context.trace_id for span in exporter.get_finished_spans()}) == 2

    def test_what_it_calls_gets_the_new_trace_and_no_baggage(self, tracer):
        with request(), linked("work", tracer=tracer) as span:
            headers = {}
            MeshPropagator().inject(headers)
        assert "baggage" not in headers
        assert f"{span.get_span_context().trace_id:032x}" in headers["traceparent"]

    def test_the_global_provider_is_the_default(self):
        with linked("work") as span:
            assert not span.is_recording()

    def test_the_scope_of_its_span_is_this_package_in_its_version(self, exporter, monkeypatch):
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        monkeypatch.setattr(_runtime, "TRACER", _runtime.tracer_of(provider))
        with linked("work"):
            pass
        (span,) = exporter.get_finished_spans()
        assert (span.instrumentation_scope.name, span.instrumentation_scope.version) == ("meshmw", __version__)
