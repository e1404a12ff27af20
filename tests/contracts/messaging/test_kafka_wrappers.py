"""`meshmw.kafka.instrument` around each client's own producers and consumers, on a real broker."""

import asyncio

import aiokafka
import confluent_kafka
import kafka
import pytest
from confluent_kafka.aio import AIOConsumer, AIOProducer
from confluent_kafka.serializing_producer import SerializingProducer
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from meshmw.kafka import consumer_span, instrument
from tests.contracts.messaging.kafka_clients import CLIENTS

VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736
each_client = pytest.mark.parametrize("make", list(CLIENTS), indirect=True)
kafka_python = pytest.mark.parametrize("make", ["kafka-python"], indirect=True)
of_aiokafka = pytest.mark.parametrize("make", ["aiokafka"], indirect=True)
of_confluent = pytest.mark.parametrize("make", ["confluent-kafka"], indirect=True)
NOWHERE = "127.0.0.1:9"


@each_client
def test_a_wrapper_has_the_whole_interface_of_what_it_wraps(run):
    async def use(client):
        wrapped = instrument(client.producer, **client.options)
        assert wrapped.__wrapped__ is client.producer
        assert {*dir(client.producer)} <= {*dir(wrapped)}
        assert not isinstance(wrapped, type(client.producer))
        assert type(client.producer).__name__ in repr(wrapped)
        assert wrapped.flush == client.producer.flush
        with pytest.raises(AttributeError):
            _ = wrapped.nonsense

    run(use)


@each_client
def test_what_the_broker_says_of_a_record_is_on_its_span(run, destination):
    async def use(client):
        await client.send_instrumented(destination)
        await client.send_instrumented(destination)
        offsets = [span.attributes["messaging.kafka.offset"] for span in client.spans]
        assert offsets == [0, 1]
        assert all(span.attributes["messaging.destination.partition.id"] == "0" for span in client.spans)

    run(use)


@each_client
def test_arguments_that_the_client_refuses_are_refused_and_recorded(run, destination):
    async def use(client):
        with pytest.raises(TypeError):
            await client.send_instrumented(destination, headers=[("id", 7)])
        with pytest.raises((TypeError, AssertionError)):
            await client.send_instrumented(destination, body=7)
        assert len(client.spans) == 2
        assert all(not span.status.is_ok for span in client.spans)

    run(use)


@kafka_python
def test_kafka_python_reports_what_could_not_be_delivered(run, destination):
    async def use(client):
        producer = kafka.KafkaProducer(bootstrap_servers=client.broker, max_request_size=100)
        with instrument(producer, **client.options) as wrapped, pytest.raises(kafka.errors.MessageSizeTooLargeError):
            wrapped.send(destination, b"long" * 100).get(60)
        (span,) = client.spans
        assert span.attributes["error.type"].endswith("MessageSizeTooLargeError")

    run(use)


@of_aiokafka
def test_aiokafka_reports_what_could_not_be_delivered(run, destination):
    async def use(client):
        wrapped = instrument(client.producer, **client.options)
        refused, dropped = await wrapped.send(destination, b"a"), await wrapped.send(destination, b"b")
        # As the sender does after its retries, and as an application may.
        refused.set_exception(aiokafka.errors.KafkaTimeoutError())
        dropped.cancel()
        with pytest.raises(aiokafka.errors.KafkaTimeoutError):
            await refused
        await asyncio.sleep(0)
        first, second = sorted(client.spans, key=lambda span: span.start_time)
        assert first.attributes["error.type"].endswith("KafkaTimeoutError")
        assert "error.type" not in second.attributes

    run(use)


@of_confluent
def test_confluent_kafka_reports_what_could_not_be_delivered(run, destination):
    async def use(client):
        told = []
        options = {"bootstrap.servers": NOWHERE, "message.timeout.ms": 20, "log_level": 0}
        with instrument(confluent_kafka.Producer(options), **client.options) as wrapped:
            wrapped.produce(destination, b"a", on_delivery=lambda *report: told.append(report))
            assert bool(wrapped)
            assert len(wrapped) >= 1  # events of the client itself count too
            assert not client.spans
            wrapped.flush(60)
        ((error, message),) = told
        assert error.code() == confluent_kafka.KafkaError._MSG_TIMED_OUT
        assert message.topic() == destination
        (span,) = client.spans
        assert span.attributes["error.type"].endswith("KafkaException")

    run(use)


@of_confluent
def test_confluent_kafkas_callbacks_and_subclasses_work_as_ever(run, destination):
    async def use(client):
        told = []

        def told_of(error, message):
            told.append(error)

        producer = SerializingProducer({"bootstrap.servers": client.broker})
        wrapped = instrument(producer, **client.options)
        # Another order of arguments than that of its base class.
        wrapped.produce(destination, b"key", b"value", 0, told_of)
        instrument(client.producer, **client.options).produce(destination, b"b", partition=0, callback=told_of)
        assert wrapped.flush(60) == 0
        assert client.producer.flush(60) == 0
        assert told == [None, None]
        (message,) = [found for found in await client.receive(destination, 2) if found.key() == b"key"]
        assert message.value() == b"value"
        assert len(client.spans) == 2
        producer.close()

    run(use)


