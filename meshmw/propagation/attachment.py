"""How a block takes back the context that it has attached, wherever it ends.

Knows OpenTelemetry's context. Must not know what is in it.
"""

from __future__ import annotations

import contextlib
from contextvars import Token

from opentelemetry import context as otel_context
from opentelemetry.context import Context


def take_back(token: Token[Context], context: Context, kind: type[BaseException] | None) -> None:
    """Detach *context* at the end of the block that has attached it.

    Args:
        token: What `attach` returned.
        context: What was attached.
        kind: The class of the exception with which the block ends, if there is one.
    """
    if kind is not GeneratorExit:
        otel_context.detach(token)
    elif otel_context.get_current() is context:
        # A coroutine that nobody finished is closed by the garbage collector, wherever that happens to run: in a task
        # that the block itself has started the very same context is current, and `detach` would log an error.
        with contextlib.suppress(ValueError):
            token.var.reset(token)
