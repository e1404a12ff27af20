"""Kafka's headers and records in every shape, without a broker."""

import copy
from types import SimpleNamespace

import confluent_kafka
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from meshmw import MeshPropagator, kafka
from meshmw._lifecycle.messaging import messaging_span_name
from meshmw.kafka import instrument
from meshmw.kafka._clients import ConfluentConsumer
from meshmw.kafka._headers import flattened, headers_of, record_attributes
from meshmw.kafka._spans import KAFKA

VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736
CURRENT = TraceContextTextMapPropagator().extract({"traceparent": VALID})


class Message:
    """As confluent-kafka's: everything is a method."""

    def __init__(self, headers=None, error=None):
        self._headers, self._error = headers, error

    def headers(self):
        return self._headers

    def error(self):
        return self._error

    def topic(self):
        return "orders"


def type_name(value):
    return type(value).__name__


@pytest.fixture
def propagator():
    return MeshPropagator(warn_window=0)


def trace_id_in(context):
    return trace.get_current_span(context).get_span_context().trace_id


PAIRS = [("id", b"7"), ("traceparent", VALID.encode())]


@pytest.mark.parametrize(
    "carrier",
    [
        PAIRS,
        tuple(PAIRS),
        iter(PAIRS),
        dict(PAIRS),
        {"traceparent": VALID},
        [[name, value] for name, value in PAIRS],
        [(name.encode(), value) for name, value in PAIRS],
        [("Traceparent", bytearray(VALID, "ascii"))],
        [("traceparent", memoryview(VALID.encode()))],
        [("traceparent", VALID), ("traceparent", None), ("traceparent", 7), ("odd",), 7, None, (7, b"")],
        SimpleNamespace(headers=PAIRS),
        SimpleNamespace(headers=tuple(PAIRS)),
        Message(PAIRS),
    ],
    ids=type_name,
)
def test_extract_takes_every_shape(carrier, propagator):
    assert trace_id_in(kafka.extract(carrier, propagator=propagator)) == TRACE_ID


@pytest.mark.parametrize("nothing", [None, [], (), {}, Message(None), SimpleNamespace(headers=None)], ids=type_name)
def test_extract_of_nothing_is_an_empty_context(nothing, propagator):
    assert kafka.extract(nothing, propagator=propagator) == Context()
    assert not propagator.rejections.counts


class Broken:
    @property
    def headers(self):
        raise OSError("gone")


@pytest.mark.parametrize("carrier", ["traceparent", b"bytes", 7, object(), Broken()], ids=type_name)
def test_what_has_no_headers_is_said_and_raises_nothing(carrier, propagator):
    assert kafka.extract(carrier, propagator=propagator) == Context()
    assert propagator.rejections.counts == {("kafka", "no_headers"): 1}


names = st.text(max_size=8) | st.binary(max_size=8) | st.sampled_from(["traceparent", "Baggage", "TRACESTATE", "b3"])
values = st.none() | st.binary() | st.text() | st.integers() | st.sampled_from([VALID, VALID.encode()])


@given(st.lists(st.tuples(names, values) | st.lists(values) | values), st.sampled_from([list, tuple, iter]))
def test_no_headers_make_extract_raise_and_inject_reads_what_it_wrote(pairs, shape):
    propagator = MeshPropagator(["tracecontext", "baggage", "b3"])
    kafka.extract(shape(pairs), propagator=propagator)
    sendable = [(name, value) for name, value in filter(is_sendable, pairs)]
    out = kafka.inject(sendable, CURRENT, propagator=propagator)
    assert type(out) is list
    assert all(type(pair) is tuple and type(pair[0]) is str and type(pair[1]) is bytes for pair in out)
    assert [value for name, value in out if name.lower() == "traceparent"] == [VALID.encode()]
    assert trace_id_in(kafka.extract(out, propagator=propagator)) == TRACE_ID
    kept = kafka.inject(sendable, CURRENT, keep_existing=True, propagator=propagator)
    assert len([name for name, _ in kept if name.lower() == "traceparent"]) == 1


def is_sendable(pair):
    return isinstance(pair, tuple) and isinstance(pair[0], str) and isinstance(pair[1], str | bytes | None)


def test_inject_takes_every_shape_and_changes_none(propagator):
    shapes = [
        [("id", b"7"), ("TraceParent", b"stale")],
        (("id", "7"), ["traceparent", None]),
        {"id": bytearray(b"7"), "traceparent": "stale"},
        [(b"id", memoryview(b"7"))],
        SimpleNamespace(headers=(("id", b"7"),)),
    ]
    for headers in shapes:
        before = repr(headers)
        assert kafka.inject(headers, CURRENT, propagator=propagator) == PAIRS
        assert repr(headers) == before
    assert kafka.inject(context=CURRENT, propagator=propagator) == PAIRS[1:]
    assert kafka.inject([("gone", None)], Context(), propagator=propagator) == [("gone", b"")]
    given_list = [("id", b"7")]
    assert kafka.inject(given_list, Context(), propagator=propagator) is not given_list


