"""A reader's FastAPI service, which knows nothing of being tested."""

import os

import meshmw

meshmw.configure()

from fastapi import FastAPI  # noqa: E402 - as the guides say

from meshmw.asgi import TraceContextMiddleware  # noqa: E402 - as the guides say
from meshmw.httpx import AsyncClient  # noqa: E402 - as the guides say

app = FastAPI()
app.add_middleware(TraceContextMiddleware)


@app.get("/")
async def index():
    async with AsyncClient() as client:
        return (await client.get(f"{os.environ['STOCK_URL']}/teapot")).json()
