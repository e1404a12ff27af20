"""Celery where no broker is needed: what a span says of a task, whatever the task does, and what hurts nobody.

`run_next` takes a message out of kombu's own broker in memory, and runs its task as a worker of the solo pool does.
"""

import contextlib
import gc
import itertools
import pickle
import sys
import types

import celery
import celery.exceptions
import kombu
import kombu.pools
import pytest
from celery import signals
from celery.app.amqp import AMQP
from celery.worker.request import Request
from celery.worker.strategy import proto1_to_proto2
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import meshmw
import meshmw.celery
from meshmw import _runtime
from meshmw._context.current import Current

pytestmark = pytest.mark.usefixtures("strict_context")

VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
STALE = "00-11111111111111111111111111111111-2222222222222222-01"
TRACE_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736
_numbers = itertools.count()


class Shop:
    """Holds an app with a broker in memory, what its tasks have seen, and the spans."""

    def __init__(self, app=None, **options):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.propagator = meshmw.MeshPropagator()
        self.app = app or celery.Celery("shop", set_as_current=False)
        self.app.conf.update(broker_url="memory://", task_default_queue=f"tasks-{next(_numbers)}")
        self.options = {"tracer_provider": self.provider, "propagator": self.propagator, **options}
        self.seen = []

    def instrument(self, **options):
        return meshmw.celery.instrument(self.app, **self.options, **options)

    def task(self, body=None, **options):
        """Add a task with a name of its own that runs a function with the task as its argument."""

        def run(task):
            headers, everything = task.request.headers, dict(vars(task.request))
            self.seen.append((otel_context.get_current(), {} if headers is None else headers, everything))
            return body(task) if body else None

        return self.app.task(run, bind=True, name="work", shared=False, **options)

    def next_message(self, queue=None):
        with self.app.connection_for_read() as connection:
            message = connection.default_channel.basic_get(queue or self.app.conf.task_default_queue, no_ack=True)
        assert message is not None, "there is no message"
        return message

    def run_next(self, **changed):
        """Run the next task, whose message is given other headers first; return what Celery makes of it."""
        message = self.next_message()
        message.headers.update(changed)
        body = message.decode()
        if isinstance(body, dict):
            body, headers, decoded, utc = proto1_to_proto2(message, body)
            request = Request(message, app=self.app, body=body, headers=headers, decoded=decoded, utc=utc)
        else:
            request = Request(message, app=self.app)
        return request.execute()

    def send_raw(self, headers, name="work"):
        """Send a task as any other program may."""
        self.app.amqp  # noqa: B018
        with self.app.connection_for_write() as connection:
            about = {"id": "id-1", "task": name, "root_id": "id-1", "lang": "py"} | headers
            kombu.Producer(connection).publish(
                ((), {}, {}), routing_key=self.app.conf.task_default_queue, headers=about,
                declare=[self.app.amqp.default_queue],
            )  # fmt: skip

    @property
    def spans(self):
        return self.exporter.get_finished_spans()

    def span(self, name):
        (only,) = [span for span in self.spans if span.name == name]
        return only


@pytest.fixture
def make():
    made = []

    def make(app=None, **options):
        made.append(Shop(app, **options))
        return made[-1]

    yield make
    for shop in made:
        shop.app.close()
    kombu.pools.reset()
    assert not len(meshmw.celery._running)


@pytest.fixture
def shop(make):
    made = make()
    made.instrument()
    return made


def ids(span_context):
    return span_context.trace_id, span_context.span_id


def text_of(span):
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags & 3:02x}"


def raising(error):
    def body(task):
        raise error

    return body


def nothing():
    """What a task does."""


def added(numbers):
    return sum(numbers)


