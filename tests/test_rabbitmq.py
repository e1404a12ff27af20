"""RabbitMQ's headers and spans where no broker is needed: shapes, names, and what never raises."""

import copy

import aio_pika
import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import propagate, trace
from opentelemetry.baggage import get_all
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import INVALID_SPAN, SpanContext, TraceFlags

from meshmw import MeshPropagator, rabbitmq
from meshmw._context.current import Current
from meshmw.rabbitmq._headers import destination

pytestmark = pytest.mark.usefixtures("strict_context")

VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER = "00-11111111111111111111111111111111-2222222222222222-01"
PARENT = SpanContext(0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7, True, TraceFlags(1))
PROPAGATOR = MeshPropagator()


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter):
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(exporter))
    return made


def inject(headers=None, **options):
    return rabbitmq.inject(headers, PROPAGATOR.extract({"traceparent": VALID}), propagator=PROPAGATOR, **options)


def parent(carrier):
    return trace.get_current_span(rabbitmq.extract(carrier, propagator=PROPAGATOR)).get_span_context()


def test_inject_writes_text_into_new_headers_and_leaves_the_callers_alone():
    given = {"TraceParent": OTHER, b"Baggage": b"a=1", "b3": 1, "n": 7, "deep": [{"x": b"\xff"}]}
    before = copy.deepcopy(given)
    assert inject(given) == {"n": 7, "deep": [{"x": b"\xff"}], "traceparent": VALID}
    assert given == before
    assert inject() == {"traceparent": VALID}
    assert inject({}) == {"traceparent": VALID}


@pytest.mark.parametrize("headers", [None, {}, {"n": 7, "traceparent": OTHER}])
def test_inject_copies_properties_and_messages(headers):
    properties = pika.BasicProperties(headers=headers, message_id="7", delivery_mode=2)
    message = aio_pika.Message(b"1", headers=headers, message_id="7", expiration=3)
    kept = {"n": 7} if headers else {}
    for original, same in ((properties, "delivery_mode"), (message, "expiration")):
        copied = inject(original)
        assert type(copied) is type(original)
        assert copied.headers == {**kept, "traceparent": VALID}
        assert copied.message_id == "7"
        assert getattr(copied, same) == getattr(original, same)
        assert original.headers == (headers or ({} if original is message else headers))


@pytest.mark.parametrize("wrong", [[("traceparent", VALID)], "traceparent", 7, object()])
def test_inject_says_what_it_takes(wrong):
    with pytest.raises(TypeError, match="headers are a mapping, properties or a message, not "):
        inject(wrong)


def test_a_creation_context_stays_where_it_is_asked_for_and_valid():
    assert inject({"traceparent": OTHER}, keep_existing=True) == {"traceparent": OTHER}
    assert inject({"traceparent": OTHER[:-1]}, keep_existing=True) == {"traceparent": VALID}


@pytest.mark.parametrize(
    "value",
    [VALID, VALID.encode(), bytearray(VALID.encode()), [VALID], [OTHER, VALID.encode()], (VALID,), [None, VALID, 7]],
)
def test_extract_reads_every_type_that_holds_text(value):
    headers = {"traceparent": value}
    message = aio_pika.Message(b"1", headers=headers)
    for carrier in (
        headers,
        pika.BasicProperties(headers=headers),
        message,
        (None, pika.BasicProperties(headers=headers), b""),
    ):
        assert parent(carrier) == PARENT


@pytest.mark.parametrize("value", [None, 7, 7.5, True, {"a": VALID}, [], [[VALID]], b"\xff\xfe", "", object()])
def test_extract_starts_a_trace_for_every_other_value(value):
    assert not parent({"traceparent": value}).is_valid


@pytest.mark.parametrize("carrier", [None, 7, "traceparent", b"", [], [("traceparent", VALID)], (), (None, None, None)])
def test_extract_takes_whatever_it_is_given(carrier):
    assert rabbitmq.extract(carrier, propagator=PROPAGATOR) == Context()


def test_the_spelling_of_today_decides_and_lists_are_joined():
    assert parent({"traceparent": VALID, "Traceparent": OTHER}) == PARENT
    assert parent({"TRACEPARENT": VALID}) == PARENT
    found = rabbitmq.extract(
        {"traceparent": VALID, "Baggage": b"a=1", "baggage": ["b=2", "c=3"]}, propagator=PROPAGATOR
    )
    assert dict(get_all(found)) == {"a": "1", "b": "2", "c": "3"}


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.builds(bytearray, st.binary()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["traceparent", "TraceState", "baggage", "b3", "x-request-id", "x-delivery-count"]) | st.text()
DEATHS = st.lists(st.dictionaries(st.sampled_from(["count", "reason", "queue"]), VALUES) | VALUES, max_size=3)
RECORDING = TracerProvider()


