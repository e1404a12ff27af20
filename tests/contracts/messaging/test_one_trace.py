"""The trace goes on from the producer to the consumer, whatever the client."""

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from meshmw._context.current import Current

VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
REMOTE = SpanContext(0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7, True, TraceFlags(1))
OTHER = "00-11111111111111111111111111111111-2222222222222222-01"


def remote_of(context):
    """The remote parent that a context holds, or None."""
    found = trace.get_current_span(context).get_span_context()
    return (found.trace_id, found.span_id) if found.is_valid else None


def ids_of(span):
    found = span.context if hasattr(span, "context") else span
    return (found.trace_id, found.span_id)


def traceparents(client, headers):
    return [value.decode() for value in client.lines_of(headers).get("traceparent", [])]


def text_of(span):
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags & 3:02x}"


@pytest.mark.parametrize("how", ["send", "send_instrumented"])
def test_what_is_sent_is_processed_in_the_same_trace(run, destination, how):
    async def use(client):
        with Current(baggage.set_baggage("tenant", "north", Context())):
            with client.provider.get_tracer("app").start_as_current_span("request") as request:
                await getattr(client, how)(destination, headers=None)
            assert otel_context.get_current() == baggage.set_baggage("tenant", "north", Context())
        (message,) = await client.receive(destination)
        with client.consumer_span(message) as span:
            assert trace.get_current_span() is span
            assert baggage.get_baggage("tenant") == "north"
        assert not trace.get_current_span().get_span_context().is_valid
        sent = client.span(f"{client.send_operation} {destination}")
        processed = client.span(f"process {destination}")
        assert sent.kind is SpanKind.PRODUCER
        assert processed.kind is SpanKind.CONSUMER
        assert ids_of(sent.parent) == ids_of(request.get_span_context())
        assert ids_of(processed.parent) == ids_of(sent)
        assert traceparents(client, client.headers_of(message)) == [text_of(sent)]
        assert sent.attributes["messaging.system"] == client.system
        assert sent.attributes["messaging.destination.name"] == destination
        assert sent.attributes["messaging.operation.type"] == "send"
        assert processed.attributes["messaging.operation.type"] == "process"
        assert processed.attributes["messaging.message.body.size"] == 4

    run(use)


def test_the_setting_makes_a_new_trace_that_links_to_the_message(run, destination):
    async def use(client):
        await client.send_plain(destination, headers=[("traceparent", VALID), ("baggage", "tenant=north")])
        (message,) = await client.receive(destination)
        with client.consumer_span(message):
            assert baggage.get_baggage("tenant") == "north"
        span = client.span(f"process {destination}")
        assert span.parent is None
        assert span.context.trace_id != REMOTE.trace_id
        assert [ids_of(link.context) for link in span.links] == [ids_of(REMOTE)]

    run(use, parent="link")


def test_a_leaked_span_is_linked_to_and_never_a_parent(run, destination):
    leaked = trace.set_span_in_context(NonRecordingSpan(SpanContext(7, 8, False, TraceFlags(1))), Context())
    leaked = baggage.set_baggage("of", "another", leaked)

    async def use(client):
        await client.send_plain(destination, headers=[("traceparent", VALID)])
        await client.send_plain(destination)
        messages = await client.receive(destination, 2)
        with Current(leaked):
            for message in messages:
                with client.consumer_span(message):
                    assert baggage.get_baggage("of") is None
                assert otel_context.get_current() == leaked
            with client.batch_span(messages):
                assert baggage.get_baggage("of") is None
        first, second, batch = client.spans
        assert ids_of(first.parent) == ids_of(REMOTE)
        assert second.parent is None
        assert batch.parent is None
        assert all((7, 8) in [ids_of(link.context) for link in span.links] for span in client.spans)
        assert all(span.context.trace_id != 7 for span in client.spans)

    run(use)


