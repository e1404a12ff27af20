"""Names that httpx, aiohttp, grpcio and brokers' clients call private: each assumption, with the real package."""

from __future__ import annotations

import asyncio
import functools
import inspect
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import aio_pika
import aiohttp
import aiokafka
import confluent_kafka
import grpc
import grpc.aio
import httpx
import httpx2
import kafka
import pika
import pytest
from aiohttp.test_utils import make_mocked_request
from confluent_kafka.serializing_producer import SerializingProducer
from grpc._cython import cygrpc
from multidict import CIMultiDict
from yarl import URL

import meshmw.httpx
import meshmw.httpx2
from meshmw import MeshPropagator, _foreign
from meshmw._context.current import Current
from meshmw._foreign import headers_like
from meshmw._transports import wraps_transports

CLIENTS = [
    (httpx, meshmw.httpx, False),
    (httpx, meshmw.httpx, True),
    (httpx2, meshmw.httpx2, False),
    (httpx2, meshmw.httpx2, True),
]
every_client = pytest.mark.parametrize(
    ("library", "ours", "is_async"), CLIENTS, ids=["httpx", "httpx async", "httpx2", "httpx2 async"]
)


class TestDatadog:
    """With the real package: `tests/real/test_neighbours.py`."""

    SPANS: ClassVar = [object(), object()]

    @pytest.mark.parametrize("number", [0, 1])
    def test_a_span_is_known_by_what_it_holds(self, number):
        span = SimpleNamespace(_ddspan=self.SPANS[number])
        assert _foreign.is_of_datadog(span, {"datadog": {"request_spans": self.SPANS}})

    @pytest.mark.parametrize("held", [{"_ddspan": object()}, {}, {"_ddspan": None}])
    def test_any_other_is_anybodys(self, held):
        assert not _foreign.is_of_datadog(SimpleNamespace(**held), {"datadog": {"request_spans": self.SPANS}})

    @pytest.mark.parametrize(
        "scope",
        [
            {},
            {"datadog": {}},
            {"datadog": {"request_spans": None}},
            {"datadog": {"request_spans": 5}},
            {"datadog": "other"},
        ],
    )
    def test_without_a_list_there_is_none(self, scope):
        assert not _foreign.is_of_datadog(SimpleNamespace(_ddspan=self.SPANS[0]), scope)


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class NotAsked:
    """Stands for the method of a client that is not asked for transports: the class does not show it."""

    def __init__(self, method):
        self._method = method

    def __get__(self, client, kind):
        if client is None:
            raise AttributeError
        return self._method.__get__(client, kind)


def sent(client_class, library, is_async):
    """Return what reaches a client's own transport and a mounted one of a trace that came in."""
    own, mounted = [], []

    def answers(got):
        def answer(request):
            got.append(request)
            return library.Response(200)

        return library.MockTransport(answer)

    async def use():
        client = client_class(transport=answers(own), mounts={"all://mounted.local": answers(mounted), "ftp://": None})
        for url in ("http://own.local", "http://mounted.local"):
            response = client.get(url)
            assert (await response if is_async else response).status_code == 200
        closed = client.aclose() if is_async else client.close()
        assert (await closed if is_async else closed) is None

    with Current(MeshPropagator().extract({"traceparent": TRACEPARENT})):
        asyncio.run(use())
    return [request.headers.get("traceparent") for request in (*own, *mounted)]


class TestTransports:
    @every_client
    def test_a_client_asks_for_the_transport_of_each_request(self, library, ours, is_async):
        name = "AsyncClient" if is_async else "Client"
        assert hasattr(getattr(library, name), "_transport_for_url")
        assert sent(getattr(ours, name), library, is_async) == [TRACEPARENT] * 2

    @every_client
    def test_one_that_does_not_ask_has_them_wrapped_when_it_is_made(self, library, ours, is_async):
        base = getattr(library, "AsyncClient" if is_async else "Client")
        wrapper = ours.AsyncTraceContextTransport if is_async else ours.TraceContextTransport
        silent = type("Silent", (base,), {"_transport_for_url": NotAsked(base._transport_for_url)})
        client_class = wraps_transports(wrapper)(silent)
        assert sent(client_class, library, is_async) == [TRACEPARENT] * 2
        assert inspect.signature(client_class) == inspect.signature(base)

    def test_one_that_keeps_none_is_used_as_it_is(self):
        class Other:
            def __init__(self, name):
                self.name = name

        client = wraps_transports(meshmw.httpx.TraceContextTransport)(Other)("name")
        assert client.name == "name"


