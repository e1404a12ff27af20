"""Which request a server task is serving, for servers that log it once its context is gone.

Knows context variables. Must not know loggers, nor any one server.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final, NamedTuple

from opentelemetry.trace import SpanContext


class Served(NamedTuple):
    """Is what a log line may tell of a request.

    Attributes:
        span_context: The span that serves it.
        method: Its method.
        path: Its path, decoded.
    """

    span_context: SpanContext
    method: str
    path: str


# Never reset: a server logs in the task that served, after the application has returned. Every request overwrites it.
_SERVED: Final[ContextVar[Served | None]] = ContextVar("meshmw-served", default=None)

# Whether anybody logs it: until then, nothing calls `note()`.
is_wanted = False


def want() -> None:
    """Have requests noted from now on."""
    global is_wanted
    is_wanted = True


def note(span_context: SpanContext, method: str, path: str) -> None:
    """Note which request this task serves."""
    _SERVED.set(Served(span_context, method, path))


def noted() -> Served | None:
    """Return the request that this task serves or served last; whoever asks must see whether it is the one he means."""
    return _SERVED.get()
