"""What a served request takes at least: all that the ASGI middleware does to a plain one, written as one function.

It is no middleware: it refuses settings and requests that are not plain before the span begins. What may come after
that it deals with. A test holds what it says equal to what the middleware says; what lies between the two is what
files, classes and names cost.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, NoOpTracer, SpanContext, SpanKind, StatusCode, Tracer

from meshmw import _runtime as runtime
from meshmw._context.current import detach as detach
from meshmw._context.extraction import (
    _TRACE,
    _TRACE_AND_BAGGAGE,
    PASSTHROUGH_KEY,
    PASSTHROUGH_MAX_CHARACTERS,
    TRACE_FLAGS,
)
from meshmw._context.read_baggage import REPEATED_BAGGAGE
from meshmw._context.read_trace import NO_STATE, REPEATED_STATE, repeated_trace_state
from meshmw._frameworks import route_of
from meshmw._lifecycle import http_conventions as semconv
from meshmw._lifecycle import serving as logged
from meshmw._lifecycle.decide import CLAIM_KEY
from meshmw._lifecycle.http import _REQUEST_KEY
from meshmw._lifecycle.http_conventions import SERVER_IS_MEASURED
from meshmw._lifecycle.operation import error_type
from meshmw._notices import LOGGER
from meshmw._otel import BAGGAGE_KEY, SPAN_KEY
from meshmw.asgi import _BODIES, _STARTS, _WHOLE, _AsgiRequest, _stand_hosts_down
from meshmw.errors import InvalidHeaderError
from meshmw.propagator import _last_extract
from meshmw.wire.headers import SENT_HEADER
from meshmw.wire.traceparent import FLAG_SAMPLED, VERSION_00
from tests.benchmarks.traffic import provider

App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]

if sys.version_info >= (3, 12):
    _mark_coroutine = inspect.markcoroutinefunction
else:

    def _mark_coroutine(function: Any) -> None:
        function._is_coroutine = asyncio.coroutines._is_coroutine


_tuple_of: Final = tuple.__new__


class NotPlain(Exception):
    """Stops a request that asks for more than this."""


class _Plain(_AsgiRequest):
    """Holds what others find of this request in its context; filled in by hand."""

    __slots__ = ()

    def __init__(self) -> None:
        """Leave all to whoever makes it."""


def served_in_one_function(app: App, tracer: Tracer | None = None) -> App:
    """Return an ASGI application in which each plain request is served as in `asgi.TraceContextMiddleware`."""
    tracer = tracer or provider().get_tracer("one function")
    start_span, is_idle = tracer.start_span, isinstance(tracer, NoOpTracer)
    effective = runtime.current()
    propagator, wanted = effective.propagator, effective.header_names.asgi
    accepted = propagator.rejections.accepted
    reader = propagator._reader
    if not reader._reads_plain or reader._baggage is None or propagator.passthrough != ("x-request-id",):
        raise NotPlain
    baggage_of = reader._baggage.repeated

    async def serve(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or "meshmw.operation" in scope or runtime.current() is not effective:
            raise NotPlain
        if "fastapi.telemetry" in scope or "starlette.opentelemetry" in scope:
            raise NotPlain
        lines: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            if name in wanted:
                known = wanted[name]
                if known in lines:
                    raise NotPlain
                lines[known] = [value.decode("latin-1")]
        request = _Plain()
        request.method = method = scope.get("method", "GET")
        request.path = path = scope["path"]
        request.lines, request.carrier, request.is_over = lines, scope, False
        if otel_context.get_current():
            raise NotPlain
        if _last_extract.get() is not None:
            _last_extract.set(None)
        match = VERSION_00.fullmatch(lines["traceparent"][0]) if "traceparent" in lines else None
        if match is None:
            raise NotPlain
        trace_id, parent_id, digits = match.groups()
        flags = TRACE_FLAGS[digits]
        if SENT_HEADER in lines and not flags & FLAG_SAMPLED:
            raise NotPlain
        state, trusted = NO_STATE, _TRACE
        if "tracestate" in lines:
            text = lines["tracestate"][0]
            if len(text) > REPEATED_STATE:
                raise NotPlain
            found = repeated_trace_state(text)
            if isinstance(found, InvalidHeaderError):
                raise NotPlain
            state = found
        remote = (int(trace_id, 16), int(parent_id, 16), True, flags, state, True)
        entries: dict[str, Any] = {SPAN_KEY: NonRecordingSpan(_tuple_of(SpanContext, remote))}
        if "baggage" in lines:
            text = lines["baggage"][0]
            if len(text) > REPEATED_BAGGAGE:
                raise NotPlain
            members, _, must_change = baggage_of(text)
            if must_change:
                raise NotPlain
            if members:
                entries[BAGGAGE_KEY] = members
            trusted = _TRACE_AND_BAGGAGE
        accepted(trusted)
        if "x-request-id" in lines:
            text = lines["x-request-id"][0]
            if not (0 < len(text) <= PASSTHROUGH_MAX_CHARACTERS and text.isascii() and text.isprintable()):
                raise NotPlain
            entries[PASSTHROUGH_KEY] = {"x-request-id": text}
        if not effective.exclude.are_none or effective.trust.static != "continue" or effective.server_spans != "auto":
            raise NotPlain
        attributes = None
        if flags & FLAG_SAMPLED and not is_idle:
            host = lines["host"][0] if "host" in lines else None
            agent = lines["user-agent"][0] if "user-agent" in lines else None
            scheme, version, client = scope.get("scheme"), scope.get("http_version"), scope.get("client")
            if not host or not agent or not scheme or not client or not client[1] or len(host) + len(agent) > 256:
                raise NotPlain
            attributes = semconv._repeated(method, scheme, host, version, agent).copy()
            attributes["url.path"] = path
            if query := scope.get("query_string"):
                attributes["url.query"] = semconv.redact_query(query.decode("latin-1"))
            attributes["client.address"] = attributes["network.peer.address"] = client[0]
            attributes["network.peer.port"] = client[1]
        if method not in semconv.STANDARD_METHODS or SERVER_IS_MEASURED() or logged.is_wanted:
            raise NotPlain
        span = start_span(method, Context(entries), SpanKind.SERVER, attributes)
        entries[SPAN_KEY] = entries[CLAIM_KEY] = span
        entries[_REQUEST_KEY] = request
        scope["meshmw.operation"] = request
        marks = ("meshmw.operation", *_stand_hosts_down(scope))
        # From here on there is nobody to leave a request to: whatever comes has to be dealt with.
        started = trailers = is_failure = is_whole = is_over = False
        status = 0

        def end() -> None:
            nonlocal is_over
            if is_over:
                return
            is_over = True
            if span.is_recording():
                try:
                    if route := route_of(scope, None, is_missing=status == 404):
                        span.update_name(f"{method} {route}")
                        span.set_attribute("http.route", route)
                except Exception:
                    LOGGER.debug("the route could not be read from the scope", exc_info=True)
                if not is_whole:
                    span.set_attribute("meshmw.response.incomplete", True)
            span.end()
            request.is_over, request.carrier = True, {}

        async def send_last(message: Any) -> None:
            nonlocal is_whole
            is_whole = True
            try:
                await send(message)
            except Exception:
                is_whole = False
                raise
            if is_failure:
                request.is_over = True
            else:
                end()

        def watch(message: Any) -> Any:
            nonlocal started, trailers, is_failure, status
            kind = message["type"]
            if kind in _BODIES:
                is_last = not (trailers or message.get("more_body"))
            else:
                if kind in _STARTS and not started:
                    started = True
                    trailers = message.get("trailers", False)
                    status = code = message["status"]
                    span.set_attribute("http.response.status_code", code)
                    if code >= 500:
                        is_failure = True
                        span.set_attribute("error.type", str(code))
                        span.set_status(StatusCode.ERROR)
                is_last = kind in _WHOLE or (kind == "http.response.trailers" and not message.get("more_trailers"))
            return send_last(message) if is_last else send(message)

        # Some ask whether they may await it before they call it.
        _mark_coroutine(watch)
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
                with suppress(Exception):
                    span.record_exception(error)
                span.set_attribute("error.type", error_type(error))
                span.set_status(StatusCode.ERROR, ended_by.__name__)
            raise
        finally:
            detach(token, context, ended_by)
            end()
            for mark in marks:
                scope.pop(mark, None)

    return serve
