"""Django: the SERVER span's name from Django's own URL resolver. The middleware of `meshmw.asgi` or `.wsgi` makes it.

Knows Django's requests. Must not know the formats, nor how a span lives.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from meshmw.boundary.http import HttpOperation
from meshmw.errors import MissingExtraError
from meshmw.wsgi import OPERATION

try:
    from django.utils.decorators import sync_and_async_middleware
except ModuleNotFoundError as missing:  # pragma: no cover - the bare install's own check meets it
    raise MissingExtraError("Django", "django") from missing

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponseBase


@sync_and_async_middleware
def route_middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Name each request's SERVER span after the URL pattern that matched; for `MIDDLEWARE` in Django's settings.

    It awaits and waits for nothing, in either mode, and does nothing for a request that no middleware of ours began.
    """
    if iscoroutinefunction(get_response):
        answer: Callable[[HttpRequest], Awaitable[HttpResponseBase]] = get_response

        async def middleware_async(request: HttpRequest) -> HttpResponseBase:
            try:
                return await answer(request)
            finally:
                _name_after_pattern(request)

        return middleware_async

    def middleware(request: HttpRequest) -> HttpResponseBase:
        try:
            return get_response(request)  # type: ignore[no-any-return]  # whatever comes next answers
        finally:
            _name_after_pattern(request)

    return middleware


def _name_after_pattern(request: HttpRequest) -> None:
    # An ASGIRequest has its scope; META of a WSGIRequest is the environ.
    operation = getattr(request, "scope", request.META).get(OPERATION)
    match = request.resolver_match
    if isinstance(operation, HttpOperation) and match is not None:
        operation.route(f"/{match.route}")
