"""order-worker with the OpenTelemetry contrib packages: processes the same events, without meshmw."""

import asyncio
import signal
import sys

from httpx import AsyncClient

from sample_apps.contrib import process_orders, set_up
from sample_apps.worker import Settings


async def work() -> None:
    async with AsyncClient(base_url=Settings().inventory_url) as inventory:

        async def handle(item: str) -> None:
            (await inventory.get(f"/api/stock/{item}")).raise_for_status()

        await process_orders(handle)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    set_up("order-worker")
    asyncio.run(work())
