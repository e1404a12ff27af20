"""The contract of gRPC servers: one span, the caller's context in every step, ended once, whatever the style."""

from __future__ import annotations

import json
import threading
from concurrent import futures
from functools import partial

import grpc
import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import StatusCode

from meshmw._lifecycle.rpc import server_attributes
from meshmw.grpc import message_scope

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
FROM_CALLER = [("traceparent", TRACEPARENT), ("baggage", "tenant=a")]
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
STYLES = ("threads", "non_blocking", "async", "reader_writer", "sync_on_aio")
SPANS_OF_CONTRIB = "opentelemetry.instrumentation.grpc"


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def in_pairs(possible):
    """Run a test on each style and kind of which *possible* says yes: what cannot occur is not collected."""
    pairs = [(style, kind) for style in STYLES for kind in KINDS if possible(style, kind)]
    return pytest.mark.parametrize(("new_host", "kind"), pairs, indirect=True, ids=map("-".join, pairs))


# What sends its answers itself has computed them before: in no moment could a call of this style be met waiting.
where_it_waits = in_pairs(lambda style, kind: style != "non_blocking")
# grpcio never calls the callbacks of these.
where_callbacks_are_called = in_pairs(lambda style, kind: style != "sync_on_aio" or not kind.endswith("stream"))
# This grpcio leaves the handler's thread waiting for ever, without our interceptor as well.
is_oldest = grpc.__version__.startswith("1.63.")
where_an_abort_ends = in_pairs(
    lambda style, kind: not (is_oldest and style == "sync_on_aio" and kind.endswith("stream"))
)


def code_of(call):
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code()


def test_a_handler_runs_in_a_span_of_the_callers_trace_in_each_step(host, kind):
    answers = host.call(kind, {}, {}, metadata=FROM_CALLER)
    assert len(answers) == {"unary_stream": 3, "stream_stream": 2}.get(kind, 1)
    span = host.server_span
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert f"{span.parent.span_id:016x}" == PARENT_ID
    steps = [visit for visit in host.visits if visit.where != "finally"] + host.visits[-1:]
    assert {(visit.trace_id, visit.span_id) for visit in steps} == {(TRACE_ID, f"{span.context.span_id:016x}")}
    assert all(visit.baggage == {"tenant": "a"} for visit in steps)


def test_a_span_follows_the_conventions(host, kind):
    host.call(kind, metadata=FROM_CALLER)
    span = host.server_span
    assert span.name == f"lab.S/{kind}"
    found = dict(span.attributes)
    assert found.pop("network.peer.port") == found.pop("client.port") > 0
    assert found.pop("user_agent.original").startswith("grpc-python/")
    assert found == {
        "rpc.system.name": "grpc",
        "rpc.method": f"lab.S/{kind}",
        "rpc.status_code": "OK",
        "network.peer.address": "127.0.0.1",
        "client.address": "127.0.0.1",
    }
    assert span.status.status_code is StatusCode.UNSET


def test_a_call_without_metadata_starts_a_trace(host, kind):
    host.call(kind)
    assert host.server_span.parent is None
    assert host.visits[0].baggage == {}


def test_concurrent_calls_keep_their_own_traces(host, kind):
    def call(number):
        parent = f"00-{number:032x}-{number:016x}-01"
        orders = [{}] * 5
        return host.call(kind, *orders, metadata=[("traceparent", parent), ("baggage", f"n={number}")])

    with futures.ThreadPoolExecutor(12) as pool:
        for number, answers in enumerate(pool.map(call, range(1, 25)), start=1):
            assert {answer["trace_id"] for answer in answers} == {f"{number:032x}"}
            assert {answer["baggage"]["n"] for answer in answers} == {str(number)}
    host.until(lambda: len(host.server_spans) == 24)
    assert {span.context.trace_id for span in host.server_spans} == set(range(1, 25))


