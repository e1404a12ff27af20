"""What is pika's own: callbacks of both kinds of connection, its generator, confirms and returns, threads."""

import asyncio
import threading

import pika
import pika.exceptions
import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from meshmw import rabbitmq
from meshmw._context.current import Current
from tests.contracts.messaging.rabbitmq_clients import SECONDS, PikaClient

TRACE_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736
VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def client(rabbitmq_broker):
    opened = PikaClient(rabbitmq_broker)
    asyncio.run(opened.open())
    yield opened
    asyncio.run(opened.close())


@pytest.fixture
def channel(client):
    """A channel that traces by itself."""
    return rabbitmq.instrument(client.channel, **client.options)


@pytest.fixture
def queue(client, destination):
    client.channel.queue_declare(destination)
    return destination


def current_trace():
    return trace.get_current_span().get_span_context().trace_id


def names(client):
    return [span.name for span in client.spans]


def test_a_callback_runs_in_its_message_s_trace_and_what_it_publishes_goes_on_in_it(client, channel, queue):
    client.publish(client.channel, queue, b"1", {"traceparent": VALID, "baggage": "n=1"})
    client.channel.queue_declare(f"{queue}-next")

    def on_message(given, method, properties, body):
        assert given is channel
        assert (current_trace(), baggage.get_baggage("n"), body) == (TRACE_ID, "1", b"1")
        given.basic_publish("", f"{queue}-next", body, properties)
        assert properties.headers == {"traceparent": VALID, "baggage": "n=1"}
        given.basic_ack(method.delivery_tag)
        given.stop_consuming()

    channel.basic_consume(queue, on_message)
    channel.start_consuming()
    published, processed = client.spans
    assert (published.name, processed.name) == (f"publish {queue}-next", f"process {queue}")
    assert (published.kind, processed.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert published.parent.span_id == processed.context.span_id
    assert processed.attributes["messaging.rabbitmq.message.delivery_tag"] == 1
    assert processed.attributes["messaging.rabbitmq.destination.routing_key"] == queue
    _, sent, _ = client.channel.basic_get(f"{queue}-next", auto_ack=True)
    assert f"{published.context.span_id:016x}" in sent.headers["traceparent"]
    assert sent.headers["baggage"] == "n=1"


def test_an_exception_of_a_callback_is_recorded_and_the_message_comes_again(client, channel, queue):
    client.publish(client.channel, queue, b"1", {"traceparent": VALID})

    def on_message(*_):
        raise KeyError("teapot")

    with client.connection.channel() as failing:
        rabbitmq.instrument(failing, **client.options).basic_consume(queue, on_message)
        with pytest.raises(KeyError):
            failing.start_consuming()
    assert not current_trace()
    with client.consumer_span(next(channel.consume(queue, auto_ack=True))):
        pass
    channel.cancel()
    failed, _, again = client.spans
    assert failed.attributes["error.type"] == "KeyError"
    assert again.context.trace_id == TRACE_ID
    assert again.attributes["meshmw.message.redelivered"] is True
    assert again.attributes["meshmw.message.delivery_count"] == 2


def test_what_is_pulled_is_received_in_its_message_s_trace_and_nothing_stays_current(client, channel, queue):
    assert channel.basic_get(queue) == (None, None, None)
    for _ in range(2):
        client.publish(client.channel, queue, b"1", {"traceparent": VALID})
    method, _, body = channel.basic_get(queue)
    channel.basic_nack(method.delivery_tag, requeue=True)
    for method, _, body in channel.consume(queue, inactivity_timeout=0.2):
        assert not current_trace()
        if method is None and len(client.spans) == 3:
            break
        if method is None:
            continue
        assert body == b"1"
        channel.basic_ack(method.delivery_tag)
    channel.cancel()
    assert names(client) == [f"get {queue}", f"receive {queue}", f"receive {queue}"]
    assert {span.kind for span in client.spans} == {SpanKind.CLIENT}
    assert {span.context.trace_id for span in client.spans} == {TRACE_ID}


def test_when_nothing_comes_in_time_the_block_has_no_span(client, queue):
    deliveries = rabbitmq.consume(client.channel.consume(queue, inactivity_timeout=0.01), queue=queue, **client.options)
    with next(deliveries) as (method, properties, body):
        assert (method, properties, body) == (None, None, None)
        assert not current_trace()
    client.channel.cancel()
    assert not client.spans


def test_a_queue_that_is_deleted_in_mid_iteration_ends_it(client, queue):
    client.publish(client.channel, queue, b"1", {"traceparent": VALID})
    deliveries = rabbitmq.consume(client.channel.consume(queue, auto_ack=True), queue=queue, **client.options)
    with next(deliveries):
        client.channel.queue_delete(queue)
        assert current_trace() == TRACE_ID
    assert next(deliveries, None) is None
    assert not current_trace()
    assert names(client) == [f"process {queue}"]


def test_a_message_that_no_queue_takes_makes_its_span_an_error(client, channel):
    with pytest.raises(pika.exceptions.UnroutableError) as unroutable:
        channel.basic_publish("", "nobody", b"1", mandatory=True)
    (span,) = client.spans
    assert span.attributes["error.type"] == "pika.exceptions.UnroutableError"
    (returned,) = unroutable.value.messages
    sent = trace.get_current_span(client.extract(returned.properties)).get_span_context()
    assert (sent.trace_id, sent.span_id) == (span.context.trace_id, span.context.span_id)


def test_a_message_that_the_broker_refuses_makes_its_span_an_error(client, channel, destination):
    client.channel.queue_declare(destination, arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    with pytest.raises(pika.exceptions.NackError):
        channel.basic_publish("", destination, b"1")
    assert client.span(f"publish {destination}").attributes["error.type"] == "pika.exceptions.NackError"


def test_without_confirms_a_returned_message_still_names_its_trace(client):
    returned = []
    with rabbitmq.instrument(client.connection.channel(), **client.options) as channel:
        channel.add_on_return_callback(lambda *found: returned.append(found))
        channel.basic_publish("", "nobody", b"1", pika.BasicProperties(message_id="7"), mandatory=True)
        while not returned:
            client.connection.process_data_events(1)
    _, method, properties, _ = returned[0]
    (span,) = client.spans
    assert method.reply_text == "NO_ROUTE"
    assert span.attributes["messaging.message.id"] == "7"
    assert trace.get_current_span(client.extract(properties)).get_span_context().span_id == span.context.span_id


def test_callbacks_of_a_connection_without_blocking_run_each_in_its_own_trace(client, queue, rabbitmq_broker):
    seen = []

    def on_open(connection):
        connection.channel(on_open_callback=on_channel)

    def on_channel(plain):
        channel = rabbitmq.instrument(plain, **client.options)
        for number in range(3):
            with Current(baggage.set_baggage("n", str(number), Context())):
                channel.basic_publish("", queue, str(number).encode())
        channel.basic_get(queue, on_message, auto_ack=True)

    def on_message(channel, method, properties, body):
        seen.append((body.decode(), baggage.get_baggage("n"), current_trace()))
        if len(seen) == 1:
            channel.basic_consume(queue, on_message, auto_ack=True)
        elif len(seen) == 3:
            channel.connection.close()

    parameters = pika.URLParameters(rabbitmq_broker)
    connection = pika.SelectConnection(
        parameters, on_open_callback=on_open, on_close_callback=lambda *_: connection.ioloop.stop()
    )
    connection.ioloop.call_later(SECONDS, connection.ioloop.stop)
    connection.ioloop.start()
    connection.ioloop.close()
    assert sorted(body for body, _, _ in seen) == ["0", "1", "2"]
    sent = {span.context.trace_id for span in client.spans if span.kind is SpanKind.PRODUCER}
    assert {of for _, _, of in seen} == sent
    assert len(sent) == 3
    assert all(body == of for body, of, _ in seen)
    assert otel_context.get_current() == Context()


def test_consumers_in_many_threads_keep_their_messages_apart(client, queue, rabbitmq_broker):
    for number in range(40):
        parent = f"00-{number + 1:032x}-00000000000000aa-01"
        client.publish(client.channel, queue, str(number).encode(), {"traceparent": parent, "baggage": f"n={number}"})
    wrong, done, together = [], [], threading.Barrier(4)

    def work():
        connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_broker))
        channel = rabbitmq.instrument(connection.channel(), **client.options)
        channel.basic_qos(prefetch_count=1)
        together.wait(SECONDS)

        def on_message(given, method, properties, body):
            connection.sleep(0)
            if (current_trace(), baggage.get_baggage("n")) != (int(body) + 1, body.decode()):
                wrong.append(body)
            given.basic_ack(method.delivery_tag)
            done.append(body)

        channel.basic_consume(queue, on_message)
        while len(done) < 40:
            connection.process_data_events(0.01)
        if otel_context.get_current() != Context():
            wrong.append("left behind")
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not wrong
    assert len(set(done)) == len(done) == 40
    assert sorted(span.context.trace_id for span in client.spans) == list(range(1, 41))
