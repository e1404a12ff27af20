"""No header can hurt, none that is malformed is sent on, and a message that is forwarded says who forwards it."""

from contextlib import closing

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context

from meshmw import MeshPropagator, kafka, rabbitmq
from meshmw._context.current import Current

VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
STALE = "00-11111111111111111111111111111111-2222222222222222-01"
SECONDS = 60
TRACE_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736


async def received(client, destination, headers=(), body=b"body"):
    await client.send_plain(destination, body, headers)
    (message,) = await client.receive(destination)
    return message


def trace_id_of(context):
    return trace.get_current_span(context).get_span_context().trace_id


def processed(client, message):
    """Process a message, and return its span and what would be sent on, with the message's own headers."""
    with client.consumer_span(message):
        headers = client.inject(client.headers_of(message))
    return client.spans[-1], headers


def text_of(span):
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags & 3:02x}".encode()


def test_a_message_without_headers_starts_a_trace(run, destination):
    async def use(client):
        message = await received(client, destination)
        assert client.extract(message) == Context()
        span, headers = processed(client, message)
        assert span.parent is None
        assert not span.events
        assert client.lines_of(headers) == {"traceparent": [text_of(span)]}
        assert not client.propagator.rejections.counts

    run(use)


def test_a_message_without_a_body_is_processed(run, destination):
    async def use(client):
        message = await received(client, destination, [("traceparent", VALID)], None if client.null_bodies else b"")
        assert not client.body_of(message)
        span, _ = processed(client, message)
        assert span.context.trace_id == TRACE_ID

    run(use)


@pytest.mark.parametrize("name", ["traceparent", "tracestate", "baggage", "b3", "x-request-id", "other"])
def test_bytes_that_are_no_text_hurt_nobody(run, destination, name):
    async def use(client):
        headers = [("a", "1"), *([] if name == "traceparent" else [("traceparent", VALID)]), (name, b"\xff\xfe\x00=1")]
        message = await received(client, destination, headers)
        span, out = processed(client, message)
        assert (span.context.trace_id == TRACE_ID) is (name != "traceparent")
        assert client.lines_of(out)["traceparent"] == [text_of(span)]
        assert client.lines_of(out)["a"] == [b"1"]

    run(use)


def test_headers_without_a_value_hurt_nobody(run, destination):
    async def use(client):
        if not client.null_headers:
            return
        headers = [("traceparent", VALID), ("tracestate", None), ("baggage", None), ("other", None), ("b3", None)]
        message = await received(client, destination, headers)
        span, out = processed(client, message)
        assert span.context.trace_id == TRACE_ID
        await client.send_plain(destination, b"again", client.pairs_of(out))

    run(use)


def test_of_duplicated_headers_the_last_counts_and_lists_are_joined(run, destination):
    async def use(client):
        if not client.repeats_headers:
            return
        headers = [
            ("traceparent", STALE),
            ("tracestate", "a=1"),
            ("baggage", "first=1"),
            ("Traceparent", VALID),
            ("TRACESTATE", "b=2"),
            ("Baggage", "second=2"),
        ]
        message = await received(client, destination, headers)
        found = client.extract(message)
        assert trace_id_of(found) == TRACE_ID
        assert trace.get_current_span(found).get_span_context().trace_state.to_header() == "a=1,b=2"
        assert baggage.get_all(found) == {"first": "1", "second": "2"}
        span, out = processed(client, message)
        lines = client.lines_of(out)
        assert lines["traceparent"] == [text_of(span)]
        assert lines["tracestate"] == [b"a=1,b=2"]
        assert lines["baggage"] == [b"first=1,second=2"]

    run(use)


def test_names_count_in_any_case(run, destination):
    async def use(client):
        message = await received(client, destination, [("TraceParent", VALID), ("BAGGAGE", "a=1"), ("Keep", "1")])
        assert trace_id_of(client.extract(message)) == TRACE_ID
        _, out = processed(client, message)
        assert [name for name, _ in client.pairs_of(out)] == ["Keep", "traceparent", "baggage"]

    run(use)


def test_a_thousand_headers_stay_as_they_are(run, destination):
    async def use(client):
        many = [(f"x-{number:03}", str(number)) for number in range(1000)]
        message = await received(client, destination, [*many[:500], ("traceparent", VALID), *many[500:]])
        span, out = processed(client, message)
        assert span.context.trace_id == TRACE_ID
        assert len(client.pairs_of(out)) == 1001
        await client.send(destination, b"on", out)

    run(use)


