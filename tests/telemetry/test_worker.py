"""Exporting goes on whatever an exporter raises, whatever kills its thread, and wherever the process forks."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import sys
import threading
import time
import types

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from meshmw._telemetry import batching, worker
from meshmw._telemetry.batching import Batching, PromptBatchSpanProcessor
from meshmw._telemetry.bounds import FAIR_BYTES
from meshmw._telemetry.collector import GuardedSpanExporter
from meshmw._telemetry.span import GuardedSpanProcessors
from meshmw._telemetry.worker import Worker, signals_blocked

ENDS = [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError(), MemoryError(), BaseException()]


class Exporter(SpanExporter):
    """Raises what it is told, once, and keeps the names of spans that come later."""

    def __init__(self, error=None):
        self.error, self.names, self.threads, self.batches = error, [], set(), []

    def export(self, spans):
        self.threads.add(threading.current_thread())
        error, self.error = self.error, None
        if error is not None:
            raise error
        self.batches.append(len(spans))
        self.names += [span.name for span in spans]
        return SpanExportResult.SUCCESS

    def shutdown(self):
        pass


@pytest.fixture
def pipeline():
    """Return a function that makes a tracer and its processor, as `configure()` does; they end with the test."""
    made = []

    def make(exporter, queue=2_048, batch=512, delay=600_000):
        processor = PromptBatchSpanProcessor(
            GuardedSpanExporter(exporter, "http://c:1", 60), 60, Batching(queue, batch, delay)
        )
        provider = TracerProvider(shutdown_on_exit=False, active_span_processor=GuardedSpanProcessors(60))
        provider.add_span_processor(processor)
        made.append(provider)
        return provider.get_tracer("t"), processor

    yield make
    for provider in made:
        provider.shutdown()


def wait_until(done):
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("error", ENDS, ids=repr)
def test_what_an_exporter_raises_ends_one_export_and_no_more(error, pipeline, caplog):
    exporter = Exporter(error)
    tracer, processor = pipeline(exporter, delay=1)
    tracer.start_span("lost").end()
    wait_until(lambda: processor.collector.spans_lost)
    tracer.start_span("kept").end()
    wait_until(lambda: exporter.names)
    assert exporter.names == ["kept"]
    assert (processor.collector.spans_lost, processor.collector.exports_failed) == (1, 1)
    assert repr(error) in caplog.text
    assert "requests are unaffected" in caplog.text


@pytest.mark.parametrize("error", ENDS, ids=repr)
def test_nor_does_it_reach_whoever_flushes(error, pipeline):
    exporter = Exporter(error)
    tracer, processor = pipeline(exporter)
    tracer.start_span("lost").end()
    processor.force_flush()
    tracer.start_span("kept").end()
    assert processor.force_flush()
    assert exporter.names == ["kept"]
    assert threading.current_thread() not in exporter.threads


class Hidden(Exception):
    """A failure of one export, as of a collector that is away."""


@pytest.mark.parametrize(("error", "whole"), [(Hidden(), True), (SystemExit(1), False)])
def test_a_flush_that_something_ended_is_none(error, whole, pipeline):
    tracer, processor = pipeline(exporter := Exporter(error), batch=1)
    processor._worker.wake = lambda: None
    for name in ("lost", "kept"):
        tracer.start_span(name).end()
    assert processor.force_flush() is whole
    assert processor.force_flush()
    assert exporter.names == ["kept"]


def test_what_interrupts_a_flush_is_the_callers(pipeline, monkeypatch):
    _, processor = pipeline(Exporter())

    class Interrupted(threading.Event):
        def wait(self, timeout=None):
            raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(worker.threading, "Event", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            processor.force_flush()


def test_it_is_said_once_in_a_window(pipeline, caplog):
    exporter = Exporter()
    tracer, processor = pipeline(exporter)
    for _ in range(3):
        exporter.error = SystemExit(1)
        tracer.start_span("lost").end()
        processor.force_flush()
    assert [message.partition(" ")[0] for message in caplog.messages] == ["spans", "the"]


def kill(thread, error=SystemExit):
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(error))


def test_a_thread_that_somebody_kills_goes_on(pipeline, caplog):
    exporter = Exporter()
    tracer, processor = pipeline(exporter, delay=5)
    kill(processor._worker._thread)
    wait_until(lambda: caplog.messages)
    tracer.start_span("kept").end()
    wait_until(lambda: exporter.names)
    assert caplog.messages == [
        "the thread that exports was to be ended by SystemExit(); it goes on, without what it was exporting"
    ]


class Deadly(logging.Filter):
    def filter(self, record):
        raise SystemExit


@pytest.fixture
def deadly_log():
    """Have our logger kill whoever logs."""
    deadly = Deadly()
    logging.getLogger("meshmw").addFilter(deadly)
    yield
    logging.getLogger("meshmw").removeFilter(deadly)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.usefixtures("deadly_log")
def test_a_thread_that_is_killed_while_it_warns_is_followed_by_another(pipeline):
    exporter = Exporter(SystemExit())
    tracer, processor = pipeline(exporter, delay=5)
    first = processor._worker._thread
    tracer.start_span("lost").end()
    first.join(60)
    tracer.start_span("kept").end()
    wait_until(lambda: exporter.names)
    assert processor._worker._thread is not first


def dead(call):
    """Return a worker whose thread is gone, without a word."""
    found = Worker(call, 600, 60)
    calls, found._calls = found._calls, worker.queue.SimpleQueue()
    calls.put(None)
    found._thread.join(60)
    assert not found._thread.is_alive()
    return found


@pytest.mark.parametrize("ask", [lambda found: found.flush(60), lambda found: found.end(60)], ids=["flush", "end"])
def test_whoever_asks_a_thread_that_is_gone_starts_it_again(ask):
    asked = []
    found = dead(asked.append)
    asked.clear()
    ask(found)
    assert asked == [True]
    found.end(60)


def test_so_does_a_full_queue():
    asked = []
    found = dead(asked.append)
    asked.clear()
    for _ in range(3):
        found.wake()
    found.end(60)
    # The last time everything that waits is asked for.
    assert True in asked


def test_where_no_thread_starts_nobody_waits_for_one(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    found = dead(lambda everything: None)
    with monkeypatch.context() as without:
        without.setattr(threading.Thread, "start", start)
        assert found.flush(60) is False
        found.end(60)
    found.renew()
    assert not found._thread.is_alive()


def test_an_exporter_that_hangs_for_ever_holds_nobody_up(pipeline):
    never, under_way = threading.Event(), threading.Event()
    exporter = Exporter()
    exporter.export = lambda spans: under_way.set() or never.wait()
    tracer, processor = pipeline(exporter)
    tracer.start_span("s").end()
    assert processor.force_flush(10) is False
    assert under_way.wait(60)
    processor.shutdown_seconds = 0.01
    processor.shutdown()
    assert processor.force_flush(10) is False
    never.set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.parametrize("told", [True, False], ids=["told", "behind Python's back"])
def test_a_forked_process_exports_its_own_spans_alone(told, run_program):
    fork = "os.fork" if told else "ctypes.PyDLL(None).fork"
    program = run_program(
        f"""
        import ctypes, os
        from opentelemetry.sdk.trace.export import SpanExportResult
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        def export(self, spans):
            os.write(1, (" ".join(span.name for span in spans) + "\\n").encode())
            return SpanExportResult.SUCCESS
        OTLPSpanExporter.export = export
        telemetry = configure(Settings(endpoint="127.0.0.1:9"))
        tracer = trace.get_tracer("t")
        tracer.start_span("parent").end()
        child = {fork}()
        if not child:
            tracer.start_span("child").end()
            telemetry.force_flush()
            os._exit(0)
        os.waitpid(child, 0)
        telemetry.shutdown()
        """,
        strict=False,
        OTEL_BSP_SCHEDULE_DELAY="600000",
    )
    assert program.stdout == "child\nparent\n", program.stderr


def test_a_process_that_ends_while_an_exporter_hangs_ends(run_program):
    program = run_program(
        """
        import threading
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        OTLPSpanExporter.export = lambda self, spans: threading.Event().wait()
        configure(Settings(endpoint="127.0.0.1:9"))
        trace.get_tracer("t").start_span("s").end()
        print("ended")
        """
    )
    assert (program.returncode, program.stdout) == (0, "ended\n"), program.stderr


class TestBytes:
    def test_a_batch_is_cut_by_bytes(self, pipeline):
        exporter = Exporter()
        tracer, processor = pipeline(exporter)
        for _ in range(300):
            tracer.start_span("s", attributes={"body": "b" * 9_000}).end()
        assert processor.force_flush()
        assert sum(exporter.batches) == 300
        assert max(exporter.batches) * 9_000 < 1_100_000

    def test_so_is_one_of_ordinary_spans(self, pipeline):
        exporter = Exporter()
        tracer, processor = pipeline(exporter)
        for _ in range(500):
            tracer.start_span("s", attributes={"body": "b" * 5_000}).end()
        assert processor.force_flush()
        assert sum(exporter.batches) == 500
        assert max(exporter.batches) * 5_000 < 1_100_000

    def test_large_spans_are_cut_where_they_fill_their_room_and_push_out_nobody(self, pipeline, caplog):
        never = threading.Event()
        exporter = Exporter()
        export, exporter.export = exporter.export, lambda spans: never.wait(60) and export(spans)
        tracer, processor = pipeline(exporter)
        for number in range(900):
            tracer.start_span("large", attributes={f"body{each}": "b" * 16_000 for each in range(7)}).end()
            tracer.start_span("small", attributes={"n": number}).end()
        assert processor._large_bytes.total <= batching._LARGE_BYTES
        sizes = [span.size for span in processor._queue if span.name == "large"]
        assert max(sizes) > 90_000
        assert min(sizes) < FAIR_BYTES
        never.set()
        assert processor.force_flush()
        assert (exporter.names.count("small"), exporter.names.count("large"), processor.dropped_full) == (900, 900, 0)
        assert processor._large_bytes.total == 0
        assert caplog.messages == [
            "large spans fill 12 MiB of the queue, and further ones are cut to 6 KiB each; others are unaffected"
        ]

    def test_a_large_span_that_is_dropped_as_the_oldest_gives_its_room_back(self, pipeline):
        never = threading.Event()
        exporter = Exporter()
        exporter.export = lambda spans: never.wait(60)
        tracer, processor = pipeline(exporter, queue=4, batch=4)
        tracer.start_span("large", attributes={"body": "b" * 16_000}).end()
        assert processor._large_bytes.total > 16_000
        for _ in range(12):
            tracer.start_span("small").end()
        assert processor._large_bytes.total == 0
        never.set()

    def test_what_comes_unmeasured_counts_as_an_ordinary_span(self, pipeline):
        exporter = Exporter()
        _, processor = pipeline(exporter)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(processor)
        provider.get_tracer("t").start_span("s", attributes={"texts": ["b"] * 10}).end()
        assert processor.force_flush()
        assert exporter.names == ["s"]

    def test_a_span_without_a_context_is_not_queued(self, pipeline):
        _, processor = pipeline(Exporter())
        processor.on_end(batching.ReadableSpan("s"))
        assert processor.queue_length == 0


def test_a_greenlet_flushes_where_it_is_asked(monkeypatch):
    """At a signal, gevent's hub waits for whoever flushes, and runs no other greenlet."""
    threads = []
    found = Worker(lambda everything: threads.append((everything, threading.current_thread())), 600, 60)
    monkey = type("Monkey", (), {"is_module_patched": staticmethod(lambda name: name == "threading")})
    with monkeypatch.context() as patched:
        patched.setitem(worker.sys.modules, "gevent.monkey", monkey)
        assert found.flush(60)
    assert threads == [(True, threading.current_thread())]
    found.end(60)