def test_a_malformed_traceparent_is_removed_and_counted(host, kind):
    given = [
        ("traceparent", TRACEPARENT.upper()),
        ("tracestate", "a=1"),
        ("x-k", "1"),
        ("x-k", "2"),
        ("y-bin", b"\xff\0"),
    ]
    host.call(kind, metadata=given)
    span = host.server_span
    assert span.parent is None
    assert [event.name for event in span.events] == ["meshmw.header.refused"]
    assert host.propagator.rejections.counts == {("traceparent", "case"): 1}
    assert [pair for pair in host.metadata if pair[0] != "user-agent"] == given[2:]


def test_malformed_b3_is_gone_where_it_is_no_format(host):
    host.call(metadata=[("traceparent", TRACEPARENT), ("b3", "junk"), ("x-b3-sampled", "1")])
    assert {name for name, _ in host.metadata if "b3" in name} == {"x-b3-sampled"}
    assert host.propagator.rejections.counts == {("b3", "sampled"): 1}


def test_what_is_kept_of_malformed_baggage_is_what_the_handler_sees(host):
    host.call(metadata=[("traceparent", TRACEPARENT), ("baggage", "a=1,=,b=2")])
    assert ("baggage", "a=1,b=2") in host.metadata
    assert ("traceparent", TRACEPARENT) in host.metadata


def test_several_lines_of_baggage_and_tracestate_are_all_read(host):
    host.call(metadata=[("traceparent", TRACEPARENT), ("tracestate", "a=1"), ("tracestate", "b=2"), ("baggage", "c=3"),
                        ("baggage", "d=4")])  # fmt: skip
    assert host.visits[0].baggage == {"c": "3", "d": "4"}
    assert host.server_span.context.trace_state.to_header() == "a=1,b=2"


def test_an_exception_marks_the_span_and_fails_the_call_as_ever(host, kind):
    assert code_of(partial(host.call, kind, {"fail": True})) is grpc.StatusCode.UNKNOWN
    span = host.server_span
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["rpc.status_code"] == span.attributes["error.type"] == "UNKNOWN"
    (event,) = span.events
    assert event.attributes["exception.type"] == "LookupError"


def test_an_exception_without_a_text_marks_the_span(host):
    class Unprintable(Exception):
        def __str__(self):
            raise RuntimeError("no text either")

    host.error = Unprintable()
    with grpc.insecure_channel(f"127.0.0.1:{host.port}") as channel:
        call = channel.unary_unary("/lab.S/unary_unary").future(json.dumps({"fail": True}).encode(), timeout=60)
        assert host.server_span.attributes["rpc.status_code"] == "UNKNOWN"
        # A thread of grpcio's that cannot print the exception answers nothing.
        call.cancel()
        with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
            call.result(60)


@where_an_abort_ends
@pytest.mark.parametrize(("code", "is_error"), [("NOT_FOUND", False), ("INTERNAL", True), ("UNAVAILABLE", True)])
def test_an_abort_is_no_exception_and_an_error_only_where_the_server_is_to_blame(host, kind, code, is_error):
    assert code_of(partial(host.call, kind, {"abort": code})).name == code
    span = host.server_span
    assert span.attributes["rpc.status_code"] == code
    assert span.attributes.get("error.type") == (code if is_error else None)
    assert (span.status.status_code is StatusCode.ERROR) is is_error
    assert not span.events


@pytest.mark.parametrize("code", ["FAILED_PRECONDITION", "DATA_LOSS"])
def test_a_code_that_the_handler_sets_is_the_spans(host, kind, code):
    assert code_of(partial(host.call, kind, {"code": code})).name == code
    assert host.server_span.attributes["rpc.status_code"] == code


def test_a_code_that_the_handler_sets_before_it_raises_is_the_spans(host, kind):
    assert code_of(partial(host.call, kind, {"code": "NOT_FOUND", "fail": True})) is grpc.StatusCode.NOT_FOUND
    span = host.server_span
    assert span.attributes["rpc.status_code"] == "NOT_FOUND"
    assert span.status.status_code is StatusCode.UNSET
    assert [event.name for event in span.events] == ["exception"]


