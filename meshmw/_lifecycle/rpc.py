"""Remote procedure calls, served and sent: their spans, their status, and whether contrib was there first."""

from __future__ import annotations

import contextlib
import threading
from typing import Final, Literal

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode

from meshmw._context.extraction import READ_KEY, Extraction
from meshmw._lifecycle.conventions import Attributes, error_type, is_error, method_name
from meshmw._lifecycle.decide import CLAIM_KEY, adopted, is_of_this_request
from meshmw._lifecycle.operation import TRACER, Operation, record_refusals
from meshmw._otel import SPAN_KEY
from meshmw.propagator import MeshPropagator

_CONTRIB: Final = "opentelemetry.instrumentation.grpc"


class RpcOperation(Operation):
    """Is one call, from its first metadata to its status."""

    __slots__ = ("_first", "_server")

    def __init__(self, span: Span, context: Context, *, owned: bool, server: bool) -> None:
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
    extraction: Extraction,
    *,
    method: str,
    attributes: Attributes,
    propagator: MeshPropagator,
    spans: Literal["auto", "off"] = "auto",
    host_disagrees: bool = False,
    tracer: trace.Tracer | None = None,
) -> RpcOperation:
    """Begin to serve a call.

    Args:
        extraction: What the call's metadata say.
        method: The path, such as `/package.Service/Method`.
        attributes: Of the span, if one is made.
        propagator: Read the metadata; counts and warns of a current span that belongs to something else.
        spans: `off` makes no span, while the trace goes on.
        beside_host: Whether contrib has opened a SERVER span for this call in a trace that is not believed.
        tracer: Makes the span; the global provider's by default.
    """
    around = otel_context.get_current()
    # Where nothing is current, nobody's span can be.
    if around and not host_disagrees and (ambient := trace.get_current_span(around)).get_span_context().is_valid:
        if is_of_this_request(ambient, extraction, around, None, propagator):
            record_refusals(ambient, extraction)
            return RpcOperation(ambient, adopted(ambient, extraction, around), owned=False, server=True)
        if around.get(READ_KEY) is not extraction:
            consequence = "- a span of something else was current here; it is no parent"
            propagator.rejections.record("context", "leaked_span", consequence)
    parent = extraction.into(around)
    if spans == "off":
        span = trace.get_current_span(parent)
        return RpcOperation(span, Context({**parent, CLAIM_KEY: span}), owned=False, server=True)
    kind = SpanKind.INTERNAL if host_disagrees else SpanKind.SERVER
    span = (tracer or TRACER).start_span(method_name(method), parent, kind, attributes)
    if extraction.refused or extraction.rejected is not None:
        record_refusals(span, extraction)
    return RpcOperation(span, Context({**parent, SPAN_KEY: span, CLAIM_KEY: span}), owned=True, server=True)


def begin_client(method: str, attributes: Attributes, tracer: trace.Tracer | None = None) -> RpcOperation:
    """Begin an outbound call as a child of what is current; a span that contrib opened for this call is adopted."""
    parent = otel_context.get_current()
    current = trace.get_current_span(parent)
    if _is_contribs(current, method):
        return RpcOperation(current, parent, owned=False, server=False)
    span = (tracer or TRACER).start_span(method_name(method), parent, SpanKind.CLIENT, attributes)
    return RpcOperation(span, Context({**parent, SPAN_KEY: span}), owned=True, server=False)


def _is_contribs(span: Span, method: str) -> bool:
    scope = getattr(span, "instrumentation_scope", None)
    return (
        getattr(scope, "name", None) == _CONTRIB
        and getattr(span, "kind", None) is SpanKind.CLIENT
        and getattr(span, "name", None) == method
        and span.is_recording()
    )
