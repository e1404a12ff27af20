"""What one operation records of exceptions: each of them once, the same in its span and in what is measured."""

from __future__ import annotations

import contextvars
import gc
import threading
import weakref

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import NoOpHistogram
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshmw._lifecycle.http import HttpOperation, MeasuredHttpOperation
from meshmw._lifecycle.http_conventions import Measurement
from meshmw._lifecycle.operation import Operation, OperationScope


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def span(exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("test").start_span("work")


@pytest.mark.parametrize("make", [Operation, lambda span, context: HttpOperation(span, context, "GET")])
class TestExceptions:
    def test_each_of_several_is_recorded(self, make, span, exporter):
        operation = make(span, Context())
        for number in range(5):
            try:
                # Freed before the next is raised, which then takes its place in memory.
                raise ValueError(str(number))
            except ValueError as error:
                operation.fail(error)
        operation.end()
        (ended,) = exporter.get_finished_spans()
        assert [event.attributes["exception.message"] for event in ended.events] == ["0", "1", "2", "3", "4"]

    def test_the_same_one_is_recorded_once(self, make, span, exporter):
        operation, error = make(span, Context()), LookupError("tea")
        operation.fail(error)
        operation.fail(error)
        operation.end()
        operation.fail(error)
        (ended,) = exporter.get_finished_spans()
        assert len(ended.events) == 1

    def test_none_is_held_once_the_operation_has_ended(self, make, span):
        class Failure(Exception):
            pass

        operation, error = make(span, Context()), Failure()
        gone = weakref.ref(error)
        operation.fail(error)
        operation.end()
        del error
        gc.collect()
        assert gone() is None


@pytest.mark.parametrize("answered_first", [True, False])
def test_the_span_and_what_is_measured_name_the_same_error(answered_first, span, exporter):
    """A framework that answers 500 by itself tells of the exception before it answers; others raise it afterwards."""
    recorded = []
    histogram = NoOpHistogram("h")
    histogram.record = lambda seconds, labels, context: recorded.append(labels)
    measurement = Measurement(histogram, {"http.request.method": "GET"})
    operation = MeasuredHttpOperation(span, Context(), "GET", None, measurement)
    if answered_first:
        operation.status(500, error_from=500)
        operation.fail(KeyError())
    else:
        operation.fail(KeyError())
        operation.status(500, error_from=500)
    operation.end()
    (ended,) = exporter.get_finished_spans()
    assert [ended.attributes["error.type"]] == [labels["error.type"] for labels in recorded] == ["KeyError"]


class TestScopes:
    def enter(self, span):
        scope = OperationScope(lambda: Operation(span, trace.set_span_in_context(span, Context())))
        scope.__enter__()
        return scope

    def test_a_block_that_nobody_leaves_ends_when_nobody_can(self, span, exporter):
        def go():
            self.enter(span)
            return trace.get_current_span()

        assert contextvars.copy_context().run(go) is trace.INVALID_SPAN
        assert len(exporter.get_finished_spans()) == 1

    def test_a_block_that_another_thread_leaves_logs_no_error(self, span, exporter, caplog):
        def go():
            scope = self.enter(span)
            thread = threading.Thread(target=scope.__exit__, args=(None, None, None))
            thread.start()
            thread.join()

        contextvars.copy_context().run(go)
        assert len(exporter.get_finished_spans()) == 1
        assert "detach" not in caplog.text