def test_what_runs_is_the_child_of_what_sent_it_and_says_what_it_was(shop):
    work = shop.task()
    with (
        Current(baggage.set_baggage("tenant", "north", Context())),
        shop.provider.get_tracer("app").start_as_current_span("request") as request,
    ):
        sent_as = work.delay()
    shop.run_next()
    sent, ran = shop.span("publish work"), shop.span("process work")
    assert (sent.kind, ran.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert (ids(sent.parent), ids(ran.parent)) == (ids(request.get_span_context()), ids(sent.context))
    ((context, headers, _),) = shop.seen
    assert trace.get_current_span(context).get_span_context() == ran.context
    assert baggage.get_all(context) == {"tenant": "north"}
    assert headers == {"traceparent": text_of(sent), "baggage": "tenant=north"}
    common = {
        "messaging.system": "celery",
        "messaging.destination.name": shop.app.conf.task_default_queue,
        "messaging.message.id": sent_as.id,
        "messaging.message.conversation_id": sent_as.id,
        "meshmw.task.name": "work",
    }
    publish = {"messaging.operation.name": "publish", "messaging.operation.type": "send"}
    process = {"messaging.operation.name": "process", "messaging.operation.type": "process"}
    assert dict(sent.attributes) == common | publish
    assert dict(ran.attributes) == common | process | {"meshmw.task.state": "SUCCESS"}
    assert (ran.status.status_code, ran.events) == (StatusCode.UNSET, ())


@pytest.mark.parametrize("sent_by", ["delay", "send_task", "signature"])
def test_headers_of_the_applications_own_are_replaced(shop, sent_by):
    work = shop.task()
    headers = {"traceparent": STALE, "Baggage": "old=1", "b3": "0", "x-tenant": "north"}
    if sent_by == "delay":
        work.apply_async(headers=headers)
    elif sent_by == "send_task":
        shop.app.send_task("work", headers=headers)
    else:
        work.s().set(headers=headers).apply_async()
    shop.run_next()
    ((_, seen, _),) = shop.seen
    assert seen == {"x-tenant": "north", "traceparent": text_of(shop.span("publish work"))}


def test_protocol_1_carries_the_trace_and_loses_what_is_malformed(shop):
    shop.app.conf.task_protocol = 1
    work = shop.task()
    sent_as = work.delay()
    shop.run_next()
    sent, ran = shop.span("publish work"), shop.span("process work")
    assert ids(ran.parent) == ids(sent.context)
    assert (sent.attributes["messaging.message.id"], ran.attributes["messaging.message.id"]) == (sent_as.id,) * 2
    work.delay()
    shop.run_next(traceparent="junk", keep="1")
    assert shop.seen[-1][1] == {"keep": "1"}
    assert shop.spans[-1].parent is None


ODD = {"TraceParent": VALID.upper(), "tracestate": "a=1", "b3": "junk", "baggage": "a=1, =junk,b=2", "keep": "7"}
CLEAN = {"baggage": "a=1,b=2", "keep": "7"}


def test_a_malformed_header_starts_a_trace_and_the_task_does_not_see_it(shop):
    shop.task()
    shop.send_raw(ODD)
    shop.run_next()
    span = shop.span("process work")
    assert span.parent is None
    assert {event.name for event in span.events} == {"meshmw.header.refused"}
    ((context, headers, everything),) = shop.seen
    assert headers == CLEAN
    assert {"TraceParent", "tracestate", "b3"}.isdisjoint(everything)
    assert everything["baggage"] == "a=1,b=2"
    assert baggage.get_all(context) == {"a": "1", "b": "2"}
    assert {header for header, _ in shop.propagator.rejections.counts} == {"traceparent", "b3", "baggage"}


@pytest.mark.parametrize("value", [b"\xff\x00", 7, None, [], {"a": b"\xff"}, ["junk", 7], "a" * 70_000])
@pytest.mark.parametrize("name", ["traceparent", "tracestate", "baggage", "b3", "headers", "delivery_info", "retries"])
def test_no_header_hurts(shop, name, value):
    shop.task()
    shop.send_raw({})
    message = shop.next_message()
    message.headers[name] = value
    headers = dict(message.headers)
    request = Request(message, app=shop.app, headers=headers)
    request.execute()
    assert len(shop.seen) == 1
    assert shop.span("process work").parent is None


def test_a_header_that_says_that_a_task_is_eager_hides_nothing_malformed(shop):
    shop.task()
    shop.send_raw(ODD | {"is_eager": True})
    shop.run_next()
    assert shop.seen[0][1] == CLEAN
    assert {"TraceParent", "tracestate", "b3"}.isdisjoint(shop.seen[0][2])
    assert shop.span("process work").parent is None


def test_what_names_a_task_is_bounded_and_told_where_there_is_something(shop):
    shop.task()
    shop.send_raw({"id": "i" * 999, "root_id": 7, "retries": 10**30})
    message = shop.next_message()
    message.delivery_info.update(exchange="shop", routing_key="a" * 999, redelivered=True)
    Request(message, app=shop.app).execute()
    found = shop.span("process work").attributes
    assert found["messaging.message.id"] == "i" * 255
    assert "messaging.message.conversation_id" not in found
    assert found["meshmw.task.retries"] == 1_000_000
    assert found["messaging.destination.name"] == f"shop:{'a' * 250}"
    assert found["meshmw.message.redelivered"] is True


def test_a_failure_makes_an_error_of_the_span(shop):
    shop.task(raising(LookupError("no teapot"))).delay()
    shop.run_next()
    span = shop.span("process work")
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "LookupError")
    assert (span.attributes["error.type"], span.attributes["meshmw.task.state"]) == ("LookupError", "FAILURE")
    (event,) = span.events
    assert event.attributes["exception.message"] == "no teapot"
    assert "raise error" in event.attributes["exception.stacktrace"]


