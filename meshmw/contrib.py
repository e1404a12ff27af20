"""opentelemetry-instrumentation-asgi, where that is to make the SERVER span below our extraction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from opentelemetry import trace

from meshmw.errors import MissingExtraError


def require_contrib() -> Any:
    """Return contrib's ASGI middleware class.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    except ModuleNotFoundError as missing:
        raise MissingExtraError("opentelemetry-instrumentation-asgi", "contrib") from missing
    return OpenTelemetryMiddleware


def under_contrib(
    app: Callable[..., Awaitable[None]], tracer_provider: trace.TracerProvider | None
) -> Callable[..., Awaitable[None]]:
    """Return an ASGI application inside contrib's middleware."""
    wrapped: Callable[..., Awaitable[None]] = require_contrib()(app, tracer_provider=tracer_provider)
    return wrapped
