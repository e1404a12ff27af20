"""aiohttp: a client session that carries the current trace on every request, and the middleware of its server.

`meshmw.aiohttp.ClientSession` takes what `aiohttp.ClientSession` takes. The middleware in it,
`TraceContextClientMiddleware`, goes into a session that you make yourself. `TraceContextMiddleware` is the server's:

    web.Application(middlewares=[meshmw.aiohttp.TraceContextMiddleware()])
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Concatenate, Final, ParamSpec, TypeAlias, Unpack

from meshmw._aiohttp_server import TraceContextMiddleware
from meshmw._foreign import aiohttp_call_of, has_timed_out
from meshmw._lifecycle.http import HttpOperation
from meshmw._lifecycle.http_conventions import Target
from meshmw._lifecycle.operation import end_aside, end_dropped, watch_collections
from meshmw._lifecycle.serving import ServerOptions
from meshmw._otel import past_contrib
from meshmw._transports import ClientOptions, OutboundCalls
from meshmw.errors import extra_named

with extra_named("aiohttp", "aiohttp", "aiohttp"):
    import aiohttp
    from aiohttp import ClientHandlerType  # an aiohttp that has none knows no middleware of clients

__all__ = ["ClientOptions", "ClientSession", "ServerOptions", "TraceContextClientMiddleware", "TraceContextMiddleware"]

P = ParamSpec("P")
Init: TypeAlias = Callable[Concatenate[Any, P], None]
# The call that a task makes, and how often it has sent its request: aiohttp makes a new one for each hop.
_sent: ContextVar[tuple[object, int] | None] = ContextVar("meshmw-aiohttp-sent", default=None)
_SWITCHING_PROTOCOLS: Final = 101


class TraceContextClientMiddleware(OutboundCalls):
    """Sends each request of a session in a CLIENT span of the current trace, with the trace headers replaced.

        session = aiohttp.ClientSession(middlewares=(retry, TraceContextClientMiddleware()))

    It comes last among the middlewares, for each attempt and each hop of a redirect to have its own span. The span
    follows the HTTP client conventions and ends when the response's body was read or released; that of a WebSocket ends
    with the handshake.

    Args:
        options: Each one that you leave out has its default.

            - `propagator`: writes the headers; the configured one by default;
            - `tracer_provider`: makes the spans; the global one by default.

    Raises:
        TypeError: An option is not known, or holds no propagator or tracer provider.
    """

    def __init__(self, **options: Unpack[ClientOptions]) -> None:
        super().__init__(**options)
        watch_collections()

    async def __call__(self, request: aiohttp.ClientRequest, handler: ClientHandlerType) -> aiohttp.ClientResponse:
        """Send one request; the span ends when the response's body was read or released."""
        url, call = request.url, aiohttp_call_of(request)
        target = Target(url.scheme, url.host or "", url.port, url.raw_path_qs.encode("ascii", "replace"), str(url))
        operation = self._begin_in(request.headers, request.method, target, _sent_before(call))
        try:
            with self._sending(operation):
                response = await handler(request)
            _record(operation, response, call)
        except BaseException as error:
            operation.fail(TimeoutError() if has_timed_out(call) else error)
            operation.end()
            raise
        return response


def _record(operation: HttpOperation, response: aiohttp.ClientResponse, call: object) -> None:
    """Record the response, and end the operation when its connection is let go of, or nobody is left to read it."""
    operation.status(response.status, error_from=400)
    if operation.is_open and (version := response.version):
        operation.span.set_attribute("network.protocol.version", f"{version.major}.{version.minor}")
    connection, content = response.connection, response.content
    if connection is None or response.status == _SWITCHING_PROTOCOLS:
        operation.end()
        return

    def end() -> None:
        error = TimeoutError() if has_timed_out(call) else content.exception()
        # This very class says that the application has closed the response.
        if error is not None and type(error) is not aiohttp.ClientConnectionError:
            operation.fail(error)
        operation.end()

    connection.add_callback(lambda: end_dropped(end))
    # Not by what ends it: a body leads to its response.
    weakref.finalize(response, end_aside, operation.end)


def _sent_before(call: object) -> int:
    last = _sent.get()
    times = last[1] + 1 if last is not None and last[0] is call else 0
    _sent.set((call, times))
    return times


def _as_called(
    made: Callable[Concatenate[Any, P], None],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, P], None]]:
    """Return a decorator for an `__init__` that is called as another is, to type checkers and to `inspect`."""

    def decorate(init: Callable[..., None]) -> Init[P]:
        vars(init)["__signature__"] = inspect.signature(made)
        return init

    return decorate


class _Inheriting:
    """Stands before aiohttp's session, which warns of each class that inherits from it."""

    def __init_subclass__(cls) -> None:
        """Say nothing."""


class ClientSession(_Inheriting, aiohttp.ClientSession):
    """Takes what `aiohttp.ClientSession` takes and does what it does, with the current trace on every request.

    A request that is given `middlewares` of its own uses these and none of the session's, as aiohttp has it: name a
    `TraceContextClientMiddleware()` among them, the last.
    """

    @_as_called(aiohttp.ClientSession.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = tuple(kwargs.get("middlewares") or ())
        is_named = any(isinstance(each, TraceContextClientMiddleware) for each in given)
        kwargs["middlewares"] = given if is_named else (*given, TraceContextClientMiddleware())
        # Contrib's instrumentation would have a span around all hops.
        past_contrib(super().__init__)(*args, **kwargs)


def __dir__() -> list[str]:
    return sorted(__all__)
