"""Iterators hold nothing across their steps: no message, no span, no context."""

import asyncio
import gc
import threading

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context


def parent_of(number):
    return f"00-{number + 1:032x}-{number + 1:016x}-01"


async def fill(client, destination, count):
    for number in range(count):
        headers = [("traceparent", parent_of(number)), ("baggage", f"n={number}")]
        await client.send_plain(destination, str(number).encode(), headers)


def nothing_is_current():
    return otel_context.get_current() == Context()


def test_each_delivery_is_processed_in_its_block_and_nothing_is_current_outside(run, destination):
    async def use(client):
        await fill(client, destination, 5)
        seen = []
        async with client.deliveries(destination) as deliveries:
            async for delivery in deliveries:
                assert nothing_is_current()
                assert len(client.spans) == len(seen)
                with delivery as message:
                    assert delivery.message is message
                    seen.append(client.body_of(message))
                    assert baggage.get_baggage("n") == seen[-1].decode()
                    await asyncio.sleep(0)
                    assert trace.get_current_span().get_span_context().trace_id == len(seen)
                assert nothing_is_current()
                if len(seen) == 5:
                    break
        assert seen == [b"0", b"1", b"2", b"3", b"4"]
        assert nothing_is_current()
        assert [span.context.trace_id for span in client.spans] == [1, 2, 3, 4, 5]

    run(use)


def test_a_loop_that_is_left_loses_nothing_and_the_next_one_goes_on(run, destination):
    async def use(client):
        await fill(client, destination, 4)
        seen = []
        async with client.deliveries(destination) as deliveries:
            for count in (1, 2, 4):
                async for delivery in deliveries:
                    with delivery as message:
                        seen.append(client.body_of(message))
                    if len(seen) == count:
                        break
                gc.collect()
                assert nothing_is_current()
        assert seen == [b"0", b"1", b"2", b"3"]

    run(use)


def test_a_delivery_that_is_not_entered_leaves_nothing(run, destination):
    async def use(client):
        await fill(client, destination, 2)
        async with client.deliveries(destination) as deliveries:
            await anext(deliveries)
            assert nothing_is_current()
            with await anext(deliveries):
                pass
        assert [span.context.trace_id for span in client.spans] == [2]

    run(use)


def test_a_handler_that_fails_ends_its_span_and_the_iterator_goes_on(run, destination):
    async def use(client):
        await fill(client, destination, 2)
        async with client.deliveries(destination) as deliveries:
            with pytest.raises(ZeroDivisionError):
                async for delivery in deliveries:
                    with delivery:
                        raise ZeroDivisionError
            assert nothing_is_current()
            with await anext(deliveries) as message:
                assert client.body_of(message) == b"1"
        first, second = client.spans
        assert first.attributes["error.type"] == "ZeroDivisionError"
        assert "error.type" not in second.attributes

    run(use)


def test_a_consumer_that_is_cancelled_while_it_processes_ends_its_span_without_an_error(run, destination):
    async def use(client):
        await fill(client, destination, 1)
        begun = asyncio.Event()

        async def work():
            async with client.deliveries(destination) as deliveries:
                async for delivery in deliveries:
                    with delivery:
                        begun.set()
                        await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (span,) = client.spans
        assert "error.type" not in span.attributes
        assert nothing_is_current()

    run(use)


def test_a_consumer_that_closes_in_mid_iteration_leaves_nothing_behind(run, destination):
    async def use(client):
        await fill(client, destination, 2)
        async with client.deliveries(destination) as deliveries:
            delivery = await anext(deliveries)
        with delivery as message:
            assert client.body_of(message) == b"0"
        assert nothing_is_current()
        with pytest.raises(client.closed):
            await asyncio.wait_for(anext(deliveries), 60)
        assert len(client.spans) == 1

    run(use)


def test_consumers_in_many_tasks_keep_their_messages_apart(run, destination):
    """The messages of one destination, each processed in a task of its own, all at once."""

    async def use(client):
        await fill(client, destination, 30)
        messages = await client.receive(destination, 30)
        meet = asyncio.Barrier(30)

        async def handle(message):
            number = client.body_of(message).decode()
            with client.consumer_span(message):
                await meet.wait()
                assert baggage.get_baggage("n") == number
                assert trace.get_current_span().get_span_context().trace_id == int(number) + 1
            assert nothing_is_current()

        await asyncio.gather(*map(handle, messages))
        assert sorted(span.context.trace_id for span in client.spans) == list(range(1, 31))

    run(use)


def test_consumers_in_many_threads_keep_their_messages_apart(run, make, destination):
    """Each thread has a client and a destination of its own."""
    wrong, threads = [], 4
    meet = threading.Barrier(threads)

    def work(of):
        async def use(client):
            async with client.deliveries(of) as deliveries:
                meet.wait(60)
                for number in range(10):
                    with await anext(deliveries) as message:
                        found = (client.body_of(message), baggage.get_baggage("n"))
                        if found != (str(number).encode(), str(number)):
                            wrong.append(found)
            if not nothing_is_current() or len(client.spans) != 10:
                wrong.append((of, len(client.spans)))

        try:
            run(use)
        except BaseException as error:
            meet.abort()
            wrong.append(error)

    async def prepare(client):
        for number in range(threads):
            await fill(client, f"{destination}-{number}", 10)

    run(prepare)
    running = [threading.Thread(target=work, args=(f"{destination}-{number}",)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not wrong