@pytest.fixture
def hooks(monkeypatch):
    """What the process calls after it forks, by what registered it."""
    hooks = []
    monkeypatch.setattr(os, "register_at_fork", lambda after_in_child, **_: hooks.append(after_in_child), raising=False)
    return hooks


class TestForks:
    def test_a_child_begins_with_an_empty_queue_and_a_thread_of_its_own(self, pipeline, hooks):
        exporter = Exporter()
        tracer, processor = pipeline(exporter)
        of_the_parent = processor._worker._thread, processor._worker._calls
        tracer.start_span("of the parent").end()
        for hook in hooks:
            hook()
        tracer.start_span("of the child").end()
        assert processor.force_flush()
        assert exporter.names == ["of the child"]
        assert processor._worker._thread is not of_the_parent[0]
        of_the_parent[1].put(None)

    def test_it_does_so_too_where_nobody_tells_python(self, pipeline):
        exporter = Exporter()
        tracer, processor = pipeline(exporter)
        calls = processor._worker._calls
        tracer.start_span("of the parent").end()
        processor._process += 1
        tracer.start_span("of the child").end()
        assert processor.force_flush()
        assert exporter.names == ["of the child"]
        calls.put(None)

    def test_the_process_keeps_no_processor_that_is_gone(self, hooks, monkeypatch):
        monkeypatch.setattr(batching, "Worker", lambda *_: None)
        processor = PromptBatchSpanProcessor(GuardedSpanExporter(Exporter(), "http://c:1", 60), 60)
        del processor
        gc.collect()
        for hook in hooks:
            hook()

    def test_after_the_end_no_thread_is_started(self, pipeline, hooks):
        _, processor = pipeline(Exporter())
        processor.shutdown()
        for hook in hooks:
            hook()
        assert not processor._worker._thread.is_alive()

    def test_where_no_process_forks_there_is_nothing_to_do(self, pipeline, monkeypatch):
        monkeypatch.delattr(os, "register_at_fork")
        tracer, processor = pipeline(Exporter())
        tracer.start_span("s").end()
        assert processor.force_flush()


