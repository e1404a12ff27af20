"""The contract of gRPC clients: one CLIENT span to the end of the call, metadata kept, grpcio's own call objects."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from types import SimpleNamespace

import grpc
import grpc.aio
import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, StatusCode

from meshmw import MeshPropagator
from meshmw.baggage import using
from meshmw.grpc import TraceContextClientInterceptor, client_interceptors
from meshmw.grpc._client import OutgoingMetadata, parse_target
from meshmw.grpc._serving import peer_address

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Caller:
    """Calls a plain server through our interceptors, in threads or in asyncio."""

    def __init__(self, style, host, inside=(), outside=(), target=None, **options):
        self.style, self.host = style, host
        self.inside, self.outside = inside, outside
        self.address = f"127.0.0.1:{host.port}"
        self.target = target or self.address
        self.propagator = MeshPropagator(warn_window=0)
        self.options = {"propagator": self.propagator, "tracer_provider": host.tracer_provider} | options
        self.tracer = host.tracer_provider.get_tracer("app")

    def call(self, kind="unary_unary", *orders, metadata=None, timeout=60, look=lambda: None):
        """Make a call inside a span of the application's, and return the answers; *look* is called for each request."""
        requests = [json.dumps(order).encode() for order in orders or ({},)]
        with self.tracer.start_as_current_span("app"):
            if self.style == "threads":
                return self._call(kind, requests, metadata, timeout, look)
            return asyncio.run(self._acall(kind, requests, metadata, timeout, look))

    def channel(self):
        ours = TraceContextClientInterceptor(self.target, **self.options)
        return grpc.intercept_channel(grpc.insecure_channel(self.address), *self.outside, ours, *self.inside)

    def aio_channel(self):
        ours = client_interceptors(self.target, **self.options)
        return grpc.aio.insecure_channel(self.address, interceptors=[*self.outside, *ours, *self.inside])

    def _call(self, kind, requests, metadata, timeout, look):
        def given():
            for request in requests:
                look()
                yield request

        with self.channel() as channel:
            method = getattr(channel, kind)(f"/lab.S/{kind}")
            found = method(given() if kind.startswith("stream") else requests[0], timeout=timeout, metadata=metadata)
            return [json.loads(each) for each in (found if kind.endswith("stream") else [found])]

    async def _acall(self, kind, requests, metadata, timeout, look):  # noqa: ASYNC109
        async def given():
            for request in requests:
                look()
                yield request

        async with self.aio_channel() as channel:
            method = getattr(channel, kind)(f"/lab.S/{kind}")
            call = method(given() if kind.startswith("stream") else requests[0], timeout=timeout, metadata=metadata)
            if kind.endswith("stream"):
                return [json.loads(each) async for each in call]
            return [json.loads(await call)]

    @property
    def client_spans(self):
        return [span for span in self.host.spans if span.kind is SpanKind.CLIENT]

    @property
    def span(self):
        (span,) = self.host.until(lambda: self.client_spans, "a CLIENT span")
        return span


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def server(make_host):
    return make_host("threads")


@pytest.fixture(params=["threads", "asyncio"])
def new_caller(request, server):
    return lambda **options: Caller(request.param, server, **options)


@pytest.fixture
def caller(new_caller):
    return new_caller()


def test_a_call_is_a_client_span_that_the_server_continues(caller, kind):
    caller.call(kind, {}, {})
    span = caller.span
    (app,) = [each for each in caller.host.spans if each.name == "app"]
    assert span.parent.span_id == app.context.span_id
    assert caller.host.server_span.parent.span_id == span.context.span_id
    assert span.name == f"lab.S/{kind}"
    assert dict(span.attributes) == {
        "rpc.system.name": "grpc",
        "rpc.method": f"lab.S/{kind}",
        "rpc.status_code": "OK",
        "server.address": "127.0.0.1",
        "server.port": caller.host.port,
    }
    assert span.status.status_code is StatusCode.UNSET


