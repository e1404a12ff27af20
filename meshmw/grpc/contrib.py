"""opentelemetry-instrumentation-grpc, where it is loaded: told to stand back inside our interceptors."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from meshmw.boundary.operation import Current

_CONTRIB: Final = "opentelemetry.instrumentation.grpc"
# contrib's packages look for this key in the current context before they do anything.
_SUPPRESS: Final = "suppress_instrumentation"


class _WhereItWasMade:
    """Is true in the thread or task that made it, and nowhere else.

    grpcio starts threads and tasks further in. They copy the context, and some of them outlive the call by far; what
    they run is not to be suppressed.
    """

    __slots__ = ("_here", "_whoami")

    def __init__(self, whoami: Callable[[], object]) -> None:
        self._whoami = whoami
        self._here = whoami()

    def __bool__(self) -> bool:
        return self._whoami() == self._here


def stand_contrib_down(whoami: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
    """Return a block in which contrib's interceptors pass calls on untouched; nothing where contrib is not loaded.

    Args:
        whoami: Names the thread or the task that runs: `threading.get_ident` or `asyncio.current_task`.
    """
    if _CONTRIB not in sys.modules:
        return contextlib.nullcontext()
    return Current(Context({**otel_context.get_current(), _SUPPRESS: _WhereItWasMade(whoami)}))
