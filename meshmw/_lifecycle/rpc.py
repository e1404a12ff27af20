"""Remote procedure calls, served and sent: their spans, their status, and whether contrib was there first."""

from __future__ import annotations

import contextlib
import threading
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode

from meshmw._lifecycle.conventions import Attributes, error_type, is_error, method_name
from meshmw._lifecycle.decide import Decision, claimed, context_below
from meshmw._lifecycle.operation import Operation, record_refusals
from meshmw._otel import SPAN_KEY

_CONTRIB: Final = "opentelemetry.instrumentation.grpc"


class RpcOperation(Operation):
    """Holds one call, from its first metadata to its status."""

    __slots__ = ("_first", "_server")

    def __init__(self, span: Span, context: Context, *, owned: bool = True, server: bool) -> None:
        super().__init__(span, context, owned=owned)
        self._server = server
        # A handler's thread and the thread that learns of a cancellation may come here at once.
        self._first = threading.Lock()

    def complete(self, code: str | None, error: BaseException | None = None) -> None:
        """Record how the call ended, and end the span; only the first end counts.

        Args:
            code: The status code's name, or None where the call never came so far as to have one.
            error: What user code or grpcio raised, where that is worth an event.
        """
        if not self._first.acquire(blocking=False):
            return
        if self.is_open:
            self._record(code, error)
        self.end()

    def _record(self, code: str | None, error: BaseException | None) -> None:
        if isinstance(error, Exception):
            # It asks the application's exception for its text, and that may raise.
            with contextlib.suppress(Exception):
                self.span.record_exception(error)
        if code is not None:
            self.span.set_attribute("rpc.status_code", code)
            failed: str | None = code if is_error(code, server=self._server) else None
        else:
            failed = error_type(error) if isinstance(error, Exception) else None
        if failed is not None:
            self.span.set_attribute("error.type", failed)
            self.span.set_status(StatusCode.ERROR)


def begin_server(
    decision: Decision, around: Context, tracer: trace.Tracer, *, method: str, attributes: Attributes
) -> RpcOperation:
    """Begin to serve a call.

    Args:
        decision: Whose its span is, and what is believed of its metadata.
        around: What is current.
        tracer: Makes the span.
        method: The path, such as `/package.Service/Method`.
        attributes: Of the span, if one is made.
    """
    context = context_below(decision, around)
    if decision.whose != "ours":
        span = decision.host_span or trace.get_current_span(context)
        if decision.whose == "host":
            record_refusals(span, decision.extraction)
        return RpcOperation(span, claimed(context, span), owned=False, server=True)
    span = tracer.start_span(method_name(method), context, decision.kind, attributes, decision.links)
    record_refusals(span, decision.extraction, link=False)
    return RpcOperation(span, claimed(context, span), server=True)


def begin_client(method: str, attributes: Attributes, tracer: trace.Tracer) -> RpcOperation:
    """Begin an outbound call as a child of what is current; a span that contrib opened for this call is adopted."""
    parent = otel_context.get_current()
    current = trace.get_current_span(parent)
    if _is_contribs(current, method):
        return RpcOperation(current, parent, owned=False, server=False)
    span = tracer.start_span(method_name(method), parent, SpanKind.CLIENT, attributes)
    return RpcOperation(span, Context({**parent, SPAN_KEY: span}), server=False)


def _is_contribs(span: Span, method: str) -> bool:
    scope = getattr(span, "instrumentation_scope", None)
    return (
        getattr(scope, "name", None) == _CONTRIB
        and getattr(span, "kind", None) is SpanKind.CLIENT
        and getattr(span, "name", None) == method
        and span.is_recording()
    )
