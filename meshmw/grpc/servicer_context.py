"""The servicer context as a handler gets it: clean metadata, callbacks inside the trace, and a note of the status.

Knows the interfaces of grpcio's three servicer contexts. Must not know spans.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping
from typing import Any

import grpc  # type: ignore[import-untyped]

from meshmw.grpc.metadata import rewritten

_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


class TracedServicerContext:
    """Is grpcio's servicer context in everything but what is written here.

    Args:
        context: grpcio's own, of a sync or an aio server, or of a sync handler on an aio server.
        rewrites: Headers that the handler must not see as they came.
        copy: Returns a copy of the call's context variables, for callbacks.

    Attributes:
        code: The name of the status code that the handler has set, if it has.
        aborted: Whether the handler has aborted the call.
    """

    def __init__(
        self, context: Any, rewrites: Mapping[str, str | None], copy: Callable[[], contextvars.Context]
    ) -> None:
        self._context = context
        self._rewrites = rewrites
        self._copy = copy
        self.code_name: str | None = None
        self.aborted = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._context, name)
        # Each kind of server has one of the two; what they register is to see the call's context.
        if name == "add_callback":
            return lambda callback: found(lambda: self._copy().run(callback))
        if name == "add_done_callback":
            return lambda callback: found(lambda _: self._copy().run(callback, self))
        return found

    def invocation_metadata(self) -> Any:
        """Return the metadata that came with the call, without malformed trace headers."""
        return rewritten(self._context.invocation_metadata(), self._rewrites)

    def set_code(self, code: Any) -> None:
        """Set the status code, and note it."""
        self._context.set_code(code)
        self._note(code)

    def abort(self, code: Any, *args: Any, **kwargs: Any) -> Any:
        """Abort the call, and note the status; on an aio server this is to be awaited."""
        self._note(code, aborted=True)
        return self._context.abort(code, *args, **kwargs)

    def abort_with_status(self, status: Any) -> Any:
        """Abort the call, and note the status; on an aio server this is to be awaited."""
        self._note(status.code, aborted=True)
        return self._context.abort_with_status(status)

    def _note(self, code: Any, *, aborted: bool = False) -> None:
        self.aborted = self.aborted or aborted
        # A server with threads takes no numbers.
        by_number = {} if isinstance(self._context, grpc.ServicerContext) else _BY_NUMBER
        known = code if isinstance(code, grpc.StatusCode) else by_number.get(code)
        # grpcio makes UNKNOWN of what is no code, and of an abort that says OK.
        if known is None or (aborted and known is grpc.StatusCode.OK):
            known = grpc.StatusCode.UNKNOWN
        self.code_name = known.name


# Not a subclass: that would answer for the methods which this passes on.
grpc.ServicerContext.register(TracedServicerContext)
