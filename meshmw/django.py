"""Django: a middleware that names the SERVER span of `meshmw.asgi` or `meshmw.wsgi` after the matched URL pattern."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from typing import Any, Final

from meshmw._frameworks import Told, carrier_of, listen, record_answered, tell_route

__all__ = ["route_middleware"]

# Where a request holds what its view has raised, until it is answered and no longer.
_RAISED: Final = "_meshmw_raised"


def __dir__() -> list[str]:
    return sorted(__all__)


def route_middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Name each request's SERVER span after the URL pattern that matched; for `MIDDLEWARE` in Django's settings.

    It also records the exceptions that Django answers itself, with 500, and those of views that another middleware
    answers with 5xx, of the middleware that stands before it in the list. It takes no thread, in either mode, and does
    nothing for a request that no middleware of ours began.
    """
    listen()
    if iscoroutinefunction(get_response):
        answer: Callable[[Any], Awaitable[Any]] = get_response

        async def middleware_async(request: Any) -> Any:
            response = None
            try:
                response = await answer(request)
                return response
            finally:
                _tell(request, response)

        return _noting_exceptions(middleware_async)

    def middleware(request: Any) -> Any:
        response = None
        try:
            response = get_response(request)
            return response
        finally:
            _tell(request, response)

    return _noting_exceptions(middleware)


# As Django's decorator `sync_and_async_middleware` marks it.
vars(route_middleware).update(sync_capable=True, async_capable=True)


def _noting_exceptions(middleware: Callable[[Any], Any]) -> Callable[[Any], Any]:
    # Django calls it for what a view raises, in the view's own thread.
    vars(middleware)["process_exception"] = _note_exception
    return middleware


def _note_exception(request: Any, exception: Exception) -> None:
    vars(request)[_RAISED] = exception


def _tell(request: Any, response: Any) -> None:
    carrier, match = carrier_of(request), request.resolver_match
    error = vars(request).pop(_RAISED, None)
    if error is not None and response is not None and response.status_code >= 500:
        record_answered(carrier, error)
    if match is not None:
        tell_route(carrier, Told(str(request.META.get("SCRIPT_NAME", "")), f"/{match.route}"))
