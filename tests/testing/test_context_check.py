"""The strict-context check catches what is left attached, wherever that is."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import opentelemetry.context as otel_context
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from meshmw.testing import strict_context


@pytest.fixture
def span():
    return TracerProvider().get_tracer("t").start_span("checkout")


def attach_for_ever(span):
    return otel_context.attach(trace.set_span_in_context(span))


def test_a_leak_names_the_span_and_the_code_that_attached_it(span):
    before = otel_context.get_current()
    with pytest.raises(AssertionError, match="still attached: span 'checkout'") as caught, strict_context():
        attach_for_ever(span)
    assert "in attach_for_ever" in str(caught.value)
    assert "/meshmw/testing/_context_check.py" not in str(caught.value)
    assert otel_context.get_current() == before


def test_a_leaked_remote_parent_is_named_by_its_id():
    remote = NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1)))
    with pytest.raises(AssertionError, match=r"span 'of a remote parent' \(0{15}2\)"), strict_context():
        attach_for_ever(remote)


def test_a_leak_on_another_thread_is_caught(span):
    with (
        pytest.raises(AssertionError, match="span 'checkout'"),
        strict_context(),
        ThreadPoolExecutor() as pool,
    ):
        pool.submit(attach_for_ever, span)


def test_a_token_with_which_the_variable_was_reset_is_no_leak(span):
    with strict_context():
        token = attach_for_ever(span)
        token.var.reset(token)


def test_another_thread_may_finish_what_it_does(span):
    attached, finish = threading.Event(), threading.Event()

    def export():
        token = attach_for_ever(span)
        attached.set()
        finish.wait(30)
        otel_context.detach(token)

    thread = threading.Thread(target=export)
    with strict_context():
        thread.start()
        attached.wait(30)
        threading.Timer(0.05, finish.set).start()
    thread.join()


def test_a_detach_in_another_context_is_caught(span, caplog):
    with pytest.raises(AssertionError, match=r"Failed to detach context \((.|\n)*span 'checkout'"), strict_context():
        otel_context.detach(copy_context().run(attach_for_ever, span))
    assert "Failed to detach context" in caplog.text


def test_a_detach_of_what_was_attached_before_is_caught(caplog):
    token = copy_context().run(attach_for_ever, trace.INVALID_SPAN)
    with pytest.raises(AssertionError, match="attached before this check began"), strict_context():
        otel_context.detach(token)


def test_a_context_detached_below_its_start_is_caught():
    token = otel_context.attach(otel_context.set_value("colour", "red"))
    with (
        pytest.raises(AssertionError, match=r"another than before: no span, keys \[\], was no span, keys \['colour'\]"),
        strict_context(),
    ):
        otel_context.detach(token)
    assert otel_context.get_value("colour") == "red"
    otel_context.attach(otel_context.Context())


def test_an_exception_of_the_block_passes_and_the_context_is_restored(span):
    before, runtime = otel_context.get_current(), otel_context._RUNTIME_CONTEXT
    with pytest.raises(TypeError), strict_context():
        len(attach_for_ever(span))
    assert otel_context.get_current() == before
    assert otel_context._RUNTIME_CONTEXT is runtime


def test_a_block_that_cleans_up_passes(span):
    with strict_context(), trace.use_span(span):
        assert trace.get_current_span() is span


@pytest.mark.asyncio
async def test_a_task_that_leaks_is_caught(span):
    async def task():
        attach_for_ever(span)

    with pytest.raises(AssertionError, match="span 'checkout'"), strict_context():
        await asyncio.create_task(task())


@pytest.mark.asyncio
async def test_tasks_that_clean_up_pass(span):
    async def task():
        with trace.use_span(span):
            await asyncio.sleep(0)

    with strict_context():
        await asyncio.gather(task(), task())
