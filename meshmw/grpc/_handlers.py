"""A method's handler with another function in its place, whatever its kind, made once for each method."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import update_wrapper
from typing import Any, Final, TypeVar

import grpc  # type: ignore[import-untyped]

from meshmw.grpc._serving import ServedCall, TracedServicerContext

# A method's handler with another function in its place, whatever its kind, made once for each method.


Behavior = Callable[..., Any]


B = TypeVar("B", bound=Behavior)


# A generic handler may serve any method that callers name.
_MAX_METHODS: Final = 1_024


# By whether requests and responses are streams.
_KINDS: Final = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


# grpcio looks for these on the function itself.
_GRPCIOS_OWN: Final = ("experimental_non_blocking", "experimental_thread_pool")


def behavior_of(handler: Any) -> Behavior:
    """Return the function that a handler calls."""
    name, _ = _KINDS[handler.request_streaming, handler.response_streaming]
    found: Behavior = getattr(handler, name)
    return found


def with_behavior(handler: Any, wrap: Callable[[Behavior, bool], Behavior]) -> Any:
    """Return a handler that calls what *wrap* makes of the function of *handler*, and whether its responses stream."""
    _, make = _KINDS[handler.request_streaming, handler.response_streaming]
    return make(
        wrap(behavior_of(handler), handler.response_streaming),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


class WrappedHandlers:
    """Keeps what has been made of each method's handler, for as long as the server finds that very handler for it."""

    __slots__ = ("_by_method",)

    def __init__(self) -> None:
        self._by_method: dict[str, tuple[Any, Any]] = {}

    def get(self, method: str, handler: Any) -> Any:
        """Return what was made of a handler, or None."""
        found = self._by_method.get(method)
        return found[1] if found is not None and found[0] is handler else None

    def keep(self, method: str, handler: Any, wrapped: Any) -> Any:
        """Keep what was made of a handler, and return it."""
        if len(self._by_method) >= _MAX_METHODS:
            self._by_method.clear()
        self._by_method[method] = (handler, wrapped)
        return wrapped


def in_place_of(behavior: Behavior) -> Callable[[B], B]:
    """Return a decorator that gives a function the name of *behavior*, and what grpcio looks for on it."""

    def decorate(call: B) -> B:
        update_wrapper(call, behavior, updated=())
        for name in _GRPCIOS_OWN:
            if hasattr(behavior, name):
                setattr(call, name, getattr(behavior, name))
        return call

    return decorate


# Functions in the place of handlers, for calls that threads serve.


# Begins to serve a call, given grpcio's servicer context.
Serve = Callable[[Any], ServedCall]


def returning(serve: Serve, behavior: Behavior) -> Behavior:
    """Return a function that serves calls whose handler returns one response."""

    @in_place_of(behavior)
    def call(request: Any, context: Any) -> Any:
        if isinstance(context, TracedServicerContext):
            return behavior(request, context)
        with serve(context) as served:
            return served.run(behavior, request, served.context)

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


def sending(serve: Serve, behavior: Behavior) -> Behavior:
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
