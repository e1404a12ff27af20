"""The receiver: what exporters send in, and what a test reads."""

import gzip
import json
import socket
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from meshmw.errors import MissingExtraError
from meshmw.testing import OtlpReceiver, from_sdk
from meshmw.testing._otlp import spans_from_otlp


def post(url, body, headers=None):
    request = urllib.request.Request(url, body, headers or {}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code


def one_span_of_everything(*exporters):
    provider = TracerProvider(resource=Resource({"service.name": "shop"}))
    for exporter in exporters:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("a.scope")
    with tracer.start_as_current_span("parent", kind=SpanKind.SERVER) as parent:
        links = [Link(parent.get_span_context(), {"why": "test"})]
        attributes = {"text": "é", "list": [1, 2], "yes": True, "half": 0.5}
        with tracer.start_as_current_span("child", kind=SpanKind.CLIENT, links=links, attributes=attributes) as child:
            child.add_event("happened", {"n": 1})
            child.set_status(Status(StatusCode.ERROR, "broke"))
    provider.shutdown()


def test_waiting_in_vain_shows_the_tree_of_what_came(otlp_receiver):
    one_span_of_everything(GrpcExporter(otlp_receiver.grpc_endpoint, insecure=True))
    with pytest.raises(AssertionError, match=r"3 spans did not arrive in 0.01 seconds; 2 did:\n(.|\n)*└─ shop") as late:
        otlp_receiver.wait_for(3, timeout=0.01)
    assert "shop" in str(late.value)
    with pytest.raises(AssertionError, match="the spans that were waited for did not arrive"):
        otlp_receiver.wait_for(lambda spans: len(spans) > 2, timeout=0)


def test_waiting_for_nothing_at_all_says_so(otlp_receiver):
    with pytest.raises(AssertionError, match=r"0 did:\n\(no spans\)"):
        otlp_receiver.wait_for(1, timeout=0)


def test_a_missing_grpc_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'meshmw\[testing\]'"), OtlpReceiver():
        pytest.fail("started")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/traces", b"\xff\xff not protobuf", 400),
        ("/api/v2/spans", b"not json", 400),
        ("/api/v2/spans", b'[{"name": "no ids"}]', 400),
        ("/v1/metrics", b"", 404),
    ],
)
def test_what_is_no_span_is_refused_and_the_receiver_lives_on(otlp_receiver, path, body, status):
    assert post(otlp_receiver.http_endpoint + path, body) == status
    assert post(otlp_receiver.http_endpoint + "/v1/traces", b"") == 200
    assert otlp_receiver.spans == []


@pytest.mark.parametrize("bad", [b"zz\r\n", b"5\r\nab"])
def test_a_broken_chunk_is_silent(otlp_receiver, capfd, bad):
    address = otlp_receiver.http_endpoint.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=30) as connection:
        connection.sendall(b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + bad)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("protocol", ["grpc", "http", "gzip"])
def test_a_span_arrives_just_as_the_sdk_holds_it(otlp_receiver, protocol):
    memory = InMemorySpanExporter()
    url = otlp_receiver.http_endpoint + "/v1/traces"
    compression = Compression.Gzip if protocol == "gzip" else None
    exporter = (
        GrpcExporter(otlp_receiver.grpc_endpoint, insecure=True)
        if protocol == "grpc"
        else HttpExporter(url, compression=compression)
    )
    one_span_of_everything(exporter, memory)
    received = otlp_receiver.wait_for(2)
    expected = [from_sdk(span) for span in memory.get_finished_spans()]
    # The Python exporters send no trace flags, only whether the parent is remote.
    assert [{**fields(span), "flags": 0} for span in received] == [{**fields(span), "flags": 0} for span in expected]
    child, parent = received
    assert (child.parent_id, child.kind, child.status, child.status_message) == (
        parent.span_id,
        "CLIENT",
        "ERROR",
        "broke",
    )
    assert (child.events[0].name, child.links[0].span_id, child.scope) == ("happened", parent.span_id, "a.scope")


def fields(span):
    values = {name: getattr(span, name) for name in span.__dataclass_fields__}
    return json.loads(json.dumps(values, default=lambda value: fields(value)))


def test_values_of_every_otlp_type_are_read():
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add()
    span.attributes.add(key="empty")
    inner = span.attributes.add(key="map").value.kvlist_value.values.add(key="n")
    inner.value.int_value = 7
    span.attributes.add(key="bytes").value.bytes_value = b"b"
    (read,) = spans_from_otlp(request)
    assert read.attributes == {"empty": None, "map": {"n": 7}, "bytes": b"b"}
    assert (read.service, read.kind, read.trace_id) == ("", "UNSPECIFIED", "")


def test_zipkin_spans_are_read_with_short_ids_padded(otlp_receiver):
    spans = [
        {
            "traceId": "ABC",
            "id": "1",
            "parentId": "2",
            "kind": "SERVER",
            "name": "get /",
            "timestamp": 5,
            "duration": 2000,
            "localEndpoint": {"serviceName": "shop"},
            "tags": {"error": "true"},
            "annotations": [{"timestamp": 6, "value": "sent"}],
        },
        {"traceId": "abc", "id": "3"},
    ]
    body = gzip.compress(json.dumps(spans).encode())
    assert post(otlp_receiver.http_endpoint + "/api/v2/spans", body, {"Content-Encoding": "gzip"}) == 202
    first, second = otlp_receiver.wait_for(2)
    assert (first.trace_id, first.span_id, first.parent_id) == ("abc".zfill(32), "1".zfill(16), "2".zfill(16))
    assert (first.service, first.kind, first.status, first.milliseconds) == ("shop", "SERVER", "ERROR", 2.0)
    assert [(event.name, event.time_ns) for event in first.events] == [("sent", 6000)]
    assert (second.service, second.kind, second.parent_id, second.status) == ("", "INTERNAL", "", "UNSET")


def test_many_senders_at_once_lose_nothing(otlp_receiver):
    url = otlp_receiver.http_endpoint + "/api/v2/spans"
    with ThreadPoolExecutor(8) as senders:
        bodies = (json.dumps([{"traceId": "a", "id": f"{number:x}"}]).encode() for number in range(1, 101))
        assert set(senders.map(lambda body: post(url, body), bodies)) == {202}
    assert len({span.span_id for span in otlp_receiver.wait_for(lambda spans: len(spans) == 100)}) == 100
    otlp_receiver.clear()
    assert otlp_receiver.spans == []