class TestCallsOfAiohttp:
    @pytest.mark.parametrize("times_out", [True, False])
    def test_they_have_a_timer_that_says_whether_it_has_cancelled_them(self, times_out):
        found = []

        async def look(request, handler):
            found.append(_foreign.aiohttp_call_of(request))
            assert found[0] is not request, "aiohttp no longer keeps the timer in `_timer`"
            return await handler(request)

        async def use(port):
            limit = aiohttp.ClientTimeout(total=0.2 if times_out else 60)
            async with aiohttp.ClientSession(middlewares=(look,), timeout=limit) as session:
                await session.get(f"http://127.0.0.1:{port}/")

        with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises((TimeoutError, aiohttp.ClientError)):
            asyncio.run(use(silent.getsockname()[1] if times_out else 1))
        assert _foreign.has_timed_out(found[0]) is times_out

    def test_without_a_timer_each_request_is_a_call_of_its_own_and_none_has_timed_out(self):
        request = object()
        assert _foreign.aiohttp_call_of(request) is request
        assert not _foreign.has_timed_out(request)


class TestRequestsToAiohttp:
    def test_a_copy_keeps_all_but_the_headers(self):
        request = make_mocked_request("GET", "/", CIMultiDict({"a": "1"})).clone(remote="10.0.0.9")
        assert request.headers["a"] == "1"
        request._match_info = "kept"
        copied = _foreign.aiohttp_request_with(request, CIMultiDict({"b": "\udcff"}))
        assert type(copied) is type(request)
        assert (dict(copied.headers), copied.raw_headers) == ({"b": "\udcff"}, ((b"b", b"\xff"),))
        assert (copied.remote, copied._match_info, dict(request.headers)) == ("10.0.0.9", "kept", {"a": "1"})

    def test_one_that_keeps_its_headers_elsewhere_is_cloned(self):
        class Other:
            def clone(self, headers):
                return headers

        assert _foreign.aiohttp_request_with(Other(), {"b": "2"}) == {"b": "2"}


class TestHeaders:
    PAIRS: ClassVar = [(b"Host", b"own.local"), (b"X-A", b"1"), (b"x-a", b"\xfc")]

    @every_client
    def test_a_copy_of_headers_is_filled_as_the_constructor_fills_it(self, library, ours, is_async):
        made = headers_like(library.Headers({"stale": "1"}), iter(self.PAIRS))
        assert vars(made) == vars(library.Headers(self.PAIRS))
        assert made["X-a"] == "1, \xfc"

    @pytest.mark.parametrize("rows", [None, ("A", "b")])
    def test_those_that_keep_them_otherwise_are_made_by_their_constructor(self, rows):
        class Others(list):
            _list = rows

        made = headers_like(Others([1]), iter(self.PAIRS))
        assert (type(made), made, vars(made)) == (Others, self.PAIRS, {})


NOWHERE = "127.0.0.1:9"


def test_kafka_pythons_clients_show_the_servers_that_they_were_made_with(kafka_broker):
    for make in (kafka.KafkaProducer, kafka.KafkaConsumer):
        with closing(make(bootstrap_servers=kafka_broker)) as client:
            assert _foreign.kafka_servers(client) == [kafka_broker]


@pytest.mark.asyncio
async def test_aiokafkas_clients_show_them_too_and_those_of_confluent_kafka_do_not():
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=f"{NOWHERE}, b:1")
    consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=[NOWHERE])
    assert _foreign.kafka_servers(producer) == [NOWHERE, "b:1"]
    assert _foreign.kafka_servers(consumer) == [NOWHERE]
    await producer.stop()
    await consumer.stop()
    assert _foreign.kafka_servers(confluent_kafka.Producer({"bootstrap.servers": NOWHERE, "log_level": 0})) == []