@pytest.mark.parametrize("headers", [[("id", 7)], [(7, b"")], [("id",)], [7], ["id"], "text", 7], ids=repr)
def test_inject_refuses_what_no_client_sends(headers):
    with pytest.raises(TypeError):
        kafka.inject(headers, CURRENT, propagator=MeshPropagator())


def test_a_kept_parent_is_written_once_and_a_malformed_one_is_not_kept(propagator):
    other = VALID.replace("4bf9", "1111").encode()
    old = [("traceparent", b"stale"), ("Traceparent", other), ("tracestate", b"a=1"), ("baggage", b"b=2")]
    kept = kafka.inject(old, CURRENT, keep_existing=True, propagator=propagator)
    assert kept == [("traceparent", other), ("tracestate", b"a=1"), ("baggage", b"b=2")]
    fresh = kafka.inject([*old, ("traceparent", b"junk")], CURRENT, keep_existing=True, propagator=propagator)
    assert fresh == PAIRS[1:]
    assert not propagator.rejections.counts


def test_getter_and_setter_serve_any_propagator():
    headers = [("Traceparent", b"stale"), ("id", b"7")]
    TraceContextTextMapPropagator().inject(headers, CURRENT, kafka.KafkaSetter())
    assert headers == [("id", b"7"), ("traceparent", VALID.encode())]
    getter = kafka.KafkaGetter()
    found = TraceContextTextMapPropagator().extract(Message(headers), getter=getter)
    assert trace_id_in(found) == TRACE_ID
    assert getter.keys(headers) == ["id", "traceparent"]
    assert getter.get([("baggage", b"a=1"), ("Baggage", b"b=2")], "baggage") == ["a=1,b=2"]
    assert getter.get(headers, "baggage") is None


def test_attributes_say_what_every_client_knows_and_no_payload():
    record = SimpleNamespace(
        topic="orders", partition=3, offset=9, value={"secret": 1}, key=b"k", serialized_value_size=12
    )
    assert record_attributes(record) == {
        "messaging.destination.partition.id": "3",
        "messaging.message.body.size": 12,
        "messaging.kafka.offset": 9,
    }
    tombstone = SimpleNamespace(topic="orders", partition=0, offset=0, value=None, serialized_value_size=-1)
    assert record_attributes(tombstone, consumer_group="g") == {
        "messaging.destination.partition.id": "0",
        "messaging.consumer.group.name": "g",
        "messaging.kafka.offset": 0,
        "messaging.kafka.message.tombstone": True,
    }
    assert messaging_span_name("poll", None) == "poll"


def test_what_a_deserializer_has_made_is_neither_called_nor_taken_for_a_tombstone():
    record = SimpleNamespace(topic="orders", partition=0, offset=0, value=pytest.fail, serialized_value_size=4)
    assert record_attributes(record)["messaging.message.body.size"] == 4
    record = SimpleNamespace(topic="orders", partition=0, offset=0, value=None, serialized_value_size=4)
    assert "messaging.kafka.message.tombstone" not in record_attributes(record)


def test_records_of_every_poll_are_flattened():
    one = Message()
    assert flattened(None) == []
    assert flattened(one) == [one]
    assert flattened([one, one]) == [one, one]
    assert flattened({("orders", 0): [one], ("orders", 1): [one]}) == [one, one]
    assert headers_of(Message(None)) == ()


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def options(exporter, propagator):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return {"tracer_provider": provider, "propagator": propagator}


def test_defaults_are_the_configured_ones():
    with kafka.producer_span("orders", partition=1, client_id="c"):
        assert kafka.inject([("id", b"7")]) == [("id", b"7")]
    with kafka.consumer_span(Message(PAIRS)), kafka.batch_span([Message(PAIRS)]):
        pass
    assert trace_id_in(kafka.extract(PAIRS)) == TRACE_ID


class Polled:
    """A consumer of confluent-kafka whose polls have these results."""

    def __init__(self, *results):
        self.results = list(results)

    def poll(self, timeout):
        return self.results.pop(0)


class AsyncPolled(Polled):
    async def poll(self, seconds):
        return self.results.pop(0)


def error(code, **more):
    return confluent_kafka.KafkaError(code, "said", **more)


