"""The interceptor for channels of `grpc.secure_channel` and `grpc.insecure_channel`.

Knows grpcio's calls and futures. Must not know formats, nor how a span lives.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import grpc  # type: ignore[import-untyped]
from opentelemetry import trace

from meshmw.boundary.rpc import RpcOperation
from meshmw.grpc.contrib import stand_contrib_down
from meshmw.grpc.metadata import MAX_METADATA_BYTES
from meshmw.grpc.outbound import OutboundCalls
from meshmw.propagator import MeshPropagator


class TraceContextClientInterceptor(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[misc]  # grpcio has no types
    grpc.UnaryStreamClientInterceptor,  # type: ignore[misc]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[misc]
    grpc.StreamStreamClientInterceptor,  # type: ignore[misc]
):
    """Makes each call in a CLIENT span of the current trace, with the trace headers in its metadata replaced.

        channel = grpc.intercept_channel(grpc.insecure_channel(target), TraceContextClientInterceptor(target))

    The caller gets grpcio's own call objects, and other metadata go out as they were given. The span ends when the call
    is over, whether it was read to its end, cancelled or dropped. The request iterator of a streaming call runs in the
    caller's context, not in the span's. Where opentelemetry-instrumentation-grpc is installed too, there is one span.

    Args:
        target: What the channel was made with. `propagate_to` and `baggage_to` are asked with its host; of several
            addresses with the first.
        propagator: Writes the headers; the configured one by default.
        tracer_provider: Makes the spans; the global one by default.
        max_metadata_bytes: What every server on the way accepts of metadata (`grpc.max_metadata_size`). Baggage is cut
            to whole members to stay 2,048 bytes below.

    Raises:
        ValueError: The target is empty, or the limit is not greater than 2,048.
    """

    def __init__(
        self,
        target: str,
        *,
        propagator: MeshPropagator | None = None,
        tracer_provider: trace.TracerProvider | None = None,
        max_metadata_bytes: int = MAX_METADATA_BYTES,
    ) -> None:
        self._outbound = OutboundCalls(
            target, propagator=propagator, tracer_provider=tracer_provider, max_metadata_bytes=max_metadata_bytes
        )

    def _intercept(self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request: Any) -> Any:
        operation, metadata = self._outbound.begin(client_call_details)
        try:
            with stand_contrib_down(threading.get_ident):
                call = continuation(_CallDetails(client_call_details, tuple(metadata)), request)
        except BaseException as error:
            operation.complete(None, error)
            raise
        _complete_with(operation, call)
        return call

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = intercept_stream_stream = _intercept


class _CallDetails(grpc.ClientCallDetails):  # type: ignore[misc]
    """Is a call's details with other metadata; what they lack, as other interceptors' may, grpcio fills in."""

    def __init__(self, details: Any, metadata: tuple[Any, ...]) -> None:
        self._details = details
        self.metadata = metadata

    def __getattr__(self, name: str) -> Any:
        return getattr(self._details, name)


def _complete_with(operation: RpcOperation, call: Any) -> None:
    """Complete the operation when the call is over; one that its owner drops must stay free to be cancelled by that."""
    alive = weakref.ref(call)

    def over() -> None:
        still = alive()
        operation.complete("CANCELLED" if still is None else _code_of(still))

    try:
        added = call.add_callback(over)
    except (AttributeError, NotImplementedError):
        # What a blocking call raised, or what an interceptor further in made up: no call, or grpcio's stand-in for one,
        # whose callbacks raise NotImplementedError.
        added = False
    if not added:
        over()


def _code_of(call: Any) -> str:
    try:
        return str(call.code().name)
    except AttributeError:
        # It is no call, and what it holds in its place was an answer.
        return "OK"
