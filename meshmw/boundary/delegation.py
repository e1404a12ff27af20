"""Objects that stand for a client's own: its whole interface, beside the methods that trace.

Knows what every Python object has. Must not know a broker, nor import a client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self, TypeAlias

from meshmw.boundary.messaging import Messaging

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
