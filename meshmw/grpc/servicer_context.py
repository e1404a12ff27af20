"""The servicer context as a handler gets it: clean metadata, callbacks inside the trace, and a note of the status.

Knows the interfaces of grpcio's three servicer contexts. Must not know spans.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
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
        code_name: The name of the status code that the handler has set, if it has.
        aborted: Whether the handler has aborted the call.
    """

    __slots__ = ("_context", "_copy", "_rewrites", "aborted", "code_name")

    _context: Any
    _copy: Callable[[], contextvars.Context]
    _rewrites: Mapping[str, str | None]
    aborted: bool
    code_name: str | None

    def __init__(
        self, context: Any, rewrites: Mapping[str, str | None], copy: Callable[[], contextvars.Context]
    ) -> None:
        own = object.__setattr__
        own(self, "_context", context)
        own(self, "_rewrites", rewrites)
        own(self, "_copy", copy)
        own(self, "code_name", None)
        own(self, "aborted", False)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._context, name)
        # Each kind of server has one of the two; what they register is to see the call's context.
        if name == "add_callback":
            return lambda callback: found(lambda: self._copy().run(callback))
        if name == "add_done_callback":
            return lambda callback: found(lambda _: self._copy().run(callback, self))
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        # An interceptor further out may look for what a handler has noted there.
        setattr(self._context, name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> type[Any]:
        """Return grpcio's class: `isinstance` answers as it would without this."""
        return type(self._context)

    def invocation_metadata(self) -> Any:
        """Return the metadata that came with the call, without malformed trace headers."""
        return rewritten(self._context.invocation_metadata(), self._rewrites)

    def set_code(self, code: Any) -> None:
        """Set the status code, and note it."""
        self._context.set_code(code)
        self._note(code)

    def abort(self, code: Any, *args: Any, **kwargs: Any) -> Any:
        """Abort the call, and note the status; on an aio server this is to be awaited."""
        with self._noted(code):
            return self._context.abort(code, *args, **kwargs)

    def abort_with_status(self, status: Any) -> Any:
        """Abort the call, and note the status; on an aio server this is to be awaited."""
        with self._noted(status.code):
            return self._context.abort_with_status(status)

    @contextlib.contextmanager
    def _noted(self, code: Any) -> Iterator[None]:
        """Note an abort, unless grpcio says that it was not called as it must be."""
        before = self.code_name
        self._note(code, aborted=True)
        try:
            yield
        except TypeError:
            object.__setattr__(self, "aborted", False)
            object.__setattr__(self, "code_name", before)
            raise

    def _note(self, code: Any, *, aborted: bool = False) -> None:
        object.__setattr__(self, "aborted", self.aborted or aborted)
        # A server with threads takes no numbers.
        by_number = {} if isinstance(self._context, grpc.ServicerContext) else _BY_NUMBER
        known = code if isinstance(code, grpc.StatusCode) else by_number.get(code)
        # grpcio makes UNKNOWN of what is no code, and of an abort that says OK.
        if known is None or (aborted and known is grpc.StatusCode.OK):
            known = grpc.StatusCode.UNKNOWN
        object.__setattr__(self, "code_name", known.name)