END = Message(error=error(confluent_kafka.KafkaError._PARTITION_EOF))
RETRIED = Message(error=error(confluent_kafka.KafkaError._TRANSPORT, retriable=True))
FATAL = Message(error=error(confluent_kafka.KafkaError.TOPIC_AUTHORIZATION_FAILED))


@pytest.mark.asyncio
async def test_polls_wait_for_a_record_and_raise_what_does_not_pass(options):
    record = Message(PAIRS)
    steps = kafka.consume(Polled(None, END, RETRIED, record, FATAL), **options)
    assert next(steps).message is record
    with pytest.raises(confluent_kafka.KafkaException, match="said"):
        next(steps)
    steps = kafka.aconsume(AsyncPolled(None, END, RETRIED, record, FATAL), **options)
    assert (await anext(steps)).message is record
    with pytest.raises(confluent_kafka.KafkaException, match="said"):
        await anext(steps)


def test_records_of_any_iterable_are_consumed(options, exporter):
    for delivery in kafka.consume([Message(PAIRS), Message()], consumer_group="g", **options):
        with delivery:
            assert not baggage.get_all()
    assert [span.name for span in exporter.get_finished_spans()] == ["process orders", "process orders"]


@pytest.mark.parametrize("client", [object(), "text", confluent_kafka.KafkaError(1)], ids=type_name)
def test_only_clients_of_the_three_libraries_are_instrumented(client):
    with pytest.raises(TypeError, match="kafka-python, aiokafka or confluent-kafka, not "):
        instrument(client)


def test_a_producer_that_sends_no_headers_is_refused():
    class AIOProducer:
        __module__ = "confluent_kafka.experimental.aio"

    with pytest.raises(TypeError, match=r"AIOProducer sends no headers.*confluent_kafka\.Producer"):
        instrument(AIOProducer())


class Sent:
    """A future of kafka-python that has its result."""

    def add_callback(self, callback):
        callback(SimpleNamespace(offset=1, partition=0))

    def add_errback(self, callback):
        pass


class KafkaProducer:
    """Named and placed as kafka-python's, without a broker."""

    __module__ = "kafka.producer.kafka"

    def send(self, topic, value=None, key=None, headers=None, partition=None, timestamp_ms=None):
        self.sent = (topic, value, key, headers, partition, timestamp_ms)
        return Sent()


class Own(KafkaProducer):
    def send(self, *args, **kwargs):
        self.given = (args, kwargs)
        return super().send(*args, **kwargs)


class Narrow(KafkaProducer):
    def send(self, topic, value):
        return super().send(topic, value)


@pytest.mark.parametrize("producer", [KafkaProducer(), Own()], ids=type_name)
def test_a_subclass_gets_its_arguments_as_they_were_given(options, exporter, producer):
    wrapped = instrument(producer, **options)
    wrapped.send("orders", b"1")
    wrapped.send("orders", b"2", None, [("id", b"7")], 3)
    first, second = [dict(span.attributes) for span in exporter.get_finished_spans()]
    assert (first["messaging.destination.name"], second["messaging.destination.partition.id"]) == ("orders", "0")
    topic, value, key, headers, partition, _ = producer.sent
    assert (topic, value, key, partition) == ("orders", b"2", None, 3)
    assert [name for name, _ in headers] == ["id", "traceparent"]
    if isinstance(producer, Own):
        assert producer.given[0][:3] == ("orders", b"2", None)


def test_a_subclass_that_takes_no_headers_is_refused(options):
    with pytest.raises(TypeError, match=r"Narrow\.send takes no topic and headers by these names"):
        instrument(Narrow(), **options)


def test_what_is_instrumented_can_be_copied_and_is_its_client_as_text(options):
    class Named(KafkaProducer):
        def __str__(self):
            return "<KafkaProducer client_id=7>"

    wrapped = instrument(Named(), **options)
    assert str(wrapped) == "<KafkaProducer client_id=7>"
    assert copy.copy(wrapped).__wrapped__ is wrapped.__wrapped__


def test_what_stands_for_an_error_in_a_batch_is_no_record_of_it(exporter, propagator):
    class Record(Message):
        def set_headers(self, headers):
            self._headers = headers

    junk = [("traceparent", b"junk")]
    fetched = [Record(junk), Record(junk, "gone")]
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    messaging = KAFKA.with_options({"tracer_provider": provider, "propagator": propagator})
    consumer = ConfluentConsumer(SimpleNamespace(consume=lambda: fetched), messaging)
    assert consumer.consume() is fetched
    assert [record.headers() for record in fetched] == [[], junk]
    (span,) = exporter.get_finished_spans()
    assert span.attributes["messaging.batch.message_count"] == 1