@where_callbacks_are_called
def test_callbacks_see_the_call(host, kind):
    host.call(kind, {"callback": True}, metadata=FROM_CALLER)
    callbacks = host.until(lambda: [visit for visit in host.visits if visit.where.startswith("callback")])
    assert {visit.trace_id for visit in callbacks} == {TRACE_ID}
    assert {visit.span_id for visit in callbacks} == {f"{host.server_span.context.span_id:016x}"}
    assert all(visit.baggage == {"tenant": "a"} for visit in callbacks)


@where_it_waits
def test_a_call_that_the_client_cancels_ends_its_span_once_and_without_an_error(host, kind):
    with grpc.insecure_channel(f"127.0.0.1:{host.port}") as channel:
        method = getattr(channel, kind)(f"/lab.S/{kind}")
        request = json.dumps({"wait": True}).encode()
        given = iter([request]) if kind.startswith("stream") else request
        start = method if kind.endswith("stream") else method.future
        call = start(given, metadata=tuple(FROM_CALLER))
        assert host.waiting.wait(60)
        call.cancel()
        host.release()
        span = host.server_span
    assert span.attributes["rpc.status_code"] == "CANCELLED"
    assert span.status.status_code is StatusCode.UNSET
    assert not span.events
    seen = (
        host.until(lambda: [each for each in host.visits if each.where == "finally"]) if host.style == "async" else []
    )
    assert {visit.trace_id for visit in seen} <= {TRACE_ID}
    host.stop()
    assert len(host.server_spans) == 1


@where_it_waits
def test_a_call_whose_time_is_up_ends_its_span(host, kind):
    for seconds in (0.3, 3, 30):
        assert code_of(partial(host.call, kind, {"wait": True}, timeout=seconds)) is grpc.StatusCode.DEADLINE_EXCEEDED
        # On a machine under load the time may be up before there is a handler, and so no span.
        if host.waiting.is_set():
            break
    host.release()
    spans = host.until(lambda: host.server_spans)
    # The client's own cancellation may be there first.
    assert {span.attributes["rpc.status_code"] for span in spans} <= {"CANCELLED", "DEADLINE_EXCEEDED"}


@in_pairs(lambda style, kind: style in ("async", "reader_writer"))
def test_a_handler_that_never_hears_that_its_time_is_up_has_the_status_of_a_late_call(host, kind):
    code = code_of(partial(host.call, kind, {"block": True}, timeout=2))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    host.stop()
    assert host.server_span.attributes["rpc.status_code"] == "DEADLINE_EXCEEDED"


@where_it_waits
def test_a_server_that_stops_ends_the_spans_of_its_calls(host, kind):
    outcome = futures.Future()

    def call():
        outcome.set_result(code_of(partial(host.call, kind, {"wait": True})))

    caller = threading.Thread(target=call)
    caller.start()
    assert host.waiting.wait(60)
    host.stop()
    caller.join(60)
    assert outcome.result(0) in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN}
    assert host.server_span.attributes["rpc.status_code"] == "CANCELLED"


@pytest.mark.parametrize("new_host", ["threads", "async"], indirect=True)  # in others no generator can be dropped
def test_a_stream_that_is_dropped_half_way_closes_the_handlers_generator_inside_the_call(new_host):
    host = new_host()
    with grpc.insecure_channel(f"127.0.0.1:{host.port}") as channel:
        call = channel.unary_stream("/lab.S/unary_stream")(b"{}", metadata=tuple(FROM_CALLER))
        next(call)
        call.cancel()
    last = host.until(lambda: [visit for visit in host.visits if visit.where == "finally"])[-1]
    span = host.server_span
    assert (last.trace_id, last.span_id) == (TRACE_ID, f"{span.context.span_id:016x}")
    assert last.baggage == {"tenant": "a"}


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("style", ["threads", "async"])
def test_a_generator_that_waits_at_a_yield_in_a_scope_is_closed_before_the_span_ends(make_host, style, twice):
    """More is sent than the client takes, so the handler stands at its `yield` when the client goes."""
    closed = futures.Future()

    def close():
        closed.set_result((host.visit("finally"), len(host.server_spans)))

    def threads(_request, _context):
        try:
            while True:
                with message_scope({"message": "1"}):
                    yield b"x" * 1_000_000
        finally:
            close()

    async def tasks(_request, _context):
        try:
            while True:
                with message_scope({"message": "1"}):
                    yield b"x" * 1_000_000
        finally:
            close()

    host = serving(make_host, threads if style == "threads" else tasks, style, twice=twice)
    with grpc.insecure_channel(f"127.0.0.1:{host.port}") as channel:
        call = channel.unary_stream("/lab.S/unary_stream")(b"{}", metadata=tuple(FROM_CALLER))
        next(call)
        call.cancel()
        visit, ended_before = closed.result(60)
    assert ended_before == 0
    assert visit.span_id == f"{host.server_span.context.span_id:016x}"
    assert visit.baggage == {"tenant": "a"}
    assert host.server_span.attributes["rpc.status_code"] == "CANCELLED"


