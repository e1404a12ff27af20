"""An ASGI application without a framework that reads the body and answers with its report."""

import asyncio
import json

import httpx
from report import echo, report, seen_in_scope

from meshmw.httpx import AsyncClient

next_service = AsyncClient(transport=httpx.MockTransport(echo))


async def answer(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == "/stream":
        await stream(receive, send)
        return
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    response = await next_service.get("http://next-service/")
    text = json.dumps({"size": size, **report(seen_in_scope(scope["headers"]), response.json())}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


async def stream(receive, send):
    """Send until the client is gone: servers swallow what is sent to nobody."""
    gone = asyncio.create_task(disconnect(receive))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    while not gone.done():
        await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
        await asyncio.sleep(0)


async def disconnect(receive):
    while (await receive())["type"] != "http.disconnect":
        pass
