"""One HTTP request as an operation: its route, its status, its end, and how long it took where that is measured.

Knows OpenTelemetry's spans and contexts. Must not know how an operation begins.
"""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.trace import Span, StatusCode

from meshmw.boundary.durations import Measurement
from meshmw.boundary.operation import Operation
from meshmw.boundary.request import Request
from meshmw.propagation.extraction import Extraction
from meshmw.semconv.http import span_name


class HttpOperation(Operation):
    """Is one request, from its first header to its last byte.

    Args:
        span: Its span.
        context: What is current while user code runs.
        method: Its method.
        request: What is served, or None for what is sent.
        owned: Whether the span is ours to add to and to end.
        delegated: What the headers say, where an instrumentation further in is to make the span; else None.
    """

    __slots__ = ("_method", "delegated", "request")

    def __init__(
        self,
        span: Span,
        context: Context,
        method: str,
        request: Request | None = None,
        *,
        owned: bool = True,
        delegated: Extraction | None = None,
    ) -> None:
        # What `Operation` does, without the call; and most callers need name no argument, which takes time too. This is
        # done for each request.
        self.span = span
        self.context = context
        self._owned = owned
        self.is_over = False
        self.delegated = delegated
        self.request = request
        self._method = method

    def answered(self) -> None:
        """Note that the last byte went out: nobody further in serves this request from here on."""
        if self.request is not None:
            self.request.is_over = True

    def route(self, route: str) -> None:
        """Name the span after the route template that the framework matched."""
        if self.is_open:
            self.span.update_name(span_name(self._method, route))
            self.span.set_attribute("http.route", route)

    def status(self, code: int, error_from: int) -> None:
        """Record the response's status code; from *error_from* on it makes the span an error."""
        if not self._owned:
            return
        self.span.set_attribute("http.response.status_code", code)
        if code >= error_from:
            self.span.set_attribute("error.type", str(code))
            self.span.set_status(StatusCode.ERROR)

    def break_off(self) -> None:
        """End the span, once, as that of a response that did not go out whole; do nothing where it has ended."""
        if self.is_open:
            self.span.set_attribute("meshmw.response.incomplete", True)
        self.end()

    def end(self) -> None:
        """End the span, once, and let go of the request."""
        if self.is_over:
            return
        self.is_over = True
        if self._owned:
            self.span.end()
        if self.request is not None:
            self.request.close()


class MeasuredHttpOperation(HttpOperation):
    """Is a request of ours whose duration somebody wants to know, also where its span is not recorded.

    Args:
        span: Its span.
        context: What is current while user code runs.
        method: Its method.
        request: What is served, or None for what is sent.
        measurement: Times it.
    """

    __slots__ = ("_measurement",)

    def __init__(
        self, span: Span, context: Context, method: str, request: Request | None = None, *, measurement: Measurement
    ) -> None:
        super().__init__(span, context, method, request)
        self._measurement = measurement

    @property
    def is_open(self) -> bool:
        """Say whether something can still be added, to the span or to what is measured."""
        return not self.is_over

    def route(self, route: str) -> None:
        """Name the span after the route template, which is a label too."""
        if not self.is_over:
            self._measurement.labels["http.route"] = route
        super().route(route)

    def status(self, code: int, error_from: int) -> None:
        """Record the response's status code."""
        self._measurement.status(code, error_from)
        super().status(code, error_from)

    def fail(self, error: BaseException) -> None:
        """Record what user code or the network raised."""
        self._measurement.fail(error)
        super().fail(error)

    def end(self) -> None:
        """End the span, once, and record how long it took."""
        if not self.is_over:
            self._measurement.record(self.context)
        super().end()