def test_baggage_goes_along(caller, kind):
    with using(tenant="ä"):
        (answer, *_) = caller.call(kind)
    assert answer["baggage"] == {"tenant": "ä"}


def test_other_metadata_stay_as_they_are_and_stale_headers_are_replaced(caller, kind):
    stale = f"00-{TRACE_ID}-{PARENT_ID}-01"
    given = (("x-k", "1"), ("traceparent", stale), ("x-k", "2"), ("a-bin", b"\x00\xff"), ("b3", "0"), ("a-bin", b"2"),
             ("tracestate", "old=1"), ("baggage", "old=1"))  # fmt: skip
    with using(new="1"):
        caller.call(kind, metadata=given)
    got = caller.host.metadata
    mine = [(key, value) for key, value in got if key in {"x-k", "a-bin"}]
    assert sorted(mine) == [("a-bin", b"\x00\xff"), ("a-bin", b"2"), ("x-k", "1"), ("x-k", "2")]
    assert [value for key, value in mine if key == "x-k"] == ["1", "2"]
    names = [key for key, _ in got]
    assert names.count("traceparent") == names.count("baggage") == 1
    assert not {"b3", "tracestate"} & set(names)
    assert dict(got)["baggage"] == "new=1"
    assert f"{caller.span.context.span_id:016x}" in dict(got)["traceparent"]
    assert given[1] == ("traceparent", stale)


def test_whatever_grpcio_takes_for_metadata_goes_out(caller):
    stale = f"00-{TRACE_ID}-{PARENT_ID}-01"
    given = (
        ("x-none", None),
        (b"x-bytes", "1"),
        ("x-value", b"2"),
        (b"traceparent", stale),
        ("traceparent", stale.encode()),
    )
    caller.call(metadata=given)
    got = caller.host.metadata
    assert {pair for pair in got if pair[0] in {"x-none", "x-bytes", "x-value"}} == {
        ("x-none", ""),
        ("x-bytes", "1"),
        ("x-value", "2"),
    }
    (traceparent,) = [value for key, value in got if key == "traceparent"]
    assert f"{caller.span.context.span_id:016x}" in traceparent


@pytest.mark.parametrize("given", [(("x-k", 1),), (("ключ", "x"),)], ids=["number", "not_ascii"])
def test_metadata_that_grpcio_refuses_are_refused_by_grpcio_and_end_the_span(caller, given):
    with pytest.raises(Exception, match=r"Expected str|Invalid metadata|execute_batch"):
        caller.call(metadata=given)
    assert caller.span.status.status_code is StatusCode.ERROR


def test_metadata_that_are_no_pairs_end_the_span(server):
    caller = Caller("threads", server)
    with pytest.raises(ValueError, match="unpack"):
        caller.call(metadata=(("x-k", "1", "2"),))
    assert caller.span.attributes["error.type"] == "ValueError"


@pytest.mark.parametrize("code", ["NOT_FOUND", "INTERNAL"])
def test_every_code_but_ok_is_an_error_of_the_client(caller, kind, code):
    with pytest.raises(grpc.RpcError) as raised:
        caller.call(kind, {"abort": code})
    assert raised.value.code().name == code
    span = caller.span
    assert span.attributes["rpc.status_code"] == span.attributes["error.type"] == code
    assert span.status.status_code is StatusCode.ERROR


def test_a_server_that_is_not_there_is_an_error(caller, kind):
    caller.host.stop()
    with pytest.raises(grpc.RpcError):
        caller.call(kind)
    assert caller.span.attributes["rpc.status_code"] == "UNAVAILABLE"


def test_a_deadline_ends_the_span(caller, kind):
    with pytest.raises(grpc.RpcError):
        caller.call(kind, {"wait": True}, timeout=0.2)
    assert caller.span.attributes["rpc.status_code"] == "DEADLINE_EXCEEDED"


def test_the_request_iterator_sees_the_callers_context(caller):
    seen = []
    with using(tenant="a"):
        caller.call("stream_stream", {}, look=lambda: seen.append((trace.get_current_span(), baggage.get_all())))
    ((span, members),) = seen
    assert span.get_span_context().span_id in {each.context.span_id for each in caller.host.spans if each.name == "app"}
    assert members == {"tenant": "a"}


