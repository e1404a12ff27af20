"""Objects that stand for a client's own: its whole interface, beside the methods that trace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeAlias, TypeVar

from meshmw._lifecycle.messaging import Messaging
from meshmw._lifecycle.operation import Operation, OperationScope

# By package and class, so that subclasses are found and nothing need be imported.
Kinds: TypeAlias = Mapping[tuple[str, str], Callable[[Any, Messaging, bool], Any]]


def instrumented(client: object, kinds: Kinds, of: Messaging, *, keep_existing: bool, takes: str) -> Any:
    """Return the object that stands for a client's own.

    Args:
        client: The client's own object.
        kinds: What makes one, by the client's class.
        of: Begins the operations.
        keep_existing: Whether a valid creation context that the application has written on a message stays.
        takes: Which clients' objects those are, in words.

    Raises:
        TypeError: *client* is none of these, or one that cannot send headers.
    """
    found = (kinds.get((cls.__module__.partition(".")[0], cls.__name__)) for cls in type(client).__mro__)
    make = next(filter(None, found), None)
    if make is None:
        raise TypeError(f"instrument() takes {takes}, not {type(client).__module__}.{type(client).__qualname__}")
    return make(client, of, keep_existing)


class Instrumented:
    """Has every attribute of a client's object, beside the methods that trace.

    Args:
        client: The client's own object.
        of: Begins the operations.
        keep_existing: Whether a valid creation context that the application has written on a message stays.
    """

    def __init__(self, client: Any, of: Messaging, keep_existing: bool) -> None:
        self.__wrapped__ = client
        self._of = of
        self._keep_existing = keep_existing

    def __getattr__(self, name: str) -> Any:
        # What copies or unpickles asks before there is anything to stand for.
        if name == "__wrapped__":
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.__wrapped__)})

    def __repr__(self) -> str:
        return f"<meshmw.{self._of.system}.instrument({self.__wrapped__!r})>"

    # Exchanges and queues are their names as text.
    def __str__(self) -> str:
        return str(self.__wrapped__)


class Block(Instrumented):
    """Is a client's object that a `with` block closes."""

    def __enter__(self) -> Self:
        self.__wrapped__.__enter__()
        return self

    def __exit__(self, *raised: Any) -> Any:
        return self.__wrapped__.__exit__(*raised)


class AsyncBlock(Instrumented):
    """Is a client's object that an `async with` block closes."""

    async def __aenter__(self) -> Self:
        await self.__wrapped__.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> Any:
        return await self.__wrapped__.__aexit__(*raised)


# Messages that an iterator hands out, each with the block in which to process it.
#
# A generator that made a span current around its `yield` would make it current for whoever consumes it, and could not
# take it back where the loop ends early. So nothing is current, and no span begun, until the loop's body says where.


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
