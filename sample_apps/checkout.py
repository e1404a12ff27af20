"""checkout-service: a FastAPI application that asks inventory-service what is in stock, and publishes the order.

    INVENTORY_URL=http://127.0.0.1:8001 uvicorn sample_apps.checkout:app --port 8000

In a mesh INVENTORY_URL is the outbound listener of this pod's own sidecar. KAFKA_BROKER and RABBITMQ_URL name the
brokers that get the order; without them nobody does.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from pydantic_settings import BaseSettings

import meshmw
from meshmw.asgi import TraceContextMiddleware
from meshmw.httpx import AsyncClient
from sample_apps.orders import publishing


class Settings(BaseSettings):
    inventory_url: str = "http://127.0.0.1:8001"


meshmw.configure(meshmw.Settings(service_name="checkout-service"))
settings = Settings()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with AsyncClient(base_url=settings.inventory_url) as inventory, publishing() as publish:
        yield {"inventory": inventory, "publish": publish}


app = FastAPI(title="checkout-service", lifespan=lifespan)
app.add_middleware(TraceContextMiddleware)


@app.get("/api/checkout")
async def checkout(request: Request, item: str = "teapot") -> dict[str, str | int]:
    answer = await request.state.inventory.get(f"/api/stock/{item}")
    answer.raise_for_status()
    await request.state.publish(item)
    return {"item": item, "in_stock": answer.json()["in_stock"]}