def test_nothing_is_left_in_the_threads_of_the_pool(make_host):
    host = make_host("threads")
    found = []

    class Looks(grpc.ServerInterceptor):
        def intercept_service(self, continuation, details):
            found.append(otel_context.get_current() == {})
            return continuation(details)

    other = type(host)("threads")
    other.outside = [Looks()]
    make_host("threads", host=other)
    for kind in KINDS:
        for _ in range(20):
            other.call(kind, metadata=FROM_CALLER)
    assert found == [True] * 80


def test_a_method_that_is_not_there_is_answered_as_ever(host):
    with grpc.insecure_channel(f"127.0.0.1:{host.port}") as channel:
        assert code_of(lambda: channel.unary_unary("/lab.S/nothing")(b"{}")) is grpc.StatusCode.UNIMPLEMENTED
    assert host.spans == ()


# handlers of other shapes


def serving(make_host, method, style="threads", twice=False):
    host = type(make_host("threads"))(style)
    host.inside = host.interceptors({}) if twice else ()
    host.methods = lambda: {"unary_stream": method, "unary_unary": method}
    return make_host(style, host=host)


def test_a_handler_that_returns_an_iterator_has_the_call_in_its_own_part(make_host):
    host = serving(make_host, lambda _request, _context: iter([json.dumps(host.visit().__dict__).encode()] * 2))
    (first, second) = host.call("unary_stream", metadata=FROM_CALLER)
    assert first == second
    assert first["span_id"] == f"{host.server_span.context.span_id:016x}"


@pytest.mark.parametrize("style", ["threads", "async"])
def test_of_methods_without_end_each_is_served_by_its_handler_of_the_moment(make_host, style, monkeypatch):
    monkeypatch.setattr("meshmw.grpc._server._MAX_METHODS", 2)
    host = type(make_host("threads"))(style)

    class Anything(grpc.GenericRpcHandler):
        def service(self, details):
            name = details.method.encode()

            async def coroutine(_request, _context):
                return name

            return grpc.unary_unary_rpc_method_handler(coroutine if style == "async" else lambda *_: name)

    host.handlers = lambda: (Anything(),)
    make_host(style, host=host)
    with grpc.insecure_channel(f"127.0.0.1:{host.port}") as channel:
        for path in ("/S/a", "/S/b", "/S/a", "/S/c", "/S/d"):
            assert channel.unary_unary(path)(b"{}", timeout=60) == path.encode()
    names = ["S/a", "S/b", "S/a", "S/c", "S/d"]
    host.until(lambda: [span.attributes.get("rpc.method_original") for span in host.spans] == names)


class OneForAll(grpc.GenericRpcHandler):
    def __init__(self, function):
        self.handler = grpc.unary_unary_rpc_method_handler(function)

    def service(self, details):
        return self.handler


class Careful(OneForAll):
    def service(self, details):
        assert details.method.startswith("/Any/"), "it has no such service"
        return self.handler


class Once(OneForAll):
    def service(self, details):
        self.asked = [*getattr(self, "asked", []), details.method]
        assert self.asked.count(details.method) % 2 == 1, "it was asked before"
        return self.handler


class Picky(OneForAll):
    def service(self, details):
        assert details.method.rpartition("/")[2][0] in "x0123456789", "it has no such method"
        return self.handler if details.method.startswith("/Any/") else None