@of_confluent
def test_a_callback_of_confluent_kafkas_configuration_is_called_as_ever(run, destination):
    async def use(client):
        told = []
        options = {"bootstrap.servers": client.broker, "on_delivery": lambda *report: told.append(report)}
        with instrument(confluent_kafka.Producer(options), **client.options) as wrapped:
            wrapped.produce(destination, b"a", partition=0)
            assert len(client.spans) == 1
            wrapped.produce(destination, b"b", partition=0, on_delivery=lambda *report: told.append("own"))
            assert wrapped.flush(60) == 0
        ((error, message), own) = told
        assert (error, message.value(), own) == (None, b"a", "own")
        assert [span.attributes.get("messaging.kafka.offset") for span in client.spans] == [None, 1]
        assert all("traceparent" in dict(found.headers()) for found in await client.receive(destination, 2))

    run(use)


@of_confluent
def test_what_confluent_kafka_does_not_report_ends_its_span_all_the_same(run, destination):
    async def use(client):
        options = {"bootstrap.servers": client.broker, "delivery.report.only.error": True}
        with instrument(confluent_kafka.Producer(options), **client.options) as wrapped:
            wrapped.produce(destination, b"a", partition=0)
            assert not client.spans
            assert wrapped.flush(60) == 0
        (span,) = client.spans
        assert "error.type" not in span.attributes

    run(use)


@kafka_python
def test_kafka_pythons_consumer_says_what_it_fetched(run, destination):
    async def use(client):
        for _ in range(3):
            await client.send_plain(destination, headers=[("traceparent", VALID)])
        with instrument(client.consumer(destination), **client.options) as consumer:
            fetched = {}
            while not fetched:
                fetched = consumer.poll(500, max_records=2)
            (record,) = [next(iter(consumer))] if sum(map(len, fetched.values())) == 2 else [None]
        batch, *single = client.spans
        assert (batch.name, batch.kind) == (f"poll {destination}", SpanKind.CLIENT)
        assert batch.attributes["messaging.operation.type"] == "receive"
        assert batch.attributes["messaging.batch.message_count"] == 2
        assert [link.context.trace_id for link in batch.links] == [TRACE_ID]
        assert record is not None
        assert [(span.name, span.context.trace_id) for span in single] == [(f"receive {destination}", TRACE_ID)]

    run(use)


@of_aiokafka
def test_aiokafkas_consumer_says_what_it_fetched(run, destination):
    async def use(client):
        for _ in range(4):
            await client.send_plain(destination, headers=[("traceparent", VALID)])
        consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=client.broker, auto_offset_reset="earliest")
        async with instrument(consumer, **client.options) as wrapped:
            wrapped.assign([aiokafka.TopicPartition(destination, 0)])
            assert (await wrapped.getone()).topic == destination
            async for record in wrapped:
                assert not trace.get_current_span().get_span_context().is_valid
                with consumer_span(record, **client.options):
                    break
            assert await wrapped.getmany(timeout_ms=60_000, max_records=2)
            assert not await wrapped.getmany(timeout_ms=1)
        names = [span.name.removesuffix(f" {destination}") for span in client.spans]
        assert names == ["receive", "receive", "process", "poll"]
        assert [span.context.trace_id for span in client.spans[:3]] == [TRACE_ID] * 3

    run(use)


@of_confluent
def test_confluent_kafkas_consumer_says_what_it_fetched(run, destination):
    async def use(client):
        for _ in range(3):
            await client.send_plain(destination, headers=[("traceparent", VALID)])
        with instrument(client.consumer(destination), **client.options) as consumer:
            assert consumer.poll(60) is not None
            assert len(consumer.consume(2, 60)) == 2
            assert consumer.poll(0) is None
            assert consumer.consume(1, 0) == []
        one, two = client.spans
        assert (one.name, one.context.trace_id) == (f"poll {destination}", TRACE_ID)
        assert two.attributes["messaging.batch.message_count"] == 2

    run(use)


@of_confluent
def test_confluent_kafkas_async_consumer_says_what_it_fetched(run, destination):
    async def use(client):
        for _ in range(3):
            await client.send_plain(destination, headers=[("traceparent", VALID)])
        options = {"bootstrap.servers": client.broker, "group.id": "none", "auto.offset.reset": "earliest"}
        inner = AIOConsumer(options)
        consumer = instrument(inner, **client.options)
        await consumer.assign([confluent_kafka.TopicPartition(destination, 0, 0)])
        assert await consumer.poll(60) is not None
        assert len(await consumer.consume(2, 60)) == 2
        await consumer.close()
        assert [span.name for span in client.spans] == [f"poll {destination}"] * 2
        with pytest.raises(TypeError, match="AIOProducer sends no headers"):
            instrument(object.__new__(AIOProducer))

    run(use)
