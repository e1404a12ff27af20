"""The life cycle of messages, and their attributes, without a broker."""

from types import SimpleNamespace

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags

from meshmw import MeshPropagator, Settings, kafka, rabbitmq
from meshmw import _runtime as runtime
from meshmw._context.current import Current
from meshmw._lifecycle.clients import Delivery
from meshmw._lifecycle.decide import decide_messages
from meshmw._lifecycle.messaging import Messaging
from meshmw._lifecycle.operation import OperationScope
from meshmw.kafka._clients import end_confirmed
from meshmw.rabbitmq._headers import rabbitmq_attributes

VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def make(exporter):
    def messaging(sampler=None, trust="continue", **options):
        provider = TracerProvider(sampler=sampler)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        propagator = MeshPropagator(trust=trust)
        return Messaging("kafka", propagator=propagator, tracer_provider=provider, **options)

    return messaging


def read(messaging, **headers):
    return messaging.read({name: [text] for name, text in headers.items()})


NOTHING = SpanContext(0, 0, False)
NAMED, OTHER, AMBIENT = (SpanContext(number, number, True, TraceFlags(1)) for number in (1, 2, 3))
EACH_AMBIENT = pytest.mark.parametrize("ambient", [NOTHING, AMBIENT], ids=["nothing-current", "current"])


def links_of(decision):
    return [(link.context, (link.attributes or {}).get("meshmw.link")) for link in decision.links]


@pytest.mark.parametrize(("operation_type", "kind"), [("receive", SpanKind.CLIENT), ("process", SpanKind.CONSUMER)])
@EACH_AMBIENT
@pytest.mark.parametrize(
    ("batch", "named", "word", "parent", "linked"),
    [
        (False, [], "parent", None, []),
        (False, [], "link", None, []),
        (False, [NAMED], "parent", NAMED, []),
        (False, [NAMED], "link", None, [NAMED]),
        (True, [], "parent", None, []),
        (True, [], "link", None, []),
        (True, [NAMED], "parent", None, [NAMED]),
        (True, [NAMED], "link", None, [NAMED]),
        (True, [NAMED, OTHER, NAMED], "parent", None, [NAMED, OTHER]),
        (True, [NAMED, OTHER, NAMED], "link", None, [NAMED, OTHER]),
    ],
)
def test_where_a_span_of_received_messages_belongs(operation_type, kind, ambient, batch, named, word, parent, linked):
    decision = decide_messages(operation_type, named, ambient, parent=word, batch=batch)
    around = [(AMBIENT, "ambient")] if ambient is AMBIENT else []
    assert (decision.parent, decision.kind) == (parent, kind)
    assert links_of(decision) == [(each, None) for each in linked] + around


@EACH_AMBIENT
@pytest.mark.parametrize("word", ["parent", "link"])
def test_what_is_sent_is_a_child_of_what_is_current(ambient, word):
    decision = decide_messages("send", (), ambient, parent=word)
    assert decision == (ambient if ambient is AMBIENT else None, [], SpanKind.PRODUCER)


def test_the_parent_is_the_settings_own(make, exporter, monkeypatch):
    propagator = MeshPropagator()
    settings = Settings(messaging_parent="link")
    monkeypatch.setattr(runtime, "_installed", runtime.Runtime.from_settings(settings, propagator))
    for messaging in (make(), make(parent="parent")):
        messaging.begin_process(read(messaging, traceparent=VALID), "orders").end()
    linked, child = exporter.get_finished_spans()
    assert linked.parent is None
    assert [link.context.trace_id for link in linked.links] == [TRACE_ID]
    assert child.context.trace_id == TRACE_ID


@pytest.mark.parametrize(("trust", "links"), [("restart", [TRACE_ID]), ("ignore", [])])
def test_a_service_that_trusts_nobody_trusts_no_message(make, exporter, trust, links):
    messaging = make(trust=trust)
    with OperationScope(lambda: messaging.begin_process(read(messaging, traceparent=VALID, baggage="a=1"), "orders")):
        assert not baggage.get_all()
    (span,) = exporter.get_finished_spans()
    assert span.parent is None
    assert [link.context.trace_id for link in span.links] == links


def test_an_unsampled_message_costs_no_attributes_and_is_passed_on(make, exporter):
    messaging = make(ALWAYS_OFF)
    begun = messaging.begin_process(
        read(messaging, traceparent=VALID), "orders", lambda: pytest.fail("nobody looks at them")
    )
    assert messaging.write(begun.context, {})["traceparent"].startswith("00-4bf92f3577b34da6a3ce929d0e0e4736-")
    end_confirmed(begun, SimpleNamespace(offset=1, partition=1))
    assert not exporter.get_finished_spans()


def test_what_a_broker_does_not_tell_is_left_out(make, exporter):
    operation = make().begin_send("orders")
    end_confirmed(operation, SimpleNamespace(offset=-1, partition=None))
    (span,) = exporter.get_finished_spans()
    assert {name for name in span.attributes if "offset" in name or "partition" in name} == set()
    assert span.status.status_code is StatusCode.UNSET


def test_a_delivery_that_fails_says_so_and_serves_once(make, exporter):
    messaging = make()
    delivery = Delivery("message", lambda: messaging.begin_process(read(messaging), None))
    with pytest.raises(ValueError, match="no"), delivery as message:
        raise ValueError(f"no {message}")
    with pytest.raises(RuntimeError, match="entered before"), delivery:
        pass
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.attributes["error.type"]) == ("process", "ValueError")


def test_attributes_of_each_system(make, exporter):
    make().begin_send(None, operation="publish").end()
    (span,) = exporter.get_finished_spans()
    assert dict(span.attributes) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
    }
    assert rabbitmq_attributes() == {}
    assert rabbitmq_attributes(routing_key="eu", delivery_tag=0) == {
        "messaging.rabbitmq.destination.routing_key": "eu",
        "messaging.rabbitmq.message.delivery_tag": 0,
    }


def test_a_batch_of_leaked_context_has_none_of_it(make):
    messaging = make()
    leaked = baggage.set_baggage("a", "1", trace.set_span_in_context(trace.INVALID_SPAN, Context()))
    with Current(leaked):
        batch = messaging.begin_batch([read(messaging, baggage="b=2")], "orders")
    assert not baggage.get_all(batch.context)
    batch.end()


@pytest.mark.parametrize("ours", [kafka, rabbitmq])
def test_an_option_that_is_misspelt_is_refused_where_it_is_given(ours):
    for use in (ours.consumer_span, ours.consume, ours.instrument):
        with pytest.raises(TypeError, match="propagater"):
            use([], propagater=MeshPropagator())


@pytest.mark.parametrize("ours", [kafka, rabbitmq])
def test_dir_shows_what_a_user_imports(ours):
    assert dir(ours) == sorted(ours.__all__)
