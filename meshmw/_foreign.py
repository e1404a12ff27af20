"""Every name of httpx, grpcio or a broker's client that its owner calls private, one function each.

Nothing is imported here: each function looks at an object that the application has made. It says what it assumes and
falls back where that does not hold; `tests/test_foreign.py` has a test for each, with the real package. Names that
OpenTelemetry calls private are in `_otel`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

ClientClass = TypeVar("ClientClass", bound=type[Any])


def wraps_transports(wrapper: type[Any]) -> Callable[[ClientClass], ClientClass]:
    """Return a decorator for a subclass of an httpx client, by which each transport of the client is used in *wrapper*.

    httpx has no public hook for that. It asks its `_transport_for_url` for the transport of each request: the client's
    own, a proxy's or a mounted one. A client that does not ask has its `_transport` and `_mounts` wrapped when it is
    made; where these are gone too, its requests carry no trace.
    """

    def wrapped(transport: Any) -> Any:
        return transport if transport is None or isinstance(transport, wrapper) else wrapper(transport)

    def decorate(client: ClientClass) -> ClientClass:
        if hasattr(client, "_transport_for_url"):
            _wrap_when_asked(client, wrapped)
        else:
            _wrap_when_made(client, wrapped)
        return client

    return decorate


def _wrap_when_asked(client: Any, wrapped: Callable[[Any], Any]) -> None:
    choose = client._transport_for_url

    @functools.wraps(choose)
    def transport_for_url(self: Any, url: Any) -> Any:
        return wrapped(choose(self, url))

    client._transport_for_url = transport_for_url


def _wrap_when_made(client: Any, wrapped: Callable[[Any], Any]) -> None:
    make = client.__init__

    @functools.wraps(make)
    def init(self: Any, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        self._transport = wrapped(getattr(self, "_transport", None))
        self._mounts = {pattern: wrapped(each) for pattern, each in getattr(self, "_mounts", {}).items()}

    client.__init__ = init