@pytest.mark.parametrize("throws", [LookupError, (LookupError,)], ids=["class", "tuple"])
def test_what_a_task_is_expected_to_raise_makes_none(shop, throws):
    shop.task(raising(KeyError("teapot")), throws=throws).delay()
    shop.run_next()
    span = shop.span("process work")
    assert (span.status.status_code, span.events) == (StatusCode.UNSET, ())
    assert span.attributes["meshmw.task.state"] == "FAILURE"


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (celery.exceptions.Ignore(), "IGNORED"),
        (celery.exceptions.Reject("no", requeue=False), "REJECTED"),
        (celery.exceptions.Retry("later"), "RETRY"),
    ],
)
def test_what_a_task_says_is_to_become_of_it_is_no_error(shop, error, state):
    shop.task(raising(error)).delay()
    shop.run_next()
    span = shop.span("process work")
    assert (span.status.status_code, span.events) == (StatusCode.UNSET, ())
    assert span.attributes["meshmw.task.state"] == state
    assert "meshmw.task.retry_reason" not in span.attributes


def test_a_retry_is_sent_within_the_run_that_failed_and_says_why(shop):
    shop.task(raising(LookupError("later")), autoretry_for=(LookupError,), max_retries=1, default_retry_delay=0).delay()
    shop.run_next()
    shop.run_next()
    first_sent, again_sent = (span for span in shop.spans if span.name == "publish work")
    first, again = (span for span in shop.spans if span.name == "process work")
    assert ids(first.parent) == ids(first_sent.context)
    assert ids(again_sent.parent) == ids(first.context)
    assert ids(again.parent) == ids(again_sent.context)
    assert first.attributes["meshmw.task.retry_reason"] == "LookupError"
    assert (first.status.status_code, again.status.status_code) == (StatusCode.UNSET, StatusCode.ERROR)
    assert [span.attributes.get("meshmw.task.retries") for span in (first, again_sent, again)] == [None, 1, 1]
    assert first.attributes["messaging.message.id"] == again.attributes["messaging.message.id"]


def test_a_result_that_looks_like_a_retry_is_none(shop):
    shop.task(lambda _: types.SimpleNamespace(exc=LookupError()), ignore_result=True).delay()
    shop.run_next()
    assert "meshmw.task.retry_reason" not in shop.span("process work").attributes


def test_the_end_of_the_process_ends_the_span_without_an_error(shop):
    shop.task(raising(SystemExit(1))).delay()
    with pytest.raises(SystemExit):
        shop.run_next()
    span = shop.span("process work")
    assert (span.status.status_code, span.events) == (StatusCode.UNSET, ())
    assert "meshmw.task.state" not in span.attributes


def test_a_result_that_cannot_be_stored_makes_an_error_of_the_span(shop, monkeypatch):
    work = shop.task()
    work.delay()
    monkeypatch.setattr(work.backend, "mark_as_done", lambda *_: raising(ConnectionError("no store"))(None))
    with pytest.warns(RuntimeWarning, match="no store"):
        shop.run_next()
    assert shop.span("process work").attributes["error.type"] == "ConnectionError"


def test_an_eager_task_is_the_child_of_what_runs_it(shop):
    inner = shop.app.task(nothing, name="inner", shared=False)
    work = shop.task(lambda _: inner.apply())
    shop.app.conf.task_always_eager = True
    with shop.provider.get_tracer("app").start_as_current_span("request") as request:
        work.apply_async(headers={"traceparent": STALE, "x-tenant": "north"})
    inside, ran = shop.span("process inner"), shop.span("process work")
    assert ran.kind is SpanKind.CONSUMER
    assert ids(ran.parent) == ids(request.get_span_context())
    assert ids(inside.parent) == ids(ran.context)
    assert not [span for span in shop.spans if span.kind is SpanKind.PRODUCER]
    assert ran.attributes["messaging.destination.name"] == "work"
    shop.exporter.clear()
    work.apply()
    assert shop.span("process work").parent is None


