"""aiohttp's own server: the middleware that `meshmw.aiohttp` offers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Unpack

from meshmw._foreign import aiohttp_request_with
from meshmw._lifecycle.http import OPERATION
from meshmw._lifecycle.serving import ServerOptions
from meshmw.errors import extra_named
from meshmw.server import ServerSpan, TraceContextBoundary

with extra_named("aiohttp", "aiohttp", "aiohttp"):
    from aiohttp import Payload, web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# aiohttp 3.14 warns of a text here, and older ones have nothing else.
_SERVED: Final[Any] = getattr(web, "RequestKey", lambda name, _: name)(OPERATION, object)
# What aiohttp answers for it.
_STATUS_OF_A_TIMEOUT: Final = 504


class TraceContextMiddleware:
    """Continues the caller's trace in an aiohttp application: extracts, validates, attaches, and opens the SERVER span.

        web.Application(middlewares=[meshmw.aiohttp.TraceContextMiddleware()])

    Put it first, so that the others run in the request's context. A malformed trace header is removed from the request
    that the handler gets. The span is named after the matched resource. It ends when the handler has returned: of a
    stream the last byte is out then, and any other response goes out afterwards. A file, and a body that is made as it
    goes out, such as an async generator, go out in the request's context, and the span ends with their last byte.

    Args:
        options: Those of `meshmw.wsgi.TraceContextMiddleware`. Each that you leave out is what `configure()` decided.

    Raises:
        ValueError: An option holds a word or a pattern that is none.
        TypeError: An option is not known, or holds no propagator or tracer provider.
    """

    # By this aiohttp tells middleware from the factories that it had before.
    __middleware_version__ = 1

    def __init__(self, **options: Unpack[ServerOptions]) -> None:
        self._boundary = TraceContextBoundary(**options)

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Serve one request."""
        if _SERVED in request:
            return await handler(request)
        span = self._begun(request)
        request[_SERVED] = span
        if span.headers is not request.headers:
            request = aiohttp_request_with(request, span.headers)
        span.set_route(_route_of(request))
        failed_with: BaseException | None = None
        is_sent_later = False
        try:
            with span.current():
                response = await handler(request)
            # For what is no response aiohttp answers so.
            span.set_status(getattr(response, "status", 500))
            is_sent_later = _is_made_later(response)
            return _sent_within(request, response, span) if is_sent_later else response
        except BaseException as error:
            failed_with = error
            if isinstance(error, web.HTTPException) and not _has_answered(request):
                span.set_status(error.status)
                failed_with = None
            elif _has_answered(request):
                # The status has gone out, and nobody says which; 500 it is not.
                span.record_exception(error)
                failed_with = _Unfinished()
            elif isinstance(error, TimeoutError):
                span.set_status(_STATUS_OF_A_TIMEOUT)
            raise
        finally:
            if not is_sent_later:
                span.end(failed_with)

    def _begun(self, request: web.Request) -> ServerSpan:
        major, minor = request.version
        return self._boundary.span(
            request.headers,
            method=request.method,
            target=request.raw_path,
            scheme=request.scheme,
            peer=_peer(request),
            http_version=f"HTTP/{major}.{minor}",
        ).begin()


class _Unfinished(BaseException):
    """Says that an answer has broken off, and nothing else."""


def _has_answered(request: web.Request) -> bool:
    """Say whether the head of an answer has gone out; a test double's writer may say anything."""
    size: object = request.writer.output_size
    return isinstance(size, int) and size > 0


def _is_made_later(response: Any) -> bool:
    """Say whether the application's part of a response comes after its handler: aiohttp finds a file's status then."""
    if getattr(response, "prepared", True):
        return False
    return isinstance(response, web.FileResponse) or isinstance(getattr(response, "body", None), Payload)


def _sent_within(request: web.Request, response: web.StreamResponse, span: ServerSpan) -> web.StreamResponse:
    """Return a response that goes out in its request's span and context; the span ends with its last byte."""
    prepare, write_eof = response.prepare, response.write_eof

    async def step(send: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        try:
            with span.current():
                found = await send(*args)
            span.set_status(response.status)
            return found
        except BaseException as error:
            # A client that has gone is no error of the application's.
            has_gone = isinstance(error, ConnectionError) and request.transport is None
            span.end(_Unfinished() if has_gone else error)
            raise

    async def finish(*args: Any) -> None:
        await step(write_eof, *args)
        span.end()
        # The two lead back to the response: in a circle that only the garbage collector finds.
        del response.prepare, response.write_eof

    vars(response).update(prepare=partial(step, prepare), write_eof=finish)
    return response


def _peer(request: web.Request) -> Any:
    """Return the client's address; with its port, unless another middleware has put the address in its place."""
    transport = request.transport
    peer = None if transport is None else transport.get_extra_info("peername")
    return peer if isinstance(peer, tuple) and peer[0] == request.remote else request.remote


def _route_of(request: web.Request) -> str | None:
    resource = request.match_info.route.resource
    return None if resource is None else resource.canonical