@given(st.dictionaries(NAMES | st.binary(), VALUES), DEATHS | VALUES)
def test_no_headers_raise_or_are_changed_or_leave_a_stale_trace(headers, deaths):
    headers = {**headers, "x-death": deaths}
    before = repr(headers)
    rabbitmq.extract(headers, propagator=PROPAGATOR)
    method, properties = pika.spec.Basic.Deliver(), pika.BasicProperties(headers=headers)
    with rabbitmq.consumer_span(method, properties, b"", tracer_provider=RECORDING) as span:
        assert span.is_recording()
    sent = inject(headers)
    assert repr(headers) == before
    assert [key for key in sent if str(key).lower() == "traceparent"] == ["traceparent"]
    assert parent(sent) == PARENT


def test_the_getter_serves_every_propagator():
    getter = rabbitmq.RabbitMQGetter()
    carrier = pika.BasicProperties(headers={"Baggage": [b"a=1", "b=2"], "n": 7})
    assert getter.get(carrier, "baggage") == ["a=1,b=2"]
    assert getter.get(carrier, "n") is None
    assert getter.keys(carrier) == ["Baggage", "n"]
    found = propagate.extract({"traceparent": bytearray(VALID.encode())}, getter=getter)
    assert trace.get_current_span(found).get_span_context() == PARENT


@pytest.mark.parametrize(
    ("parts", "name", "span_name"),
    [
        (("shop", "red"), "shop:red", "shop:red"),
        (("shop", ""), "shop", "shop"),
        (("", "orders"), "orders", "orders"),
        (("", ""), "amq.default", "amq.default"),
        (("shop", "red", "orders"), "shop:red:orders", "shop:red:orders"),
        (("shop", "orders", "orders"), "shop:orders", "shop:orders"),
        (("shop", "", "orders"), "shop:orders", "shop:orders"),
        (("", "orders", "orders"), "orders", "orders"),
        (("shop", "", "amq.gen-Xa2"), "shop:amq.gen-Xa2", "shop"),
        (("", "amq.gen-Xa2", "amq.gen-Xa2"), "amq.gen-Xa2", None),
        (("", "amq.rabbitmq.reply-to.g1h"), "amq.rabbitmq.reply-to.g1h", None),
        (("", "amq_0e1f"), "amq_0e1f", None),
    ],
)
def test_destinations_are_named_as_the_conventions_say(parts, name, span_name):
    found = destination(*parts)
    assert (found.name, found.span_name) == (name, span_name)


def test_of_routing_keys_without_end_the_first_name_spans_and_all_are_told(provider, exporter, monkeypatch):
    monkeypatch.setattr("meshmw.rabbitmq._headers._routing_keys", {})
    monkeypatch.setattr("meshmw.rabbitmq._headers._MOST_PLACES", 2)
    keys = [f"user.{number}" for number in range(100)]
    for key in [*keys, "user.7"]:
        method = pika.spec.Basic.Deliver(exchange="shop", routing_key=key, delivery_tag=1)
        with rabbitmq.consumer_span(method, pika.BasicProperties(), b"1", queue="audit", tracer_provider=provider):
            pass
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans[:64]] == [f"process shop:{key}:audit" for key in keys[:64]]
    assert {span.name for span in spans[64:100]} == {"process shop:audit"}
    assert [span.attributes["messaging.destination.name"] for span in spans[:100]] == [
        f"shop:{key}:audit" for key in keys
    ]
    assert spans[100].name == "process shop:user.7:audit"
    assert all("messaging.destination.anonymous" not in span.attributes for span in spans)
    for exchange in ("a", "b"):
        with rabbitmq.producer_span(exchange, "red", tracer_provider=provider):
            pass
    with rabbitmq.producer_span("", "orders-1", tracer_provider=provider):
        pass
    names = [span.name for span in exporter.get_finished_spans()[101:]]
    assert names == ["publish a:red", "publish b", "publish orders-1"]


def test_a_name_that_was_made_up_names_no_span(provider, exporter):
    method = pika.spec.Basic.Deliver(exchange="", routing_key="amq.gen-Xa2", delivery_tag=1)
    with rabbitmq.producer_span("", "amq.gen-Xa2", tracer_provider=provider):
        pass
    with rabbitmq.consumer_span(method, pika.BasicProperties(), b"1", queue="amq.gen-Xa2", tracer_provider=provider):
        pass
    assert [span.name for span in exporter.get_finished_spans()] == ["publish", "process"]
    for span in exporter.get_finished_spans():
        assert span.attributes["messaging.destination.name"] == "amq.gen-Xa2"
        assert span.attributes["messaging.destination.anonymous"] is True


