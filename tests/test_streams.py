"""Streams: the context is current while a step runs and at no other time, however the stream ends."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator

import pytest
from opentelemetry import context as otel_context
from opentelemetry.context import Context, create_key

from meshmw._context.current import StepContext, StepVariables
from meshmw.streams import AwaitableSteps, stream

pytestmark = pytest.mark.usefixtures("strict_context")

KEY = create_key("test")
OURS = Context({KEY: "ours"})


def value():
    return otel_context.get_value(KEY)


def in_thread(call):
    """Call in a thread, whose context is another, and return the outcome."""
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(call()))
    thread.start()
    thread.join()
    return outcome[0]


def set_here(text):
    return otel_context.attach(otel_context.set_value(KEY, text))


class TestGenerators:
    def test_each_step_sees_the_context_and_the_consumer_does_not(self):
        def source():
            yield value()
            yield value()
            return value()

        steps = stream(source(), OURS)
        seen = []

        def consume():
            seen.append((value(), (yield from steps), value()))

        assert list(consume()) == ["ours", "ours"]
        assert seen == [(None, "ours", None)]

    def test_the_context_is_the_one_in_which_the_stream_was_made(self):
        token = set_here("made here")
        steps = stream(value() for _ in range(2))
        otel_context.detach(token)
        assert next(steps) == "made here"
        token = set_here("consumed here")
        assert (next(steps), value()) == ("made here", "consumed here")
        otel_context.detach(token)

    def test_what_is_attached_in_one_thread_can_be_taken_back_in_another(self, caplog):
        def source():
            token = set_here("inner")
            yield value()
            otel_context.detach(token)
            yield value()

        steps = stream(source(), OURS)
        assert [next(steps), in_thread(lambda: next(steps)), caplog.text] == ["inner", "ours", ""]

    def test_send_and_throw_reach_the_source_in_its_context(self):
        def source():
            while True:
                try:
                    received = yield value()
                    yield received, value()
                except KeyError as error:
                    yield error, value()

        steps, error = stream(source(), OURS), KeyError("thrown")
        assert next(steps) == "ours"
        assert steps.send("sent") == ("sent", "ours")
        assert steps.throw(error) == (error, "ours")
        steps.close()

    def test_an_exception_passes_unchanged_and_leaves_no_context(self):
        error = ValueError("from the source")

        def source():
            yield 1
            raise error

        steps = stream(source(), OURS)
        assert next(steps) == 1
        with pytest.raises(ValueError, match="from the source") as raised:
            next(steps)
        assert raised.value is error
        assert value() is None
        assert list(steps) == []

    def test_what_is_current_across_a_yield_is_current_again_in_the_next_step_and_never_for_the_consumer(self):
        def source():
            token = set_here("inner")
            yield value()
            yield value()
            otel_context.detach(token)
            yield value()

        steps = stream(source(), OURS)
        assert [(seen, value()) for seen in steps] == [("inner", None), ("inner", None), ("ours", None)]

    def test_two_streams_in_turns_do_not_see_each_other(self):
        one = stream((value() for _ in range(2)), Context({KEY: 1}))
        two = stream((value() for _ in range(2)), Context({KEY: 2}))
        assert [next(one), next(two), next(one), next(two)] == [1, 2, 1, 2]

    def test_a_stream_of_a_stream_has_its_own_context(self):
        def outer():
            yield value(), *stream((value() for _ in range(1)), Context({KEY: "inner"})), value()

        assert list(stream(outer(), OURS)) == [("ours", "inner", "ours")]

    @pytest.mark.parametrize("begin", [True, False])
    def test_early_close_runs_the_finally_block_in_the_context_and_only_once_begun(self, begin):
        ended = []

        def source():
            try:
                yield
            finally:
                ended.append(value())

        steps = stream(source(), OURS)
        if begin:
            next(steps)
        steps.close()
        steps.close()
        assert ended == (["ours"] if begin else [])

    def test_steps_and_close_may_come_from_other_threads(self):
        ended = []

        def source():
            try:
                while True:
                    yield value()
            finally:
                ended.append(value())

        steps = stream(source(), OURS)
        assert [next(steps), in_thread(lambda: next(steps))] == ["ours", "ours"]
        in_thread(steps.close)
        assert ended == ["ours"]

    def test_a_half_consumed_generator_that_is_dropped_ends_in_its_own_context(self):
        ended = []

        def source():
            try:
                yield
            finally:
                ended.append((value(), threading.get_ident()))

        steps = stream(source(), OURS)
        next(steps)
        token = set_here("of whoever collects the garbage")
        del steps
        gc.collect()
        assert ended == [("ours", threading.get_ident())]
        otel_context.detach(token)

    def test_a_source_that_ignores_close_gets_the_interpreters_error(self):
        def source():
            try:
                yield 1
            except GeneratorExit:
                yield 2

        steps = stream(source(), OURS)
        next(steps)
        with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
            steps.close()
        assert value() is None


class TestIterators:
    def test_any_iterable_will_do_and_its_iterator_is_made_in_the_context(self):
        class Source:
            def __iter__(self):
                self.made_in = value()
                return iter([1, 2])

        source = Source()
        assert list(stream(source, OURS)) == [1, 2]
        assert source.made_in == "ours"

    def test_close_closes_what_can_be_closed_in_the_context(self):
        class Source:
            def __iter__(self):
                return self

            def __next__(self):
                return value()

            def close(self):
                self.closed_in = value()

        source = Source()
        steps = stream(source, OURS)
        assert next(steps) == "ours"
        steps.close()
        assert (source.closed_in, value()) == ("ours", None)
        stream([], OURS).close()

    @pytest.mark.parametrize("is_closed", [True, False])
    def test_a_generator_that_the_source_makes_ends_in_the_context_too(self, caplog, is_closed):
        seen = []

        class Source:
            def __iter__(self):
                token = set_here("inner")
                try:
                    while True:
                        yield value()
                finally:
                    seen.append(value())
                    otel_context.detach(token)

        steps = stream(Source(), OURS)
        assert next(steps) == "inner"
        if is_closed:
            steps.close()
        else:
            del steps
        gc.collect()
        assert (seen, caplog.text) == (["inner"], "")

    def test_the_kind_of_the_source_is_kept(self):
        async def asynchronous():
            yield

        class AsyncIterable:
            def __aiter__(self):
                return asynchronous()

        assert isinstance(stream(_ for _ in ()), Generator)
        assert isinstance(stream(asynchronous()), AsyncGenerator)
        for source, kind, other in ([], Iterator, Generator), (AsyncIterable(), AsyncIterator, AsyncGenerator):
            assert isinstance(stream(source), kind)
            assert not isinstance(stream(source), other)

    def test_what_cannot_be_iterated_over_is_refused(self):
        with pytest.raises(TypeError, match="'int' object is not iterable"):
            stream(1)


class TestAsyncGenerators:
    def test_each_step_sees_the_context_also_after_it_has_waited(self):
        async def source():
            for _ in range(2):
                before = value()
                await asyncio.sleep(0)
                yield before, value()

        async def main():
            return [(seen, value()) async for seen in stream(source(), OURS)]

        assert asyncio.run(main()) == [(("ours", "ours"), None)] * 2

    def test_while_a_step_waits_the_context_is_current_for_nobody_else(self):
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def source():
            inside.set()
            await go_on.wait()
            yield value()

        async def main():
            step = asyncio.ensure_future(anext(stream(source(), OURS)))
            await inside.wait()
            assert value() is None
            go_on.set()
            return await step

        assert asyncio.run(main()) == "ours"

    def test_send_throw_and_close_reach_the_source_in_its_context(self):
        ended = []

        async def source():
            try:
                received = yield
                try:
                    yield received, value()
                except KeyError as error:
                    yield error, value()
            finally:
                await asyncio.sleep(0)
                ended.append(value())

        async def main():
            steps, error = stream(source(), OURS), KeyError("thrown")
            await steps.asend(None)
            assert await steps.asend("sent") == ("sent", "ours")
            assert await steps.athrow(error) == (error, "ours")
            await steps.aclose()
            await steps.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(steps)

        asyncio.run(main())
        assert ended == ["ours"]

    def test_a_step_that_is_cancelled_ends_in_its_context(self):
        ended = []

        async def source():
            try:
                await asyncio.sleep(60)
                yield
            finally:
                ended.append(value())

        async def main():
            step = asyncio.ensure_future(anext(stream(source(), OURS)))
            await asyncio.sleep(0)
            step.cancel()
            with pytest.raises(asyncio.CancelledError):
                await step

        asyncio.run(main())
        assert ended == ["ours"]

    def test_an_exception_passes_unchanged_and_leaves_no_context(self):
        error = ValueError("from the source")

        async def source():
            yield 1
            raise error

        async def main():
            steps = stream(source(), OURS)
            await anext(steps)
            with pytest.raises(ValueError, match="from the source") as raised:
                await anext(steps)
            assert raised.value is error
            assert value() is None

        asyncio.run(main())

    def test_steps_may_come_from_several_tasks(self):
        async def source():
            while True:
                yield value()

        async def main():
            steps = stream(source(), OURS)
            seen = [await asyncio.create_task(steps.asend(None)) for _ in range(2)]
            await asyncio.create_task(steps.aclose())
            return seen, value()

        assert asyncio.run(main()) == (["ours", "ours"], None)

    def test_a_half_consumed_generator_that_is_dropped_is_closed_by_the_loop_in_its_own_context(self):
        ended = []

        async def source(at_end):
            try:
                yield
            finally:
                await asyncio.sleep(0)
                ended.append(value())
                at_end.set()

        async def main():
            at_end = asyncio.Event()
            steps = stream(source(at_end), OURS)
            await anext(steps)
            dropped = weakref.ref(steps)
            token = set_here("of whoever collects the garbage")
            del steps
            gc.collect()
            otel_context.detach(token)
            assert dropped() is None
            await at_end.wait()

        asyncio.run(main())
        assert ended == ["ours"]

    def test_what_a_dropped_generator_has_attached_is_taken_back_where_it_was(self, caplog):
        ended = []

        async def source(at_end):
            token = set_here("inner")
            try:
                yield
            finally:
                otel_context.detach(token)
                await asyncio.sleep(0)
                ended.append(value())
                at_end.set()

        async def main():
            at_end = asyncio.Event()
            steps = stream(source(at_end), OURS)
            await anext(steps)
            del steps
            gc.collect()
            await at_end.wait()

        asyncio.run(main())
        assert (ended, caplog.text) == (["ours"], "")

    def test_a_generator_that_is_left_when_the_loop_ends_is_closed_in_its_own_context(self, caplog):
        ended, kept = [], []

        async def source():
            token = set_here("inner")
            try:
                yield
            finally:
                otel_context.detach(token)
                ended.append(value())

        async def main():
            kept.append(stream(source(), OURS))
            await anext(kept[0])

        asyncio.run(main())
        assert (ended, caplog.text) == (["ours"], "")

    def test_a_loop_that_asks_who_a_dropped_generator_is_gets_the_generators_answer(self):
        names = []

        async def source():
            yield

        async def main():
            steps = stream(source(), OURS)
            hooks = sys.get_asyncgen_hooks()
            sys.set_asyncgen_hooks(finalizer=lambda generator: names.append(generator.ag_code.co_name))
            await anext(steps)
            del steps
            gc.collect()
            sys.set_asyncgen_hooks(*hooks)

        asyncio.run(main())
        assert names == ["source"]

    def test_other_context_variables_are_those_of_where_the_stream_was_made(self):
        other = contextvars.ContextVar("other", default="unset")

        async def source():
            yield other.get()
            other.set("set by the source")
            yield other.get()

        async def main():
            other.set("made here")
            steps = stream(source())
            other.set("consumed here")
            return [seen async for seen in steps], other.get()

        assert asyncio.run(main()) == (["made here", "set by the source"], "consumed here")

    def test_without_a_loop_that_watches_generators_a_step_can_be_driven_by_hand(self):
        async def source():
            yield value()

        step = anext(stream(source(), OURS))
        with pytest.raises(StopIteration) as stopped:
            step.__await__().send(None)
        assert stopped.value.value == "ours"

    def test_an_asynchronous_iterator_without_more_will_do(self):
        class Source:
            def __aiter__(self):
                self.made_in = value()
                return self

            async def __anext__(self):
                await asyncio.sleep(0)
                return value()

        class Closable(Source):
            async def aclose(self):
                self.closed_in = value()

        async def main():
            for source in Source(), Closable():
                steps = stream(source, OURS)
                assert (await anext(steps), source.made_in) == ("ours", "ours")
                await steps.aclose()
            assert source.closed_in == "ours"

        asyncio.run(main())


class TestStepVariables:
    """The garbage collection may close one stream's leavings in the middle of a step, of the same stream or another."""

    OTHER = contextvars.ContextVar("other", default="of nobody")

    @pytest.fixture
    def steps(self):
        variables = contextvars.copy_context()
        variables.run(self.OTHER.set, "of the stream")
        return StepVariables(variables)

    def test_in_the_middle_of_a_step_of_the_same_stream_the_variables_are_current_already(self, steps):
        def step():
            steps.run(self.OTHER.set, "changed")
            return self.OTHER.get()

        assert (steps.run(step), steps.run(self.OTHER.get)) == ("changed", "changed")

    def test_in_the_middle_of_a_step_of_another_stream_they_are_a_copy(self, steps):
        other = StepVariables(contextvars.Context())

        def closed_in_between():
            return steps.run(self.OTHER.get), self.OTHER.get()

        assert steps.run(other.run, closed_in_between) == ("of the stream", "of nobody")

    def test_an_exception_leaves_them_for_the_next_step(self, steps):
        for _ in range(2):
            with pytest.raises(LookupError):
                steps.run({}.__getitem__, 1)
        assert steps.run(self.OTHER.get) == "of the stream"

    def test_a_stream_that_closes_itself_gets_the_interpreters_error(self):
        def source():
            with pytest.raises(ValueError, match="generator already executing"):
                steps.close()
            yield value()

        steps = stream(source(), OURS)
        assert list(steps) == ["ours"]

    def test_an_awaitable_that_is_dropped_in_the_middle_of_a_step_ends_there(self):
        ended, kept = [], []

        class Waiting:
            def __await__(self):
                try:
                    yield
                finally:
                    ended.append(value())

        def source():
            yield
            kept.clear()
            yield

        steps = stream(source(), OURS)
        kept.append(AwaitableSteps(Waiting(), steps._run).__await__())
        next(kept[0])
        next(steps)
        next(steps)
        assert ended == ["ours"]


class TestAwaitables:
    def test_an_awaitable_whose_steps_only_go_on_will_do(self):
        class Once:
            def __await__(self):
                return iter([])

        async def main():
            return await AwaitableSteps(Once(), StepContext(OURS).run)

        assert asyncio.run(main()) is None
