"""The interceptors for servers of `grpc.server` and of `grpc.aio.server`, and what they put in the place of handlers.

grpcio asks an interceptor for the handler of each call. It gets one that looks like the application's own and holds
another function. That function begins the call, runs the application's function and ends the call:

| the application's function                   | in a thread   | in an event loop |
|----------------------------------------------|---------------|------------------|
| returns a response, or reads and writes      | `_returning`  | `_awaiting`      |
| returns or yields an iterator of responses   | `_streaming`  | `_generating`    |
| sends responses from wherever it likes       | `_sending`    |                  |
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from functools import partial, update_wrapper
from typing import Any, Final, TypeVar, Unpack

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]

from meshmw._foreign import copy_grpcio_marks, is_non_blocking, method_lookup
from meshmw._lifecycle.rpc import stand_contrib_down
from meshmw._lifecycle.serving import ServerOptions
from meshmw.grpc._serving import UNTOUCHED, CallServing, Served, is_late
from meshmw.streams import AsyncGeneratorSteps, AwaitableSteps

Behavior = Callable[..., Any]
B = TypeVar("B", bound=Behavior)
# Begins to serve a call, given the servicer context.
Serve = Callable[[Any], Served]
# Takes a handler's function, and whether it streams responses, and returns the function in its place.
Wrap = Callable[[Behavior, bool], Behavior]

# A generic handler may serve any method that callers name.
_MAX_METHODS: Final = 1_024
_MAX_CHARACTERS: Final = 512
# No service has such a method.
_NOBODYS_METHOD: Final = "nobody-registers-this"


class MethodInterceptor:
    """Holds the options of a server interceptor, and each method's handler once it is wrapped."""

    def __init__(self, *, untouched: Sequence[str] = UNTOUCHED, **options: Unpack[ServerOptions]) -> None:
        self._serving = CallServing(untouched, **options)
        self._wrapped: dict[str, tuple[Any, Any]] = {}
        # The methods that were registered, and those that callers have made up and a generic handler has taken.
        self._known: set[str] = set()
        self._unknown: set[str] = set()

    def _contrib_down(self, whoami: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
        """Return a block in which contrib's interceptors further in stand back, where the spans are ours to make."""
        return stand_contrib_down(whoami) if self._serving.makes_spans else contextlib.nullcontext()

    def _is_known(self, details: Any, continuation: Any) -> bool:
        """Say whether a method that the server has a handler for was registered, so that it may name spans.

        A server's own table returns the same handler each time, and none for a method that nobody has registered. A
        generic handler that takes whatever callers name makes one for each call, or has one for all.
        """
        method = details.method
        if method in self._known or method in self._unknown or len(method) > _MAX_CHARACTERS:
            return method in self._known
        is_full = len(self._known) >= _MAX_METHODS
        found = self._known if not is_full and _is_registered(method_lookup(continuation), details) else self._unknown
        if len(self._unknown) >= _MAX_METHODS:
            self._unknown.clear()
        found.add(method)
        return found is self._known

    def _wrap_once(self, method: str, handler: Any, wrap: Callable[[str], Wrap]) -> Any:
        """Return the wrapped handler of a method, made anew only where the server finds another handler for it."""
        known = self._wrapped.get(method)
        if known is not None and known[0] is handler:
            return known[1]
        if len(self._wrapped) >= _MAX_METHODS:
            self._wrapped.clear()
        wrapped = _with_behavior(handler, wrap(method))
        self._wrapped[method] = handler, wrapped
        return wrapped


class TraceContextServerInterceptor(MethodInterceptor, grpc.ServerInterceptor):  # type: ignore[misc]  # grpcio has no types
    """Continues the caller's trace in a gRPC server: extracts, validates, and opens the SERVER span of each call.

    The handler, each step of its generators, its `finally` blocks and its callbacks run in the call's context. A
    malformed trace header is removed from what the handler sees, and the call starts a new trace. The span lasts until
    the handler is done. Where opentelemetry-instrumentation-grpc is installed too, there is one span all the same: its
    own where its interceptor is listed first, else ours.

    Args:
        untouched: Path patterns of calls that pass as if there were no interceptor: health and reflection by default.
        options: Each one that you leave out is what `configure()` decided.

            - `exclude`: path patterns of calls that get no span, such as `/shop.Pricing/Watch`;
            - `trust`: `continue`, `restart` or `ignore`, or a callable that takes a `RequestView` and returns one;
            - `server_spans`: `auto` or `off`;
            - `propagator`: reads the metadata;
            - `tracer_provider`: makes the spans.

    Raises:
        ValueError: An option holds a word or a pattern that is none.
        TypeError: An option is not known, or holds no propagator or tracer provider.
    """

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the method's handler, wrapped; grpcio calls this for each call."""
        method: str = handler_call_details.method
        if self._serving.passes_untouched(method):
            return continuation(handler_call_details)
        with self._contrib_down(threading.get_ident):
            handler = continuation(handler_call_details)
        if handler is None:
            return None
        return self._wrap_once(
            method, handler, partial(self._in_threads, self._is_known(handler_call_details, continuation))
        )

    def _in_threads(self, is_known: bool, method: str) -> Wrap:
        def serve(context: Any) -> Served:
            return self._serving.serve(method, context, lambda: not context.is_active(), is_known=is_known)

        def wrap(behavior: Behavior, response_streaming: bool) -> Behavior:
            if not response_streaming:
                return _returning(serve, behavior)
            return (_sending if is_non_blocking(behavior) else _streaming)(serve, behavior)

        return wrap


class AsyncTraceContextServerInterceptor(MethodInterceptor, grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Continues the caller's trace in a server of `grpc.aio`, as `TraceContextServerInterceptor` and with its options.

    Handlers may be coroutines, asynchronous generators, coroutines that read and write, or plain functions and
    generators that grpcio runs in threads.
    """

    async def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the method's handler, wrapped; grpcio awaits this for each call, in the call's own task."""
        method: str = handler_call_details.method
        if self._serving.passes_untouched(method):
            return await continuation(handler_call_details)
        with self._contrib_down(asyncio.current_task):
            handler = await continuation(handler_call_details)
        if handler is None:
            return None
        is_known = self._is_known(handler_call_details, continuation)
        if _is_asynchronous(_behavior(handler)):
            return self._wrap_once(method, handler, partial(self._in_loop, is_known))
        # A thread learns from nothing but the call's own task that the call is over, so each call has its own handler.
        return _with_behavior(handler, self._in_thread_of(is_known, method, asyncio.current_task()))

    def _in_loop(self, is_known: bool, method: str) -> Wrap:
        def serve(context: Any) -> Served:
            # The handler hears by CancelledError that its call is over, but one that awaits nothing more hears nothing.
            return self._serving.serve(method, context, partial(is_late, context), is_known=is_known)

        return lambda behavior, _: (_generating if inspect.isasyncgenfunction(behavior) else _awaiting)(serve, behavior)

    def _in_thread_of(self, is_known: bool, method: str, task: asyncio.Task[Any] | None) -> Wrap:
        assert task is not None  # noqa: S101  # a coroutine runs

        def serve(context: Any) -> Served:
            return self._serving.serve(method, context, task.done, is_known=is_known)

        def serve_stream(context: Any) -> Served:
            served = serve(context)
            # A generator may be left waiting for ever when the call is over.
            task.add_done_callback(lambda _: served.finish())
            return served

        def wrap(behavior: Behavior, response_streaming: bool) -> Behavior:
            # grpcio takes a list here, and any other iterable.
            return _streaming(serve_stream, behavior, iter) if response_streaming else _returning(serve, behavior)

        return wrap


def _is_registered(lookup: Callable[[Any], Any] | None, details: Any) -> bool:
    if lookup is None:
        return True
    nobodys = None
    # A generic handler of the application's own may not like what it is asked for, or not like to be asked again.
    with contextlib.suppress(Exception):
        service = details.method.rpartition("/")[0]
        nobodys = lookup(type(details)(f"{service}/{_NOBODYS_METHOD}", details.invocation_metadata))
    with contextlib.suppress(Exception):
        handler = lookup(details)
        return handler is lookup(details) and handler is not nobodys
    return False


def _kind(handler: Any) -> str:
    requests, responses = handler.request_streaming, handler.response_streaming
    return f"{'stream' if requests else 'unary'}_{'stream' if responses else 'unary'}"


def _behavior(handler: Any) -> Behavior:
    """Return the function that a handler holds."""
    found: Behavior = getattr(handler, _kind(handler))
    return found


def _with_behavior(handler: Any, wrap: Wrap) -> Any:
    """Return a handler that holds what *wrap* makes of the function of *handler*."""
    make = getattr(grpc, f"{_kind(handler)}_rpc_method_handler")
    return make(
        wrap(_behavior(handler), handler.response_streaming),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _is_asynchronous(behavior: Behavior) -> bool:
    """Say, as grpcio asks, whether a function runs in the event loop; what is wrapped must look the same."""
    return inspect.isasyncgenfunction(behavior) or inspect.iscoroutinefunction(behavior)


def _in_place_of(behavior: Behavior) -> Callable[[B], B]:
    """Return a decorator that gives a function the name of *behavior*, and what grpcio looks for on it."""

    def decorate(call: B) -> B:
        update_wrapper(call, behavior, updated=())
        copy_grpcio_marks(call, behavior)
        return call

    return decorate


def _returning(serve: Serve, behavior: Behavior) -> Behavior:
    @_in_place_of(behavior)
    def call(request: Any, context: Any) -> Any:
        with serve(context) as served:
            return served.run(behavior, request, served.context)

    return call


def _awaiting(serve: Serve, behavior: Behavior) -> Behavior:
    @_in_place_of(behavior)
    async def call(request: Any, context: Any) -> Any:
        with serve(context) as served:
            return await AwaitableSteps(served.run(behavior, request, served.context), served.run)

    return call


def _streaming(serve: Serve, behavior: Behavior, to_iterator: Callable[[Any], Any] | None = None) -> Behavior:
    @_in_place_of(behavior)
    def call(request: Any, context: Any) -> Any:
        served = serve(context)
        try:
            source = served.run(behavior, request, served.context)
            return _Responses(served, source if to_iterator is None else served.run(to_iterator, source))
        except BaseException as error:
            served.finish(error)
            raise

    return call


class _Responses(Iterator[Any]):
    """Takes each response of a handler in the call's context, and ends the call with the last one."""

    __slots__ = ("_served", "_source")

    def __init__(self, served: Served, source: Any) -> None:
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
            if isinstance(self._source, Generator | _Responses):
                self._served.run(self._source.close)
        finally:
            self._served.finish()

    def __del__(self) -> None:
        self.close()


def _generating(serve: Serve, behavior: Behavior) -> Behavior:
    @_in_place_of(behavior)
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        served = serve(context)
        source = served.run(behavior, request, served.context)
        steps: AsyncGeneratorSteps[Any, None] = AsyncGeneratorSteps(source, served.run)
        try:
            async for response in steps:
                yield response
        except BaseException as error:
            try:
                # Where the client has gone, the generator waits at a `yield`; the garbage collector would close it
                # elsewhere.
                await steps.aclose()
            finally:
                served.finish(error)
            raise
        served.finish()

    return call


def _sending(serve: Serve, behavior: Behavior) -> Behavior:
    @_in_place_of(behavior)
    def call(request: Any, context: Any, send_response: Callable[[Any], Any]) -> None:
        served = serve(context)

        def send(response: Any) -> Any:
            if response is None:
                served.finish()
            return send_response(response)

        # Where the client has gone, the handler may never come to its end.
        context.add_callback(served.finish)
        try:
            served.run(behavior, request, served.context, send)
        except BaseException as error:
            served.finish(error)
            raise

    return call
