"""The interceptors for channels of `grpc` and of `grpc.aio`, which do the same in threads and in event loops.

Each call is begun by the `OutboundCalls` of its channel. It is an `OutboundCall` from then on: a block in which grpcio
is asked to make the call, and from which what is raised ends the span, and then whatever grpcio returns ends it.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from functools import lru_cache
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypedDict, Unpack

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
from opentelemetry.trace import TracerProvider

from meshmw import _runtime
from meshmw._foreign import status_of_ended_call
from meshmw._lifecycle.operation import Attributes
from meshmw._lifecycle.rpc import RpcOperation, begin_client, client_attributes, stand_contrib_down
from meshmw._policy.words import check_options
from meshmw._runtime import checked_propagator, tracer_of
from meshmw.grpc._metadata import MAX_METADATA_BYTES, OutgoingMetadata, Pairs, parse_target
from meshmw.propagator import MeshPropagator


class ClientOptions(TypedDict, total=False):
    """Names the options that every client interceptor takes.

    Attributes:
        propagator: Writes the headers; the configured one by default.
        tracer_provider: Makes the spans; the global one by default.
        max_metadata_bytes: What every server on the way accepts of metadata.
    """

    propagator: MeshPropagator | None
    tracer_provider: TracerProvider | None
    max_metadata_bytes: int


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
        options: Each one that you leave out has its default.

            - `propagator`: writes the headers; the configured one by default;
            - `tracer_provider`: makes the spans; the global one by default;
            - `max_metadata_bytes`: what every server on the way accepts of metadata (`grpc.max_metadata_size`), 8,192
              by default. Baggage is cut to whole members to stay 2,048 bytes below.

    Raises:
        ValueError: The target is empty, or the limit is no whole number or not greater than 2,048.
        TypeError: An option is not known, or holds no propagator or tracer provider.
    """

    def __init__(self, target: str, **options: Unpack[ClientOptions]) -> None:
        self._outbound = OutboundCalls(target, **options)

    def _intercept(self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request: Any) -> Any:
        with self._outbound.begin(client_call_details, threading.get_ident) as outbound:
            details = _CallDetails(client_call_details, tuple(outbound.metadata))
            call = continuation(details, request)
        outbound.end_with(call)
        return call

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = intercept_stream_stream = _intercept


class _CallDetails(grpc.ClientCallDetails):  # type: ignore[misc]
    """Stands for a call's details with other metadata; what they lack, as other interceptors' may, grpcio fills in."""

    def __init__(self, details: Any, metadata: tuple[Any, ...]) -> None:
        self._details = details
        self.metadata = metadata

    def __getattr__(self, name: str) -> Any:
        return getattr(self._details, name)


def client_interceptors(target: str, **options: Unpack[ClientOptions]) -> list[Any]:
    """Return the interceptors of a channel of `grpc.aio`, which asks for one object for each kind of call.

        channel = grpc.aio.insecure_channel(target, interceptors=client_interceptors(target))

    They trace as `TraceContextClientInterceptor` does.

    Args:
        target: What the channel was made with.
        options: Those of `TraceContextClientInterceptor`.

    Raises:
        ValueError: The target is empty, or the limit is no whole number or not greater than 2,048.
        TypeError: An option is not known, or holds no propagator or tracer provider.
    """
    outbound = OutboundCalls(target, **options)
    return [kind(outbound) for kind in (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)]


class _AioInterceptor:
    def __init__(self, outbound: OutboundCalls) -> None:
        self._outbound = outbound

    async def _intercept(self, continuation: Callable[[Any, Any], Any], given: Any, request: Any) -> Any:
        with self._outbound.begin(given, asyncio.current_task) as outbound:
            metadata = grpc.aio.Metadata(*outbound.metadata)
            details = grpc.aio.ClientCallDetails(
                given.method, given.timeout, metadata, given.credentials, given.wait_for_ready
            )
            call = await continuation(details, request)
        outbound.end_with(call)
        return call


