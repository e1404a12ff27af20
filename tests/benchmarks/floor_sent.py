"""How little an outbound call could take: all that the httpx transport does to a plain one, written as one function.

It is to the transport what `floor_served` is to the middleware.
"""

from __future__ import annotations

from typing import Any

import httpx
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, StatusCode

from meshmw import runtime
from meshmw.boundary.durations import CLIENT, is_measured
from meshmw.boundary.http_operation import HttpOperation
from meshmw.httpx import _Body
from meshmw.propagation.attachment import take_back
from meshmw.propagation.extraction import BAGGAGE_KEY, PASSTHROUGH_KEY, SPAN_KEY
from meshmw.semconv import http as semconv
from meshmw.semconv.attributes import LazyAttributes, error_type
from meshmw.transports import _attributes
from meshmw.wire.traceparent import KNOWN_FLAGS
from tests.benchmarks.floor_served import NotPlain
from tests.benchmarks.traffic import provider

_MOST_BYTES, _MOST_HEADERS = 59_392, 90


class SentInOneFunction(httpx.BaseTransport):
    """Sends each request as `meshmw.httpx.TraceContextTransport` does.

    Args:
        transport: The transport that does the sending.
    """

    def __init__(self, transport: httpx.BaseTransport) -> None:
        self._transport = transport
        self._start_span = provider().get_tracer("one function").start_span

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request."""
        propagator = runtime.current().propagator
        around = otel_context.get_current()
        method, url, sent = request.method, request.url, request.headers.raw
        parent: Any = around.get(SPAN_KEY)
        build = lambda: _attributes(request)  # noqa: E731 - a `def` would be one more thing to read
        attributes = build() if parent.is_recording() else LazyAttributes(build)
        if method not in semconv.METHODS or is_measured(CLIENT):
            raise NotPlain
        span = self._start_span(method, around, SpanKind.CLIENT, attributes)
        trace_id, span_id, _, flags, state, is_valid = span.get_span_context()
        if not is_valid or BAGGAGE_KEY in around or PASSTHROUGH_KEY in around:
            raise NotPlain
        size = len(method) + len(url.raw_path) + 14
        for name, value in sent:
            if name.lower() in propagator.watched:
                raise NotPlain
            size += len(name) + len(value) + 4
        traceparent = ("00-%032x-%016x-%02x" % (trace_id, span_id, flags & KNOWN_FLAGS)).encode("ascii")  # noqa: UP031
        sent.append((b"traceparent", traceparent))
        if text := state.to_header():
            sent.append((b"tracestate", text.encode("latin-1")))
        if not propagator._scope._propagate_to._everything or not propagator._scope._baggage_to.matches(url.host):
            raise NotPlain
        sent.append((b"x-meshmw-sent", traceparent[36:]))
        if size + 120 + len(text) > _MOST_BYTES or len(sent) > _MOST_HEADERS:
            raise NotPlain
        carrying = object.__new__(httpx.Request)
        vars(carrying).update(vars(request))
        carrying.headers = httpx.Headers(sent)
        context = Context({**around, SPAN_KEY: span})
        ended_by: type[BaseException] | None = None
        token = otel_context.attach(context)
        try:
            response = self._transport.handle_request(carrying)
            code = response.status_code
            span.set_attribute("http.response.status_code", code)
            if code >= 400:
                span.set_attribute("error.type", str(code))
                span.set_status(StatusCode.ERROR)
            if version := response.extensions.get("http_version"):
                span.set_attribute("network.protocol.version", semconv.protocol_version(version.decode("ascii")))
            if response.is_closed:
                span.end()
            else:
                response.stream = _Body(response.stream, HttpOperation(span, context, method))
            return response
        except BaseException as error:
            ended_by = type(error)
            if isinstance(error, Exception):
                span.record_exception(error)
                span.set_attribute("error.type", error_type(error))
                span.set_status(StatusCode.ERROR, ended_by.__name__)
            span.end()
            raise
        finally:
            take_back(token, context, ended_by)
