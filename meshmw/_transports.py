"""One outbound HTTP request: what all clients share, and the transports of those that share httpx's shapes.

`OutboundCalls` begins an operation and writes its headers, and a `Body` ends it. A transport sends a copy of the
request, and hands on the response with its body in a `Body`. `meshmw.httpx` and `meshmw.httpx2` add their own request
and stream classes.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, MutableMapping
from types import TracebackType
from typing import Any, ClassVar, Final, Self, TypedDict, TypeVar, Unpack

from opentelemetry import trace

from meshmw import _runtime
from meshmw._context.current import Current
from meshmw._context.write import lines_in
from meshmw._foreign import headers_like, replace_transports
from meshmw._lifecycle import http_conventions as semconv
from meshmw._lifecycle.http import HttpOperation, begin_client
from meshmw._lifecycle.operation import AttributeValue, end_aside
from meshmw._otel import IS_CONTRIB_LOADED
from meshmw._policy.words import check_options
from meshmw.propagator import MeshPropagator

_SENT: Final = "meshmw.sent"
# What copies of a transport share.
_OPTIONS: Final = frozenset({"_propagator", "_tracer"})
# Where a client keeps the wrappers of its transports, by the transport's id.
_WRAPPERS: Final = "_meshmw_wrappers"
_CLOSING: Final = frozenset({"close", "aclose", "__exit__", "__aexit__"})
# The transports of both families that send nothing, and what contrib patches on one that it is given.
_IN_PROCESS: Final = frozenset({"ASGITransport", "WSGITransport", "MockTransport"})
_PATCHED: Final = frozenset({"handle_request", "handle_async_request"})


class ClientOptions(TypedDict, total=False):
    """Names the options that every client takes.

    Attributes:
        propagator: Writes the headers; the configured one by default.
        tracer_provider: Makes the spans; the global one by default.
    """

    propagator: MeshPropagator | None
    tracer_provider: trace.TracerProvider | None


class OutboundCalls:
    """Begins CLIENT operations and writes their headers, for every client.

    Args:
        options: Those of `ClientOptions`.

    Raises:
        TypeError: An option is not known, or holds no propagator or tracer provider.
    """

    def __init__(self, **options: Unpack[ClientOptions]) -> None:
        check_options(options, ClientOptions)
        tracer_provider = options.get("tracer_provider")
        self._propagator = _runtime.checked_propagator(options.get("propagator"))
        # The process's own is looked up for each request: its provider may come later.
        self._tracer = None if tracer_provider is None else _runtime.tracer_of(tracer_provider)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Propagator and provider are the process's: their locks cannot be copied, and their counts are for all.
        copied = memo[id(self)] = copy.copy(self)
        for name, value in vars(self).items():
            vars(copied)[name] = value if name in _OPTIONS else copy.deepcopy(value, memo)
        return copied

    def _begin_in(
        self, headers: MutableMapping[Any, Any], method: str, target: semconv.Target, sent: int
    ) -> HttpOperation:
        """Return the operation of a request whose *headers*, which are changed, carry it from now on.

        Args:
            headers: The request's, in a mapping of its client.
            method: Its method.
            target: Where it goes.
            sent: How often it was sent before.
        """
        propagator = self._propagator or _runtime.current().propagator
        tracer = self._tracer or _runtime.tracer()
        operation = begin_client(method, lambda: target.attributes(method, sent), tracer, lines_in(headers))
        try:
            propagator.replace_in_request(
                headers, operation.context, host=target.host, method=method, target=target.path
            )
        except BaseException as error:
            operation.fail(error)
            operation.end()
            raise
        return operation

    def _sending(self, operation: HttpOperation) -> Current:
        """Return a block in which the client sends, and contrib's telemetry of clients further in stands back."""
        return operation.sending() if IS_CONTRIB_LOADED() and not self._is_in_process() else operation.current()

    def _is_in_process(self) -> bool:
        """Say whether what sends is known to call a function of this process."""
        return False