class _UnaryUnary(_AioInterceptor, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    intercept_unary_unary = _AioInterceptor._intercept


class _UnaryStream(_AioInterceptor, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
    intercept_unary_stream = _AioInterceptor._intercept


class _StreamUnary(_AioInterceptor, grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[misc]
    intercept_stream_unary = _AioInterceptor._intercept


class _StreamStream(_AioInterceptor, grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]
    intercept_stream_stream = _AioInterceptor._intercept


class OutboundCalls:
    """Begins the calls of one channel, and writes their metadata.

    Args:
        target: What the channel was made with, such as `pricing:50051`: it decides which headers are sent.
        options: The interceptor's.

    Raises:
        ValueError: The target is empty, or the limit is no whole number or not greater than 2,048.
        TypeError: An option is not known, or holds no propagator or tracer provider.
    """

    def __init__(self, target: str, **options: Unpack[ClientOptions]) -> None:
        check_options(options, ClientOptions)
        self._target = parse_target(target)
        self._attributes = lru_cache(maxsize=256)(self._shared_attributes)
        self._metadata = OutgoingMetadata(options.get("max_metadata_bytes", MAX_METADATA_BYTES))
        self._propagator = checked_propagator(options.get("propagator"))
        self._tracer = tracer_of(options.get("tracer_provider"))

    def _shared_attributes(self, method: str) -> Attributes:
        # Many spans share them, so nobody may change them.
        return MappingProxyType(client_attributes(method, self._target.address, self._target.port))

    def begin(self, details: Any, whoami: Callable[[], object]) -> OutboundCall:
        """Begin a call.

        Args:
            details: grpcio's, with the method and the caller's metadata.
            whoami: Names the thread or the task that runs.

        Raises:
            Exception: What the caller gave is no metadata; the span has ended.
        """
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
            operation.complete(None, error)
            raise
        return OutboundCall(operation, metadata, whoami)


class OutboundCall:
    """Holds one call: a block in which grpcio makes it and contrib stands back; what the block raises ends it.

    Args:
        operation: The call's operation.
        metadata: Of the call, with the trace headers in them.
        whoami: Names the thread or the task that runs.
    """

    __slots__ = ("_contrib_down", "_operation", "metadata")

    def __init__(self, operation: RpcOperation, metadata: Pairs, whoami: Callable[[], object]) -> None:
        self._operation = operation
        self._contrib_down = stand_contrib_down(whoami)
        self.metadata = metadata

    def __enter__(self) -> Self:
        self._contrib_down.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._contrib_down.__exit__(kind, error, at)
        if error is not None:
            self._operation.complete(_code_of_error(error), error)

    def end_with(self, call: Any) -> None:
        """End the operation when the call is over.

        Args:
            call: What grpcio returned, or whatever else an interceptor further in has made up.
        """
        operation = self._operation

        def end(ended: Any) -> None:
            operation.complete("CANCELLED" if ended is None else _code_of_call(ended))

        try:
            if hasattr(call, "add_callback"):
                # A call that its owner drops is cancelled by that, so it must not be held here.
                reference = weakref.ref(call)
                is_under_way = call.add_callback(lambda: end(reference()))
            else:
                call.add_done_callback(end)
                is_under_way = True
        except (AttributeError, NotImplementedError):
            # It is no call; or it is what stands for one where a call of `grpc.aio` was awaited further in.
            is_under_way = False
        if not is_under_way:
            end(call)


def _code_of_call(call: Any) -> str | None:
    try:
        status = status_of_ended_call(call)
    except (AttributeError, TypeError):
        # It is no call, or grpcio's stand-in for what is none: an answer then.
        return "OK"
    return None if status is None else str(status.name)


def _code_of_error(error: BaseException) -> str | None:
    if isinstance(error, grpc.aio.AioRpcError):
        return str(error.code().name)
    return "CANCELLED" if isinstance(error, asyncio.CancelledError) else None