def test_the_callers_context_is_as_it_was_while_streams_are_open(server):
    caller = Caller("threads", server)
    before = otel_context.get_current()
    with caller.channel() as channel:
        method = channel.unary_stream("/lab.S/unary_stream")
        calls = [method(b"{}"), method(b"{}")]
        for call in (calls[0], calls[1], calls[1], calls[0]):
            next(call)
            assert otel_context.get_current() == before
        assert [len(list(call)) for call in calls] == [1, 1]


def test_a_stream_keeps_grpcios_whole_interface(server):
    caller = Caller("threads", server)
    with caller.channel() as channel:
        call = channel.unary_stream("/lab.S/unary_stream")(b"{}", timeout=60)
        assert isinstance(call, grpc.Call)
        assert call.initial_metadata() == ()
        assert call.time_remaining() <= 60
        assert call.is_active()
        next(call)
        assert call.cancel() in (True, False)
        assert call.code() is grpc.StatusCode.CANCELLED
        assert call.details()
    assert caller.span.attributes["rpc.status_code"] == "CANCELLED"


def test_a_future_ends_its_span_and_calls_back(server):
    caller = Caller("threads", server)
    called = threading.Event()
    with caller.channel() as channel:
        future = channel.unary_unary("/lab.S/unary_unary").future(b"{}")
        future.add_done_callback(lambda _: called.set())
        assert json.loads(future.result(60))["where"] == "handler"
        assert called.wait(60)
        response, call = channel.stream_unary("/lab.S/stream_unary").with_call(iter([b"{}"]))
        assert response
        assert call.code() is grpc.StatusCode.OK
    assert [span.attributes["rpc.status_code"] for span in caller.client_spans] == ["OK", "OK"]


def test_a_stream_that_its_owner_drops_is_cancelled_and_its_span_ends(server):
    caller = Caller("threads", server)
    with caller.channel() as channel:
        call = channel.unary_stream("/lab.S/unary_stream")(json.dumps({"wait": True}).encode())
        assert server.waiting.wait(60)
        del call
        gc.collect()
        assert caller.span.attributes["rpc.status_code"] == "CANCELLED"


def test_an_aio_stream_keeps_the_write_interface_and_an_untouched_call(server):
    caller = Caller("asyncio", server)

    async def talk():
        async with caller.aio_channel() as channel:
            call = channel.stream_unary("/lab.S/stream_unary")(timeout=60)
            for _ in range(3):
                await call.write(b"{}")
            await call.done_writing()
            assert json.loads(await call)
            assert await call.code() is grpc.StatusCode.OK
            call = channel.stream_stream("/lab.S/stream_stream")()
            assert isinstance(call, grpc.aio.StreamStreamCall)
            await call.write(b"{}")
            assert json.loads(await call.read())
            assert list(await call.initial_metadata()) == []
            call.cancel()
            assert await call.code() is grpc.StatusCode.CANCELLED

    asyncio.run(talk())
    codes = caller.host.until(lambda: len(caller.client_spans) == 2 and caller.client_spans)
    assert [span.attributes["rpc.status_code"] for span in codes] == ["OK", "CANCELLED"]


def test_a_call_that_is_cancelled_with_its_task_ends_its_span(server):
    caller = Caller("asyncio", server)

    async def cancel():
        async with caller.aio_channel() as channel:

            async def ask():
                await channel.unary_unary("/lab.S/unary_unary")(json.dumps({"wait": True}).encode())

            task = asyncio.create_task(ask())
            await asyncio.to_thread(server.waiting.wait, 60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancel())
    assert caller.span.attributes["rpc.status_code"] == "CANCELLED"


# what interceptors further in may do


class Raises(grpc.UnaryUnaryClientInterceptor):
    def intercept_unary_unary(self, continuation, details, request):
        raise ZeroDivisionError


