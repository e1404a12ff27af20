"""`OtlpReceiver`: a collector for tests, which takes OTLP over gRPC and HTTP and Zipkin's JSON, and keeps the spans.

Sidecars and applications report into the same place, whatever their exporters speak. Loopback and free ports only.
"""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final

from meshmw.errors import extra_named
from meshmw.testing._spans import Event, Link, ReceivedSpan, render_tree

_STATUS: Final = ("UNSET", "OK", "ERROR")


class OtlpReceiver:
    """Receives spans; a context manager that opens its two ports and closes them.

    Args:
        grpc_port: The port for OTLP over gRPC, or 0 for any free one.
        http_port: The port for OTLP over HTTP and for Zipkin's JSON, or 0 for any free one.

    Raises:
        MissingExtraError: On entering: grpcio or opentelemetry-proto is not installed.
        OSError: On entering: the HTTP port is taken.
        RuntimeError: On entering: the gRPC port is taken.
    """

    def __init__(self, grpc_port: int = 0, http_port: int = 0) -> None:
        self._arrived = threading.Condition()
        self._spans: list[ReceivedSpan] = []
        self._servers = contextlib.ExitStack()
        self._grpc_port, self._http_port = grpc_port, http_port

    def __enter__(self) -> OtlpReceiver:
        # Where the second port is taken, the first one is closed again.
        with contextlib.ExitStack() as servers:
            self._start_grpc(servers)
            self._start_http(servers)
            self._servers = servers.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._servers.close()

    @property
    def grpc_endpoint(self) -> str:
        """Return where to send OTLP over gRPC, such as `http://127.0.0.1:40001`."""
        return f"http://127.0.0.1:{self._grpc_port}"

    @property
    def http_endpoint(self) -> str:
        """Return where to send OTLP over HTTP (`/v1/traces`) and Zipkin JSON (`/api/v2/spans`), without the path."""
        return f"http://127.0.0.1:{self._http_port}"

    @property
    def spans(self) -> list[ReceivedSpan]:
        """Return a copy of every span received since the last `clear()`, in the order of arrival."""
        with self._arrived:
            return list(self._spans)

    def clear(self) -> None:
        """Forget every span received so far."""
        with self._arrived:
            self._spans.clear()

    def wait_for(
        self, wanted: int | Callable[[list[ReceivedSpan]], object], timeout: float = 30.0
    ) -> list[ReceivedSpan]:
        """Wait until enough has arrived and return every span received so far.

        Args:
            wanted: How many spans at least, or a function of all spans that returns a true value.
            timeout: Seconds to wait.

        Raises:
            AssertionError: They do not come. The message shows the tree of what did arrive.
        """
        deadline = time.monotonic() + timeout
        with self._arrived:
            while not (len(self._spans) >= wanted if isinstance(wanted, int) else wanted(list(self._spans))):
                if not self._arrived.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    raise AssertionError(self._what_is_missing(wanted, timeout))
            return list(self._spans)

    def _what_is_missing(self, wanted: object, timeout: float) -> str:
        aim = f"{wanted} spans" if isinstance(wanted, int) else "the spans that were waited for"
        return f"{aim} did not arrive in {timeout:g} seconds; {len(self._spans)} did:\n{render_tree(self._spans)}"

    def add(self, spans: list[ReceivedSpan]) -> None:
        """Take spans that came in another way than over the network."""
        with self._arrived:
            self._spans += spans
            self._arrived.notify_all()

    def take(self, request: Any) -> None:
        """Take an `ExportTraceServiceRequest`; override it to hand each export on as well."""
        self.add(spans_from_otlp(request))

    def _start_grpc(self, servers: contextlib.ExitStack) -> None:
        with extra_named("grpc", "grpcio", "testing"):
            import grpc  # type: ignore[import-untyped]
        with extra_named("opentelemetry.proto", "opentelemetry-proto", "testing"):
            from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
            from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
                TraceServiceServicer,
                add_TraceServiceServicer_to_server,
            )
        take = self.take

        class Servicer(TraceServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name in the protocol
                take(request)
                return ExportTraceServiceResponse()

        # With port reuse, gRPC would share a port in use and get half of its spans.
        server = grpc.server(ThreadPoolExecutor(2, "otlp-grpc"), options=[("grpc.so_reuseport", 0)])
        add_TraceServiceServicer_to_server(Servicer(), server)  # type: ignore[no-untyped-call]
        self._grpc_port = server.add_insecure_port(f"127.0.0.1:{self._grpc_port}")
        server.start()
        servers.callback(lambda: server.stop(grace=0).wait())

    def _start_http(self, servers: contextlib.ExitStack) -> None:
        handler = type("Collector", (_Collector,), {"add": staticmethod(self.add), "take": staticmethod(self.take)})
        server = servers.enter_context(Server(("127.0.0.1", self._http_port), handler))
        self._http_port = server.server_port
        # The default interval would make each close take half a second.
        threading.Thread(target=server.serve_forever, args=(0.01,), name="otlp-http", daemon=True).start()
        servers.callback(server.shutdown)


def spans_from_otlp(request: Any) -> list[ReceivedSpan]:
    """Read an `ExportTraceServiceRequest`."""
    return list(_otlp(request))


def _otlp(request: Any) -> Iterator[ReceivedSpan]:
    for resource_spans in request.resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield _otlp_span(resource, scope_spans.scope.name, span)


def _otlp_span(resource: dict[str, Any], scope: str, span: Any) -> ReceivedSpan:
    return ReceivedSpan(
        service=str(resource.get("service.name", "")),
        name=span.name,
        kind=type(span).SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        events=tuple(Event(event.name, event.time_unix_nano, _attributes(event.attributes)) for event in span.events),
        links=tuple(Link(link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes)) for link in span.links),
        status=_STATUS[span.status.code],
        status_message=span.status.message,
        scope=scope,
        trace_state=span.trace_state,
        flags=span.flags,
        resource=resource,
    )