class Transport(OutboundCalls):
    """Sends requests of the shape of httpx's; sync and async transports share it.

    Args:
        transport: The transport that does the sending.
        options: Those of `ClientOptions`.

    Raises:
        TypeError: An option is not known, or holds no propagator or tracer provider.
    """

    request_class: ClassVar[type[Any]]
    stream_class: ClassVar[type[Any]]

    def __init__(self, transport: Any, **options: Unpack[ClientOptions]) -> None:
        super().__init__(**options)
        self._transport = transport
        self._open: weakref.WeakSet[Body] = weakref.WeakSet()

    def end_open(self) -> None:
        """End the operations of responses that are held unread: nothing more comes once the client has closed."""
        for body in list(self._open):
            body.end()

    def _begin(self, request: Any) -> tuple[HttpOperation, Any]:
        """Return the operation, and a copy of *request* that carries its headers."""
        propagator = self._propagator or _runtime.current().propagator
        tracer = self._tracer or _runtime.tracer()
        lines, url, resent = request.headers, request.url, _resent(request)
        operation = begin_client(request.method, lambda: _attributes(request) | resent, tracer, lines.raw)
        try:
            carrying = self._copy(request)
            carrying.headers = headers_like(
                lines,
                propagator.replace_lines(
                    lines.raw, operation.context, host=url.host, method=request.method, target=url.raw_path
                ),
            )
        except BaseException as error:
            operation.fail(error)
            operation.end()
            raise
        return operation, carrying

    def _is_in_process(self) -> bool:
        """Say whether the transport calls a function of this process, which may send anything, and is not patched."""
        inner = self._transport
        return type(inner).__name__ in _IN_PROCESS and _PATCHED.isdisjoint(getattr(inner, "__dict__", ()))

    def _record(self, operation: HttpOperation, response: Any) -> Any:
        """Record the response, and leave the operation to end when its body closes."""
        operation.status(response.status_code, error_from=400)
        version = response.extensions.get("http_version", b"")
        if version:
            operation.span.set_attribute(
                "network.protocol.version", semconv.protocol_version(version.decode("latin-1"))
            )
        if response.is_closed:
            operation.end()
        else:
            response.stream = self.stream_class(response.stream, operation)
            self._open.add(response.stream)
        return response

    def _copy(self, request: Any) -> Any:
        """Return a request of the same class with everything that this one holds, also the content that was read."""
        if type(request) is self.request_class:
            # `copy.copy` takes five times as long: 2.3 of the 27 microseconds of a call.
            carrying = object.__new__(self.request_class)
            vars(carrying).update(vars(request))
            return carrying
        # A class of the application's own may know better how; what the family's own way leaves out is added.
        carrying = copy.copy(request)
        carrying.stream, carrying.extensions = request.stream, request.extensions
        state = object.__getstate__(request)
        for name, value in state[1].items() if isinstance(state, tuple) else ():
            setattr(carrying, name, value)
        return carrying


def wrapper_for(client: Any, transport: Any, wrapper: type[Any]) -> Any:
    """Return the wrapper of a client's transport, which the client keeps: the same one each time.

    A wrapper holds its transport, so nothing else gets that id.
    """
    known = vars(client).setdefault(_WRAPPERS, {})
    if id(transport) not in known:
        known[id(transport)] = _wrapped(transport, wrapper)
    return known[id(transport)]


def forget_wrappers(client: Any, used: Iterable[Any]) -> None:
    """Let go of the wrappers whose transports a client uses no more, and with them of the transports.

    Args:
        client: The client.
        used: The transports that it still uses.
    """
    known, ids = vars(client).get(_WRAPPERS, {}), {id(each) for each in used}
    for stale in known.keys() - ids:
        known.pop(stale, None)


def _wrapped(transport: Any, wrapper: type[Any]) -> Any:
    return transport if transport is None or isinstance(transport, wrapper) else wrapper(transport)


def end_open_of(client: Any) -> None:
    """End what the transports of a client have left open: it closes its own, and knows nothing of the wrappers."""
    for transport in list(vars(client).get(_WRAPPERS, {}).values()):
        transport.end_open()


ClientClass = TypeVar("ClientClass", bound=type[Any])