class Answers(grpc.UnaryUnaryClientInterceptor):
    """Makes up an answer of its own, as a cache does."""

    def intercept_unary_unary(self, continuation, details, request):
        return SimpleNamespace(result=lambda: b'{"made": "up"}')


class AsyncRaises(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, error):
        self.error = error

    async def intercept_unary_unary(self, continuation, details, request):
        raise self.error


class AsyncAnswers(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation, details, request):
        return b'{"made": "up"}'


def test_an_interceptor_further_in_that_raises_ends_the_span(server):
    future = Caller("threads", server, inside=[Raises()])
    with future.channel() as channel, pytest.raises(ZeroDivisionError):
        channel.unary_unary("/lab.S/unary_unary")(b"{}")
    assert future.span.attributes["rpc.status_code"] == "INTERNAL"


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (ZeroDivisionError(), None, "ZeroDivisionError"),
        (grpc.aio.AioRpcError(grpc.StatusCode.ABORTED, grpc.aio.Metadata(), grpc.aio.Metadata()), "ABORTED", "ABORTED"),
        (asyncio.CancelledError(), "CANCELLED", "CANCELLED"),
    ],
    ids=["error", "rpc_error", "cancelled"],
)
def test_an_async_interceptor_further_in_that_raises_ends_the_span(server, error, code, kind):
    caller = Caller("asyncio", server, inside=[AsyncRaises(error)])
    with pytest.raises(type(error)):
        caller.call()
    assert caller.span.attributes.get("rpc.status_code") == code
    assert caller.span.attributes["error.type"] == kind


def test_a_continuation_that_raises_ends_the_span(server):
    caller = Caller("threads", server)
    channel = caller.channel()
    channel.close()
    with pytest.raises(ValueError, match="closed"):
        channel.unary_unary("/lab.S/unary_unary")(b"{}")
    assert caller.span.attributes["rpc.status_code"] == "INTERNAL"
    interceptor = TraceContextClientInterceptor("shop:1", **caller.options)
    caller.host.exporter.clear()

    def raises(details, request):
        raise KeyError("x")

    details = SimpleNamespace(method="/lab.S/unary_unary")
    with pytest.raises(KeyError):
        interceptor.intercept_unary_unary(raises, details, b"")
    assert caller.span.attributes["error.type"] == "KeyError"


@pytest.mark.parametrize("style", ["threads", "asyncio"])
def test_an_interceptor_further_in_that_makes_up_an_answer_ends_the_span(server, style):
    caller = Caller(style, server, inside=[Answers() if style == "threads" else AsyncAnswers()])
    assert caller.call() == [{"made": "up"}]
    assert caller.span.attributes["rpc.status_code"] == "OK"


def test_a_call_that_says_it_is_over_and_does_not_know_how_has_no_code(server):
    class Unsure(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, details, request):
            call = await continuation(details, request)
            call.code = lambda: asyncio.sleep(0)
            return call

    caller = Caller("asyncio", server, inside=[Unsure()])
    caller.call()
    assert "rpc.status_code" not in caller.span.attributes


def test_a_suppressed_call_has_no_span_and_carries_nothing_of_ours(caller, kind):
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    with using(tenant="north"), suppress_instrumentation():
        caller.call(kind, {}, {}, metadata=(("x-k", "1"), ("traceparent", "junk")))
    got = dict(caller.host.metadata)
    assert got["x-k"] == "1"
    assert {"traceparent", "baggage", "x-meshmw-sent"}.isdisjoint(got)
    assert caller.client_spans == []


def test_baggage_that_the_caller_wrote_gives_way_to_the_context_with_baggage_and_without(caller, kind):
    caller.call(kind, metadata=(("baggage", "own=1"),))
    assert "baggage" not in dict(caller.host.metadata)


def contribs(caller):
    from opentelemetry.instrumentation import grpc as contrib

    if caller.style == "threads":
        return [contrib.client_interceptor(tracer_provider=caller.host.tracer_provider)]
    return contrib.aio_client_interceptors(tracer_provider=caller.host.tracer_provider)