class Remembers(grpc.GenericRpcHandler):
    """Makes a handler for each method, once: this cannot be told from a table."""

    def __init__(self, function):
        self.made = {}
        self.function = function

    def service(self, details):
        return self.made.setdefault(details.method, grpc.unary_unary_rpc_method_handler(self.function))


@pytest.mark.parametrize("style", ["threads", "async", "sync_on_aio"])
@pytest.mark.parametrize("generic", [OneForAll, Careful, Picky, Once, Remembers])
def test_a_method_that_a_caller_makes_up_names_nothing_and_one_that_was_registered_does(
    make_host, style, generic, monkeypatch
):
    monkeypatch.setattr("meshmw.grpc._server._MAX_METHODS", 3)
    host = type(make_host("threads"))(style)

    async def coroutine(_request, _context):
        return b"1"

    table = host.handlers
    anything = generic(coroutine if style == "async" else lambda *_: b"1")
    host.handlers = lambda: (*table(), anything)
    make_host(style, host=host)
    for _ in range(2):
        host.call(metadata=FROM_CALLER)
    with grpc.insecure_channel(f"127.0.0.1:{host.port}") as channel:
        for number in range(6):
            assert channel.unary_unary(f"/Any/{number}")(b"{}", timeout=60) == b"1"
        assert channel.unary_unary("/Any/" + "x" * 600)(b"{}", timeout=60) == b"1"
    host.until(lambda: len(host.server_spans) == 9)
    assert [span.name for span in host.server_spans[:2]] == ["lab.S/unary_unary"] * 2
    names = {span.name for span in host.server_spans[2:]}
    if generic in (Remembers, Picky):
        assert names == {"Any/0", "Any/1", "grpc"}
        return
    assert names == {"grpc"}
    assert {span.attributes["rpc.method"] for span in host.server_spans[2:]} == {"_OTHER"}
    assert host.server_spans[2].attributes["rpc.method_original"] == "Any/0"


@pytest.mark.skipif(not hasattr(grpc.Server, "add_registered_method_handlers"), reason="an older grpcio")
def test_a_method_that_generated_code_has_registered_names_the_span(make_host):
    host = make_host("threads")
    server = grpc.server(futures.ThreadPoolExecutor(2), interceptors=host.interceptors({}))
    handler = grpc.unary_unary_rpc_method_handler(lambda *_: b"1")
    server.add_registered_method_handlers("shop.Pricing", {"Quote": handler})
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Pricing", {"Quote": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            channel.unary_unary("/shop.Pricing/Quote")(b"{}", timeout=30)
    finally:
        server.stop(0).wait(30)
    assert host.server_span.name == host.server_span.attributes["rpc.method"] == "shop.Pricing/Quote"


def test_a_list_of_responses_is_taken_where_grpcio_takes_one(make_host):
    host = serving(make_host, lambda _request, _context: [b"1", b"2"], "sync_on_aio")
    assert host.call("unary_stream", metadata=FROM_CALLER) == [1, 2]
    assert host.server_span.attributes["rpc.status_code"] == "OK"


@pytest.mark.parametrize("style", ["threads", "sync_on_aio"])
def test_a_handler_that_raises_before_it_returns_an_iterator_marks_the_span(make_host, style):
    host = serving(make_host, lambda _request, _context: {}["x"], style)
    assert code_of(partial(host.call, "unary_stream")) is grpc.StatusCode.UNKNOWN
    assert host.server_span.attributes["rpc.status_code"] == "UNKNOWN"


class Status(grpc.Status):
    code, details, trailing_metadata = grpc.StatusCode.RESOURCE_EXHAUSTED, "enough", (("x-t", "1"),)


def test_an_abort_with_a_status_is_the_spans(make_host):
    host = serving(make_host, lambda _request, context: context.abort_with_status(Status()))
    assert code_of(host.call) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert host.server_span.attributes["rpc.status_code"] == "RESOURCE_EXHAUSTED"


def test_an_abort_with_a_status_on_an_aio_server_is_the_spans(make_host):
    async def method(_request, context):
        await context.abort_with_status(Status())

    host = serving(make_host, method, "async")
    assert code_of(host.call) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert host.server_span.attributes["rpc.status_code"] == "RESOURCE_EXHAUSTED"


