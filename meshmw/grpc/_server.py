"""The interceptor for servers of `grpc.server`, with a thread for each call."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, Unpack

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]

from meshmw._context.current import stand_contrib_down
from meshmw._lifecycle.serving import ServerOptions
from meshmw.grpc._handlers import (
    Behavior,
    Serve,
    WrappedHandlers,
    behavior_of,
    in_place_of,
    returning,
    sending,
    streaming,
    with_behavior,
)
from meshmw.grpc._serving import UNTOUCHED, CallServing, ServedCall, TracedServicerContext
from meshmw.streams import AsyncGeneratorSteps, AwaitableSteps


class MethodInterceptor:
    """Holds the options of a server interceptor, and each method's handler once it is wrapped.

    Args:
        untouched: Path patterns of calls that pass as if there were no interceptor.
        options: Those that every server's adapter takes.
    """

    def __init__(self, *, untouched: Sequence[str] = UNTOUCHED, **options: Unpack[ServerOptions]) -> None:
        self._serving = CallServing(untouched, **options)
        self._handlers = WrappedHandlers()

    def _contrib_down(self, whoami: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
        """Return a block in which contrib's interceptors further in stand back, where the spans are ours to make."""
        return stand_contrib_down(whoami) if self._serving.makes_spans else contextlib.nullcontext()


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
    """

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the method's handler, wrapped; grpcio calls this for each call."""
        method: str = handler_call_details.method
        if self._serving.leaves(method):
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
        return self._serving.serve(method, context, lambda: not context.is_active())


def _wrapped(serve: Serve, behavior: Behavior, response_streaming: bool) -> Behavior:
    if not response_streaming:
        return returning(serve, behavior)
    if getattr(behavior, "experimental_non_blocking", False):
        return sending(serve, behavior)
    return streaming(serve, behavior)


# The interceptor for servers of `grpc.aio.server`, whatever style their handlers have.


class AsyncTraceContextServerInterceptor(MethodInterceptor, grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Does as `TraceContextServerInterceptor` for a server of `grpc.aio`, with the same options.

    Handlers may be coroutines, asynchronous generators, coroutines that read and write, or plain functions and
    generators that grpcio runs in threads.
    """

    async def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the method's handler, wrapped; grpcio awaits this for each call, in the call's own task."""
        method: str = handler_call_details.method
        if self._serving.leaves(method):
            return await continuation(handler_call_details)
        with self._contrib_down(asyncio.current_task):
            handler = await continuation(handler_call_details)
        if handler is None:
            return None
        known = self._handlers.get(method, handler)
        if known is not None:
            return known
        if _is_asynchronous(behavior_of(handler)):
            wrapped = with_behavior(handler, partial(_wrapped_aio, partial(self._serve, method, _never)))
            return self._handlers.keep(method, handler, wrapped)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine runs
        return with_behavior(handler, partial(_in_thread, partial(self._serve, method, task.done), task))

    def _serve(self, method: str, is_over: Callable[[], bool], context: Any) -> ServedCall:
        return self._serving.serve(method, context, is_over)


def _is_asynchronous(behavior: Behavior) -> bool:
    """Say, as grpcio asks, whether a handler runs in the event loop; what is wrapped must look the same."""
    return inspect.isasyncgenfunction(behavior) or inspect.iscoroutinefunction(behavior)


def _wrapped_aio(serve: Serve, behavior: Behavior, _response_streaming: bool) -> Behavior:
    return (_generating if inspect.isasyncgenfunction(behavior) else _awaiting)(serve, behavior)


def _in_thread(serve: Serve, task: asyncio.Task[Any], behavior: Behavior, response_streaming: bool) -> Behavior:
    if not response_streaming:
        return returning(serve, behavior)
    return streaming(partial(_serve_in_thread, serve, task), behavior, iter)


def _never() -> bool:
    """Say that a call is not over: its handler hears of it as CancelledError."""
    return False


def _serve_in_thread(serve: Serve, task: asyncio.Task[Any], context: Any) -> ServedCall:
    """Begin to serve a call whose generator may be left waiting for ever when the call is over."""
    served = serve(context)
    task.add_done_callback(lambda _: served.finish())
    return served


def _awaiting(serve: Serve, behavior: Behavior) -> Behavior:
    @in_place_of(behavior)
    async def call(request: Any, context: Any) -> Any:
        if isinstance(context, TracedServicerContext):
            return await behavior(request, context)
        with serve(context) as served:
            return await AwaitableSteps(served.run(behavior, request, served.context), served.run)

    return call


def _generating(serve: Serve, behavior: Behavior) -> Behavior:
    @in_place_of(behavior)
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        if isinstance(context, TracedServicerContext):
            async for response in behavior(request, context):
                yield response
            return
        served = serve(context)
        steps: AsyncGeneratorSteps[Any, None] = AsyncGeneratorSteps(
            served.run(behavior, request, served.context), served.run
        )
        try:
            async for response in steps:
                yield response
        except BaseException as error:
            try:
                # The generator stands at a `yield` where the client has gone; its own end of life would be elsewhere.
                await steps.aclose()
            finally:
                served.finish(error)
            raise
        served.finish()

    return call
