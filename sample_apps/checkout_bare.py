"""checkout-service without meshmw: the same routes, OpenTelemetry as its documentation sets it up, plain httpx.

FastAPI records its own SERVER span as soon as there is a tracer provider. Nothing puts the trace on the outbound call.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from httpx import AsyncClient
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from pydantic_settings import BaseSettings


class Settings(BaseSettings):
    inventory_url: str = "http://127.0.0.1:8001"


provider = TracerProvider(resource=Resource.create({"service.name": "checkout-service"}))
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
settings = Settings()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, AsyncClient]]:
    async with AsyncClient(base_url=settings.inventory_url) as inventory:
        yield {"inventory": inventory}


app = FastAPI(title="checkout-service", lifespan=lifespan)


@app.get("/api/checkout")
async def checkout(request: Request, item: str = "teapot") -> dict[str, str | int]:
    answer = await request.state.inventory.get(f"/api/stock/{item}")
    answer.raise_for_status()
    return {"item": item, "in_stock": answer.json()["in_stock"]}
