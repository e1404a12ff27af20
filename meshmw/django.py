"""Django: a middleware that names the SERVER span of `meshmw.asgi` or `meshmw.wsgi` after the matched URL pattern."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from typing import Any

from meshmw._frameworks import listen_for_exceptions
from meshmw._lifecycle.http import OPERATION, HttpOperation
from meshmw._lifecycle.http_conventions import known_root

__all__ = ["route_middleware"]


def __dir__() -> list[str]:
    return sorted(__all__)


def route_middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Name each request's SERVER span after the URL pattern that matched; for `MIDDLEWARE` in Django's settings.

    It also records the exceptions that Django answers itself, with 500. It takes no thread, in either mode, and does
    nothing for a request that no middleware of ours began.
    """
    listen_for_exceptions()
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
    carrier, match = getattr(request, "scope", request.META), request.resolver_match
    operation = carrier.get(OPERATION)
    if isinstance(operation, HttpOperation) and match is not None:
        root = known_root(str(request.META.get("SCRIPT_NAME", "")).rstrip("/"))
        if root is not None:
            operation.route(f"{root}/{match.route}")