def wraps_transports(wrapper: type[Transport]) -> Callable[[ClientClass], ClientClass]:
    """Return a decorator for a subclass of an httpx client, by which each transport of the client is used in *wrapper*.

    A client keeps the wrapper of each transport that it was seen to use; one that is put in a transport's place later
    gets its own.
    """

    def wrapped(transport: Any) -> Any:
        return _wrapped(transport, wrapper)

    def choosing(choose: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(choose)
        def transport_for_url(self: Any, url: Any) -> Any:
            transport = choose(self, url)
            try:
                return vars(self)[_WRAPPERS][id(transport)]
            except KeyError:
                return wrapper_for(self, transport, wrapper)

        return transport_for_url

    def decorate(client: ClientClass) -> ClientClass:
        replace_transports(client, choosing, wrapped)
        for name in _CLOSING & set(dir(client)):
            setattr(client, name, _ending_all(getattr(client, name)))
        return client

    return decorate


def _ending_all(close: Any) -> Any:
    """Return a method of a client that closes its transports, as *close* does, and ends what these have left open."""

    @functools.wraps(close)
    def closing(self: Any, *args: Any) -> Any:
        try:
            return close(self, *args)
        finally:
            end_open_of(self)

    @functools.wraps(close)
    async def closing_async(self: Any, *args: Any) -> Any:
        try:
            return await close(self, *args)
        finally:
            end_open_of(self)

    return closing_async if inspect.iscoroutinefunction(close) else closing


class SyncTransport(Transport):
    """Sends requests through another transport, each in a CLIENT span."""

    def handle_request(self, request: Any) -> Any:
        """Send one request; the span ends when the response's body closes."""
        operation, carrying = self._begin(request)
        try:
            with self._sending(operation):
                return self._record(operation, self._transport.handle_request(carrying))
        except BaseException as error:
            operation.fail(error)
            operation.end()
            raise

    def __enter__(self) -> Self:
        self._transport.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        try:
            self._transport.__exit__(kind, error, traceback)
        finally:
            self.end_open()

    def close(self) -> None:
        """Close the transport that does the sending."""
        try:
            self._transport.close()
        finally:
            self.end_open()


class AsyncTransport(Transport):
    """Sends requests through another async transport, each in a CLIENT span."""

    async def handle_async_request(self, request: Any) -> Any:
        """Send one request; the span ends when the response's body closes."""
        operation, carrying = self._begin(request)
        try:
            with self._sending(operation):
                return self._record(operation, await self._transport.handle_async_request(carrying))
        except BaseException as error:
            operation.fail(error)
            operation.end()
            raise

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        try:
            await self._transport.__aexit__(kind, error, traceback)
        finally:
            self.end_open()

    async def aclose(self) -> None:
        """Close the transport that does the sending."""
        try:
            await self._transport.aclose()
        finally:
            self.end_open()


class Body:
    """Ends the operation of a response when no more of its body can come, or nobody is left to read it.

    A response that is dropped without `close()` says so to nobody else, neither does one that is still held when the
    process ends. Of a reader that has stopped nothing is known: the body may be closed or dropped next.
    """

    def __init__(self, stream: Any, operation: HttpOperation) -> None:
        self._stream = stream
        self._operation = operation
        self._dropped = weakref.finalize(self, end_aside, operation.end)

    def end(self) -> None:
        """End the operation, once."""
        self._dropped.detach()
        self._operation.end()

    def _fail(self, error: BaseException) -> None:
        self._operation.fail(error)
        self.end()


class SyncBody(Body):
    """Hands on a response's body."""

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._stream
        except GeneratorExit:
            raise
        except BaseException as error:
            self._fail(error)
            raise
        # httpx closes a response that was read to its end, and none that raised.
        self.end()

    def close(self) -> None:
        """Close the body, and end the operation."""
        try:
            self._stream.close()
        finally:
            self.end()


class AsyncBody(Body):
    """Hands on an async response's body."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                yield chunk
        except GeneratorExit:
            raise
        except BaseException as error:
            self._fail(error)
            raise
        self.end()

    async def aclose(self) -> None:
        """Close the body, and end the operation."""
        try:
            await self._stream.aclose()
        finally:
            self.end()


def _attributes(request: Any) -> dict[str, AttributeValue]:
    url = request.url.copy_with(userinfo=b"REDACTED:REDACTED") if request.url.userinfo else request.url
    return semconv.client_attributes(
        method=request.method, scheme=url.scheme, host=url.host, port=url.port, url=str(url)
    )


def _resent(request: Any) -> dict[str, AttributeValue]:
    """Return how often a request was sent before, for whatever reason: a redirect, an authentication, a retry.

    The count stays in the request's extensions, which a redirect takes along; there is none where they cannot change.
    """
    sent: list[int] | None = request.extensions.get(_SENT)
    if sent is None:
        with contextlib.suppress(TypeError):
            request.extensions[_SENT] = [0]
        return {}
    sent[0] += 1
    return {"http.request.resend_count": sent[0]}
