"""checkout-service with the OpenTelemetry contrib packages: the same routes, calls and events, without meshmw."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
from fastapi import FastAPI, Request
from httpx import AsyncClient
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient
from pydantic_settings import BaseSettings

from sample_apps.contrib import publishing, set_up


class Settings(BaseSettings):
    inventory_url: str = "http://127.0.0.1:8001"
    pricing_target: str = "127.0.0.1:8002"


set_up("checkout-service")
GrpcAioInstrumentorClient().instrument()
settings = Settings()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with (
        AsyncClient(base_url=settings.inventory_url) as inventory,
        grpc.aio.insecure_channel(settings.pricing_target) as pricing,
        publishing() as publish,
    ):
        yield {"inventory": inventory, "quote": pricing.unary_unary("/shop.Pricing/Quote"), "publish": publish}


app = FastAPI(title="checkout-service", lifespan=lifespan)
FastAPIInstrumentor.instrument_app(app)


@app.get("/api/checkout")
async def checkout(request: Request, item: str = "teapot") -> dict[str, str | int]:
    answer = await request.state.inventory.get(f"/api/stock/{item}")
    answer.raise_for_status()
    quote = await request.state.quote(json.dumps({"item": item}).encode())
    await request.state.publish(item)
    return {"item": item, "in_stock": answer.json()["in_stock"], "price": json.loads(quote)["price"]}
