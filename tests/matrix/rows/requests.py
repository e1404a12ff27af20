"""The request itself: what it brings, what a server's loop leaves behind, where it goes on to."""

from __future__ import annotations

import json
from typing import Any

import httpx
from opentelemetry import baggage
from opentelemetry.trace import StatusCode

from tests.matrix.row import row
from tests.matrix.served import (
    Connection,
    Ids,
    ask_once,
    parent_of,
    told,
    trace_here,
    trace_of,
    uvicorn_serves,
    wait_for,
)

GROUP = "requests"


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Read the whole body; answer with the current trace and the trace headers that arrived here."""
    while (await receive()).get("more_body", False):
        pass
    seen = [name.decode() for name, _ in scope["headers"] if name in (b"traceparent", b"tracestate")]
    text = json.dumps([trace_here(), seen]).encode()
    headers = [(b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


@row(GROUP, "a valid `traceparent`: one SERVER span, its child, and no span beside it")
def one_span(kit: Any) -> None:
    ids = Ids()
    trace, _ = told(ask_once(uvicorn_serves, kit.asgi(answer), "/", ids.traceparent))
    assert trace == ids.trace, "another trace"
    assert wait_for(lambda: kit.server_spans), "no SERVER span"
    assert parent_of(kit.server_spans[0]) == ids.parent, "another parent"
    assert len(kit.spans) == 1, f"{len(kit.spans)} spans for one request"


@row(GROUP, "a malformed `traceparent` starts a new trace")
def malformed(kit: Any) -> None:
    ids = Ids()
    trace, _ = told(ask_once(uvicorn_serves, kit.asgi(answer), "/", ("traceparent", f"00-{ids.trace.upper()}-1-01")))
    assert trace not in (ids.trace, "0" * 32), "no new trace"


@row(GROUP, "and is gone, with its `tracestate`, from what the application sees and passes on")
def malformed_is_removed(kit: Any) -> None:
    _, seen = told(ask_once(uvicorn_serves, kit.asgi(answer), "/", ("traceparent", "00-junk"), ("tracestate", "a=1")))
    assert seen == [], "the application sees it"


@row(GROUP, "two `traceparent` lines start a new trace (W3C's own test suite)")
def duplicate(kit: Any) -> None:
    one, two = Ids(), Ids()
    trace, _ = told(ask_once(uvicorn_serves, kit.asgi(answer), "/", one.traceparent, two.traceparent))
    assert trace not in (one.trace, two.trace), "one of the two is trusted"


@row(GROUP, "a context that uvicorn leaks on a kept connection is no parent")
def leaked_on_keep_alive(kit: Any) -> None:
    ids = [Ids() for _ in range(3)]
    with uvicorn_serves(kit.asgi(answer)) as port:
        connection = Connection(port)
        seen = [told(connection.ask("/", each.traceparent, method="POST", body=b"x" * 300_000))[0] for each in ids]
        connection.close()
    assert seen == [each.trace for each in ids], "later requests are in the first one's trace"


@row(GROUP, "a request without headers on such a connection starts its own trace")
def leaked_without_headers(kit: Any) -> None:
    ids = Ids()
    with uvicorn_serves(kit.asgi(answer)) as port:
        connection = Connection(port)
        connection.ask("/", ids.traceparent, method="POST", body=b"x" * 300_000)
        trace, _ = told(connection.ask("/"))
        connection.close()
    assert trace != ids.trace, "it is in the first one's trace"


@row(GROUP, "an exception passes unchanged and marks the SERVER span")
def exception(kit: Any) -> None:
    error = LookupError("as asked for")
    passed = []

    async def fail(scope: Any, receive: Any, send: Any) -> None:
        raise error

    traced = kit.asgi(fail)

    async def outermost(scope: Any, receive: Any, send: Any) -> None:
        try:
            await traced(scope, receive, send)
        except LookupError as raised:
            passed.append(raised)
            await answer(scope, receive, send)

    ask_once(uvicorn_serves, outermost, "/", Ids().traceparent)
    assert passed == [error], "another exception"
    assert kit.server_spans[0].status.status_code is StatusCode.ERROR, "the span tells nothing"
    assert kit.server_spans[0].events, "the span does not have the exception"


@row(GROUP, "an outbound call replaces a trace header that the caller copied from its own request")
def stale_header(kit: Any) -> None:
    sent, stale = [], Ids()

    def far(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers.get_list("traceparent"))
        return httpx.Response(200)

    with kit.tracer.start_as_current_span("caller"), kit.client(httpx.MockTransport(far)) as client:
        trace = trace_here()
        client.get("http://inventory/", headers=[stale.traceparent])
    assert [len(lines) for lines in sent] == [1], "two lines"
    assert trace in sent[0][0], "the stale one is sent"


@row(GROUP, "a redirect to a stranger takes no baggage along")
def redirect(kit: Any) -> None:
    sent = {}

    def far(request: httpx.Request) -> httpx.Response:
        sent[request.url.host] = "baggage" in request.headers
        if request.url.host == "inventory":
            return httpx.Response(307, headers={"location": "https://stranger.example.com/"})
        return httpx.Response(200)

    context = baggage.set_baggage("user", "7")
    from opentelemetry import context as otel_context

    token = otel_context.attach(context)
    try:
        with kit.client(httpx.MockTransport(far)) as client:
            client.get("http://inventory/")
    finally:
        otel_context.detach(token)
    assert sent["inventory"], "no baggage at all"
    assert not sent["stranger.example.com"], "the stranger gets the baggage"


@row(GROUP, "each hop of a redirect is a span in the trace")
def redirect_spans(kit: Any) -> None:
    def far(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/":
            return httpx.Response(307, headers={"location": "/there"})
        return httpx.Response(200, json=request.headers["traceparent"])

    with kit.tracer.start_as_current_span("caller"), kit.client(httpx.MockTransport(far)) as client:
        trace, far_side = trace_here(), client.get("http://inventory/").json()
    hops = [span for span in kit.spans if span.name != "caller"]
    assert [trace_of(span) for span in hops] == [trace] * 2, "not two spans in the trace"
    assert far_side.split("-")[2] == f"{hops[1].context.span_id:016x}", "the far side is below another span"