def blocked():
    return signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.fixture
def in_uwsgi(monkeypatch):
    """As in uWSGI's own processes, where the module of this name is."""
    monkeypatch.setitem(sys.modules, "uwsgi", types.ModuleType("uwsgi"))


def test_in_uwsgi_the_signals_that_end_a_process_are_handled_in_no_thread_of_ours(in_uwsgi):
    """uWSGI ends a worker in whichever thread has the signal, and waits there for all threads, that one included."""
    seen, before = [], blocked()
    exporting = Worker(lambda everything: seen.append(blocked()), 600, 60)
    assert exporting.flush(60)
    exporting.end(60)
    assert seen[0] >= {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP}
    assert signal.SIGSEGV not in seen[0]
    assert blocked() == before


def test_elsewhere_nothing_is_blocked_and_nobody_inherits_it():
    seen = []
    exporting = Worker(lambda everything: seen.append(blocked()), 600, 60)
    assert exporting.flush(60)
    exporting.end(60)
    assert seen[0] == blocked() == set()


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_a_handler_that_raises_meanwhile_leaves_nothing_blocked(in_uwsgi, monkeypatch, turn):
    """Python runs handlers within the call that blocks signals too, once it has blocked them."""
    mask, before, calls = signal.pthread_sigmask, blocked(), []

    def interrupted(how, signals):
        calls.append(how)
        found = mask(how, signals)
        if len(calls) == turn:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(signal, "pthread_sigmask", interrupted)
    with pytest.raises(KeyboardInterrupt), signals_blocked():
        pass
    monkeypatch.undo()
    assert blocked() == before


def test_so_are_those_that_others_start_for_what_is_configured(run_program):
    """Those of gRPC, and of OpenTelemetry's metrics."""
    program = run_program(
        """
        import os, re, sys, types
        from pathlib import Path
        sys.modules["uwsgi"] = types.ModuleType("uwsgi")
        configure(Settings(endpoint="http://127.0.0.1:9", metrics="otlp"))
        masks = {int(each.parent.name): each.read_text() for each in Path("/proc/self/task").glob("*/status")}
        blocked = {task: int(re.search(r"SigBlk:\\s*(\\w+)", text)[1], 16) & 1 << 14 for task, text in masks.items()}
        print(blocked.pop(os.getpid()), len(blocked) > 2, all(blocked.values()))
        """,
        strict=False,
    )
    assert program.stdout == "0 True True\n", program.stderr
