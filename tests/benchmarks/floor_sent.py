"""What an outbound call takes at least: all that the httpx transport does to a plain one, written as one function.

It is to the transport what `floor_served` is to the middleware.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import httpx
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode

from meshmw import _runtime as runtime
from meshmw._context.current import detach as detach
from meshmw._context.extraction import PASSTHROUGH_KEY
from meshmw._lifecycle import http_conventions as semconv
from meshmw._lifecycle.http import HttpOperation
from meshmw._lifecycle.http_conventions import CLIENT_IS_MEASURED
from meshmw._lifecycle.operation import LazyAttributes, error_type
from meshmw._otel import BAGGAGE_KEY, SPAN_KEY, W3CTraceState
from meshmw._policy.outbound import DEFAULT_HEADER_BUDGET, RESERVED_BYTES, RESERVED_HEADERS
from meshmw._transports import _attributes
from meshmw.httpx import _Body
from meshmw.wire import format_baggage
from meshmw.wire.traceparent import KNOWN_FLAGS
from tests.benchmarks.floor_served import NotPlain
from tests.benchmarks.traffic import provider

_MOST_BYTES, _MOST_HEADERS = DEFAULT_HEADER_BUDGET[0] - RESERVED_BYTES, DEFAULT_HEADER_BUDGET[1] - RESERVED_HEADERS
# A traceparent, what our client says of itself, and their ends of line.
_OWN_BYTES = 11 + 55 + 4 + 13 + 19 + 4


class SentInOneFunction(httpx.BaseTransport):
    """Sends each plain request as `meshmw.httpx.TraceContextTransport` does.

    Args:
        transport: The transport that does the sending.
    """

    def __init__(self, transport: httpx.BaseTransport) -> None:
        self._transport = transport
        self._start_span = provider().get_tracer("one function").start_span
        self._effective = runtime.current()
        propagator = self._effective.propagator
        self._watched, self._mesh = propagator.watched, propagator._outgoing._scope._baggage_to
        self._writer = propagator._writer
        self._is_plain = (
            propagator._outgoing._scope._propagate_to._everything
            and self._writer._keys.are_all
            and self._writer._formats == {"tracecontext", "baggage"}
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request."""
        if runtime.current() is not self._effective or not self._is_plain or type(request) is not httpx.Request:
            raise NotPlain
        around = otel_context.get_current()
        method, url, sent = request.method, request.url, request.headers.raw
        parent: Any = around.get(SPAN_KEY)
        if method not in semconv.STANDARD_METHODS or CLIENT_IS_MEASURED() or not isinstance(parent, Span):
            raise NotPlain
        if type(request.headers) is not httpx.Headers or not self._mesh.matches(url.host) or url.userinfo:
            raise NotPlain
        size = len(method) + len(url.raw_path) + 14 + _OWN_BYTES
        for name, value in sent:
            if name.lower() in self._watched:
                raise NotPlain
            size += len(name) + len(value) + 4
        more = []
        state: Any = parent.get_span_context().trace_state
        if type(state) is not W3CTraceState:
            raise NotPlain
        if text := state.to_header():
            more.append((b"tracestate", text.encode("latin-1")))
            size += 14 + len(text)
        if members := around.get(BAGGAGE_KEY):
            if not isinstance(members, dict):
                raise NotPlain
            limits = {"max_members": self._writer._max_members, "max_bytes": self._writer._max_bytes}
            text, reasons = format_baggage(members, **limits)
            if reasons:
                raise NotPlain
            more.append((b"baggage", text.encode("latin-1")))
            size += 11 + len(text)
        carried: Any = around.get(PASSTHROUGH_KEY)
        for name, text in carried.items() if carried else ():
            more.append((name.encode("ascii"), text.encode("latin-1")))
            size += len(name) + len(text) + 4
        if size > _MOST_BYTES or len(sent) + len(more) + 2 > _MOST_HEADERS:
            raise NotPlain
        build = lambda: _attributes(request)  # noqa: E731 - a `def` would be one more thing to read
        attributes = build() if parent.is_recording() else LazyAttributes(build)
        span = self._start_span(method, around, SpanKind.CLIENT, attributes)
        # The tracestate above is the parent's: a sampler that changes it would go unnoticed.
        trace_id, span_id, _, flags, _, _ = span.get_span_context()
        traceparent = ("00-%032x-%016x-%02x" % (trace_id, span_id, flags & KNOWN_FLAGS)).encode("ascii")  # noqa: UP031
        sent.append((b"traceparent", traceparent))
        sent += more
        sent.append((b"x-meshmw-sent", traceparent[36:]))
        carrying = object.__new__(httpx.Request)
        vars(carrying).update(vars(request))
        carrying.headers = httpx.Headers(sent)
        context = Context({**around, SPAN_KEY: span})
        is_over = False
        token = otel_context.attach(context)
        ended_by: type[BaseException] | None = None
        try:
            response = self._transport.handle_request(carrying)
            code = response.status_code
            span.set_attribute("http.response.status_code", code)
            if code >= 400:
                span.set_attribute("error.type", str(code))
                span.set_status(StatusCode.ERROR)
            if version := response.extensions.get("http_version"):
                span.set_attribute("network.protocol.version", semconv.protocol_version(version.decode("latin-1")))
            if response.is_closed:
                is_over = True
                span.end()
            else:
                response.stream = _Body(response.stream, HttpOperation(span, context, method))
            return response
        except BaseException as error:
            ended_by = type(error)
            if isinstance(error, Exception) and not is_over:
                with suppress(Exception):
                    span.record_exception(error)
                span.set_attribute("error.type", error_type(error))
                span.set_status(StatusCode.ERROR, ended_by.__name__)
            raise
        finally:
            detach(token, context, ended_by)
            if ended_by is not None and not is_over:
                span.end()
