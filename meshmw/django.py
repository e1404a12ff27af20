"""Django: a middleware that names the SERVER span of `meshmw.asgi` or `meshmw.wsgi` after the matched URL pattern."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from typing import Any

from meshmw._lifecycle.http import HttpOperation
from meshmw.wsgi import OPERATION

__all__ = ["route_middleware"]


def __dir__() -> list[str]:
    return sorted(__all__)


def route_middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Name each request's SERVER span after the URL pattern that matched; for `MIDDLEWARE` in Django's settings.

    It takes no thread, in either mode, and does nothing for a request that no middleware of ours began.
    """
    if iscoroutinefunction(get_response):
        answer: Callable[[Any], Awaitable[Any]] = get_response

        async def middleware_async(request: Any) -> Any:
            try:
                return await answer(request)
            finally:
                _name_after_pattern(request)

        return middleware_async

    def middleware(request: Any) -> Any:
        try:
            return get_response(request)
        finally:
            _name_after_pattern(request)

    return middleware


# As Django's decorator `sync_and_async_middleware` marks it.
vars(route_middleware).update(sync_capable=True, async_capable=True)


def _name_after_pattern(request: Any) -> None:
    # An ASGIRequest has its scope; META of a WSGIRequest is the environ.
    operation = getattr(request, "scope", request.META).get(OPERATION)
    match = request.resolver_match
    if isinstance(operation, HttpOperation) and match is not None:
        operation.route(f"/{match.route}")
