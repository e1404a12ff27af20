"""The interceptors for channels of `grpc` and of `grpc.aio`, which do the same in threads and in event loops.

The `OutboundCalls` of a channel begin each of its calls: `parse_target` says where the call goes, `OutgoingMetadata`
writes its headers. From then on it is an `OutboundCall`: a block in which grpcio makes the call. What the block raises
ends the span; else what grpcio returns ends it.
"""

from __future__ import annotations

import asyncio
import re
import threading
import weakref
from collections.abc import Callable, Iterable
from functools import lru_cache
from types import MappingProxyType, TracebackType
from typing import Any, Final, NamedTuple, Self, TypeAlias, TypedDict, Unpack

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
from opentelemetry.context import Context
from opentelemetry.trace import TracerProvider

from meshmw import _runtime
from meshmw._foreign import status_of_ended_call
from meshmw._lifecycle.operation import Attributes
from meshmw._lifecycle.rpc import RpcOperation, begin_client, client_attributes, stand_contrib_down
from meshmw._policy.outbound import RESERVED_BYTES, Cut, HeaderBudget
from meshmw._policy.words import check_options, limit_of
from meshmw._runtime import checked_propagator, tracer_of
from meshmw.propagator import MeshPropagator

# As grpcio takes them: pairs of a name and of a text or, for `-bin`, bytes.
Metadata: TypeAlias = Iterable[tuple[str, Any]]
Pairs: TypeAlias = list[tuple[str, str | bytes]]

# grpcio refuses calls at random from 8 KiB of metadata on, and all of them from 16 KiB on (`grpc.max_metadata_size`).
MAX_METADATA_BYTES: Final = 8_192

# RFC 7541, section 4.1: what each header counts beyond its name and value.
_PER_HEADER: Final = 32
_HEADER_BUDGET_COUNTS: Final = 4
# gRPC over HTTP/2, "Custom-Metadata": one illegal byte makes grpcio fail the whole call.
_KEY: Final = re.compile(r"[0-9a-z_.-]+")
_VALUE: Final = re.compile(r"[\x20-\x7e]*")

# gRPC Name Resolution, "Name Syntax": what is before the colon of a target that is no plain host and port.
_SCHEMES: Final = frozenset({"dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds", "google-c2p"})
_TARGET: Final = re.compile(r"(?:(?P<scheme>[a-z][a-z0-9+.-]*):)?(?://[^/]*/)?(?P<endpoint>.*)", re.DOTALL)
_HOST_PORT: Final = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*):(?P<port>[0-9]{1,5})")


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
            call = continuation(_with_metadata(client_call_details, tuple(outbound.metadata)), request)
        outbound.end_with(call)
        return call

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = intercept_stream_stream = _intercept


def _with_metadata(details: Any, metadata: tuple[Any, ...]) -> Any:
    """Return a call's details with other metadata."""
    # grpcio's own are a named tuple, each of whose fields grpcio asks for.
    if "metadata" in getattr(details, "_fields", ()):
        return details._replace(metadata=metadata)
    return _CallDetails(details, metadata)


class _CallDetails(grpc.ClientCallDetails):  # type: ignore[misc]
    """Wraps a call's details with other metadata; grpcio fills in what another interceptor's details may lack."""

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
        tracer_provider = options.get("tracer_provider")
        self._tracer = None if tracer_provider is None else tracer_of(tracer_provider)

    def _shared_attributes(self, method: str) -> Attributes:
        # Many spans share these attributes, so they must not change.
        return MappingProxyType(client_attributes(method, self._target.address, self._target.port))

    def begin(self, details: Any, whoami: Callable[[], object]) -> OutboundCall:
        """Begin a call.

        Args:
            details: grpcio's, with the method and the caller's metadata.
            whoami: Names the thread or the task that runs.

        Raises:
            Exception: What the caller gave is no metadata; the span has ended.
        """
        # An aio interceptor gets the method as bytes.
        method = details.method if isinstance(details.method, str) else details.method.decode("utf-8")
        operation = begin_client(method, self._attributes(method), self._tracer or _runtime.tracer())
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
    """Holds one call: a block in which grpcio makes it, and contrib makes no span. What the block raises ends it."""

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
                # grpcio cancels a call when its owner drops it, so nothing here may hold it.
                reference = weakref.ref(call)
                is_under_way = call.add_callback(lambda: end(reference()))
            else:
                call.add_done_callback(end)
                is_under_way = True
        except (AttributeError, NotImplementedError):
            # The result is no call, or an interceptor further in awaited a call of `grpc.aio` and returned a stand-in
            # for it.
            is_under_way = False
        if not is_under_way:
            end(call)


def _code_of_call(call: Any) -> str | None:
    try:
        status = status_of_ended_call(call)
    except (AttributeError, TypeError):
        # The result is an answer and not a call, or grpcio's stand-in for an answer.
        return "OK"
    return None if status is None else str(status.name)


def _code_of_error(error: BaseException) -> str | None:
    if isinstance(error, grpc.aio.AioRpcError):
        return str(error.code().name)
    return "CANCELLED" if isinstance(error, asyncio.CancelledError) else None


