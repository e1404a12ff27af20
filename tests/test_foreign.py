"""What meshmw assumes of the private names of other packages holds for the real ones, and what it does without them."""

from __future__ import annotations

import asyncio
import inspect

import httpx
import httpx2
import pytest

import meshmw.httpx
import meshmw.httpx2
from meshmw import MeshPropagator
from meshmw._context.current import Current
from meshmw._foreign import wraps_transports

CLIENTS = [
    (httpx, meshmw.httpx, False),
    (httpx, meshmw.httpx, True),
    (httpx2, meshmw.httpx2, False),
    (httpx2, meshmw.httpx2, True),
]
every_client = pytest.mark.parametrize(
    ("library", "ours", "is_async"), CLIENTS, ids=["httpx", "httpx async", "httpx2", "httpx2 async"]
)


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class NotAsked:
    """Stands for the method of a client that is not asked for transports: the class does not show it."""

    def __init__(self, method):
        self._method = method

    def __get__(self, client, kind):
        if client is None:
            raise AttributeError
        return self._method.__get__(client, kind)


def sent(client_class, library, is_async):
    """Return what reaches a client's own transport and a mounted one of a trace that came in."""
    own, mounted = [], []

    def answers(got):
        def answer(request):
            got.append(request)
            return library.Response(200)

        return library.MockTransport(answer)

    async def use():
        client = client_class(transport=answers(own), mounts={"all://mounted.local": answers(mounted), "ftp://": None})
        for url in ("http://own.local", "http://mounted.local"):
            response = client.get(url)
            assert (await response if is_async else response).status_code == 200
        closed = client.aclose() if is_async else client.close()
        assert (await closed if is_async else closed) is None

    with Current(MeshPropagator().extract({"traceparent": TRACEPARENT})):
        asyncio.run(use())
    return [request.headers.get("traceparent") for request in (*own, *mounted)]


class TestTransports:
    @every_client
    def test_a_client_asks_for_the_transport_of_each_request(self, library, ours, is_async):
        name = "AsyncClient" if is_async else "Client"
        assert hasattr(getattr(library, name), "_transport_for_url")
        assert sent(getattr(ours, name), library, is_async) == [TRACEPARENT] * 2

    @every_client
    def test_one_that_does_not_ask_has_them_wrapped_when_it_is_made(self, library, ours, is_async):
        base = getattr(library, "AsyncClient" if is_async else "Client")
        wrapper = ours.AsyncTraceContextTransport if is_async else ours.TraceContextTransport
        silent = type("Silent", (base,), {"_transport_for_url": NotAsked(base._transport_for_url)})
        client_class = wraps_transports(wrapper)(silent)
        assert sent(client_class, library, is_async) == [TRACEPARENT] * 2
        assert inspect.signature(client_class) == inspect.signature(base)

    def test_one_that_keeps_none_is_used_as_it_is(self):
        class Other:
            def __init__(self, name):
                self.name = name

        client = wraps_transports(meshmw.httpx.TraceContextTransport)(Other)("name")
        assert client.name == "name"
