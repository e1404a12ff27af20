"""gRPC through a pair of real sidecars: client, sidecar, sidecar, server, all over HTTP/2."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from opentelemetry import baggage, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshmw import MeshPropagator
from meshmw.baggage import using
from meshmw.grpc import TraceContextClientInterceptor, TraceContextServerInterceptor
from meshmw.testing import Envoy, Listener, OtlpReceiver, Proxy, ReceivedSpan, Tracer
from meshmw.testing._spans import from_sdk


def seen() -> bytes:
    current = trace.get_current_span().get_span_context()
    return json.dumps(
        [f"{current.trace_id:032x}", {key: str(value) for key, value in baggage.get_all().items()}]
    ).encode()


def stream_stream(requests: Iterator[bytes], _context: Any) -> Iterator[bytes]:
    for _ in requests:
        yield seen()


@dataclass
class GrpcMesh:
    """A client's and a server's sidecar, and the spans that the two applications made."""

    a: Envoy
    b: Envoy
    receiver: OtlpReceiver
    exporter: InMemorySpanExporter
    options: dict[str, Any]

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.a.port('outbound')}"

    def channel(self, **options: Any) -> grpc.Channel:
        ours = TraceContextClientInterceptor(self.target, **self.options | options)
        return grpc.intercept_channel(grpc.insecure_channel(self.target), ours)

    def chain(self, trace_id: str, length: int) -> list[tuple[str, str]]:
        """Return service and kind of each span of a trace, from its root down."""

        def of_trace(spans: Any) -> list[ReceivedSpan]:
            return [
                span
                for span in (*spans, *map(from_sdk, self.exporter.get_finished_spans()))
                if span.trace_id == trace_id
            ]

        # The application's own spans end in this process, after the answer: the receiver does not hear of them.
        deadline = time.monotonic() + 60
        while len(found_spans := of_trace(self.receiver.spans)) < length and time.monotonic() < deadline:
            time.sleep(0.01)
        by_parent = {span.parent_id: span for span in found_spans}
        assert len(by_parent) == length
        found, parent = [], ""
        while parent in by_parent:
            found.append((by_parent[parent].service, by_parent[parent].kind))
            parent = by_parent[parent].span_id
        return found


WHOLE_WAY = [("shop", "CLIENT"), ("sidecar-a", "CLIENT"), ("sidecar-b", "SERVER"), ("shop", "SERVER")]


@pytest.fixture
def mesh(envoys: Callable[..., list[Envoy]], receiver: OtlpReceiver) -> Iterator[GrpcMesh]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "shop"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    options = {"propagator": MeshPropagator(warn_window=0), "tracer_provider": provider}
    server = grpc.server(futures.ThreadPoolExecutor(16), interceptors=[TraceContextServerInterceptor(**options)])
    methods = {
        "unary_unary": grpc.unary_unary_rpc_method_handler(lambda _request, _context: seen()),
        "stream_stream": grpc.stream_stream_rpc_method_handler(stream_stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lab.S", methods),))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    reflection.enable_server_reflection(["lab.S"], server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    def sidecar(name: str, listener: str, upstream: str, direction: Any) -> Proxy:
        tracer = Tracer(kind="otel", collector=receiver.grpc_endpoint)
        return Proxy(name, [Listener(name=listener, upstream=upstream, direction=direction, tracer=tracer, http2=True)])

    try:
        (b,) = envoys(sidecar("sidecar-b", "inbound", f"127.0.0.1:{port}", "inbound"))
        (a,) = envoys(sidecar("sidecar-a", "outbound", f"127.0.0.1:{b.port('inbound')}", "outbound"))
        receiver.clear()
        yield GrpcMesh(a, b, receiver, exporter, options)
    finally:
        server.stop(0).wait(60)


def test_a_unary_call_is_one_trace_through_both_sidecars(mesh: GrpcMesh) -> None:
    with mesh.channel() as channel, using(tenant="a"):
        trace_id, members = json.loads(channel.unary_unary("/lab.S/unary_unary")(b"", timeout=60))
    assert members == {"tenant": "a"}
    assert mesh.chain(trace_id, 4) == WHOLE_WAY


def test_two_streams_on_one_connection_keep_their_own_traces(mesh: GrpcMesh) -> None:
    with mesh.channel() as channel:
        method = channel.stream_stream("/lab.S/stream_stream")
        requests: list[queue.SimpleQueue[bytes]] = [queue.SimpleQueue(), queue.SimpleQueue()]
        calls = []
        for number, each in enumerate(requests):
            with using(stream=str(number)):
                calls.append(method(iter(each.get, b"end"), timeout=60))
        found: list[list[Any]] = [[], []]
        for _ in range(5):
            for number in (0, 1):
                requests[number].put(b"1")
                found[number].append(json.loads(next(calls[number])))
        for number in (0, 1):
            requests[number].put(b"end")
            assert list(calls[number]) == []
    ids = [{trace_id for trace_id, _ in answers} for answers in found]
    assert [len(each) for each in ids] == [1, 1]
    assert ids[0] != ids[1]
    for number, (trace_id,) in enumerate(ids):
        assert all(members == {"stream": str(number)} for _, members in found[number])
        assert mesh.chain(trace_id, 4) == WHOLE_WAY


def test_a_malformed_traceparent_that_the_sidecars_pass_on_ends_at_the_server(mesh: GrpcMesh) -> None:
    with grpc.insecure_channel(mesh.target) as channel:
        call = channel.unary_unary("/lab.S/unary_unary")
        trace_id, _ = json.loads(call(b"", timeout=60, metadata=(("traceparent", "00-xyz"), ("tracestate", "a=1"))))
    assert mesh.chain(trace_id, 1) == [("shop", "SERVER")]
    assert set(mesh.options["propagator"].rejections.counts) == {("traceparent", "hex")}


def test_baggage_that_would_break_the_connection_is_never_sent(mesh: GrpcMesh) -> None:
    """One header over 64 KiB makes Envoy close the connection, and every stream on it dies."""
    propagator = MeshPropagator(baggage_max_members=1024, baggage_max_bytes=100_000, warn_window=0)
    with mesh.channel(propagator=propagator) as channel:
        method = channel.stream_stream("/lab.S/stream_stream")
        requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        open_stream = method(iter(requests.get, b"end"), timeout=60)
        requests.put(b"1")
        assert next(open_stream)
        with using({f"k{number}": "x" * 200 for number in range(400)}):
            _, members = json.loads(channel.unary_unary("/lab.S/unary_unary")(b"", timeout=60))
        assert 10 < len(members) < 64
        assert propagator.rejections.counts[("baggage", "header_budget")] == 1
        requests.put(b"1")
        assert next(open_stream)
        requests.put(b"end")
        assert list(open_stream) == []


def test_health_and_reflection_pass_untouched(mesh: GrpcMesh) -> None:
    with grpc.insecure_channel(mesh.target) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        (listed,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]), timeout=60)
        assert [service.name for service in listed.list_services_response.service] == ["lab.S"]
    assert mesh.exporter.get_finished_spans() == ()