def test_an_abort_that_says_ok_is_unknown_as_grpcio_makes_it(make_host):
    host = serving(make_host, lambda _request, context: context.abort(grpc.StatusCode.OK, "well"))
    assert code_of(host.call) is grpc.StatusCode.UNKNOWN
    assert host.server_span.attributes["rpc.status_code"] == "UNKNOWN"


@pytest.mark.parametrize("style", ["threads", "sync_on_aio"])
def test_a_code_by_its_number_is_what_grpcio_makes_of_it(make_host, style):
    def method(_request, context):
        context.set_code(5)
        return b"{}"

    host = serving(make_host, method, style)
    code = code_of(host.call)
    assert code.name == {"threads": "UNKNOWN", "sync_on_aio": "NOT_FOUND"}[style]
    assert host.server_span.attributes["rpc.status_code"] == code.name


def test_the_context_is_grpcios_in_everything_else(make_host):
    def method(_request, context):
        assert isinstance(context, grpc.ServicerContext)
        assert context.peer().startswith("ipv4:")
        assert context.is_active()
        assert not hasattr(context, "add_done_callback")
        context.send_initial_metadata((("x-i", "1"),))
        context.set_trailing_metadata((("x-t", "1"),))
        return b"{}"

    host = serving(make_host, method)
    with grpc.insecure_channel(f"127.0.0.1:{host.port}") as channel:
        _, call = channel.unary_unary("/lab.S/unary_unary").with_call(b"{}", timeout=60)
        assert ("x-i", "1") in call.initial_metadata()
        assert ("x-t", "1") in call.trailing_metadata()


def test_what_a_handler_notes_on_the_context_is_there_for_interceptors_further_out(make_host):
    class Audits(grpc.ServerInterceptor):
        def intercept_service(self, continuation, details):
            inner = continuation(details)

            def call(request, context):
                answer = inner.unary_unary(request, context)
                found.append(context.user)
                return answer

            return grpc.unary_unary_rpc_method_handler(call)

    def method(_request, context):
        context.user = "a"
        assert context.user == "a"
        return b"{}"

    found = []
    host = type(make_host("threads"))("threads")
    host.methods = lambda: {"unary_unary": method}
    host.outside = [Audits()]
    make_host("threads", host=host).call()
    assert found == ["a"]


def test_a_context_of_an_interceptor_further_out_need_not_know_how_much_time_is_left(make_host):
    class Own(grpc.aio.ServicerContext):
        """Knows what it has to, and no more."""

        def __init__(self, context):
            self._context = context

        def __getattribute__(self, name):
            if name == "time_remaining":
                raise NotImplementedError
            return object.__getattribute__(self, "_context") if name == "_context" else getattr(self._context, name)

    Own.__abstractmethods__ = frozenset()

    class Wraps(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, details):
            inner = await continuation(details)

            async def call(request, context):
                return await inner.unary_unary(request, Own(context))

            return grpc.unary_unary_rpc_method_handler(call)

    host = type(make_host("async"))("async")
    host.outside = [Wraps()]
    assert len(make_host("async", host=host).call(metadata=FROM_CALLER)) == 1
    assert host.server_span.attributes["rpc.status_code"] == "OK"


@pytest.mark.parametrize("style", ["threads", "sync_on_aio"])
def test_a_context_is_an_instance_of_what_it_would_be(make_host, style):
    found = []

    class Untouched(type(make_host(style))):
        def interceptors(self, options):
            return []

    def method(_request, context):
        found.append((context.__class__, isinstance(context, grpc.ServicerContext)))
        return b"{}"

    for kind in (Untouched, Untouched.__base__):
        host = kind(style)
        host.methods = lambda: {"unary_unary": method}
        make_host(style, host=host).call()
    assert found[0] == found[1]


