"""A gRPC peer in Node.js with the current OpenTelemetry JS, and one in Go, on either side of our interceptors."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from opentelemetry import baggage, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshmw import MeshPropagator
from meshmw.baggage import using
from meshmw.grpc import TraceContextClientInterceptor, TraceContextServerInterceptor

SERVER, CLIENT = 1, 2
METHODS = ["unary_unary", "stream_stream"]
MEMBERS = {"tenant": "a,b=ä"}


def seen() -> bytes:
    current = trace.get_current_span().get_span_context()
    members = {key: str(value) for key, value in baggage.get_all().items()}
    found = {"trace_id": f"{current.trace_id:032x}", "span_id": f"{current.span_id:016x}", "baggage": members}
    return json.dumps(found).encode()


def until(found: Callable[[], Any]) -> Any:
    """Wait until a function returns something."""
    deadline = time.monotonic() + 60
    while not (result := found()):
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.01)
    return result


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def options(exporter: InMemorySpanExporter) -> dict[str, Any]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return {"propagator": MeshPropagator(), "tracer_provider": provider}


@pytest.fixture
def server(options: dict[str, Any]) -> Iterator[str]:
    """The address of a server of ours, whose methods tell what is current."""

    def stream_stream(requests: Iterator[bytes], _context: Any) -> Iterator[bytes]:
        for _ in requests:
            yield seen()

    methods = {
        "unary_unary": grpc.unary_unary_rpc_method_handler(lambda _request, _context: seen()),
        "stream_stream": grpc.stream_stream_rpc_method_handler(stream_stream),
    }
    running = grpc.server(futures.ThreadPoolExecutor(4), interceptors=[TraceContextServerInterceptor(**options)])
    running.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lab.S", methods),))
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    yield f"127.0.0.1:{port}"
    running.stop(0).wait(60)


@pytest.fixture(params=["nodejs", "go"])
def peer(request: pytest.FixtureRequest) -> Any:
    """The process that takes orders, whatever it is written in."""
    if request.param == "go":
        return request.getfixturevalue("go_peer")
    return request.getfixturevalue("node_peer")("grpc.js")


@pytest.mark.parametrize("method", METHODS)
def test_our_server_continues_the_trace_of_a_client_in_another_language(
    peer: Any, server: str, exporter: InMemorySpanExporter, method: str
) -> None:
    answer = peer.ask(command="call", address=server, method=method, baggage=MEMBERS)
    (client,) = peer.spans(CLIENT)
    assert client["trace_id"] == answer["sent"]["trace_id"]
    # A server's span may end after the client has its answer.
    (ours,) = until(exporter.get_finished_spans)
    assert f"{ours.parent.span_id:016x}" == client["span_id"]
    assert len(answer["found"]) == METHODS.index(method) + 1
    for found in answer["found"]:
        assert found["trace_id"] == client["trace_id"]
        assert found["span_id"] == f"{ours.context.span_id:016x}"
        assert found["baggage"] == MEMBERS


@pytest.mark.parametrize("method", METHODS)
def test_a_server_in_another_language_continues_the_trace_of_our_client(
    peer: Any, options: dict[str, Any], exporter: InMemorySpanExporter, method: str
) -> None:
    target = f"127.0.0.1:{peer.ask(command='listen')['port']}"
    ours = TraceContextClientInterceptor(target, **options)
    with grpc.intercept_channel(grpc.insecure_channel(target), ours) as channel, using(**MEMBERS):
        call = getattr(channel, method)(f"/lab.S/{method}")
        if method == "unary_unary":
            found = [json.loads(call(b"{}", timeout=60, metadata=(("x-k", "1"), ("x-k", "2"))))]
        else:
            found = [json.loads(answer) for answer in call(iter([b"1", b"2"]), timeout=60)]
    (client,) = exporter.get_finished_spans()
    (server_span,) = peer.spans(SERVER)
    assert server_span["parent_id"] == f"{client.context.span_id:016x}"
    assert len(found) == METHODS.index(method) + 1
    for each in found:
        assert each["trace_id"] == f"{client.context.trace_id:032x}"
        assert each["span_id"] == server_span["span_id"]
        assert each["baggage"] == MEMBERS
