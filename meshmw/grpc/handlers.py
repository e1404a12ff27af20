"""A method's handler with another function in its place, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any, Final, TypeVar

import grpc  # type: ignore[import-untyped]

Behavior = Callable[..., Any]
B = TypeVar("B", bound=Behavior)

# By whether requests and responses are streams.
_KINDS: Final = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
# grpcio looks for these on the function itself.
_GRPCIOS_OWN: Final = ("experimental_non_blocking", "experimental_thread_pool")


def with_behavior(handler: Any, wrap: Callable[[Behavior, bool], Behavior]) -> Any:
    """Return a handler that calls what *wrap* makes of the function of *handler*, and whether its responses stream."""
    name, make = _KINDS[handler.request_streaming, handler.response_streaming]
    return make(
        wrap(getattr(handler, name), handler.response_streaming),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def in_place_of(behavior: Behavior) -> Callable[[B], B]:
    """Return a decorator that gives a function the name of *behavior*, and what grpcio looks for on it."""

    def decorate(call: B) -> B:
        update_wrapper(call, behavior, updated=())
        for name in _GRPCIOS_OWN:
            if hasattr(behavior, name):
                setattr(call, name, getattr(behavior, name))
        return call

    return decorate