def test_a_batch_of_several_queues_names_none(provider, exporter):
    messages = [
        (pika.spec.Basic.GetOk(exchange="", routing_key=key), pika.BasicProperties(headers={"traceparent": VALID}), b"")
        for key in ("a", "b")
    ]
    with rabbitmq.batch_span(iter(messages), tracer_provider=provider):
        pass
    (span,) = exporter.get_finished_spans()
    assert span.name == "process"
    assert "messaging.destination.name" not in span.attributes
    assert [link.context for link in span.links] == [PARENT]


def test_what_is_no_message_is_no_part_of_a_batch(provider, exporter):
    nothing = (None, None, None)
    message = (pika.spec.Basic.GetOk(exchange="", routing_key="orders"), pika.BasicProperties(), b"")
    for messages in ([nothing], [nothing, message]):
        with rabbitmq.batch_span(messages, tracer_provider=provider):
            pass
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.attributes["messaging.batch.message_count"]) == ("process orders", 1)


@pytest.mark.parametrize(
    "headers",
    [
        {"x-death": "often", "x-delivery-count": "often"},
        {"x-death": [7, {"count": "often", "reason": 7, "queue": None}], "x-delivery-count": -3},
        {"x-death": {"count": 3}, "x-delivery-count": None},
        *({"x-death": [{"count": 0, "reason": reason}]} for reason in (["rejected"], bytearray(b"rejected"), {})),
    ],
)
def test_what_a_sender_has_made_up_of_earlier_deliveries_hurts_nobody(provider, exporter, headers):
    with rabbitmq.consumer_span(None, pika.BasicProperties(headers=headers), b"1", tracer_provider=provider) as span:
        assert span is INVALID_SPAN
    method = pika.spec.Basic.Deliver(exchange="", routing_key="orders", delivery_tag=1, redelivered=False)
    with rabbitmq.consumer_span(method, pika.BasicProperties(headers=headers), b"1", tracer_provider=provider):
        pass
    (span,) = exporter.get_finished_spans()
    assert not [name for name in span.attributes if name.startswith("meshmw.message.")]


def test_no_sender_s_numbers_and_names_are_too_large_to_export(provider, exporter):
    death = {"count": 2**63 - 1, "reason": "rejected", "queue": "q" * 100_000}
    headers = {"x-delivery-count": 2**64, "x-death": [death, {**death, "reason": "r" * 100_000}]}
    method = pika.spec.Basic.Deliver(exchange="", routing_key="orders", delivery_tag=1, redelivered=True)
    with rabbitmq.consumer_span(method, pika.BasicProperties(headers=headers), b"1", tracer_provider=provider):
        pass
    (span,) = exporter.get_finished_spans()
    assert span.attributes["meshmw.message.delivery_count"] == 2_000_001
    assert span.attributes["meshmw.message.dead_letter.count"] == 2_000_000
    assert span.attributes["meshmw.message.dead_letter.queue"] == "q" * 255


def test_an_unsampled_message_s_headers_are_still_passed_on():
    with Current(PROPAGATOR.extract({"traceparent": VALID.replace("-01", "-00")})), rabbitmq.producer_span("", "q"):
        assert rabbitmq.inject(propagator=PROPAGATOR)["traceparent"].startswith(VALID[:35])


@pytest.mark.parametrize("wrong", [object(), {}, None, pika.BasicProperties()])
def test_instrument_says_what_it_takes(wrong):
    with pytest.raises(TypeError, match=r"instrument\(\) takes a channel of pika, or a channel, exchange or queue of"):
        rabbitmq.instrument(wrong)


def test_what_is_instrumented_has_the_client_s_whole_interface():
    class BlockingChannel:
        """Named and placed as pika's, without a connection."""

        basic_qos = staticmethod(lambda **given: given)

        def __int__(self):
            return 3

    BlockingChannel.__module__ = "pika.adapters.blocking_connection"
    plain = BlockingChannel()
    channel = rabbitmq.instrument(plain)
    assert channel.basic_qos(prefetch_count=1) == {"prefetch_count": 1}
    assert channel.__wrapped__ is plain
    assert int(channel) == 3
    assert {"basic_qos", "basic_publish", "consume"} <= set(dir(channel))
    assert repr(channel) == f"<meshmw.rabbitmq.instrument({plain!r})>"
    assert not hasattr(channel, "nothing")