@pytest.mark.parametrize("style", ["threads", "async"])
def test_an_abort_that_is_called_wrongly_is_an_exception(make_host, style):
    async def coroutine(_request, context):
        await context.abort()

    host = serving(make_host, coroutine if style == "async" else lambda _request, context: context.abort("x"), style)
    assert code_of(host.call) is grpc.StatusCode.UNKNOWN
    assert host.server_span.attributes["rpc.status_code"] == "UNKNOWN"
    (event,) = host.server_span.events
    assert event.attributes["exception.type"] == "TypeError"


def test_only_what_is_known_of_a_peer_is_an_attribute():
    assert "client.port" not in server_attributes("/S/m", ("/run/s", None), None)
    assert server_attributes("/S/m", None, None) == {"rpc.system.name": "grpc", "rpc.method": "S/m"}


# settings


def test_an_excluded_method_has_the_trace_and_no_span(new_host):
    host = new_host(exclude=["/lab.S/unary_unary"])
    host.call(metadata=FROM_CALLER)
    assert host.visits[0].span_id == PARENT_ID
    assert host.visits[0].baggage == {"tenant": "a"}
    host.call("unary_stream")
    assert [span.name for span in [host.server_span]] == ["lab.S/unary_stream"]


def test_without_server_spans_the_trace_goes_on(new_host):
    host = new_host(server_spans="off")
    host.call(metadata=FROM_CALLER)
    assert host.visits[0].span_id == PARENT_ID
    assert host.spans == ()


def test_an_untouched_method_sees_nothing(new_host):
    host = new_host(untouched=["/lab.S"])
    host.call(metadata=[("traceparent", "nonsense"), *FROM_CALLER[1:]])
    assert host.visits[0].trace_id == "0" * 32
    assert ("traceparent", "nonsense") in host.metadata
    assert host.spans == ()


def test_a_caller_that_is_not_trusted_gets_a_trace_of_its_own(new_host):
    seen = []

    def trust(view):
        seen.append((view.method, view.path, view.peer, view.header("x-k"), view.header("x-none")))
        return "restart"

    host = new_host(trust=trust)
    host.call(metadata=[*FROM_CALLER, ("x-k", "1"), ("x-k", "2")])
    span = host.server_span
    assert span.parent is None
    assert [f"{link.context.span_id:016x}" for link in span.links] == [PARENT_ID]
    assert seen == [("POST", "/lab.S/unary_unary", "127.0.0.1", "1,2", None)]
    assert "traceparent" not in dict(host.metadata)


def test_a_sampler_sees_the_parent_that_is_not_trusted_as_the_span_starts(make_host):
    class Notes(Sampler):
        def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, links=None, state=None):
            given.extend(links)
            return ALWAYS_ON.should_sample(parent_context, trace_id, name, kind, attributes, links, state)

        def get_description(self):
            return "Notes"

    given = []
    make_host("threads", trust="restart", tracer_provider=TracerProvider(Notes())).call(metadata=FROM_CALLER)
    (link,) = given
    assert f"{link.context.span_id:016x}" == PARENT_ID
    assert dict(link.attributes) == {"meshmw.link": "rejected_parent"}


def test_a_call_over_a_unix_socket_has_a_peer_without_a_port(make_host, tmp_path):
    host = make_host("threads")
    server = grpc.server(futures.ThreadPoolExecutor(2), interceptors=host.interceptors({}))
    server.add_generic_rpc_handlers(host.handlers())
    server.add_insecure_port(f"unix:{tmp_path}/s")
    server.start()
    try:
        with grpc.insecure_channel(f"unix:{tmp_path}/s") as channel:
            channel.unary_unary("/lab.S/unary_unary")(b"{}", timeout=30)
    finally:
        server.stop(0).wait(30)
    assert "client.port" not in host.server_span.attributes


def test_the_same_interceptor_twice_makes_one_span(new_host, kind):
    host = new_host()
    twice = type(host)(host.style)
    twice.inside = twice.interceptors({})
    new_host(host=twice)
    twice.call(kind, {}, {}, metadata=FROM_CALLER)
    assert f"{twice.server_span.parent.span_id:016x}" == PARENT_ID
    assert twice.propagator.rejections.counts == {}


# other interceptors


def contrib(host):
    from opentelemetry.instrumentation.grpc import aio_server_interceptor, server_interceptor

    return (aio_server_interceptor if host.is_aio else server_interceptor)(tracer_provider=host.tracer_provider)


