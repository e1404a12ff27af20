"""Objects that stand for a client: its whole interface, beside the methods that trace. Must not import a client."""

from __future__ import annotations

from typing import Any, Self

from meshmw.boundary.messaging import Messaging


class Instrumented:
    """Has every attribute of a client, beside the methods that trace."""

    def __init__(self, client: Any, of: Messaging, keep_existing: bool) -> None:
        self.__wrapped__ = client
        self._of = of
        self._keep_existing = keep_existing

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.__wrapped__)})

    def __repr__(self) -> str:
        return f"<meshmw.kafka.instrument({self.__wrapped__!r})>"


class Block(Instrumented):
    """Is a client that a `with` block closes."""

    def __enter__(self) -> Self:
        self.__wrapped__.__enter__()
        return self

    def __exit__(self, *raised: Any) -> Any:
        return self.__wrapped__.__exit__(*raised)


class AsyncBlock(Instrumented):
    """Is a client that an `async with` block closes."""

    async def __aenter__(self) -> Self:
        await self.__wrapped__.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> Any:
        return await self.__wrapped__.__aexit__(*raised)