@pytest.mark.parametrize(
    "malformed",
    [
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        f"{VALID}-extra",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "",
        "a" * 5000,
    ],
    ids=["upper-case", "longer", "zero", "empty", "long"],
)
def test_a_malformed_parent_starts_a_trace_and_is_never_sent_on(run, destination, malformed):
    async def use(client):
        message = await received(client, destination, [("traceparent", malformed), ("tracestate", "a=1")])
        span, out = processed(client, message)
        assert span.parent is None
        assert [event.name for event in span.events] == ["meshmw.header.refused"]
        kept = client.inject(client.headers_of(message), context=Context(), keep_existing=True)
        for headers in (out, kept, client.inject(client.headers_of(message), context=Context())):
            assert malformed.encode() not in client.lines_of(headers).get("traceparent", [])
            assert "tracestate" not in client.lines_of(headers)

    run(use)


ODD = [
    ("TraceParent", VALID.upper()),
    ("tracestate", "a=1"),
    ("b3", "junk"),
    ("X-B3-Sampled", "maybe"),
    ("baggage", "a=1, =junk,b=2"),
    ("id", "7"),
]
CLEAN = {"baggage": [b"a=1,b=2"], "id": [b"7"]}


@pytest.mark.parametrize("how", ["consumer_span", "batch_span"])
def test_nothing_malformed_of_any_format_is_on_a_message_that_is_processed(run, destination, how):
    async def use(client):
        message = await received(client, destination, ODD)
        with getattr(client, how)([message] if how == "batch_span" else message):
            assert client.lines_of(client.headers_of(message)) == CLEAN
        assert client.lines_of(client.headers_of(message)) == CLEAN
        assert {header for header, _ in client.propagator.rejections.counts} == {"traceparent", "b3", "baggage"}
        with client.consumer_span(message):
            assert client.lines_of(client.inject(client.headers_of(message)))["id"] == [b"7"]

    run(use)


def test_nothing_malformed_is_on_a_message_that_an_iterator_hands_out(run, destination):
    async def use(client):
        await client.send_plain(destination, headers=ODD)
        async with client.deliveries(destination) as deliveries:
            with await anext(deliveries) as message:
                assert client.lines_of(client.headers_of(message)) == CLEAN
                if hasattr(message, "ack"):
                    await message.ack()
        assert len([event for event in client.spans[-1].events if event.name == "meshmw.header.refused"]) == 3

    run(use)


def test_what_is_good_stays_on_a_message_as_it_came_also_where_its_sender_is_not_trusted(run, destination):
    async def use(client):
        client.propagator = MeshPropagator(trust="restart")
        client.options["propagator"] = client.propagator
        good = [("Traceparent", VALID), ("tracestate", "a=1"), ("baggage", "b=2"), ("b3", "0"), ("id", "7")]
        message = await received(client, destination, good)
        before = client.headers_of(message)
        for _ in range(2):
            with client.consumer_span(message):
                assert client.headers_of(message) == before
            assert client.spans[-1].links[0].context.trace_id == TRACE_ID

    run(use)


@pytest.mark.parametrize("how", ["send", "send_instrumented"])
def test_a_message_that_is_forwarded_has_one_parent_the_new_one(run, destination, how):
    async def use(client):
        stale = [("traceparent", STALE), ("b3", "0"), ("baggage", "old=1"), ("x-meshmw-sent", "x"), ("id", "7")]
        message = await received(client, destination, stale)
        with client.provider.get_tracer("app").start_as_current_span("work"):
            await getattr(client, how)(f"{destination}-on", b"on", client.headers_of(message))
        (forwarded,) = await client.receive(f"{destination}-on")
        sent = client.span(f"{client.send_operation} {destination}-on")
        assert client.lines_of(client.headers_of(forwarded)) == {"id": [b"7"], "traceparent": [text_of(sent)]}

    run(use)


def test_inject_changes_nothing_that_it_is_given_and_keeps_a_creation_context_on_request(run, destination):
    async def use(client):
        message = await received(client, destination, [("traceparent", VALID), ("baggage", "a=1"), ("id", "7")])
        headers = client.headers_of(message)
        before = client.pairs_of(headers)
        with client.provider.get_tracer("app").start_as_current_span("work"):
            kept = client.inject(headers, keep_existing=True)
            fresh = client.inject(headers)
        assert client.pairs_of(headers) == before
        assert sorted(client.pairs_of(kept)) == sorted(before)
        assert client.lines_of(fresh)["traceparent"] == [text_of(client.span("work"))]
        assert "baggage" not in client.lines_of(fresh)

    run(use)