def test_an_eager_workflow_is_one_trace(shop):
    shop.app.conf.update(task_always_eager=True, task_store_eager_result=True, result_backend="cache+memory://")
    add, total = (shop.app.task(added, name=name, shared=False) for name in ("add", "total"))
    with shop.provider.get_tracer("app").start_as_current_span("request"):
        celery.chord([add.s([1, 2]), add.s([3, 4])], total.s(), app=shop.app).apply_async()
        celery.chain(add.s([1, 2]), celery.group(shop.task().si(), shop.app.tasks["work"].si(), app=shop.app)).delay()
    assert len({span.context.trace_id for span in shop.spans}) == 1
    names = ["process add"] * 3 + ["process total"] + ["process work"] * 2
    assert sorted(span.name for span in shop.spans) == [*names, "request"]


def test_an_eager_tasks_error_goes_to_its_caller_and_is_recorded_once(shop):
    work = shop.task(raising(LookupError("no teapot")))
    with pytest.raises(LookupError):
        work.apply(throw=True)
    assert work.apply().state == "FAILURE"
    for span in shop.spans:
        assert span.attributes["error.type"] == "LookupError"
        assert len(span.events) == 1


@pytest.mark.parametrize("throw", [True, False])
def test_an_eager_retry_is_a_run_of_its_own_in_the_trace_of_the_caller(shop, throw):
    def body(task):
        if not task.request.retries:
            raise task.retry(exc=LookupError("later"), countdown=0)

    tracer = shop.provider.get_tracer("app")
    with tracer.start_as_current_span("request") as request, contextlib.suppress(celery.exceptions.Retry):
        shop.task(body).apply(throw=throw)
    runs = [span for span in shop.spans if span.name == "process work"]
    assert {span.context.trace_id for span in runs} == {request.get_span_context().trace_id}
    assert {span.status.status_code for span in runs} == {StatusCode.UNSET}
    # Where the error goes to the caller, Celery runs nothing again.
    assert len(runs) == (1 if throw else 2)


def test_an_error_that_is_handled_around_an_eager_task_is_not_the_tasks(shop):
    work = shop.task()
    try:
        raise LookupError("no teapot")
    except LookupError:
        work.apply()
    assert shop.span("process work").status.status_code is StatusCode.UNSET


def test_a_task_that_cannot_be_sent_makes_an_error_of_its_span(shop):
    with pytest.raises(kombu.exceptions.EncodeError):
        shop.app.send_task("work", args=[object()])
    span = shop.span("publish work")
    assert span.attributes["error.type"] == "kombu.exceptions.EncodeError"
    assert span.status.status_code is StatusCode.ERROR


def test_where_instrumentation_is_suppressed_there_is_no_span_and_nothing_is_written(shop):
    work = shop.task()
    with shop.provider.get_tracer("app").start_as_current_span("request"), suppress_instrumentation():
        work.delay()
    assert [span.name for span in shop.spans] == ["request"]
    with suppress_instrumentation():
        shop.run_next()
        shop.app.tasks["work"].apply()
    assert [headers for _, headers, _ in shop.seen] == [{}, {}]
    assert [span.name for span in shop.spans] == ["request"]


def test_a_leaked_span_is_linked_to_and_never_a_parent(shop):
    shop.task().delay()
    with shop.provider.get_tracer("app").start_as_current_span("leaked") as leaked:
        shop.run_next()
    ran = shop.span("process work")
    assert ids(ran.parent) == ids(shop.span("publish work").context)
    assert [ids(link.context) for link in ran.links] == [ids(leaked.get_span_context())]


def test_the_setting_makes_a_new_trace_that_links_to_what_sent_the_task(make):
    shop = make()
    shop.instrument(parent="link")
    shop.task().delay()
    shop.run_next()
    ran = shop.span("process work")
    assert ran.parent is None
    assert [ids(link.context) for link in ran.links] == [ids(shop.span("publish work").context)]


