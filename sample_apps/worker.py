"""order-worker: processes order events from the brokers, and asks inventory-service about each item.

    KAFKA_BROKER=127.0.0.1:9092 INVENTORY_URL=http://127.0.0.1:8001 python -m sample_apps.worker

In a mesh INVENTORY_URL is the outbound listener of this pod's own sidecar.
"""

import asyncio
import signal
import sys

from pydantic_settings import BaseSettings

import meshmw
from meshmw.httpx import AsyncClient
from sample_apps.orders import Brokers


class Settings(BaseSettings):
    inventory_url: str = "http://127.0.0.1:8001"


async def work() -> None:
    async with AsyncClient(base_url=Settings().inventory_url) as inventory:

        async def handle(item: str) -> None:
            (await inventory.get(f"/api/stock/{item}")).raise_for_status()

        await asyncio.gather(*(module.process(address, handle) for module, address in Brokers().used()))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with meshmw.configure(meshmw.Settings(service_name="order-worker")):
        asyncio.run(work())