@pytest.mark.parametrize("make", [confluent_kafka.Producer, SerializingProducer])
def test_a_producer_of_confluent_kafka_holds_the_callbacks_that_its_configuration_names(make):
    options = {"bootstrap.servers": NOWHERE, "log_level": 0}
    assert not _foreign.has_delivery_callback(make(options))
    assert _foreign.has_delivery_callback(make({**options, "on_delivery": lambda *_: None}))
    assert not _foreign.has_delivery_callback(7)


def test_pikas_channels_show_where_their_broker_is(rabbitmq_broker):
    parameters = pika.URLParameters(rabbitmq_broker)
    with pika.BlockingConnection(parameters) as blocking:
        assert _foreign.amqp_address(blocking.channel()) == (parameters.host, parameters.port)
    connection = pika.SelectConnection(parameters, internal_connection_workflow=False)
    channel = pika.channel.Channel(connection, 1, lambda _: None)
    assert _foreign.amqp_address(channel) == (parameters.host, parameters.port)
    connection.ioloop.close()


@pytest.mark.asyncio
async def test_aio_pikas_channels_exchanges_and_queues_show_where_their_broker_is():
    channel = aio_pika.Channel(aio_pika.Connection(URL("amqp://broker:1234/")))
    exchange = aio_pika.Exchange(channel, "orders")
    queue = aio_pika.Queue(channel, "orders", False, False, False, None)
    assert {_foreign.amqp_address(each) for each in (channel, exchange, queue)} == {("broker", 1234)}


class Hostile:
    def __getattr__(self, name):
        raise RuntimeError(name)


def test_a_client_that_shows_nothing_or_raises_has_no_address():
    for client in (object(), 7, Hostile()):
        assert _foreign.kafka_servers(client) == []
        assert _foreign.amqp_address(client) == (None, None)


class TestGrpcio:
    @contextmanager
    def served(self, one: Callable[..., Any], many: Callable[..., Any] | None = None) -> Iterator[str]:
        """Serve one method of each kind, and yield the server's address."""
        server = grpc.server(futures.ThreadPoolExecutor(2))
        methods = {"one": grpc.unary_unary_rpc_method_handler(one)}
        if many is not None:
            methods["many"] = grpc.unary_stream_rpc_method_handler(many)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lab.S", methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(0).wait(30)

    def call(self, address: str) -> bytes:
        with grpc.insecure_channel(address) as channel:
            return channel.unary_unary("/lab.S/one")(b"x", timeout=30)

    @pytest.mark.parametrize("name", ["ExecuteBatchError", "_ServerStoppedError"])
    def test_grpcio_raises_these_where_a_call_is_over(self, name):
        assert _foreign.is_end_of_call(getattr(cygrpc, name)())
        assert name not in grpc.__all__ + grpc.aio.__all__

    @pytest.mark.parametrize("error", [grpc.RpcError(), cygrpc.AbortError(), LookupError()])
    def test_another_exception_is_the_handlers_own(self, error):
        assert not _foreign.is_end_of_call(error)

    def test_grpcio_finds_a_methods_own_threads_on_a_function_in_its_place(self):
        def own(_request, _context):
            return threading.current_thread().name.encode()

        with futures.ThreadPoolExecutor(1, "own") as pool:
            own.experimental_thread_pool = pool

            def in_its_place(request, context):
                return own(request, context)

            _foreign.copy_grpcio_marks(in_its_place, own)
            with self.served(in_its_place) as address:
                assert self.call(address).startswith(b"own")

    def test_grpcio_hands_a_marked_function_what_sends_responses(self):
        def own(request, _context, send):
            for response in (request, b"y", None):
                send(response)

        own.experimental_non_blocking = True

        def in_its_place(request, context, send):
            own(request, context, send)

        _foreign.copy_grpcio_marks(in_its_place, own)
        with (
            self.served(lambda request, _: request, in_its_place) as address,
            grpc.insecure_channel(address) as channel,
        ):
            assert list(channel.unary_stream("/lab.S/many")(b"x", timeout=30)) == [b"x", b"y"]

    def test_a_function_is_marked_or_it_is_not(self):
        def own(_request, _context, _send):
            pass

        assert not _foreign.is_non_blocking(own)
        own.experimental_non_blocking = True
        assert _foreign.is_non_blocking(own)

    def test_a_pair_is_one_of_those_that_grpcio_hands_out(self):
        found = []

        def one(request, context):
            metadata = context.invocation_metadata()
            found.append((metadata[0], _foreign.metadata_pair(metadata, "x-k", "1")))
            return request

        with self.served(one) as address:
            self.call(address)
        ((theirs, ours),) = found
        assert type(ours) is type(theirs)
        assert (ours.key, ours.value) == ours == ("x-k", "1")

    def test_where_pairs_are_plain_tuples_one_of_these_is_made(self):
        assert _foreign.metadata_pair([("a", "b")], "x-k", "1") == ("x-k", "1")

    def test_an_ended_call_knows_its_status(self):
        with self.served(lambda request, _: request) as address, grpc.insecure_channel(address) as channel:
            _, call = channel.unary_unary("/lab.S/one").with_call(b"x", timeout=30)
            assert _foreign.status_of_ended_call(call) is grpc.StatusCode.OK

    def test_an_ended_call_of_aio_knows_its_status_without_waiting(self):
        async def talk(address: str) -> Any:
            async with grpc.aio.insecure_channel(address) as channel:
                call = channel.unary_unary("/lab.S/one")(b"x", timeout=30)
                await call
                return _foreign.status_of_ended_call(call)

        with self.served(lambda request, _: request) as address:
            assert asyncio.run(talk(address)) is grpc.StatusCode.OK

    def test_a_call_of_aio_that_would_wait_has_no_status(self):
        async def talk(address: str) -> Any:
            async with grpc.aio.insecure_channel(address) as channel:
                call = channel.unary_unary("/lab.S/one")(b"x", timeout=30)
                found = _foreign.status_of_ended_call(call)
                await call
                return found

        with self.served(lambda request, _: request) as address:
            assert asyncio.run(talk(address)) is None


