"""The interceptor for channels of `grpc.secure_channel` and `grpc.insecure_channel`."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
from opentelemetry import trace

from meshmw import _runtime
from meshmw._context.current import stand_contrib_down
from meshmw._lifecycle.conventions import Attributes, rpc_client_attributes
from meshmw._lifecycle.rpc import RpcOperation, begin_client
from meshmw._runtime import tracer_of
from meshmw.grpc._metadata import MAX_METADATA_BYTES, OutgoingMetadata, Pairs, parse_target
from meshmw.propagator import MeshPropagator

# One outbound call: its CLIENT span, and the metadata that it carries. Sync and aio interceptors share it.


class OutboundCalls:
    """Begins CLIENT operations and writes their metadata.

    Args:
        target: What the channel was made with, such as `pricing:50051`: it decides which headers are sent.
        propagator: Writes the headers; the configured one by default.
        tracer_provider: Makes the spans; the global one by default.
        max_metadata_bytes: What every server on the way accepts of metadata; baggage is cut to stay 2,048 below.

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
        self._target = parse_target(target)
        self._attributes = lru_cache(maxsize=256)(self._attributes_of)
        self._metadata = OutgoingMetadata(max_metadata_bytes)
        self._propagator = propagator
        self._tracer = tracer_of(tracer_provider)

    def _attributes_of(self, method: str) -> Attributes:
        # Many spans share them.
        return MappingProxyType(rpc_client_attributes(method, self._target.address, self._target.port))

    def begin(self, details: Any) -> tuple[RpcOperation, Pairs]:
        """Return the operation, and the metadata of a call with its headers in it."""
        # grpcio's aio interceptors are given bytes.
        method = details.method if isinstance(details.method, str) else details.method.decode("utf-8")
        operation = begin_client(method, self._attributes(method), self._tracer)
        try:
            metadata = self._metadata.replace(
                getattr(details, "metadata", None),
                operation.context,
                self._propagator or _runtime.current().propagator,
                method=method,
                host=self._target.host,
            )
        except BaseException as error:
            # What the caller gave is no metadata.
            operation.complete(None, error)
            raise
        return operation, metadata


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


# The interceptors for channels of `grpc.aio`, which asks for one object for each kind of call.


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
        _complete_with_aio(operation, call)
        return call


class _UnaryUnary(_Interceptor, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]  # grpcio has no types
    intercept_unary_unary = _Interceptor._intercept


class _UnaryStream(_Interceptor, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
    intercept_unary_stream = _Interceptor._intercept


class _StreamUnary(_Interceptor, grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[misc]
    intercept_stream_unary = _Interceptor._intercept


class _StreamStream(_Interceptor, grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]
    intercept_stream_stream = _Interceptor._intercept


def _complete_with_aio(operation: RpcOperation, call: Any) -> None:
    """Complete the operation when the call is over."""
    try:
        call.add_done_callback(lambda over: operation.complete(_code_of_aio(over)))
    except (AttributeError, NotImplementedError):
        # An interceptor further in has awaited the call, and returned the response: no call, or grpcio's stand-in for
        # one, whose callbacks raise NotImplementedError.
        operation.complete("OK")


def _code_of_aio(call: Any) -> str | None:
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