def test_contribs_interceptor_further_in_stands_back(new_caller, kind):
    caller = new_caller()
    if caller.style == "threads":
        caller.channel = lambda: grpc.intercept_channel(
            contrib_channel(caller), TraceContextClientInterceptor(caller.target, **caller.options)
        )
    else:
        caller.inside = contribs(caller)
    seen = []
    caller.call(kind, {}, {}, look=lambda: seen.append(bool(otel_context.get_value("suppress_instrumentation"))))
    assert caller.span.instrumentation_scope.name == "meshmw"
    assert caller.host.server_span.parent.span_id == caller.span.context.span_id
    assert not any(seen)


def contrib_channel(caller):
    from opentelemetry.instrumentation.grpc import grpcext

    return grpcext.intercept_channel(grpc.insecure_channel(caller.address), *contribs(caller))


def test_the_span_of_contribs_interceptor_further_out_is_adopted(new_caller, kind):
    from opentelemetry.instrumentation.grpc import grpcext

    caller = new_caller()
    ours = caller.channel
    if caller.style == "threads":
        caller.channel = lambda: grpcext.intercept_channel(ours(), *contribs(caller))
    else:
        caller.outside = contribs(caller)
    caller.call(kind, {}, {})
    assert caller.span.instrumentation_scope.name == "opentelemetry.instrumentation.grpc"
    assert caller.host.server_span.parent.span_id == caller.span.context.span_id


# where it goes


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("pricing:50051", ("pricing", "pricing", 50051)),
        ("pricing", ("pricing", "pricing", None)),
        ("dns:///pricing.shop.svc:443", ("pricing.shop.svc", "pricing.shop.svc", 443)),
        ("dns://8.8.8.8/pricing:443", ("pricing", "pricing", 443)),
        ("dns:pricing:443", ("pricing", "pricing", 443)),
        ("localhost:1", ("localhost", "localhost", 1)),
        ("10.0.0.1:80", ("10.0.0.1", "10.0.0.1", 80)),
        ("ipv4:10.0.0.1:80,8.8.8.8:80", ("10.0.0.1", "10.0.0.1", 80)),
        ("[::1]:80", ("::1", "::1", 80)),
        ("ipv6:[fd00::1]:80", ("fd00::1", "fd00::1", 80)),
        ("unix:/run/pricing", ("localhost", "/run/pricing", None)),
        ("unix:///run/pricing", ("localhost", "/run/pricing", None)),
        ("unix-abstract:pricing", ("localhost", "pricing", None)),
        ("xds:///pricing", ("pricing", "pricing", None)),
        ("dns:///user:pa55@pricing:443", ("pricing", "pricing", 443)),
        ("https://user:pa55@pricing", ("pricing", "pricing", None)),
    ],
)
def test_a_target_says_where_calls_go(target, expected):
    assert parse_target(target) == expected


def test_an_empty_target_is_refused():
    with pytest.raises(ValueError, match="target"):
        TraceContextClientInterceptor("")


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("ipv4:10.0.0.9:41000", ("10.0.0.9", 41000)),
        ("ipv6:%5B::1%5D:41000", ("::1", 41000)),
        ("ipv6:[::1]:41000", ("::1", 41000)),
        ("unix:/run/x", ("/run/x", None)),
        ("unix:", None),
        ("unknown", None),
        ("ipv4:nonsense", None),
    ],
)
def test_a_peer_is_an_address_and_a_port(peer, expected):
    assert peer_address(peer) == expected


def test_a_target_outside_the_mesh_gets_no_baggage_and_a_foreign_one_nothing(new_caller):
    with using(tenant="a"):
        caller = new_caller(target="api.example.com:443")
        caller.call()
        assert {"traceparent"} <= {key for key, _ in caller.host.metadata}
        assert "baggage" not in dict(caller.host.metadata)
        propagator = MeshPropagator(propagate_to=("mesh",))
        caller = new_caller(target="api.example.com:443", propagator=propagator)
        caller.call(metadata=(("traceparent", "00-x"), ("x-k", "1")))
    assert not {"traceparent", "baggage"} & {key for key, _ in caller.host.metadata}
    assert ("x-k", "1") in caller.host.metadata


