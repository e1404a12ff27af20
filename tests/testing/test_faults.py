"""`FaultProxy`: what a client of HTTP and one of gRPC meet in each outage, and that all is well before and after."""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
import time

import grpc
import httpx
import pytest

from meshmw.errors import MeshError
from meshmw.testing import FaultProxy, OtlpReceiver
from tests.programs import run_parts

SECONDS = 60
# What a client waits for where nothing comes at all.
PATIENCE = 0.5
METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@pytest.fixture(scope="module")
def receiver():
    with OtlpReceiver() as found:
        yield found


@pytest.fixture
def over_http(receiver):
    with FaultProxy(receiver.http_endpoint) as proxy:
        yield proxy


@pytest.fixture
def over_grpc(receiver):
    with FaultProxy(receiver.grpc_endpoint) as proxy:
        yield proxy


def post(proxy, timeout=SECONDS, body=b""):
    return httpx.post(f"{proxy.endpoint}/v1/traces", content=body, timeout=timeout, trust_env=False)


def call(proxy, timeout=SECONDS, body=b""):
    """Make one call on a connection of its own; return the status and what is said of it."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(proxy.endpoint.removeprefix("http://"), options) as channel:
        try:
            channel.unary_unary(METHOD)(body, timeout=timeout)
        except grpc.RpcError as error:
            return error.code().name, error.details()
    return "OK", ""


def connect(proxy):
    """Open a connection that the proxy has accepted."""
    accepted = proxy.connections
    client = socket.create_connection(("127.0.0.1", int(proxy.endpoint.rpartition(":")[2])), timeout=SECONDS)
    while proxy.connections == accepted:
        time.sleep(0.001)
    return client


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        ("refuse", httpx.ConnectError),
        ("hang", httpx.ReadTimeout),
        ("reset", httpx.ReadError),
        ("garbage", httpx.RemoteProtocolError),
    ],
)
def test_what_a_client_of_http_meets(over_http, fault, raised):
    assert post(over_http).status_code == 200
    with over_http.outage(fault), pytest.raises(raised):
        post(over_http, PATIENCE if fault == "hang" else SECONDS)
    assert post(over_http).status_code == 200


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("refuse", "UNAVAILABLE"),
        ("hang", "DEADLINE_EXCEEDED"),
        ("reset", "UNAVAILABLE"),
        ("garbage", "UNAVAILABLE"),
        ("flood", "UNAVAILABLE"),
    ],
)
def test_what_a_client_of_grpc_meets(over_grpc, fault, status):
    assert call(over_grpc) == ("OK", "")
    with over_grpc.outage(fault):
        assert call(over_grpc, PATIENCE if fault == "hang" else SECONDS)[0] == status
    assert call(over_grpc) == ("OK", "")


def test_a_collector_without_memory_refuses_in_the_protocol_that_it_is_asked_in(over_http, over_grpc):
    # More than a connection of HTTP/2 takes before its receiver makes room.
    body = b"x" * 1_000_000
    with over_http.outage("unavailable"), over_grpc.outage("unavailable"):
        refused = post(over_http, body=body)
        assert (refused.status_code, refused.text) == (503, "data refused due to high memory usage")
        options = [("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(over_grpc.endpoint.removeprefix("http://"), options) as channel:
            export = channel.unary_unary(METHOD)
            for _ in range(3):
                with pytest.raises(grpc.RpcError) as error:
                    export(body, timeout=SECONDS)
                assert error.value.code() is grpc.StatusCode.UNAVAILABLE
                assert error.value.details() == "data refused due to high memory usage"
        # A connection is kept for further calls, as by a Collector.
        assert over_grpc.connections == 1


def test_a_ping_is_answered_where_calls_are_refused(over_grpc):
    ping = b"\0\0\x08\x06\0\0\0\0\0" + b"whoareu?"
    with over_grpc.outage("unavailable"), connect(over_grpc) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + ping)
        read = b""
        while b"whoareu?" not in read:
            read += client.recv(1000)
        assert b"\0\0\x08\x06\x01\0\0\0\0whoareu?" in read


def test_a_flood_has_no_end(over_http):
    with over_http.outage("flood"), httpx.stream("POST", f"{over_http.endpoint}/v1/traces", trust_env=False) as answer:
        pieces = answer.iter_raw()
        assert sum(len(next(pieces)) for _ in range(200)) > 65_536


def test_what_is_slow_arrives(over_http, over_grpc):
    with over_http.outage("slow"), over_grpc.outage("slow"):
        assert post(over_http).status_code == 200
        assert call(over_grpc) == ("OK", "")


def test_open_connections_break_when_an_outage_begins_and_when_it_ends(over_http):
    with connect(over_http) as before, contextlib.ExitStack() as stack:
        with over_http.outage("hang"):
            assert before.recv(1) == b""
            within = stack.enter_context(connect(over_http))
        assert within.recv(1) == b""


def test_an_outage_may_change_its_nature(over_http):
    with over_http.outage("refuse"):
        with over_http.outage("unavailable"):
            assert post(over_http).status_code == 503
        with over_http.outage("refuse"), pytest.raises(httpx.ConnectError):
            post(over_http)
        with pytest.raises(httpx.ConnectError):
            post(over_http)
    assert post(over_http).status_code == 200


def test_a_collector_that_is_not_there_is_an_answer_without_a_word(receiver):
    with FaultProxy("http://127.0.0.1:9") as proxy, pytest.raises(httpx.RemoteProtocolError):
        post(proxy)


def test_a_client_that_says_nothing_or_goes_away_is_no_fault(over_http):
    with over_http.outage("unavailable"):
        connect(over_http).close()
        assert post(over_http).status_code == 503
    with connect(over_http) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.sendall(b"POST")
    assert post(over_http).status_code == 200


# What a user's own test would be, with the application in the test's process.
APPLICATION = """
import asyncio, os
os.environ |= {"OTEL_EXPORTER_OTLP_TIMEOUT": "1", "OTEL_BSP_SCHEDULE_DELAY": "50"}
import httpx
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
import meshmw
from meshmw.asgi import TraceContextMiddleware
from meshmw.testing import FaultProxy, OtlpReceiver

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})

