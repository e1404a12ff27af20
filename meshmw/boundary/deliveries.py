"""Messages that an iterator hands out, each with the block in which to process it.

A generator that made a span current around its `yield` would make it current for whoever consumes it, and could not
take it back where the loop ends early. So nothing is current, and no span begun, until the loop's body says where.
Knows the life of an operation. Must not know how messages are fetched.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

from meshmw.boundary.operation import Operation
from meshmw.boundary.operation_scope import OperationScope

T = TypeVar("T")
Begin = Callable[[Any], Operation]


class Delivery(Generic[T]):
    """Is one message that an iterator handed out: `with delivery as message:` processes it, in a span of its own.

    There is no span before the block and none without it: what is handed out and not processed leaves nothing behind.

    Attributes:
        message: What the client's own iterator would have handed out.
    """

    __slots__ = ("_scope", "message")

    def __init__(self, message: T, begin: Callable[[], Operation]) -> None:
        self.message = message
        self._scope = OperationScope(begin)

    def __enter__(self) -> T:
        self._scope.__enter__()
        return self.message

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._scope.__exit__(kind, error, at)


class Deliveries(Iterator[Delivery[Any]]):
    """Asks for one message at a time.

    Args:
        fetch: Returns the next message, or raises StopIteration.
        begin: Begins to process a message.
    """

    def __init__(self, fetch: Callable[[], Any], begin: Begin) -> None:
        self._fetch = fetch
        self._begin = begin

    def __next__(self) -> Delivery[Any]:
        message = self._fetch()
        return Delivery(message, partial(self._begin, message))


class AsyncDeliveries(AsyncIterator[Delivery[Any]]):
    """Asks for one message at a time.

    Args:
        fetch: Returns the next message, or raises StopAsyncIteration.
        begin: Begins to process a message.
    """

    def __init__(self, fetch: Callable[[], Awaitable[Any]], begin: Begin) -> None:
        self._fetch = fetch
        self._begin = begin

    async def __anext__(self) -> Delivery[Any]:
        message = await self._fetch()
        return Delivery(message, partial(self._begin, message))