def test_a_batch_links_to_every_message_and_its_messages_continue_their_own_traces(run, destination):
    async def use(client):
        for parent in (VALID, OTHER, VALID):
            await client.send_plain(destination, headers=[("traceparent", parent), ("baggage", "a=1")])
        await client.send_plain(destination)
        messages = await client.receive(destination, 4)
        with client.batch_span(messages) as batch:
            assert trace.get_current_span() is batch
            assert not baggage.get_all()
            for message in messages:
                with client.consumer_span(message):
                    pass
                assert trace.get_current_span() is batch
        *singles, batch = client.spans
        assert batch.name == f"process {destination}"
        assert batch.attributes["messaging.batch.message_count"] == 4
        assert [f"{link.context.trace_id:032x}" for link in batch.links] == [VALID[3:35], OTHER[3:35]]
        assert [f"{span.context.trace_id:032x}" for span in singles[:3]] == [VALID[3:35], OTHER[3:35], VALID[3:35]]
        assert all(ids_of(batch) in [ids_of(link.context) for link in span.links] for span in singles)

    run(use)


def test_an_empty_batch_makes_no_span(run):
    async def use(client):
        with client.batch_span([]):
            assert not trace.get_current_span().get_span_context().is_valid
        assert not client.spans

    run(use)


def test_an_exception_of_the_handler_is_recorded_and_goes_on(run, destination):
    async def use(client):
        await client.send_plain(destination, headers=[("traceparent", VALID)])
        (message,) = await client.receive(destination)
        with pytest.raises(KeyError), client.consumer_span(message):
            raise KeyError("teapot")
        with pytest.raises(KeyError), client.batch_span([message]):
            raise KeyError("teapot")
        for span in client.spans:
            assert span.attributes["error.type"] == "KeyError"
            assert not span.status.is_ok
            assert [event.name for event in span.events] == ["exception"]

    run(use)


def test_a_block_serves_one_message_once(run, destination):
    async def use(client):
        await client.send_plain(destination)
        (message,) = await client.receive(destination)
        block = client.consumer_span(message)
        with block:
            pass
        with pytest.raises(RuntimeError, match="entered before"), block:
            pass
        assert len(client.spans) == 1

    run(use)


@pytest.mark.parametrize("parent", ["parent", "link"])
def test_without_a_recording_sdk_the_message_carries_on_what_came(run, destination, parent):
    class Nothing:
        def get_tracer(self, *_, **__):
            return trace.NoOpTracer()

    async def use(client):
        await client.send_plain(destination, headers=[("traceparent", VALID), ("baggage", "a=1")])
        (message,) = await client.receive(destination)
        with client.consumer_span(message):
            headers = client.inject(client.headers_of(message))
        assert traceparents(client, headers) == [VALID]
        assert client.lines_of(headers)["baggage"] == [b"a=1"]
        with client.consumer_span(message):
            await client.send_instrumented(f"{destination}-on")
        (forwarded,) = await client.receive(f"{destination}-on")
        assert traceparents(client, client.headers_of(forwarded)) == [VALID]

    run(use, tracer_provider=Nothing(), parent=parent)


@pytest.mark.parametrize("how", ["send", "send_instrumented"])
def test_where_instrumentation_is_suppressed_there_is_no_span_and_nothing_is_written(run, destination, how):
    async def use(client):
        await client.send_plain(destination, headers=[("traceparent", VALID)])
        (message,) = await client.receive(destination)
        client.exporter.clear()
        with (
            Current(baggage.set_baggage("tenant", "north", Context())),
            client.provider.get_tracer("app").start_as_current_span("request") as request,
            suppress_instrumentation(),
        ):
            around = otel_context.get_current()
            await getattr(client, how)(f"{destination}-on", headers=None)
            with client.consumer_span(message), client.batch_span([message]):
                assert otel_context.get_current() == around
        (sent,) = await client.receive(f"{destination}-on")
        lines = client.lines_of(client.headers_of(sent))
        assert {"traceparent", "baggage"}.isdisjoint(lines)
        assert [ids_of(span) for span in client.spans] == [ids_of(request.get_span_context())]

    run(use)
