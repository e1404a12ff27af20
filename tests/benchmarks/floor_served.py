"""How little a served request could take: all that the ASGI middleware does to a plain one, written as one function.

It refuses whatever is not plain before the span begins, deals with all that may come after that, and calls nothing of
ours that it can do without. A test holds what it says equal to what the middleware says, so hardly anything that does
as much can take less; what lies between the two is what files, classes and names cost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, NoOpTracer, SpanContext, SpanKind, StatusCode, Tracer

from meshmw import runtime
from meshmw.asgi_response import _BODIES, _STARTS, _WHOLE
from meshmw.asgi_route import route_of
from meshmw.boundary import logged
from meshmw.boundary.adoption import CLAIM_KEY
from meshmw.boundary.durations import SERVER, is_measured
from meshmw.boundary.http import _REQUEST_KEY
from meshmw.propagation.attachment import take_back
from meshmw.propagation.extraction import BAGGAGE_KEY, PASSTHROUGH_KEY, SENT_HEADER, SPAN_KEY
from meshmw.propagation.span_context import FLAGS, NO_STATE, repeated_trace_state
from meshmw.propagator import _last_extract
from meshmw.semconv import http as semconv
from meshmw.semconv.attributes import error_type
from meshmw.wire.traceparent import FLAG_SAMPLED, KNOWN_FLAGS, _match_version_00
from tests.benchmarks.traffic import provider

App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]

_MARKS: Final = ("meshmw.operation", "fastapi.telemetry", "starlette.opentelemetry")
_tuple_of: Final = tuple.__new__


class NotPlain(Exception):
    """Is raised for a request that asks for more than this."""


class _Request:
    __slots__ = ("carrier", "is_over", "lines", "method", "path")
    carrier: object
    is_over: bool
    lines: dict[str, list[str]]
    method: str
    path: str


def served_in_one_function(app: App, tracer: Tracer | None = None) -> App:
    """Return an ASGI application in which each request is served as in `asgi.TraceContextMiddleware`."""
    tracer = tracer or provider().get_tracer("one function")
    start_span, is_idle = tracer.start_span, isinstance(tracer, NoOpTracer)

    async def serve(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or "meshmw.operation" in scope:
            raise NotPlain
        settled = runtime.current()
        propagator, wanted = settled.propagator, settled.headers._asgi
        lines: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            if name in wanted:
                known = wanted[name]
                if known in lines:
                    raise NotPlain
                lines[known] = [value.decode("latin-1")]
        request = _Request()
        request.method = method = scope.get("method", "GET")
        request.path = path = scope["path"]
        request.lines, request.carrier, request.is_over = lines, scope, False
        if otel_context.get_current():
            raise NotPlain
        if _last_extract.get() is not None:
            _last_extract.set(None)
        match = _match_version_00(lines["traceparent"][0])
        if match is None:
            raise NotPlain
        trace_id, parent_id, digits = match.groups()
        flags = int(digits, 16) & KNOWN_FLAGS
        if SENT_HEADER in lines and not flags & FLAG_SAMPLED:
            raise NotPlain
        state = repeated_trace_state(lines["tracestate"][0]) if "tracestate" in lines else NO_STATE
        remote = (int(trace_id, 16), int(parent_id, 16), True, FLAGS[flags], state, True)
        entries: dict[str, Any] = {SPAN_KEY: NonRecordingSpan(_tuple_of(SpanContext, remote))}
        if "baggage" in lines:
            members, _, must_change = _baggage_reader(propagator).repeated(lines["baggage"][0])
            if must_change:
                raise NotPlain
            entries[BAGGAGE_KEY] = members
        propagator.rejections.accepted(("traceparent", "baggage") if "baggage" in lines else ("traceparent",))
        if "x-request-id" in lines:
            text = lines["x-request-id"][0]
            if not (0 < len(text) <= 1024 and text.isascii() and text.isprintable()):
                raise NotPlain
            entries[PASSTHROUGH_KEY] = {"x-request-id": text}
        if not settled.exclude.are_none or settled.trust.static != "continue" or settled.server_spans != "auto":
            raise NotPlain
        attributes = None
        if flags & FLAG_SAMPLED and not is_idle:
            host, agent = lines["host"][0], lines["user-agent"][0]
            attributes = semconv._repeated(method, scope["scheme"], host, scope["http_version"], agent).copy()
            attributes["url.path"] = path
            if scope["query_string"]:
                attributes["url.query"] = semconv.redact_query(scope["query_string"].decode("latin-1"))
            client, port = scope["client"]
            attributes["client.address"] = attributes["network.peer.address"] = client
            attributes["network.peer.port"] = port
        if method not in semconv.METHODS or is_measured(SERVER) or logged.is_wanted:
            raise NotPlain
        span = start_span(method, Context(entries), SpanKind.SERVER, attributes)
        entries[SPAN_KEY] = entries[CLAIM_KEY] = span
        entries[_REQUEST_KEY] = request
        scope["meshmw.operation"], scope["fastapi.telemetry"], scope["starlette.opentelemetry"] = request, None, True
        # From here on there is nobody to leave a request to: whatever comes has to be dealt with.
        started = trailers = is_failure = is_whole = is_over = False

        def end() -> None:
            nonlocal is_over
            if is_over:
                return
            is_over = True
            if span.is_recording():
                if route := route_of(scope):
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)
                if not is_whole:
                    span.set_attribute("meshmw.response.incomplete", True)
            span.end()
            request.is_over, request.carrier = True, None

        async def send_last(message: Any) -> None:
            nonlocal is_whole
            await send(message)
            is_whole = True
            if is_failure:
                request.is_over = True
            else:
                end()

        def watch(message: Any) -> Any:
            nonlocal started, trailers, is_failure
            kind = message["type"]
            if kind in _BODIES:
                is_last = not (trailers or message.get("more_body"))
            else:
                if kind in _STARTS and not started:
                    started = True
                    trailers = message.get("trailers", False)
                    code = message["status"]
                    span.set_attribute("http.response.status_code", code)
                    if code >= 500:
                        is_failure = True
                        span.set_attribute("error.type", str(code))
                        span.set_status(StatusCode.ERROR)
                is_last = kind in _WHOLE or (kind == "http.response.trailers" and not message.get("more_trailers"))
            return send_last(message) if is_last else send(message)

        ended_by: type[BaseException] | None = None
        context = Context(entries)
        token = otel_context.attach(context)
        try:
            await app(scope, receive, watch)
        except BaseException as error:
            ended_by = type(error)
            if isinstance(error, Exception) and not is_over:
                if not started:
                    span.set_attribute("http.response.status_code", 500)
                span.record_exception(error)
                span.set_attribute("error.type", error_type(error))
                span.set_status(StatusCode.ERROR, ended_by.__name__)
            raise
        finally:
            take_back(token, context, ended_by)
            end()
            for mark in _MARKS:
                scope.pop(mark, None)

    return serve


def _baggage_reader(propagator: Any) -> Any:
    return propagator._reader.read.__self__._baggage
