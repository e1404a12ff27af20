"""Order events over whichever brokers there are."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from types import ModuleType

from pydantic_settings import BaseSettings


class Brokers(BaseSettings):
    """Where the brokers are; one that is not named is not used."""

    kafka_broker: str = ""
    rabbitmq_url: str = ""

    def used(self) -> list[tuple[ModuleType, str]]:
        """Return the module that speaks to each broker, and the broker's address; what is not used is not imported."""
        named = {"sample_apps.orders_kafka": self.kafka_broker, "sample_apps.orders_rabbitmq": self.rabbitmq_url}
        return [(import_module(module), address) for module, address in named.items() if address]


@asynccontextmanager
async def publishing() -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """Yield a function that publishes the order of an item to every broker."""
    async with AsyncExitStack() as stack:
        publishers = [await stack.enter_async_context(module.publisher(where)) for module, where in Brokers().used()]

        async def publish(item: str) -> None:
            for each in publishers:
                await each(item)

        yield publish
