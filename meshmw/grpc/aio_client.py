"""The interceptors for channels of `grpc.aio`, which asks for one object for each kind of call.

Knows grpcio's aio calls. Must not know formats, nor how a span lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc.aio  # type: ignore[import-untyped]
from opentelemetry import trace

from meshmw.boundary.rpc import RpcOperation
from meshmw.grpc.contrib import stand_contrib_down
from meshmw.grpc.metadata import MAX_METADATA_BYTES
from meshmw.grpc.outbound import OutboundCalls
from meshmw.propagator import MeshPropagator


def client_interceptors(
    target: str,
    *,
    propagator: MeshPropagator | None = None,
    tracer_provider: trace.TracerProvider | None = None,
    max_metadata_bytes: int = MAX_METADATA_BYTES,
) -> list[Any]:
    """Return the interceptors of an aio channel, which do as `TraceContextClientInterceptor` does.

        channel = grpc.aio.insecure_channel(target, interceptors=client_interceptors(target))

    Args:
        target: As for `TraceContextClientInterceptor`, and so the others.
        propagator: Writes the headers.
        tracer_provider: Makes the spans.
        max_metadata_bytes: What every server on the way accepts of metadata.

    Raises:
        ValueError: The target is empty, or the limit is not greater than 2,048.
    """
    outbound = OutboundCalls(
        target, propagator=propagator, tracer_provider=tracer_provider, max_metadata_bytes=max_metadata_bytes
    )
    return [kind(outbound) for kind in (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)]


class _Interceptor:
    def __init__(self, outbound: OutboundCalls) -> None:
        self._outbound = outbound

    async def _intercept(self, continuation: Callable[[Any, Any], Any], details: Any, request: Any) -> Any:
        operation, metadata = self._outbound.begin(details)
        carrying = grpc.aio.ClientCallDetails(
            details.method, details.timeout, grpc.aio.Metadata(*metadata), details.credentials, details.wait_for_ready
        )
        try:
            with stand_contrib_down(asyncio.current_task):
                call = await continuation(carrying, request)
        except BaseException as error:
            operation.complete(_code_of_error(error), error)
            raise
        _complete_with(operation, call)
        return call


class _UnaryUnary(_Interceptor, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]  # grpcio has no types
    intercept_unary_unary = _Interceptor._intercept


class _UnaryStream(_Interceptor, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
    intercept_unary_stream = _Interceptor._intercept


class _StreamUnary(_Interceptor, grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[misc]
    intercept_stream_unary = _Interceptor._intercept


class _StreamStream(_Interceptor, grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]
    intercept_stream_stream = _Interceptor._intercept


def _complete_with(operation: RpcOperation, call: Any) -> None:
    """Complete the operation when the call is over."""
    try:
        call.add_done_callback(lambda over: operation.complete(_code_of(over)))
    except (AttributeError, NotImplementedError):
        # An interceptor further in has awaited the call, and returned the response: no call, or grpcio's stand-in for
        # one, whose callbacks raise NotImplementedError.
        operation.complete("OK")


def _code_of(call: Any) -> str | None:
    """Return the status code of a call that is over: what is asked of it is a coroutine that need not wait."""
    asked = call.code()
    try:
        asked.send(None)
    except StopIteration as answer:
        return str(answer.value.name)
    asked.close()
    return None


def _code_of_error(error: BaseException) -> str | None:
    if isinstance(error, grpc.aio.AioRpcError):
        return str(error.code().name)
    return "CANCELLED" if isinstance(error, asyncio.CancelledError) else None