def test_with_nothing_current_nothing_old_is_sent_on(run, destination):
    async def use(client):
        message = await received(client, destination, [("traceparent", VALID), ("baggage", "a=1"), ("id", "7")])
        assert client.pairs_of(client.inject(client.headers_of(message))) == [("id", b"7")]

    run(use)


def test_the_request_id_goes_along(run, destination):
    async def use(client):
        message = await received(client, destination, [("traceparent", VALID), ("x-request-id", "r-1")])
        with client.consumer_span(message):
            assert client.lines_of(client.inject())["x-request-id"] == [b"r-1"]
            assert client.lines_of(client.inject({"X-Request-Id": "own"}))["x-request-id"] == [b"own"]

    run(use)


def test_baggage_is_bounded_in_both_directions(run, destination):
    async def use(client):
        members = ",".join(f"k{number}={'v' * 200}" for number in range(100))
        message = await received(client, destination, [("traceparent", VALID), ("baggage", members)])
        assert 30 < len(baggage.get_all(client.extract(message))) <= 64
        context = Context()
        for number in range(100):
            context = baggage.set_baggage(f"k{number}", "v" * 200, context)
        with Current(context):
            (line,) = client.lines_of(client.inject())["baggage"]
        assert len(line) <= 8192
        assert line.count(b",") < 64

    run(use)


def test_extract_never_inherits_what_is_current(run, destination):
    async def use(client):
        message = await received(client, destination, [("baggage", "a=1")])
        with (
            Current(baggage.set_baggage("b", "2", Context())),
            client.provider.get_tracer("x").start_as_current_span(""),
        ):
            around = otel_context.get_current()
            found = client.extract(message)
            assert baggage.get_all(found) == {"a": "1"}
            assert not trace.get_current_span(found).get_span_context().is_valid
            assert otel_context.get_current() == around

    run(use)


async def by_kafka_python(client, destination):
    with closing(kafka.instrument(client.consumer(destination), **client.options)) as consumer:
        fetched = {}
        while not fetched:
            fetched = consumer.poll(100)
        ((polled,),) = fetched.values()
        consumer.seek_to_beginning()
        return [polled, next(consumer)]


async def by_aiokafka(client, destination):
    async with client.consumer(destination) as plain:
        consumer = kafka.instrument(plain, **client.options)
        ((polled,),) = (await consumer.getmany(timeout_ms=SECONDS * 1000)).values()
        await consumer.seek_to_beginning()
        one = await consumer.getone()
        await consumer.seek_to_beginning()
        return [polled, one, await anext(consumer)]


async def by_confluent(client, destination):
    found = []
    for how in ("poll", "consume"):
        with closing(kafka.instrument(client.consumer(destination), **client.options)) as consumer:
            got = None
            while not got:
                got = consumer.poll(0.1) if how == "poll" else consumer.consume(1, 0.1)
            found += got if how == "consume" else [got]
    return found


async def by_pika(client, destination):
    channel = rabbitmq.instrument(client.channel, **client.options)
    message = (None,)
    while message[0] is None:
        message = channel.basic_get(destination)
    channel.basic_nack(message[0].delivery_tag)
    other = next(channel.consume(destination, auto_ack=True))
    client.channel.cancel()
    return [message, other]


async def by_aio_pika(client, destination):
    queue = await rabbitmq.instrument(client.channel, **client.options).get_queue(destination)
    message = await queue.get(timeout=SECONDS, no_ack=True)
    return [message]


HAND_OUT = {
    "KafkaPythonClient": by_kafka_python,
    "AiokafkaClient": by_aiokafka,
    "ConfluentClient": by_confluent,
    "PikaClient": by_pika,
    "AioPikaClient": by_aio_pika,
}


def test_nothing_malformed_is_on_what_an_instrumented_client_hands_out_and_it_is_told_where_that_is_processed(
    run, destination
):
    async def use(client):
        await client.send_plain(destination, headers=ODD)
        messages = await HAND_OUT[type(client).__name__](client, destination)
        assert not client.propagator.rejections.counts
        for message in messages:
            assert client.lines_of(client.headers_of(message)) == CLEAN
            assert [event.name for event in client.spans[0].events] == ["meshmw.header.refused"] * 3
            with client.consumer_span(message):
                assert client.lines_of(client.headers_of(message)) == CLEAN
            assert [event.name for event in client.spans[-1].events] == ["meshmw.header.refused"] * 3
            await client.send_plain(f"{destination}-on", headers=client.pairs_of(client.headers_of(message)))
        assert set(client.propagator.rejections.counts.values()) == {len(messages)}

    run(use)
