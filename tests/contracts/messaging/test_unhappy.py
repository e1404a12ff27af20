"""No header can hurt, none that is malformed is sent on, and a message that is forwarded says who forwards it."""

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context

from meshmw._context.current import Current

VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
STALE = "00-11111111111111111111111111111111-2222222222222222-01"
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