def test_a_sender_that_is_not_trusted_is_linked_to_and_its_baggage_is_dropped(make):
    shop = make(propagator=meshmw.MeshPropagator(trust="restart"))
    shop.instrument()
    shop.task()
    shop.send_raw({"traceparent": VALID, "baggage": "a=1"})
    shop.run_next()
    ran = shop.span("process work")
    assert ran.parent is None
    assert ran.links[0].context.trace_id == TRACE_ID
    ((context, headers, _),) = shop.seen
    assert not baggage.get_all(context)
    assert headers == {"traceparent": VALID, "baggage": "a=1"}


def test_without_a_recording_sdk_the_task_carries_on_what_came(make):
    class Nothing:
        def get_tracer(self, *_, **__):
            return trace.NoOpTracer()

    shop = make(tracer_provider=Nothing())
    shop.instrument()
    inner = shop.app.task(nothing, name="inner", shared=False)
    shop.task(lambda _: inner.delay())
    shop.send_raw({"traceparent": VALID, "baggage": "a=1"})
    shop.run_next()
    assert shop.next_message().headers["traceparent"] == VALID


def test_an_app_is_instrumented_once_with_the_options_of_the_last_time(make):
    shop, other = make(), make()
    assert shop.instrument() is shop.app
    amqp = shop.app.amqp
    assert meshmw.celery.instrument(shop.app, tracer_provider=other.provider) is shop.app
    assert shop.app.amqp is amqp
    shop.task().delay()
    shop.run_next()
    assert not shop.spans
    assert [span.name for span in other.spans] == ["publish work", "process work"]


def test_apps_do_not_trace_one_another(make):
    shop, other, plain = make(), make(), make()
    shop.instrument()
    other.instrument()
    for each in (shop, other, plain):
        each.task().delay()
        each.run_next()
    assert [len(each.spans) for each in (shop, other, plain)] == [2, 2, 0]
    assert plain.seen[0][1] == {}


def test_a_proxy_stands_for_its_app_and_tasks_of_all_apps_are_found(make):
    shop = make()
    shop.app.set_current()
    try:
        assert meshmw.celery.instrument(celery.current_app, **shop.options) is celery.current_app
        celery.shared_task(nothing, name="shared").delay()
    finally:
        celery._state._set_current_app(None)
    shop.run_next()
    assert [span.name for span in shop.spans] == ["publish shared", "process shared"]


@pytest.mark.parametrize("is_used", [False, True], ids=["fresh", "used"])
def test_an_amqp_class_of_the_applications_own_is_kept_with_what_it_holds(make, is_used):
    class Own(AMQP):
        def as_task_v2(self, *args, **options):
            return super().as_task_v2(*args, **options)

    shop = make(celery.Celery("shop", amqp=Own, set_as_current=False))
    work = shop.task()
    if is_used:
        work.delay()
        shop.run_next()
    router = shop.app.amqp.router
    shop.instrument()
    assert isinstance(shop.app.amqp, Own)
    assert shop.app.amqp.router is router
    work.delay()
    shop.run_next()
    assert len(shop.spans) == 2


def test_the_configuration_may_still_change_after_it(make):
    app = meshmw.celery.instrument(celery.Celery("shop", set_as_current=False))
    assert not app.configured
    shop = make(app)
    shop.instrument()
    app.conf.task_serializer = "yaml"
    shop.task().delay()
    assert shop.next_message().content_type == "application/x-yaml"


@pytest.mark.parametrize("is_first", [True, False], ids=["before", "after"])
def test_a_copy_of_an_app_traces_as_the_app_does(make, is_first):
    """Where Celery spawns processes, each of them runs the tasks of a copy, beside the app that its module makes."""
    shop = make(celery.Celery(f"copied-{is_first}", set_as_current=False))
    shop.instrument()
    pickled = pickle.dumps(shop.app)
    if is_first:
        meshmw.celery._apps.pop(shop.app)
    copied = Shop(pickle.loads(pickled))
    shop.instrument()
    assert shop.app.fixups == copied.app.fixups == list(dict.fromkeys(shop.app.fixups))
    copied.task().delay()
    copied.run_next()
    copied.app.close()
    assert [span.name for span in shop.spans] == ["publish work", "process work"]


def test_an_app_that_nobody_holds_is_forgotten():
    app = celery.Celery("forgotten", set_as_current=False)
    meshmw.celery.instrument(app)
    app.close()
    del app
    gc.collect()
    assert not [each for each in meshmw.celery._apps if each.main == "forgotten"]