class OutgoingMetadata:
    """Replaces the trace headers in the metadata of outbound calls, and keeps them within what servers accept.

    Args:
        max_bytes: What every server on the way accepts of metadata, in bytes as HTTP/2 counts them. 2,048 of them are
            kept for what gRPC and the proxies add.

    Raises:
        ValueError: The limit is no whole number, or not greater than those.
    """

    def __init__(self, max_bytes: int = MAX_METADATA_BYTES) -> None:
        self._room = limit_of(max_bytes, "max_metadata_bytes") - RESERVED_BYTES
        self._budget = HeaderBudget(max_bytes, max_headers=1_000_000)

    def replace(
        self,
        metadata: Metadata | None,
        context: Context,
        propagator: MeshPropagator,
        *,
        method: str,
        host: str,
    ) -> Pairs:
        """Return a call's metadata with the trace headers of *context* in place of all that were there.

        Args:
            metadata: What the caller gave, in order; it is not changed.
            context: What the call runs in.
            propagator: Writes the headers.
            method: The call's path, which counts as a header too.
            host: Where the call goes.
        """
        pairs: Pairs = [(key, value) for key, value in metadata or ()]
        present = [(_text(key), _text(value)) for key, value in pairs if _bytes(key).lower() in propagator.watched]
        headers, stale = propagator.outgoing(context, present, host)
        if present:
            pairs = [pair for pair in pairs if _text(pair[0]) not in stale]
        for name, text in headers.items():
            if _KEY.fullmatch(name) and _VALUE.fullmatch(text):
                pairs.append((name, text))
            else:
                consequence = f"- {name} is not passed on to a gRPC server"
                propagator.rejections.record("context", "metadata", consequence)
        return self._fit(pairs, method, propagator)

    def _fit(self, pairs: Pairs, method: str, propagator: MeshPropagator) -> Pairs:
        size = len(method) + sum([len(_text(key)) + _length(key, value) + _PER_HEADER for key, value in pairs])
        cut = self._cut(pairs, method) if size > self._room else None
        if cut is None:
            return pairs
        if cut.dropped_members:
            consequence = (
                f"- {cut.dropped_members} members are not sent: the metadata had {cut.bytes_before} bytes, "
                f"now {cut.bytes_after}; a gRPC server would have refused the call"
            )
            propagator.rejections.record("baggage", "header_budget", consequence)
        pairs = [pair for pair in pairs if pair[0] != "baggage"]
        if cut.baggage is not None:
            pairs.append(("baggage", cut.baggage.decode("latin-1")))
        if not cut.fits and any(key == "tracestate" for key, _ in pairs):
            pairs = _without_tracestate(pairs, cut.bytes_after, propagator)
        return pairs

    def _cut(self, pairs: Pairs, method: str) -> Cut | None:
        # The budget counts a header as HTTP/1.1 does.
        more = len(method) + (_PER_HEADER - _HEADER_BUDGET_COUNTS) * len(pairs)
        return self._budget.cut([(_bytes(key), _counted(key, value)) for key, value in pairs], more)


def _without_tracestate(pairs: Pairs, size: int, propagator: MeshPropagator) -> Pairs:
    """Give up the tracestate too, where other metadata alone are too big; what the caller gave is the caller's."""
    consequence = (
        f"- it is not sent: without any baggage the metadata still have {size} bytes; a gRPC server may refuse the call"
    )
    propagator.rejections.record("tracestate", "header_budget", consequence)
    return [pair for pair in pairs if pair[0] != "tracestate"]


def _text(given: object) -> str:
    """Return a key or a value as text; empty for None, and for what grpcio itself refuses."""
    return given if isinstance(given, str) else given.decode("latin-1") if isinstance(given, bytes) else ""


def _bytes(key: object) -> bytes:
    return _text(key).encode("latin-1", "replace")


def _length(key: object, value: object) -> int:
    length = len(value) if isinstance(value, str | bytes) else 0
    # Binary values travel in base64.
    return (length + 2) // 3 * 4 if _text(key).endswith("-bin") else length


def _counted(key: object, value: object) -> bytes:
    """Return a value as the budget needs it: the text of baggage, and as many bytes as any other value has."""
    if isinstance(value, str) and key == "baggage":
        return value.encode("latin-1")
    return bytes(_length(key, value))


class Target(NamedTuple):
    """Says where a channel's calls go.

    Attributes:
        host: The name or address that decides which headers are sent; a socket of this machine counts as `localhost`.
        address: What `server.address` holds: the host, or the socket's path.
        port: The port, or None where the target names none.
    """

    host: str
    address: str
    port: int | None


def parse_target(target: str) -> Target:
    """Return what a target says. Of several addresses the first is taken.

    Raises:
        ValueError: The target is empty.
    """
    if not target:
        raise ValueError("the target is the text that the channel was made with, such as 'pricing:50051', not ''")
    found = _TARGET.fullmatch(target)
    scheme = found["scheme"] if found else None
    endpoint = found["endpoint"] if found and scheme in _SCHEMES else target
    if scheme in ("unix", "unix-abstract", "vsock"):
        return Target("localhost", target.removeprefix(f"{scheme}:").removeprefix("//"), None)
    # gRPC takes no user's name and password; who writes them all the same is not to read them in spans.
    first = endpoint.partition(",")[0].rpartition("@")[2]
    split = _HOST_PORT.fullmatch(first)
    host = (split["host"] if split else first).strip("[]")
    return Target(host, host, int(split["port"]) if split else None)
