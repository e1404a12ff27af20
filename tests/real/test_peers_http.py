"""HTTP: a peer calls us, and we call the peer, in one trace with all that came with it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import uvicorn

from meshmw.asgi import TraceContextMiddleware
from meshmw.httpx import AsyncTraceContextTransport
from tests.real.peers import SECONDS, Journey, Peer, seen_here


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an application in a thread, and yield its address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + SECONDS
        while not server.started:
            assert time.monotonic() < deadline, "the server has not started"
            time.sleep(0.01)
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def forwarding(journey: Journey, target: str) -> Any:
    """An application that tells what it sees, and what a server sees that it calls meanwhile."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        here = seen_here()
        transport = AsyncTraceContextTransport(httpx.AsyncHTTPTransport(), **journey.options)
        async with httpx.AsyncClient(timeout=SECONDS, transport=transport) as client:
            beyond = (await client.get(f"http://{target}/")).json()
        body = json.dumps({"here": here, "beyond": beyond}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return TraceContextMiddleware(app, **journey.options)


def test_a_peer_calls_us_and_we_call_it_in_one_trace(peer: Peer, journey: Journey) -> None:
    target = peer.listen("http")
    with serving(forwarding(journey, target)) as address:
        answer = peer.ask("call", protocol="http", address=address, headers=journey.headers)
    (found,) = answer["found"]
    journey.check(found["here"], peer)
    there = journey.check(found["beyond"], peer)
    journey.check_ours("SERVER", "CLIENT", peer)
    assert peer.path(there, f"{journey.span('CLIENT').context.span_id:016x}") == ["SERVER"]
