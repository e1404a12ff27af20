"""The block in which one operation is current.

Knows the life of an operation. Must not know what is operated on.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import cast

from opentelemetry.trace import Span

from meshmw.boundary.operation import Current, Operation


class OperationScope:
    """Is a block in which one operation is current, and at whose end it has ended; for one use.

    Works in `async` functions as it is. Whatever the block raises is recorded and goes on.

    Args:
        begin: Begins the operation, when the block is entered.
    """

    __slots__ = ("_begin", "_current", "operation")

    operation: Operation | None

    def __init__(self, begin: Callable[[], Operation]) -> None:
        self._begin = begin
        self.operation = None

    def __enter__(self) -> Span:
        if self.operation is not None:
            raise RuntimeError("this block was entered before; make one for each message")
        self.operation = operation = self._begin()
        self._current: Current = operation.current()
        self._current.__enter__()
        return operation.span

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._current.__exit__(kind, error, at)
        operation = cast(Operation, self.operation)
        if error is not None:
            operation.fail(error)
        operation.end()
