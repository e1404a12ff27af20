"""What aiohttp alone can be asked: middlewares, WebSockets, and how it counts what it sends again."""

import asyncio
import inspect
import warnings

import aiohttp
import pytest
from aiohttp import web
from opentelemetry import trace

import meshmw.aiohttp
from tests.contracts.client.every_client import AiohttpClient, Server

VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def client(address):
    return AiohttpClient(address)


def test_a_request_that_another_middleware_sends_again_has_a_span_each_time(client):
    async def retry(request, handler):
        while (response := await handler(request)).status == 503:
            response.release()
        return response

    def session():
        return meshmw.aiohttp.ClientSession(middlewares=(retry, client.middleware()))

    assert client.call("/flaky", client=session)[0] == 200
    assert [span.attributes.get("http.request.resend_count") for span in client.spans] == [None, 1, 2]
    assert [dict(lines)["traceparent"][36:52] for _, lines in Server.got] == [
        f"{span.context.span_id:016x}" for span in client.spans
    ]


def test_the_session_takes_what_aiohttps_takes_and_adds_one_middleware_of_ours_at_its_end(client):
    async def other(request, handler):
        return await handler(request)

    signature = inspect.signature(aiohttp.ClientSession)
    assert inspect.signature(meshmw.aiohttp.ClientSession).parameters == signature.parameters

    async def use():
        ours = client.middleware()
        async with meshmw.aiohttp.ClientSession(
            "http://shop.internal", middlewares=(other,), trust_env=True
        ) as session:
            assert type(session) is meshmw.aiohttp.ClientSession
            assert isinstance(session, aiohttp.ClientSession)
            assert session.trust_env
            first, last = session._middlewares
            assert (first, type(last)) == (other, meshmw.aiohttp.TraceContextClientMiddleware)
        async with meshmw.aiohttp.ClientSession(middlewares=(ours, other)) as session:
            assert session._middlewares == (ours, other)
        for nothing in (None, [], iter(())):
            async with meshmw.aiohttp.ClientSession(middlewares=nothing) as session:
                (only,) = session._middlewares
                assert type(only) is meshmw.aiohttp.TraceContextClientMiddleware
        async with meshmw.aiohttp.ClientSession(middlewares=iter([ours])) as session:
            assert session._middlewares == (ours,)

    asyncio.run(use())


def test_the_span_of_a_websocket_ends_with_the_handshake(client):
    async def echo(request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    async def use():
        app = web.Application()
        app.router.add_get("/ws", echo)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with (
                client.ours() as session,
                session.ws_connect(f"http://127.0.0.1:{runner.addresses[0][1]}/ws") as ws,
            ):
                assert client.span.attributes["http.response.status_code"] == 101
                await ws.send_str("hello")
                assert await ws.receive_str() == "hello"
        finally:
            await runner.cleanup()

    asyncio.run(use())
    assert len(client.spans) == 1


def test_two_equal_lines_of_one_header_become_one(client):
    lines = [("traceparent", VALID), ("traceparent", VALID), ("x-own", "1"), ("x-own", "1")]
    context = client.propagator.extract({"traceparent": VALID})
    client.provider = trace.NoOpTracerProvider()
    client.call(within=context, headers=lines)
    assert client.sent["traceparent"] == [VALID]
    assert client.sent["x-own"] == ["1", "1"]


def test_an_error_of_a_middleware_further_in_is_the_calls(client):
    async def broken(request, handler):
        raise LookupError("no such key")

    def session():
        return aiohttp.ClientSession(middlewares=(client.middleware(), broken))

    with pytest.raises(LookupError):
        client.call(client=session)
    assert client.span.attributes["error.type"] == "LookupError"


def test_the_session_is_a_class_like_any_other(client):
    """In annotations, which older versions of Python evaluate, in `isinstance`, and below a class of one's own."""

    class Named(meshmw.aiohttp.ClientSession):
        def __init__(self, name, **options):
            super().__init__(middlewares=(client.middleware(),), **options)
            self.name = name

    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class Quiet(Named):
            """aiohttp warns of each class that inherits from its own."""

    assert str(meshmw.aiohttp.ClientSession | None) == "meshmw.aiohttp.ClientSession | None"
    assert client.call(client=lambda: Quiet("shop", trust_env=True))[0] == 200
    assert client.span.name == "GET"

    async def use():
        async with Quiet("shop") as session:
            assert isinstance(session, meshmw.aiohttp.ClientSession)
            assert session.name == "shop"

    with warnings.catch_warnings():
        # A debugging interpreter warns of the attribute.
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.run(use())
