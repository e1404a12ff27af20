"""The interceptor for servers of `grpc.server`, with a thread for each call.

Knows how grpcio runs handlers in threads. Must not know formats, nor how a span lives.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any

import grpc  # type: ignore[import-untyped]
from opentelemetry import trace

from meshmw.grpc.contrib import stand_contrib_down
from meshmw.grpc.handlers import Behavior, WrappedHandlers, in_place_of, with_behavior
from meshmw.grpc.servicer_context import TracedServicerContext
from meshmw.grpc.serving import UNTOUCHED, CallOptions, ServedCall
from meshmw.policy.trust import Trust, TrustCallable
from meshmw.propagator import MeshPropagator
from meshmw.runtime import ServerSpans

# Begins to serve a call, given grpcio's servicer context.
Serve = Callable[[Any], ServedCall]


class TraceContextServerInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]  # grpcio has no types
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

    def __init__(
        self,
        *,
        exclude: Sequence[str] | None = None,
        trust: Trust | TrustCallable | None = None,
        server_spans: ServerSpans | None = None,
        propagator: MeshPropagator | None = None,
        tracer_provider: trace.TracerProvider | None = None,
        untouched: Sequence[str] = UNTOUCHED,
    ) -> None:
        self._options = CallOptions(
            untouched=untouched,
            exclude=exclude,
            trust=trust,
            server_spans=server_spans,
            propagator=propagator,
            tracer_provider=tracer_provider,
        )
        self._handlers = WrappedHandlers()

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the method's handler, wrapped; grpcio calls this for each call."""
        method: str = handler_call_details.method
        if self._options.leaves(method):
            return continuation(handler_call_details)
        handler = self._found(continuation, handler_call_details)
        if handler is None:
            return None
        known = self._handlers.get(method, handler)
        if known is not None:
            return known
        wrapped = with_behavior(handler, partial(_wrapped, partial(self._serve, method)))
        return self._handlers.keep(method, handler, wrapped)

    def _serve(self, method: str, context: Any) -> ServedCall:
        return self._options.serve(method, context, lambda: not context.is_active())

    def _found(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        if not self._options.makes_spans:
            return continuation(details)
        with stand_contrib_down(threading.get_ident):
            return continuation(details)


def _wrapped(serve: Serve, behavior: Behavior, response_streaming: bool) -> Behavior:
    if not response_streaming:
        return returning(serve, behavior)
    if getattr(behavior, "experimental_non_blocking", False):
        return _sending(serve, behavior)
    return streaming(serve, behavior)


def returning(serve: Serve, behavior: Behavior) -> Behavior:
    """Return a function that serves calls whose handler returns one response."""

    @in_place_of(behavior)
    def call(request: Any, context: Any) -> Any:
        if isinstance(context, TracedServicerContext):
            return behavior(request, context)
        served = serve(context)
        try:
            response = served.run(behavior, request, served.context)
        except BaseException as error:
            served.finish(error)
            raise
        served.finish()
        return response

    return call


def streaming(serve: Serve, behavior: Behavior, responses_of: Callable[[Any], Any] | None = None) -> Behavior:
    """Return a function that serves calls whose handler returns an iterator of responses.

    Args:
        serve: Begins to serve a call.
        behavior: The handler.
        responses_of: Makes the iterator, where the server takes more than that of its handlers, such as lists.
    """

    @in_place_of(behavior)
    def call(request: Any, context: Any) -> Any:
        if isinstance(context, TracedServicerContext):
            return behavior(request, context)
        served = serve(context)
        try:
            source = served.run(behavior, request, served.context)
            return Responses(served, source if responses_of is None else served.run(responses_of, source))
        except BaseException as error:
            served.finish(error)
            raise

    return call


def _sending(serve: Serve, behavior: Behavior) -> Behavior:
    """Return a function for a handler that returns at once, and sends its responses from wherever it likes."""

    @in_place_of(behavior)
    def call(request: Any, context: Any, send_response: Callable[[Any], Any]) -> None:
        if isinstance(context, TracedServicerContext):
            behavior(request, context, send_response)
            return
        served = serve(context)

        def send(response: Any) -> Any:
            if response is None:
                served.finish()
            return send_response(response)

        # It may never come to its end where the client has gone.
        context.add_callback(served.finish)
        try:
            served.run(behavior, request, served.context, send)
        except BaseException as error:
            served.finish(error)
            raise

    return call


class Responses(Iterator[Any]):
    """Takes each response of a handler in the call's context, and ends the call with the last one.

    Args:
        served: The call.
        source: What the handler returned.
    """

    __slots__ = ("_served", "_source")

    def __init__(self, served: ServedCall, source: Any) -> None:
        self._served = served
        self._source = source

    def __next__(self) -> Any:
        try:
            return self._served.run(next, self._source)
        except StopIteration:
            self._served.finish()
            raise
        except BaseException as error:
            self._served.finish(error)
            raise

    def close(self) -> None:
        """Close the handler's generator in the call's context; grpcio drops it where the client has gone."""
        try:
            if isinstance(self._source, Generator):
                self._served.run(self._source.close)
        finally:
            self._served.finish()

    def __del__(self) -> None:
        self.close()
