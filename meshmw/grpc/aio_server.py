"""The interceptor for servers of `grpc.aio.server`, whatever style their handlers have.

Knows how grpcio runs handlers in tasks, and sync handlers in threads beside them. Must not know formats, nor how a span
lives.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc.aio  # type: ignore[import-untyped]

from meshmw.grpc.behaviors import Serve, returning, streaming
from meshmw.grpc.handlers import Behavior, behavior_of, in_place_of, with_behavior
from meshmw.grpc.interception import MethodInterceptor
from meshmw.grpc.servicer_context import TracedServicerContext
from meshmw.grpc.serving import ServedCall
from meshmw.streams import AsyncGeneratorSteps, AwaitableSteps


class AsyncTraceContextServerInterceptor(MethodInterceptor, grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Does as `TraceContextServerInterceptor` for a server of `grpc.aio`, with the same options.

    Handlers may be coroutines, asynchronous generators, coroutines that read and write, or plain functions and
    generators that grpcio runs in threads.
    """

    async def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the method's handler, wrapped; grpcio awaits this for each call, in the call's own task."""
        method: str = handler_call_details.method
        if self._options.leaves(method):
            return await continuation(handler_call_details)
        with self._contrib_down(asyncio.current_task):
            handler = await continuation(handler_call_details)
        if handler is None:
            return None
        known = self._handlers.get(method, handler)
        if known is not None:
            return known
        if _is_asynchronous(behavior_of(handler)):
            wrapped = with_behavior(handler, partial(_wrapped, partial(self._serve, method, _never)))
            return self._handlers.keep(method, handler, wrapped)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine runs
        return with_behavior(handler, partial(_in_thread, partial(self._serve, method, task.done), task))

    def _serve(self, method: str, is_over: Callable[[], bool], context: Any) -> ServedCall:
        return self._options.serve(method, context, is_over)


def _is_asynchronous(behavior: Behavior) -> bool:
    """Say, as grpcio asks, whether a handler runs in the event loop; what is wrapped must look the same."""
    return inspect.isasyncgenfunction(behavior) or inspect.iscoroutinefunction(behavior)


def _wrapped(serve: Serve, behavior: Behavior, _response_streaming: bool) -> Behavior:
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
