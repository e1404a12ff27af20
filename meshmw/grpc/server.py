"""The interceptor for servers of `grpc.server`, with a thread for each call.

Knows how grpcio finds a method's handler. Must not know formats, nor how a span lives.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc  # type: ignore[import-untyped]

from meshmw.grpc.behaviors import Serve, returning, sending, streaming
from meshmw.grpc.handlers import Behavior, with_behavior
from meshmw.grpc.interception import MethodInterceptor
from meshmw.grpc.serving import ServedCall


class TraceContextServerInterceptor(MethodInterceptor, grpc.ServerInterceptor):  # type: ignore[misc]  # grpcio has no types
    """Continues the caller's trace in a gRPC server: extracts, validates, and opens the SERVER span of each call.

    The handler, each step of its generators, its `finally` blocks and its callbacks run in the call's context. A
    malformed trace header is removed from what the handler sees, and the call starts a new trace. The span lasts until
    the handler is done. Where opentelemetry-instrumentation-grpc is installed too, there is one span all the same: its
    own where its interceptor is listed first, else ours.

    Args:
        exclude: Path patterns of calls that get no span, such as `/shop.Pricing/Watch`, as in `Settings.exclude`.
        trust: `continue`, `restart` or `ignore`, or a callable that gets a `RequestView` and returns one of them.
        server_spans: `auto` or `off`.
        propagator: Reads the metadata.
        tracer_provider: Makes the spans.
        untouched: Path patterns of calls that pass as if there were no interceptor: health and reflection by default.

    Each option that is left out is what `configure()` settled.
    """

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the method's handler, wrapped; grpcio calls this for each call."""
        method: str = handler_call_details.method
        if self._options.leaves(method):
            return continuation(handler_call_details)
        with self._contrib_down(threading.get_ident):
            handler = continuation(handler_call_details)
        if handler is None:
            return None
        known = self._handlers.get(method, handler)
        if known is not None:
            return known
        wrapped = with_behavior(handler, partial(_wrapped, partial(self._serve, method)))
        return self._handlers.keep(method, handler, wrapped)

    def _serve(self, method: str, context: Any) -> ServedCall:
        return self._options.serve(method, context, lambda: not context.is_active())


def _wrapped(serve: Serve, behavior: Behavior, response_streaming: bool) -> Behavior:
    if not response_streaming:
        return returning(serve, behavior)
    if getattr(behavior, "experimental_non_blocking", False):
        return sending(serve, behavior)
    return streaming(serve, behavior)
