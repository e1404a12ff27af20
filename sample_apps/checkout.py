"""checkout-service: a FastAPI application that asks what is in stock and what it costs, and publishes the order.

    INVENTORY_URL=http://127.0.0.1:8001 uvicorn sample_apps.checkout:app --port 8000

In a mesh INVENTORY_URL is the outbound listener of this pod's own sidecar, and so is PRICING_TARGET, for gRPC; without
it nothing has a price. KAFKA_BROKER and RABBITMQ_URL name the
brokers that get the order; without them nobody does.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import grpc.aio
from fastapi import FastAPI, Request
from pydantic_settings import BaseSettings

import meshmw
from meshmw.asgi import TraceContextMiddleware
from meshmw.grpc import client_interceptors
from meshmw.httpx import AsyncClient
from sample_apps.orders import publishing


class Settings(BaseSettings):
    inventory_url: str = "http://127.0.0.1:8001"
    pricing_target: str = ""


meshmw.configure(meshmw.Settings(service_name="checkout-service"))
settings = Settings()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with (
        AsyncClient(base_url=settings.inventory_url) as inventory,
        pricing(settings.pricing_target) if settings.pricing_target else nullcontext() as price_of,
        publishing() as publish,
    ):
        yield {"inventory": inventory, "price_of": price_of, "publish": publish}


@asynccontextmanager
async def pricing(target: str) -> AsyncIterator[Callable[[str], Awaitable[str]]]:
    """Yield a function that asks pricing-service what an item costs."""
    async with grpc.aio.insecure_channel(target, interceptors=client_interceptors(target)) as channel:
        quote = channel.unary_unary("/shop.Pricing/Quote")

        async def price_of(item: str) -> str:
            return json.loads(await quote(json.dumps({"item": item}).encode()))["price"]

        yield price_of


app = FastAPI(title="checkout-service", lifespan=lifespan)
app.add_middleware(TraceContextMiddleware)


@app.get("/api/checkout")
async def checkout(request: Request, item: str = "teapot") -> dict[str, str | int | None]:
    answer = await request.state.inventory.get(f"/api/stock/{item}")
    answer.raise_for_status()
    price_of = request.state.price_of
    price = await price_of(item) if price_of else None
    await request.state.publish(item)
    return {"item": item, "in_stock": answer.json()["in_stock"], "price": price}
