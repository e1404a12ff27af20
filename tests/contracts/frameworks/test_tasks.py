"""A request's work stays in its trace, whatever asyncio, AnyIO and FastAPI do with it; nobody else's gets there."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import sys
import threading

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from starlette.background import BackgroundTask
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool

from meshmw import MeshPropagator
from meshmw.asgi import TraceContextMiddleware
from meshmw.concurrency import Thread, ThreadPoolExecutor, bind, detached, linked
from tests.matrix.served import (
    Connection,
    Ids,
    parent_of,
    span_here,
    told,
    trace_here,
    trace_of,
    uvicorn_serves,
    wait_for,
)

SECONDS = 30
AT_ONCE = 5
PROPAGATOR = MeshPropagator()
EXPORTER = InMemorySpanExporter()
PROVIDER = TracerProvider()
PROVIDER.add_span_processor(SimpleSpanProcessor(EXPORTER))
TRACER = PROVIDER.get_tracer("test")


def work(name="work"):
    """Make a span, as any instrumented library would."""
    with TRACER.start_as_current_span(name):
        pass


async def work_later():
    await asyncio.sleep(0)
    work()


# What a handler does, by what it is called, and how many spans it makes.


async def create_task():
    await asyncio.create_task(work_later())


async def task_group():
    async with asyncio.TaskGroup() as group:
        group.create_task(work_later())
        group.create_task(work_later())


async def gather_and_wait_for():
    await asyncio.gather(work_later(), asyncio.wait_for(work_later(), SECONDS))


async def anyio_task_group():
    async with anyio.create_task_group() as group:
        group.start_soon(work_later)
        group.start_soon(work_later)


async def called_back(schedule):
    done = asyncio.Event()
    schedule(lambda: (work(), done.set()))
    await done.wait()


async def call_soon():
    await called_back(asyncio.get_running_loop().call_soon)


async def call_later():
    await called_back(lambda call: asyncio.get_running_loop().call_later(0.001, call))


async def call_at():
    loop = asyncio.get_running_loop()
    await called_back(lambda call: loop.call_at(loop.time() + 0.001, call))


async def call_soon_from_a_thread():
    loop = asyncio.get_running_loop()
    await called_back(lambda call: Thread(target=loop.call_soon_threadsafe, args=(call,)).start())


async def done_callback():
    future = asyncio.get_running_loop().create_future()
    await called_back(lambda call: (future.add_done_callback(lambda _: call()), future.set_result(None)))


async def default_executor():
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(2))
    await loop.run_in_executor(None, work)


async def threads_of_asyncio_anyio_and_starlette():
    await asyncio.to_thread(work)
    await anyio.to_thread.run_sync(work)
    await run_in_threadpool(work)
    async for _ in iterate_in_threadpool(work() for _ in range(2)):
        pass


async def loop_in_a_thread():
    def run():
        with asyncio.Runner() as runner:
            runner.run(work_later())

    await asyncio.to_thread(run)


async def back_from_a_thread():
    await anyio.to_thread.run_sync(anyio.from_thread.run, work_later)


async def shielded_and_cancelled():
    async def never():
        with TRACER.start_as_current_span("work"):
            await asyncio.Event().wait()

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(never(), 0.001)
    await asyncio.shield(work_later())


async def eager_task():
    await asyncio.eager_task_factory(asyncio.get_running_loop(), work_later())


WAYS = {
    create_task: 1,
    task_group: 2,
    gather_and_wait_for: 2,
    anyio_task_group: 2,
    call_soon: 1,
    call_later: 1,
    call_at: 1,
    call_soon_from_a_thread: 1,
    done_callback: 1,
    default_executor: 1,
    threads_of_asyncio_anyio_and_starlette: 5,
    loop_in_a_thread: 1,
    back_from_a_thread: 1,
    shielded_and_cancelled: 2,
}
if sys.version_info >= (3, 12):
    WAYS[eager_task] = 1


def new_app(**options):
    return FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False}, **options)


def traced(app):
    app.add_middleware(TraceContextMiddleware, propagator=PROPAGATOR, tracer_provider=PROVIDER)
    return app


def spans(name="work", **of):
    return [span for span in EXPORTER.get_finished_spans() if span.name == name]


def server_span(trace):
    return next((span for span in EXPORTER.get_finished_spans() if trace_of(span) == trace and is_server(span)), None)


def is_server(span):
    return span.kind is SpanKind.SERVER


def ask(port, path="/", ids=None):
    connection = Connection(port)
    try:
        return told(connection.ask(path, *([ids.traceparent] if ids else [])))
    finally:
        connection.close()


def ask_at_once(port, path="/"):
    """Send several requests at the same time, each in a trace of its own; return the traces."""
    asked = [Ids() for _ in range(AT_ONCE)]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda ids: ask(port, path, ids), asked))
    return [ids.trace for ids in asked]


@pytest.fixture(autouse=True)
def no_spans_of_another_test(caplog):
    EXPORTER.clear()
    yield
    assert "Failed to detach" not in caplog.text


class TestWays:
    @pytest.fixture(scope="class", params=["asyncio", "uvloop"])
    @classmethod
    def port(cls, request):
        app = new_app()
        for way in WAYS:
            app.get(f"/{way.__name__}")(cls.handler(way))

        @app.get("/sync")
        def sync():
            work()
            anyio.from_thread.run(work_later)

        def in_a_thread():
            work()
            yield
            work()

        async def on_the_loop():
            work()
            yield
            work()

        @app.get("/dependencies", dependencies=[Depends(in_a_thread), Depends(on_the_loop)])
        async def dependencies():
            work()

        with uvicorn_serves(traced(app), request.param) as port:
            yield port

    @staticmethod
    def handler(way):
        async def handle():
            await way()

        return handle

    @pytest.mark.parametrize(
        ("path", "count"), [*((way.__name__, count) for way, count in WAYS.items()), ("sync", 2), ("dependencies", 5)]
    )
    def test_the_work_of_each_of_several_requests_is_below_its_own_server_span(self, port, path, count):
        traces = ask_at_once(port, f"/{path}")
        assert wait_for(lambda: all(map(server_span, traces)) and len(spans()) == AT_ONCE * count)
        for trace in traces:
            below = [parent_of(span) for span in spans() if trace_of(span) == trace]
            assert below == [f"{server_span(trace).context.span_id:016x}"] * count

    def test_a_request_without_a_trace_that_comes_next_has_one_of_its_own(self, port):
        traces = ask_at_once(port, "/task_group")
        ask(port, "/create_task")
        assert wait_for(lambda: len(spans()) == 2 * AT_ONCE + 1)
        assert trace_of(spans()[-1]) not in traces


class TestQueues:
    """Workers belong to nobody; what they do for a request is in its trace where the item carries it."""

    @pytest.fixture
    def port(self):
        queue, answers = None, {}

        async def consume():
            while True:
                item, answer = await queue.get()
                item()
                answer.set_result(None)

        @contextlib.asynccontextmanager
        async def lifespan(app):
            nonlocal queue
            queue = asyncio.Queue()
            workers = [asyncio.create_task(consume()) for _ in range(2)]
            yield
            for worker in workers:
                worker.cancel()

        app = new_app(lifespan=lifespan)

        async def handed_over(item):
            answer = asyncio.get_running_loop().create_future()
            queue.put_nowait((item, answer))
            await answer

        @app.get("/plain")
        async def plain():
            await handed_over(work)

        @app.get("/bound")
        async def bound():
            await handed_over(bind(work))

        @app.get("/headers")
        async def with_headers():
            message = {}
            PROPAGATOR.inject(message)

            def receive():
                token = otel_context.attach(PROPAGATOR.extract(message))
                work()
                otel_context.detach(token)

            await handed_over(receive)

        @app.get("/linked")
        async def with_link():
            await handed_over(bind(linked("work", tracer=TRACER)(int)))

        async def consume_late():
            while True:
                (await answers["queue"].get()).set_result((trace_here(), work()))

        @app.get("/late")
        async def worker_started_by_the_first_request(apart: bool):
            if "worker" not in answers:
                answers["queue"] = asyncio.Queue()
                with detached() if apart else contextlib.nullcontext():
                    answers["worker"] = asyncio.create_task(consume_late())
            answer = asyncio.get_running_loop().create_future()
            answers["queue"].put_nowait(answer)
            return (await answer)[0]

        with uvicorn_serves(traced(app), lifespan="on") as port:
            yield port

    def test_a_worker_that_was_started_with_the_application_inherits_no_request(self, port):
        traces = [*ask_at_once(port, "/plain"), *ask_at_once(port, "/plain")]
        assert len(spans()) == 2 * AT_ONCE
        assert [parent_of(span) for span in spans()] == [""] * len(spans())
        assert not {trace_of(span) for span in spans()} & set(traces)

    @pytest.mark.parametrize("path", ["/bound", "/headers"])
    def test_an_item_that_carries_its_context_is_worked_on_in_its_requests_trace(self, port, path):
        traces = ask_at_once(port, path)
        assert wait_for(lambda: all(map(server_span, traces)))
        assert sorted(trace_of(span) for span in spans()) == sorted(traces)
        parents = {trace_of(span): parent_of(span) for span in spans()}
        assert parents == {trace: f"{server_span(trace).context.span_id:016x}" for trace in traces}

    def test_linked_work_on_an_item_is_a_trace_of_its_own_that_names_the_request(self, port):
        traces = ask_at_once(port, "/linked")
        assert [parent_of(span) for span in spans()] == [""] * AT_ONCE
        assert sorted(f"{span.links[0].context.trace_id:032x}" for span in spans()) == sorted(traces)

    def test_a_worker_that_the_first_request_starts_is_in_its_trace_until_it_is_detached(self, port):
        first = Ids()
        assert ask(port, "/late?apart=false", first) == first.trace
        assert ask(port, "/late?apart=false", Ids()) == first.trace

    def test_a_detached_worker_that_the_first_request_starts_is_in_no_trace(self, port):
        assert [ask(port, "/late?apart=true", Ids()) for _ in range(2)] == ["0" * 32] * 2


class TestWorkThatGoesOn:
    """What was begun in a request and goes on after it."""

    @pytest.fixture
    def port(self):
        app, self.go_on, kept = new_app(), threading.Event(), set()

        async def go_on():
            while not self.go_on.is_set():  # noqa: ASYNC110 - it is set in the test's thread
                await asyncio.sleep(0.001)
            work()

        @app.get("/task")
        async def task():
            kept.add(asyncio.create_task(go_on()))

        @app.get("/detached")
        async def detached_task():
            with detached():
                kept.add(asyncio.create_task(go_on()))
            return span_here()

        @app.get("/linked")
        async def linked_task():
            kept.add(asyncio.create_task(linked("nightly", tracer=TRACER)(go_on)()))

        @app.get("/thread")
        async def thread():
            Thread(target=lambda: (self.go_on.wait(SECONDS), work())).start()

        with uvicorn_serves(traced(app)) as port:
            yield port
            self.go_on.set()

    def begin(self, port, path):
        ids = Ids()
        ask(port, path, ids)
        assert wait_for(lambda: server_span(ids.trace))
        assert spans() == []
        other = Ids()
        ask(port, "/detached", other)
        self.go_on.set()
        assert wait_for(lambda: len(spans()) == 2)
        return ids.trace, other.trace

    @pytest.mark.parametrize("path", ["/task", "/thread"])
    def test_a_task_or_thread_stays_in_the_trace_of_the_request_that_began_it(self, port, path):
        trace, _ = self.begin(port, path)
        (span,) = [span for span in spans() if trace_of(span) == trace]
        assert parent_of(span) == f"{server_span(trace).context.span_id:016x}"
        assert span.start_time > server_span(trace).end_time

    def test_a_detached_task_is_in_the_trace_of_no_request(self, port):
        traces = self.begin(port, "/detached")
        assert [parent_of(span) for span in spans()] == ["", ""]
        assert not {trace_of(span) for span in spans()} & set(traces)

    def test_a_linked_task_is_a_trace_of_its_own_with_all_that_it_does(self, port):
        trace, _ = self.begin(port, "/linked")
        assert wait_for(lambda: spans("nightly"))
        (root,) = spans("nightly")
        assert (parent_of(root), f"{root.links[0].context.trace_id:032x}") == ("", trace)
        assert f"{root.context.span_id:016x}" in [parent_of(span) for span in spans()]


class TestBackgroundTasks:
    @pytest.fixture(autouse=True)
    @classmethod
    def without_contrib(cls, monkeypatch):
        # Once contrib has instrumented any application of this process, it puts a span around each background task.
        untouched = getattr(BackgroundTask, "_otel_original_call", BackgroundTask.__call__)
        monkeypatch.setattr(BackgroundTask, "__call__", untouched)

    @pytest.fixture
    def port(self):
        app = new_app()

        def fail():
            work()
            raise LookupError("as asked for")

        async def apart():
            with linked("nightly", tracer=TRACER):
                work()
            with detached():
                work("alone")

        @app.get("/")
        async def both(after: BackgroundTasks):
            after.add_task(work)
            after.add_task(work_later)

        @app.get("/fail")
        async def failing(after: BackgroundTasks):
            after.add_task(fail)

        @app.get("/apart")
        async def away(after: BackgroundTasks):
            after.add_task(apart)

        with uvicorn_serves(traced(app)) as port:
            yield port

    def test_they_are_children_of_the_server_span_which_has_ended_with_the_response(self, port):
        traces = ask_at_once(port)
        assert wait_for(lambda: len(spans()) == 2 * AT_ONCE)
        for trace in traces:
            server = server_span(trace)
            below = [span for span in spans() if trace_of(span) == trace]
            assert [parent_of(span) for span in below] == [f"{server.context.span_id:016x}"] * 2
            assert all(span.start_time >= server.end_time for span in below)
            assert server.attributes["http.response.status_code"] == 200

    def test_one_that_fails_changes_nothing_of_the_span_that_has_ended(self, port):
        ids = Ids()
        ask(port, "/fail", ids)
        assert wait_for(lambda: spans())
        assert server_span(ids.trace).status.is_unset
        assert server_span(ids.trace).events == ()

    def test_detached_and_linked_work_leaves_the_trace(self, port):
        ids = Ids()
        ask(port, "/apart", ids)
        assert wait_for(lambda: spans("alone"))
        (root,), (inner,), (alone,) = spans("nightly"), spans(), spans("alone")
        assert f"{root.links[0].context.trace_id:032x}" == ids.trace
        assert (parent_of(root), parent_of(inner), parent_of(alone)) == ("", f"{root.context.span_id:016x}", "")
        assert len({ids.trace, trace_of(root), trace_of(alone)}) == 3
