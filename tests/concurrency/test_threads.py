"""Threads: one copy of all context variables for each task, taken when the task is asked for."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import sys
import threading
import weakref

import pytest
from opentelemetry import baggage
from opentelemetry import context as otel_context
from opentelemetry.context import Context, create_key

from meshmw._context.current import Current
from meshmw.concurrency import Thread, ThreadPoolExecutor, bind, run_in_executor, to_thread

pytestmark = pytest.mark.usefixtures("strict_context")

KEY = create_key("test")
OTHER = contextvars.ContextVar("other", default=None)
SECONDS = 60


def value():
    return otel_context.get_value(KEY)


def request(name):
    """Return a block that is one request."""
    return Current(Context({KEY: name}))


class TestThreadPoolExecutor:
    def test_a_task_sees_the_context_in_which_it_was_submitted_whatever_changes_later(self):
        started, go_on = threading.Event(), threading.Event()

        def task():
            started.set()
            go_on.wait(SECONDS)
            return value()

        with ThreadPoolExecutor(1) as executor:
            with request("a"):
                first, waiting = executor.submit(task), executor.submit(value)
                started.wait(SECONDS)
            with request("b"):
                go_on.set()
                assert (first.result(SECONDS), waiting.result(SECONDS), value()) == ("a", "a", "b")
            assert executor.submit(value).result(SECONDS) is None

    def test_all_context_variables_are_copied_and_changes_stay_in_the_task(self):
        def task():
            before = OTHER.get()
            OTHER.set("changed")
            return before

        token = OTHER.set("here")
        with ThreadPoolExecutor(1) as executor:
            assert [executor.submit(task).result(SECONDS) for _ in range(2)] == ["here", "here"]
        assert OTHER.get() == "here"
        OTHER.reset(token)

    def test_what_a_task_leaves_attached_is_not_there_for_the_next_on_the_same_thread(self):
        # It is detached in the end, so that the check of this module finds nothing.
        contexts = []

        def leak():
            contexts.append(contextvars.copy_context())
            OTHER.set("leaked")

        with ThreadPoolExecutor(1) as executor:
            executor.submit(leak).result(SECONDS)
            assert executor.submit(OTHER.get).result(SECONDS) is None

    def test_tasks_of_one_caller_can_run_at_the_same_time(self):
        together = threading.Barrier(2)

        def task(number):
            together.wait(SECONDS)
            return number, value()

        with request("a"), ThreadPoolExecutor(2) as executor:
            assert list(executor.map(task, range(2), timeout=SECONDS)) == [(0, "a"), (1, "a")]

    def test_a_task_that_submits_a_task_hands_on_its_own_context(self):
        with ThreadPoolExecutor(1) as outer, ThreadPoolExecutor(1) as inner:

            def task():
                with request("of the task"):
                    return inner.submit(value).result(SECONDS), value()

            with request("a"):
                assert outer.submit(task).result(SECONDS) == ("of the task", "of the task")
                assert outer.submit(inner.submit, value).result(SECONDS).result(SECONDS) == "a"

    def test_an_exception_is_the_tasks_own(self):
        error = ValueError("from the task")

        def task():
            raise error

        with request("a"), ThreadPoolExecutor(1) as executor:
            future = executor.submit(task)
            assert future.exception(SECONDS) is error
            with pytest.raises(ValueError, match="from the task"):
                list(executor.map(lambda _: task(), range(2)))
            with pytest.raises(TypeError, match="not callable"):
                executor.submit(1).result(SECONDS)

    def test_a_cancelled_task_never_runs(self):
        go_on, ran = threading.Event(), []
        with request("a"), ThreadPoolExecutor(1) as executor:
            executor.submit(go_on.wait, SECONDS)
            waiting = executor.submit(ran.append, 1)
            assert waiting.cancel()
            go_on.set()
        assert (ran, waiting.cancelled()) == ([], True)

    def test_after_shutdown_nothing_is_taken(self):
        executor = ThreadPoolExecutor(1)
        executor.shutdown()
        for refused in lambda: executor.submit(value), lambda: executor.map(value, [1]):
            with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
                refused()

    def test_every_argument_of_the_standard_executor_is_taken(self):
        names = []
        with ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="pool", initializer=names.append, initargs=("begun",)
        ) as executor:
            name = executor.submit(lambda: threading.current_thread().name).result(SECONDS)
            assert list(executor.map(pow, [2, 3], [3, 2], timeout=SECONDS, chunksize=2)) == [8, 9]
            assert executor.submit(dict, fn=1, self=2).result(SECONDS) == {"fn": 1, "self": 2}
        assert (names, name) == (["begun"], "pool_0")
        assert isinstance(executor, concurrent.futures.ThreadPoolExecutor)
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            ThreadPoolExecutor(0)

    def test_an_initializer_that_fails_breaks_the_pool_as_the_standard_one(self, caplog):
        executor = ThreadPoolExecutor(1, initializer=lambda: 1 / 0)
        with executor, pytest.raises(concurrent.futures.BrokenExecutor):
            executor.submit(value).result(SECONDS)
        assert "Exception in initializer" in caplog.text

    def test_results_that_are_asked_for_later_belong_to_whoever_called_map(self, monkeypatch):
        # Python 3.14 submits item by item, as results are taken, where it is given a `buffersize`.
        def lazy_map(self, fn, *iterables, timeout=None, buffersize=None):
            for arguments in zip(*iterables, strict=True):
                yield self.submit(fn, *arguments).result(timeout)

        monkeypatch.setattr(concurrent.futures.Executor, "map", lazy_map)
        with ThreadPoolExecutor(1) as executor:
            with request("a"):
                results = executor.map(lambda number: (number, value()), range(3), buffersize=1)
            with request("b"):
                assert next(results) == (0, "a")
            assert list(results) == [(1, "a"), (2, "a")]

    def test_the_executor_keeps_no_context_once_a_task_is_done(self):
        class Payload:
            pass

        payload = Payload()
        kept = weakref.ref(payload)
        with ThreadPoolExecutor(1) as executor:
            with Current(Context({KEY: payload})):
                executor.submit(value).result(SECONDS)
            del payload
            executor.submit(int).result(SECONDS)  # a worker drops its last task when it takes the next
            gc.collect()
            assert kept() is None

    def test_baggage_goes_too(self):
        with Current(baggage.set_baggage("user", "7", Context())), ThreadPoolExecutor(1) as executor:
            assert executor.submit(baggage.get_baggage, "user").result(SECONDS) == "7"


class TestThread:
    def test_it_runs_in_the_context_of_whoever_starts_it(self):
        seen = []
        with request("made here"):
            thread = Thread(target=lambda: seen.append((value(), threading.current_thread().name)), name="t")
        with request("started here"):
            thread.start()
        thread.join(SECONDS)
        assert (seen, value()) == ([("started here", "t")], None)

    def test_a_run_method_of_a_subclass_is_in_the_context_too(self):
        class Worker(Thread):
            def run(self):
                self.seen = value()

        worker = Worker()
        with request("a"):
            worker.start()
        worker.join(SECONDS)
        assert worker.seen == "a"

    def test_a_context_that_is_given_is_the_one(self, monkeypatch):
        given = contextvars.Context()
        given.run(OTHER.set, "given")
        expected = "given"
        if sys.version_info < (3, 14):
            # There is no such argument yet: the thread begins with nothing.
            standard, expected = threading.Thread.__init__, None
            monkeypatch.setattr(
                threading.Thread, "__init__", lambda self, context, **options: standard(self, **options)
            )
        seen = []
        thread = Thread(target=lambda: seen.append((value(), OTHER.get())), context=given)
        with request("a"):
            thread.start()
        thread.join(SECONDS)
        assert seen == [(None, expected)]

    def test_a_second_start_is_refused_and_does_no_harm(self):
        go_on, seen = threading.Event(), []

        def target():
            go_on.wait(SECONDS)
            seen.append(value())

        thread = Thread(target=target)
        with request("a"):
            thread.start()
        with request("b"), pytest.raises(RuntimeError, match="threads can only be started once"):
            thread.start()
        go_on.set()
        thread.join(SECONDS)
        assert seen == ["a"]

    def test_a_thread_that_the_system_refuses_can_be_run_by_hand(self, monkeypatch):
        def refuse(self):
            raise RuntimeError("can't start new thread")

        seen = []
        thread = Thread(target=lambda: seen.append(value()))
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with request("a"), pytest.raises(RuntimeError, match="can't start new thread"):
            thread.start()
        thread.run()
        assert seen == [None]

    def test_a_subclass_that_skips_the_constructor_gets_the_standard_threads_error(self):
        class Worker(Thread):
            def __init__(self):
                pass

        with pytest.raises(RuntimeError, match=r"__init__\(\) not called"):
            Worker().start()

    def test_a_thread_that_has_ended_keeps_no_context(self):
        class Payload:
            pass

        payload = Payload()
        kept = weakref.ref(payload)
        thread = Thread(target=int)
        with Current(Context({KEY: payload})):
            thread.start()
        thread.join(SECONDS)
        del payload
        gc.collect()
        assert kept() is None

    def test_an_exception_goes_to_the_hook_for_threads(self, monkeypatch):
        caught = []
        monkeypatch.setattr(threading, "excepthook", lambda args: caught.append(args.exc_type))
        with request("a"):
            thread = Thread(target=lambda: 1 / 0)
            thread.start()
            thread.join(SECONDS)
        assert caught == [ZeroDivisionError]


class TestEventLoop:
    def test_our_executor_as_the_loops_default_carries_what_the_loops_own_loses(self):
        async def main():
            loop = asyncio.get_running_loop()
            with request("a"):
                lost = await loop.run_in_executor(None, value)
                loop.set_default_executor(ThreadPoolExecutor(1))
                return lost, await loop.run_in_executor(None, value), await asyncio.to_thread(value)

        assert asyncio.run(main()) == (None, "a", "a")

    def test_run_in_executor_carries_with_every_kind_of_thread_pool(self):
        async def main():
            with concurrent.futures.ThreadPoolExecutor(1) as standard, ThreadPoolExecutor(1) as ours:
                with request("a"):
                    calls = [
                        run_in_executor(executor, lambda number: (number, value()), 1)
                        for executor in (None, standard, ours)
                    ]
                return [await call for call in calls]

        assert asyncio.run(main()) == [(1, "a")] * 3

    def test_an_exception_and_a_cancellation_pass_through(self):
        async def main():
            with request("a"):
                with pytest.raises(ZeroDivisionError):
                    await run_in_executor(None, lambda: 1 / 0)
                go_on = threading.Event()
                waiting = run_in_executor(None, go_on.wait, SECONDS)
                waiting.cancel()
                go_on.set()
                with pytest.raises(asyncio.CancelledError):
                    await waiting

        asyncio.run(main())

    def test_a_pool_that_was_shut_down_refuses(self):
        async def main():
            executor = concurrent.futures.ThreadPoolExecutor(1)
            executor.shutdown()
            with pytest.raises(RuntimeError, match="after shutdown"):
                run_in_executor(executor, value)

        asyncio.run(main())

    def test_without_a_loop_it_says_so(self):
        with pytest.raises(RuntimeError, match="no running event loop"):
            run_in_executor(None, value)

    def test_to_thread_is_the_standard_librarys(self):
        async def main():
            with request("a"):
                return await to_thread(value)

        assert to_thread is asyncio.to_thread
        assert asyncio.run(main()) == "a"

    def test_anyios_threads_need_nothing(self):
        anyio = pytest.importorskip("anyio")

        async def main():
            with request("a"):
                return await anyio.to_thread.run_sync(value)

        assert asyncio.run(main()) == "a"

    def test_a_sync_route_of_starlette_needs_nothing(self):
        pytest.importorskip("starlette")
        import httpx
        from starlette.applications import Starlette
        from starlette.responses import PlainTextResponse
        from starlette.routing import Route

        def route(_):
            return PlainTextResponse(f"{value()} {threading.current_thread() is threading.main_thread()}")

        app = Starlette(routes=[Route("/", route)])

        async def in_request(scope, receive, send):
            with request("a"):
                await app(scope, receive, send)

        async def main():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(in_request), base_url="http://test") as client:
                return (await client.get("/")).text

        assert asyncio.run(main()) == "a False"


class TestBind:
    def test_a_timer_and_a_bare_thread_run_in_the_context_of_whoever_bound(self):
        seen = []
        with request("a"):
            threads = [
                threading.Timer(0, bind(lambda: seen.append(value()))),
                threading.Thread(target=bind(lambda: seen.append(value()))),
            ]
        for thread in threads:
            thread.start()
            thread.join(SECONDS)
        assert (seen, value()) == (["a", "a"], None)

    def test_calls_do_not_see_each_others_changes_and_may_nest(self):
        def call(depth):
            before = OTHER.get()
            OTHER.set(depth)
            return (before, *(bound(depth - 1) if depth else ()))

        bound = bind(call)
        assert (bound(2), bound(0), OTHER.get()) == ((None, None, None), (None,), None)

    def test_name_arguments_result_and_exception_are_the_functions_own(self):
        def divide(a, *, b):
            """Divides."""
            return a / b

        bound = bind(divide)
        assert (bound.__name__, bound.__doc__, bound(6, b=3)) == ("divide", "Divides.", 2)
        with pytest.raises(ZeroDivisionError):
            bound(1, b=0)
        assert bind(int)("7") == 7

    def test_what_cannot_be_called_is_refused(self):
        with pytest.raises(TypeError, match=r"bind\(\) takes a callable, not int"):
            bind(1)

    def test_a_coroutine_function_stays_one_and_each_step_runs_in_the_context(self):
        async def coroutine(text):
            before = value()
            token = OTHER.set(text)
            await asyncio.sleep(0)
            seen = before, value(), OTHER.get(), await asyncio.create_task(inner())
            OTHER.reset(token)
            return seen

        async def inner():
            return value()

        async def main(bound):
            return [await bound("x"), value(), OTHER.get()]

        with request("a"):
            bound = bind(coroutine)
        assert asyncio.iscoroutinefunction(bound)
        assert asyncio.run(main(bound)) == [("a", "a", "x", "a"), None, None]

    def test_an_object_with_an_async_call_is_taken_for_what_it_is(self):
        class Handler:
            async def __call__(self):
                await asyncio.sleep(0)
                return value()

        with request("a"):
            bound = bind(Handler())
        assert asyncio.run(bound()) == "a"

    def test_cancellation_reaches_the_coroutine_in_its_context(self):
        ended = []

        async def coroutine():
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(value())

        async def main():
            with request("a"):
                bound = bind(coroutine)
            task = asyncio.create_task(bound())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert ended == ["a"]

    def test_generator_functions_stay_such_and_their_tokens_fit_wherever_the_steps_run(self):
        def source():
            token = otel_context.attach(Context({KEY: "inner"}))
            yield value()
            yield value()
            otel_context.detach(token)
            yield value()

        with request("a"):
            bound = bind(source)
        steps = bound()
        with ThreadPoolExecutor(1) as executor:
            seen = [next(steps), executor.submit(next, steps).result(SECONDS), next(steps)]
        assert (seen, value()) == (["inner", "inner", "a"], None)

    def test_asynchronous_generator_functions_too(self):
        async def source():
            token = otel_context.attach(Context({KEY: "inner"}))
            yield value()
            await asyncio.sleep(0)
            otel_context.detach(token)
            yield value()

        async def main():
            with request("a"):
                bound = bind(source)
            steps = bound()
            return [await asyncio.create_task(steps.asend(None)) for _ in range(2)], value()

        assert asyncio.run(main()) == (["inner", "a"], None)


def test_a_class_is_bound_as_what_makes_an_object_whatever_its_objects_are_called_for():
    class Handler:
        async def __call__(self):
            return None

    assert isinstance(bind(Handler)(), Handler)