# how much goes


def test_baggage_is_cut_to_whole_members_before_a_server_refuses_the_call(caller):
    with using({f"k{number}": "x" * 200 for number in range(60)}):
        (answer,) = caller.call(metadata=(("x-bin", b"\0" * 300),))
    kept = answer["baggage"]
    assert 10 < len(kept) < 60
    assert all(value == "x" * 200 for value in kept.values())
    assert caller.propagator.rejections.counts[("baggage", "header_budget")] == 1


def replaced(pairs, context, limit=8192, propagator=None):
    propagator = propagator or MeshPropagator(warn_window=0)
    found = OutgoingMetadata(limit).replace(pairs, context, propagator, method="/lab.S/x", host="localhost")
    return found, propagator


def remote(**headers):
    return MeshPropagator().extract({"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", **headers}, Context())


def test_where_other_metadata_are_too_big_baggage_and_tracestate_are_given_up():
    context = remote(tracestate="a=1", baggage="b=2")
    big = ("x-big", "y" * 7000)
    found, propagator = replaced([big], context)
    assert big in found
    assert not {"tracestate", "baggage"} & {key for key, _ in found}
    assert set(propagator.rejections.counts) == {("baggage", "header_budget"), ("tracestate", "header_budget")}
    found, propagator = replaced([big], remote())
    assert {key for key, _ in found} == {"x-big", "traceparent", "x-meshmw-sent"}
    assert propagator.rejections.counts == {}


def test_a_greater_limit_lets_more_pass():
    context = remote(baggage=",".join(f"k{number}={'x' * 200}" for number in range(35)))
    found, propagator = replaced([], context, limit=16_384)
    assert len(dict(found)["baggage"]) > 7000
    assert propagator.rejections.counts == {}


def test_just_below_the_limit_nothing_is_cut():
    context = remote(baggage="a=1")
    fixed = len("/lab.S/x") + sum(len(key) + len(value) + 32 for key, value in replaced([], context)[0])
    room = 8192 - 2048 - fixed - 32 - len("x-k")
    assert "baggage" in dict(replaced([("x-k", "y" * room)], context)[0])
    assert "baggage" not in dict(replaced([("x-k", "y" * (room + 20))], context)[0])


def test_a_header_that_is_no_metadata_is_not_passed_on():
    propagator = MeshPropagator(warn_window=0, passthrough_headers=("x!id",))
    context = propagator.extract({"x!id": "1"}, Context())
    found, _ = replaced([], context, propagator=propagator)
    assert found == []
    assert propagator.rejections.counts == {("context", "metadata"): 1}


def test_no_metadata_of_ours_is_ever_near_what_breaks_a_connection():
    state = ",".join(f"k{number}={'v' * 250}" for number in range(32))
    context = remote(tracestate=state, baggage=",".join(f"k{number}={'x' * 120}" for number in range(64)))
    found, _ = replaced([], context)
    assert sum(len(key) + len(value) + 32 for key, value in found) < 8192 - 2048


def test_details_that_are_no_named_tuple_keep_what_they_say_beside_other_metadata():
    """grpcio's own are one; whoever calls an interceptor by hand may have others."""

    class Details(grpc.ClientCallDetails):
        method, timeout, metadata = "/lab.S/one", 7, (("a", "1"),)

    seen = []
    interceptor = TraceContextClientInterceptor("items.local:1", propagator=MeshPropagator())
    interceptor.intercept_unary_unary(lambda details, request: seen.append((details, request)), Details(), b"x")
    ((details, request),) = seen
    assert (details.method, details.timeout, request) == ("/lab.S/one", 7, b"x")
    assert details.metadata[0] == ("a", "1")
    assert isinstance(details, grpc.ClientCallDetails)