@pytest.mark.parametrize("wrong", [None, "shop", celery.Celery, object()])
def test_what_is_no_app_is_refused(wrong):
    with pytest.raises(TypeError, match="takes a Celery app"):
        meshmw.celery.instrument(wrong)


def test_options_are_checked(make):
    shop = make()
    with pytest.raises(ValueError, match="parent"):
        meshmw.celery.instrument(shop.app, parent="child")
    with pytest.raises(TypeError, match="trust"):
        meshmw.celery.instrument(shop.app, trust="restart")
    assert type(shop.app.amqp) is AMQP


def test_a_message_may_be_sent_through_the_senders_own_arguments(shop):
    with shop.app.producer_or_acquire() as producer:
        message = shop.app.amqp.as_task_v2("id-1", "work")
        shop.app.amqp.send_task_message(producer, "work", message, None, None, shop.app.amqp.default_queue)
    assert shop.next_message().headers["traceparent"] == text_of(shop.span("publish work"))


def test_what_somebody_puts_in_the_senders_place_sends(shop, monkeypatch):
    own, sent = shop.app.amqp.send_task_message, []
    with monkeypatch.context() as patch:
        patch.setattr(shop.app.amqp, "send_task_message", lambda *args, **options: sent.append(args[2]))
        shop.app.send_task("work")
    assert [message[0]["traceparent"] for message in sent] == [text_of(shop.span("publish work"))]
    assert shop.app.amqp.send_task_message.args == own.args
    shop.app.amqp.send_task_message = len
    del shop.app.amqp.send_task_message
    shop.app.send_task("work")
    assert shop.next_message()


def test_a_topic_and_a_queue_name_where_a_task_is_sent(shop):
    topic = kombu.Queue("audit", kombu.Exchange("shop", type="topic"), routing_key="red")
    shop.task()
    shop.app.send_task("work", queue=topic)
    assert shop.span("publish work").attributes["messaging.destination.name"] == "audit"
    message = shop.next_message("audit")
    Request(message, app=shop.app).execute()
    assert shop.span("process work").attributes["messaging.destination.name"] == "shop:red"


def test_a_process_of_the_pool_flushes_before_it_ends(monkeypatch, shop):
    flushed = []
    monkeypatch.setattr(_runtime, "_installed", _runtime.Runtime(flush=lambda: flushed.append(1)))
    signals.worker_process_shutdown.send(sender="worker", pid=1, exitcode=0)
    assert flushed == [1]


@pytest.mark.parametrize("first", ["contrib", "meshmw"])
def test_beside_contrib_its_instrumentation_makes_the_spans(make, first):
    shop, instrumentor = make(), CeleryInstrumentor()
    contrib = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(contrib))
    if first == "meshmw":
        shop.instrument()
    instrumentor.instrument(tracer_provider=provider)
    try:
        shop.instrument()
        work = shop.task()
        work.delay()
        shop.run_next()
        work.delay()
        shop.run_next(traceparent="junk", b3="junk")
    finally:
        instrumentor.uninstrument()
    assert not shop.spans
    assert [span.name for span in contrib.get_finished_spans()] == ["apply_async/work", "run/work"] * 2
    sent, ran, *_ = contrib.get_finished_spans()
    assert ids(ran.parent) == ids(sent.context)
    assert {"traceparent", "b3"}.isdisjoint(shop.seen[1][2])
    assert otel_context.get_current() == Context()
    work.delay()
    shop.run_next()
    assert [span.name for span in shop.spans] == ["publish work", "process work"]


def test_a_half_imported_instrumentation_makes_no_spans(shop, monkeypatch):
    monkeypatch.setitem(sys.modules, meshmw.celery._CONTRIB, types.ModuleType("celery"))
    shop.task().delay()
    assert shop.span("publish work")


def test_a_run_that_could_not_begin_is_run_all_the_same(make):
    class Broken(TracerProvider):
        def get_tracer(self, *_, **__):
            return types.SimpleNamespace(start_span=lambda *_, **__: raising(RuntimeError("broken"))(None))

    shop = make(tracer_provider=Broken())
    shop.instrument()
    shop.task()
    shop.send_raw({})
    shop.run_next()
    assert len(shop.seen) == 1
    assert not shop.spans