def lookups_of(make_server, interceptor):
    """Return what `method_lookup` finds for a call of a method that a table holds, in each of two interceptors."""
    handler = grpc.unary_unary_rpc_method_handler(lambda request, _: request)
    table = grpc.method_handlers_generic_handler("shop.Pricing", {"Quote": handler})
    found = []

    async def serve():
        server = make_server(interceptors=[interceptor(found), interceptor(found)])
        server.add_generic_rpc_handlers((table,))
        port = server.add_insecure_port("127.0.0.1:0")
        started = server.start()
        if started is not None:
            await started
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await channel.unary_unary("/shop.Pricing/Quote")(b"")
        stopped = server.stop(0)
        await (stopped if inspect.isawaitable(stopped) else asyncio.to_thread(stopped.wait))

    asyncio.run(serve())
    return [(lookup, details, handler) for lookup, details in found]


class Looking(grpc.ServerInterceptor):
    def __init__(self, found):
        self.found = found

    def intercept_service(self, continuation, details):
        self.found.append((_foreign.method_lookup(continuation), details))
        return continuation(details)


class AioLooking(Looking, grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation, details):
        return await super().intercept_service(continuation, details)


@pytest.mark.parametrize(
    ("make_server", "interceptor"),
    [(functools.partial(grpc.server, ThreadPoolExecutor(2)), Looking), (grpc.aio.server, AioLooking)],
    ids=["threads", "aio"],
)
def test_a_server_of_grpcio_shows_what_it_finds_handlers_by(make_server, interceptor):
    found = lookups_of(make_server, interceptor)
    assert len(found) == 2
    for lookup, details, handler in found:
        assert lookup(details) is handler, "grpcio no longer calls it `query_handlers`"
        assert lookup(type(details)("/shop.Pricing/Nothing", details.invocation_metadata)) is None
    assert _foreign.method_lookup(print) is None


def test_a_continuation_may_hold_a_name_that_has_no_value_yet():
    def continuation(details):
        return later

    assert _foreign.method_lookup(continuation) is None
    later = None
