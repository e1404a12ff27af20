"""Django: a middleware that names the SERVER span of `meshmw.asgi` or `meshmw.wsgi` after the matched URL pattern."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from typing import Any

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
    _listen()
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


def _operation_of(request: Any) -> HttpOperation | None:
    # An ASGIRequest has its scope; META of a WSGIRequest is the environ.
    found = getattr(request, "scope", request.META).get(OPERATION)
    return found if isinstance(found, HttpOperation) else None


def _name_after_pattern(request: Any) -> None:
    operation, match = _operation_of(request), request.resolver_match
    if operation is not None and match is not None:
        root = known_root(str(request.META.get("SCRIPT_NAME", "")).rstrip("/"))
        if root is not None:
            operation.route(f"{root}/{match.route}")


def _listen() -> None:
    from django.core.signals import got_request_exception  # type: ignore[import-untyped]

    # Once, however many handlers load the middleware.
    got_request_exception.connect(_record, weak=False, dispatch_uid="meshmw.django")


def _record(request: Any = None, **_: Any) -> None:
    # Django says for which request, and leaves the exception where `sys` finds it.
    error, operation = sys.exception(), None if request is None else _operation_of(request)
    if error is not None and operation is not None:
        operation.fail(error)
