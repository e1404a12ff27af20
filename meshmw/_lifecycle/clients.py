"""What an application holds in place of a client's own object: one that traces by itself, and an iterator of blocks.

`instrument()` returns an `Instrumented`: the client's whole interface, beside the methods that trace.

`consume()` returns `Deliveries`. A generator that made a span current around its `yield` would make it current for
whoever consumes it, and could not detach it where the loop ends early. So nothing is current, and no span begun, until
the loop's body says where: `with delivery as message:`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeAlias, TypeVar

from meshmw._lifecycle.messaging import Messaging
from meshmw._lifecycle.operation import Operation, OperationScope
from meshmw._otel import past_contrib

C = TypeVar("C")
T = TypeVar("T")

# What makes an instrumented object, by package and class, so that subclasses are found and nothing need be imported.
Kinds: TypeAlias = Mapping[tuple[str, str], Callable[[Any, Messaging], Any]]


def instrumented(client: C, kinds: Kinds, messaging: Messaging, *, takes: str) -> C:
    """Return the object that stands for a client's own, with the client's type for type checkers.

    Args:
        client: The client's own object.
        kinds: What makes one, by the client's class.
        messaging: Begins the operations.
        takes: Which clients' objects those are, in words.

    Raises:
        TypeError: *client* is none of these, or one that cannot send headers.
    """
    found = (kinds.get((cls.__module__.partition(".")[0], cls.__name__)) for cls in type(client).__mro__)
    make = next(filter(None, found), None)
    if make is None:
        raise TypeError(f"instrument() takes {takes}, not {type(client).__module__}.{type(client).__qualname__}")
    made: C = make(client, messaging)
    return made


class Instrumented:
    """Has every attribute of a client's object, beside the methods that trace.

    Args:
        client: The client's own object.
        messaging: Begins the operations.
    """

    def __init__(self, client: Any, messaging: Messaging) -> None:
        self.__wrapped__ = client
        self._messaging = messaging

    def __getattr__(self, name: str) -> Any:
        # What copies or unpickles asks before there is anything to stand for.
        if name == "__wrapped__":
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)

    def _own(self, name: str) -> Any:
        """Return a method of the client that traces here, and that contrib's instrumentation is not to trace too."""
        return past_contrib(getattr(self.__wrapped__, name))

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.__wrapped__)})

    def __repr__(self) -> str:
        return f"<meshmw.{self._messaging.system}.instrument({self.__wrapped__!r})>"

    # aio-pika's exchanges and queues are their names as text.
    def __str__(self) -> str:
        return str(self.__wrapped__)


class Block(Instrumented):
    """Stands for an object that a `with` block closes."""

    def __enter__(self) -> Self:
        self.__wrapped__.__enter__()
        return self

    def __exit__(self, *raised: Any) -> Any:
        return self.__wrapped__.__exit__(*raised)


class AsyncBlock(Instrumented):
    """Stands for an object that an `async with` block closes."""

    async def __aenter__(self) -> Self:
        await self.__wrapped__.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> Any:
        return await self.__wrapped__.__aexit__(*raised)


class Delivery(Generic[T]):
    """Holds one message that an iterator handed out: `with delivery as message:` processes it, in a span of its own.

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


class Deliveries(Iterator[Delivery[T]]):
    """Fetches one message at a time.

    Args:
        fetch: Returns the next message, or raises StopIteration.
        begin: Begins to process a message.
    """

    def __init__(self, fetch: Callable[[], T], begin: Callable[[T], Operation]) -> None:
        self._fetch = fetch
        self._begin = begin

    def __next__(self) -> Delivery[T]:
        message = self._fetch()
        return Delivery(message, partial(self._begin, message))


class AsyncDeliveries(AsyncIterator[Delivery[T]]):
    """Fetches one message at a time.

    Args:
        fetch: Returns the next message, or raises StopAsyncIteration.
        begin: Begins to process a message.
    """

    def __init__(self, fetch: Callable[[], Awaitable[T]], begin: Callable[[T], Operation]) -> None:
        self._fetch = fetch
        self._begin = begin

    async def __anext__(self) -> Delivery[T]:
        message = await self._fetch()
        return Delivery(message, partial(self._begin, message))