@pytest.mark.parametrize("spans", ["auto", "contrib"])
def test_contribs_interceptor_further_in_stands_back(new_host, kind, spans):
    host = type(new_host())(new_host.args[0])
    host.inside = [contrib(host)]
    new_host(host=host, server_spans=spans)
    answers = host.call(kind, {}, {}, metadata=FROM_CALLER)
    span = host.server_span
    assert span.instrumentation_scope.name == "meshmw"
    assert f"{span.parent.span_id:016x}" == PARENT_ID
    assert {answer["span_id"] for answer in answers} == {f"{span.context.span_id:016x}"}


# What contrib's own interceptor can serve at all.
SERVED_BY_CONTRIB = [
    *(("threads", kind) for kind in KINDS),
    *(("async", kind) for kind in KINDS),
    ("reader_writer", "stream_unary"),
]


@pytest.mark.parametrize(("style", "kind"), SERVED_BY_CONTRIB)
def test_the_span_of_contribs_interceptor_further_out_is_adopted(make_host, style, kind):
    host = type(make_host("threads"))(style)
    host.outside = [contrib(host)]
    make_host(style, host=host)
    answers = host.call(kind, {}, {}, metadata=FROM_CALLER)
    span = host.server_span
    assert span.instrumentation_scope.name == SPANS_OF_CONTRIB
    assert f"{span.parent.span_id:016x}" == PARENT_ID
    assert {answer["span_id"] for answer in answers} == {f"{span.context.span_id:016x}"}
    assert host.visits[0].baggage == {"tenant": "a"}
    assert len(host.spans) == 1
    assert host.propagator.rejections.counts == {}


def test_where_contrib_has_trusted_a_caller_that_is_not_trusted_our_span_starts_a_trace_of_its_own(make_host):
    host = type(make_host("threads"))("threads")
    host.outside = [contrib(host)]
    make_host("threads", host=host, trust="restart")
    (answer,) = host.call(metadata=FROM_CALLER)
    assert answer["trace_id"] != TRACE_ID
    assert host.propagator.rejections.counts == {("context", "host_trust"): 1}
    host.until(lambda: len(host.spans) == 2)
    assert len(host.server_spans) == 1


def test_a_leaked_span_is_no_parent(make_host):
    host = type(make_host("threads"))("threads")

    class Leaks(grpc.ServerInterceptor):
        def intercept_service(self, continuation, details):
            otel_context.attach(trace.set_span_in_context(leaked))
            return continuation(details)

    leaked = host.tracer_provider.get_tracer("x").start_span("of something else")
    host.outside = [Leaks()]
    make_host("threads", host=host)
    host.call(metadata=FROM_CALLER)
    assert f"{host.server_span.parent.span_id:016x}" == PARENT_ID
    assert host.propagator.rejections.counts == {("context", "leaked_span"): 1}


def test_what_somebody_has_read_of_this_very_call_is_no_leak(make_host):
    host = type(make_host("threads"))("threads")

    class Reads(grpc.ServerInterceptor):
        def intercept_service(self, continuation, details):
            otel_context.attach(host.propagator.extract(dict(details.invocation_metadata)))
            return continuation(details)

    host.outside = [Reads()]
    make_host("threads", host=host)
    host.call(metadata=FROM_CALLER)
    assert f"{host.server_span.parent.span_id:016x}" == PARENT_ID
    assert host.propagator.rejections.counts == {}


def test_what_an_interceptor_puts_into_the_context_is_there(make_host):
    """A private context is a copy: what interceptors further out have said is known in the handler."""
    host = type(make_host("threads"))("threads")
    key = otel_context.create_key("of-the-application")

    class Says(grpc.ServerInterceptor):
        def intercept_service(self, continuation, details):
            otel_context.attach(otel_context.set_value(key, "said"))
            return continuation(details)

    host.outside = [Says()]
    found = []
    host.note = lambda context, order: found.append(otel_context.get_value(key)) or b"{}"
    make_host("threads", host=host)
    host.call()
    assert found == ["said"]
