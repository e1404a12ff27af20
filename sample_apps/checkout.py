"""checkout-service: a FastAPI application that asks inventory-service what is in stock.

    INVENTORY_URL=http://127.0.0.1:8001 uvicorn sample_apps.checkout:app --port 8000

In a mesh INVENTORY_URL is the outbound listener of this pod's own sidecar.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from pydantic_settings import BaseSettings

import meshmw
from meshmw.asgi import TraceContextMiddleware
from meshmw.httpx import AsyncClient


class Settings(BaseSettings):
    inventory_url: str = "http://127.0.0.1:8001"


meshmw.configure(meshmw.Settings(service_name="checkout-service"))
settings = Settings()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, AsyncClient]]:
    async with AsyncClient(base_url=settings.inventory_url) as inventory:
        yield {"inventory": inventory}


app = FastAPI(title="checkout-service", lifespan=lifespan)
app.add_middleware(TraceContextMiddleware)


@app.get("/api/checkout")
async def checkout(request: Request, item: str = "teapot") -> dict[str, str | int]:
    answer = await request.state.inventory.get(f"/api/stock/{item}")
    answer.raise_for_status()
    return {"item": item, "in_stock": answer.json()["in_stock"]}