def _attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    held = getattr(value, kind)
    if kind == "array_value":
        return [_value(item) for item in held.values]
    if kind == "kvlist_value":
        return _attributes(held.values)
    return held


def spans_from_zipkin(body: bytes) -> list[ReceivedSpan]:
    """Read Zipkin v2 JSON: a list of spans, with 64-bit trace ids padded to 128.

    Raises:
        ValueError: It is no JSON.
        KeyError: A span has no ids.
    """
    return [_zipkin_span(span) for span in json.loads(body)]


def _zipkin_span(span: dict[str, Any]) -> ReceivedSpan:
    start_ns = int(span.get("timestamp", 0)) * 1000
    tags = span.get("tags", {})
    return ReceivedSpan(
        service=span.get("localEndpoint", {}).get("serviceName", ""),
        name=span.get("name", ""),
        kind=span.get("kind", "INTERNAL"),
        trace_id=span["traceId"].lower().zfill(32),
        span_id=span["id"].lower().zfill(16),
        parent_id=span["parentId"].lower().zfill(16) if span.get("parentId") else "",
        start_ns=start_ns,
        end_ns=start_ns + int(span.get("duration", 0)) * 1000,
        attributes=tags,
        events=tuple(Event(note["value"], int(note["timestamp"]) * 1000) for note in span.get("annotations", [])),
        status="ERROR" if "error" in tags else "UNSET",
        scope="zipkin",
    )


class Server(http.server.ThreadingHTTPServer):
    """Serves HTTP on a thread for each connection, without a word about broken ones."""

    # The default of 5 makes a connection that comes in a burst wait for a second.
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent: a proxy that is stopped, or a client that goes away, breaks its connection."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Reads the bodies of requests, and logs nothing."""

    protocol_version = "HTTP/1.1"

    def read_body(self) -> bytes:
        """Return the request's body, also of one that is sent in chunks, as Envoy sends its spans.

        Raises:
            ConnectionError: The client broke off.
        """
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            size = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(size)
            if len(body) < size:
                raise ConnectionError("the client broke off")
            return body
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(chunks)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""


class _Collector(Handler):
    add: Callable[[list[ReceivedSpan]], None]
    take: Callable[[Any], None]

    def do_POST(self) -> None:
        body = self.read_body()
        try:
            status = self._take(body)
        except Exception as fault:
            status, body = 400, str(fault).encode()
        else:
            body = b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _take(self, body: bytes) -> int:
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/traces":
            from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

            self.take(ExportTraceServiceRequest.FromString(body))
            return 200
        if self.path == "/api/v2/spans":
            self.add(spans_from_zipkin(body))
            return 202
        return 404