def lost():
    data = reader.get_metrics_data()
    points = [
        point
        for resource in data.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics
        if metric.name == "otel.bsp.dropped_spans" for point in metric.data.data_points
    ]
    return {point.attributes["reason"]: point.value for point in points}["export_failed"]

async def ask_until(client, done):
    for _ in range(600):
        if done():
            return
        answer = await client.get("/")
        assert (answer.status_code, answer.text) == (200, "ok")
        await asyncio.sleep(0.1)
    raise SystemExit("it did not come")

async def main(proxy, receiver, telemetry):
    transport = httpx.ASGITransport(TraceContextMiddleware(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        await ask_until(client, lambda: receiver.spans)
        # What is on its way when the outage begins would have another reason.
        assert telemetry.force_flush()
        assert lost() == 0
        with proxy.outage(FAULT):
            await ask_until(client, lost)
            receiver.clear()
        await ask_until(client, lambda: receiver.spans)

with OtlpReceiver() as receiver, FaultProxy(getattr(receiver, ENDPOINT)) as proxy:
    settings = meshmw.Settings(service_name="shop", exporter=EXPORTER, endpoint=proxy.endpoint, show_log=True)
    with meshmw.configure(settings) as telemetry:
        asyncio.run(main(proxy, receiver, telemetry))
"""


@pytest.mark.parametrize(
    ("fault", "exporter", "reason"),
    [
        ("refuse", "otlp-http", "Connection refused"),
        ("hang", "otlp", "DEADLINE_EXCEEDED"),
        ("unavailable", "otlp", "data refused due to high memory usage"),
        ("unavailable", "otlp-http", "Service Unavailable"),
    ],
)
def test_an_application_answers_and_counts_what_is_lost_until_the_outage_is_over(fault, exporter, reason):
    endpoint = "grpc_endpoint" if exporter == "otlp" else "http_endpoint"
    done = run_parts(f"FAULT, EXPORTER, ENDPOINT = {fault!r}, {exporter!r}, {endpoint!r}", APPLICATION)
    (said,) = (line for line in done.stderr.splitlines() if "spans do not reach" in line)
    assert "are dropped until it answers; requests are unaffected" in said
    assert reason in said
    assert "Traceback" not in done.stderr


def test_a_fault_that_nobody_knows_is_named(over_http):
    with (
        pytest.raises(MeshError, match=r"fault takes refuse, hang, .* or flood, not 'explode'"),
        over_http.outage("explode"),
    ):
        pass


def test_where_its_port_is_taken_nothing_of_it_stays(receiver):
    proxy = FaultProxy(receiver.http_endpoint)
    with socket.create_server(("127.0.0.1", int(proxy.endpoint.rpartition(":")[2]))):
        with pytest.raises(OSError, match="in use"):
            proxy.__enter__()
        assert "fault-proxy" not in {thread.name for thread in threading.enumerate()}
    # And it can be entered when the port is free.
    with proxy:
        assert post(proxy).status_code == 200


def test_a_connection_that_comes_as_it_ends_is_closed(receiver):
    with contextlib.ExitStack() as clients:
        for _ in range(20):
            with FaultProxy(receiver.http_endpoint) as proxy:
                place = "127.0.0.1", int(proxy.endpoint.rpartition(":")[2])
                for _ in range(8):
                    clients.enter_context(socket.create_connection(place, timeout=SECONDS))
    # What was not closed is warned of now, which fails a test.
    gc.collect()
