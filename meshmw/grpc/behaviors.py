"""Functions in the place of handlers, for calls that threads serve.

Knows what grpcio asks of a handler's function, and what it does with what that returns. Must not know how a method's
handler is found.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

from meshmw.grpc.handlers import Behavior, in_place_of
from meshmw.grpc.servicer_context import TracedServicerContext
from meshmw.grpc.serving import ServedCall

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
