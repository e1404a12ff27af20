"""Laws 2, 6 and 8 for every HTTP client over a real socket: what `every_client.py` lists calls one server."""

import asyncio
import gc
import re
import subprocess
import sys

import aiohttp
import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import suppress_http_instrumentation, suppress_instrumentation
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags

import meshmw
from meshmw import MeshPropagator
from meshmw import _runtime as runtime
from tests.contracts.client.conftest import by_name
from tests.contracts.client.every_client import CLIENTS, Server

VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
STALE = {
    "Traceparent": VALID,
    "TRACESTATE": "stale=1",
    "B3": f"{'1' * 32}-{'2' * 16}-1",
    "X-B3-TraceId": "1" * 32,
    "x-b3-spanid": "2" * 16,
    "X-B3-ParentSpanId": "3" * 16,
    "X-B3-Sampled": "1",
    "X-B3-Flags": "1",
    "BAGGAGE": "stale=1",
}
PROPAGATED = {"traceparent", "tracestate", "baggage", "b3", "x-b3-traceid", "x-meshmw-sent", "x-request-id"}


@pytest.fixture(params=CLIENTS)
def client(request, address):
    return CLIENTS[request.param](address)


def within(client, **of_baggage):
    """The context of an application's own span."""
    context = trace.set_span_in_context(client.tracer.start_span("work"), Context())
    for key, value in of_baggage.items():
        context = baggage.set_baggage(key, value, context)
    return context


def traceparent_of(span):
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags & 3:02x}"


def parents():
    return [dict(lines)["traceparent"] for _, lines in Server.got]


# Headers.


@pytest.mark.parametrize("which", ["ours", "plain"])
def test_a_call_is_a_client_span_of_the_current_trace_and_names_itself_to_the_server(client, which):
    context = within(client, shop="north")
    assert client.call(within=context, client=getattr(client, which)) == (200, b"in stock")
    assert client.span.parent.span_id == trace.get_current_span(context).get_span_context().span_id
    assert client.span.instrumentation_scope.name == "meshmw"
    assert client.sent["traceparent"] == [traceparent_of(client.span)]
    assert client.sent["baggage"] == ["shop=north"]


def test_a_call_outside_of_a_trace_starts_one(client):
    client.call()
    assert client.span.parent is None
    assert client.sent["traceparent"] == [traceparent_of(client.span)]


def test_headers_are_replaced_and_never_appended_whatever_their_case(client):
    client.call(within=within(client, own="1"), headers=STALE)
    assert client.sent["traceparent"] == [traceparent_of(client.span)]
    assert client.sent["baggage"] == ["own=1"]
    assert {"tracestate", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid"}.isdisjoint(client.sent)


def test_b3_is_written_anew_where_it_is_a_format(client):
    client.propagator = MeshPropagator(("tracecontext", "b3", "b3multi"))
    client.call(headers=STALE)
    assert client.sent["b3"] == [f"{client.span.context.trace_id:032x}-{client.span.context.span_id:016x}-1"]
    assert client.sent["x-b3-traceid"] == [f"{client.span.context.trace_id:032x}"]
    assert {"x-b3-flags", "x-b3-parentspanid"}.isdisjoint(client.sent)


def test_other_headers_go_out_as_they_are(client):
    client.call(headers={"X-Tag": "a", "Authorization": "Bearer own"})
    assert client.sent["x-tag"] == ["a"]
    assert client.sent["authorization"] == ["Bearer own"]
    assert len(client.sent["host"]) == 1


@pytest.mark.parametrize("own_trace", [True, False])
def test_a_malformed_traceparent_that_the_application_wrote_never_leaves(client, own_trace):
    if not own_trace:
        client.provider = trace.NoOpTracerProvider()
    client.call(headers={"traceparent": VALID.upper(), "tracestate": "a=1", "baggage": "=,ok=1"})
    assert client.sent.get("traceparent") == ([traceparent_of(client.span)] if own_trace else None)
    assert "tracestate" not in client.sent
    assert client.sent.get("baggage") == (None if own_trace else ["ok=1"])


def test_without_an_sdk_the_inbound_caller_goes_out_unchanged_and_so_does_a_valid_header_of_the_application(client):
    client.provider = trace.NoOpTracerProvider()
    client.call(within=client.propagator.extract({"traceparent": VALID, "tracestate": "a=1"}))
    client.call(headers={"traceparent": VALID, "tracestate": "a=1"})
    for _, lines in Server.got:
        assert (dict(lines)["traceparent"], dict(lines)["tracestate"]) == (VALID, "a=1")


def test_an_unsampled_trace_goes_on_unsampled(client):
    client.provider = TracerProvider(sampler=ALWAYS_OFF)
    client.call()
    assert not int(client.sent["traceparent"][0][-2:], 16) & 1


def test_x_request_id_goes_on_but_the_callers_own_wins(client):
    inbound = client.propagator.extract({"traceparent": VALID, "x-request-id": "from-the-mesh"})
    client.call(within=inbound)
    client.call(within=inbound, headers={"X-Request-ID": "own"})
    assert [by_name(lines)["x-request-id"] for _, lines in Server.got] == [["from-the-mesh"], ["own"]]


def test_baggage_gives_way_where_proxies_would_refuse_the_request(client):
    client.propagator = MeshPropagator(header_budget=(4096, 100))
    client.call(within=within(client, first="a" * 1000, second="b" * 3000), headers={"x-own": "c" * 100})
    assert client.sent["baggage"] == [f"first={'a' * 1000}"]


def test_the_configured_propagator_and_provider_are_used_where_none_is_given(client, monkeypatch):
    own = runtime.Runtime(propagator=MeshPropagator(["b3"]))
    monkeypatch.setattr(runtime, "_installed", own)
    client.propagator = client.provider = None
    client.call(within=client.tracer and within(client))
    assert "b3" in client.sent
    assert "traceparent" not in client.sent


def test_what_cannot_be_written_raises_before_anything_is_sent_and_ends_the_span(client):
    class Broken(MeshPropagator):
        def replace_lines(self, *args, **kwargs):
            raise LookupError("no headers today")

        replace_in_request = replace_lines

    client.propagator = Broken()
    with pytest.raises(LookupError):
        client.call()
    assert client.span.attributes["error.type"] == "LookupError"
    assert Server.got == []


# Redirects.


def test_each_hop_of_a_redirect_has_its_own_span_fresh_headers_and_a_count(client):
    context = within(client)
    assert client.call("/redirect", within=context, headers=STALE)[0] == 200
    assert [span.attributes["http.response.status_code"] for span in client.spans] == [302, 307, 200]
    assert [span.attributes.get("http.request.resend_count") for span in client.spans] == [None, 1, 2]
    assert parents() == [traceparent_of(span) for span in client.spans]
    assert {span.parent.span_id for span in client.spans} == {
        trace.get_current_span(context).get_span_context().span_id
    }
    assert all("b3" not in dict(lines) for _, lines in Server.got)


def test_the_next_call_of_the_same_client_counts_anew(client):
    async def use(made):
        for _ in range(2):
            await client.read(await client.open(made, "/redirect"))

    client.run(use)
    assert [span.attributes.get("http.request.resend_count") for span in client.spans] == [None, 1, 2] * 2


def test_a_redirect_that_is_not_followed_is_one_span(client):
    assert client.call("/redirect", redirects=False)[0] == 302
    assert client.span.attributes["http.response.status_code"] == 302


def elsewhere(client):
    """A redirect to the same server under another name."""
    return f"/to?{client.address.replace('127.0.0.1', 'localhost')}/items/7"


def test_a_redirect_to_a_stranger_takes_no_baggage_along(client):
    client.propagator = MeshPropagator(baggage_to=("127.0.0.1",))
    context = client.propagator.extract({"traceparent": VALID, "baggage": "shop=north", "x-request-id": "7"})
    client.call(elsewhere(client), within=context, headers={"Authorization": "Bearer own"})
    first, second = (by_name(lines) for _, lines in Server.got)
    assert (first["baggage"], first["authorization"]) == (["shop=north"], ["Bearer own"])
    assert {"baggage", "x-meshmw-sent", "authorization"}.isdisjoint(second)
    assert second["x-request-id"] == ["7"]
    assert parents() == [traceparent_of(span) for span in client.spans]


def test_a_redirect_to_where_nothing_is_to_go_takes_nothing_along(client):
    client.propagator = MeshPropagator(propagate_to=("127.0.0.1",))
    client.call(elsewhere(client), within=within(client, shop="north"))
    first, second = (by_name(lines) for _, lines in Server.got)
    assert first["traceparent"] == [traceparent_of(client.spans[0])]
    assert PROPAGATED.isdisjoint(second)
    assert len(client.spans) == 2


# What the span says.


def test_the_span_says_what_the_stable_conventions_ask(client):
    client.call("/items/7?q=1")
    host, _, port = client.address.removeprefix("http://").partition(":")
    assert dict(client.span.attributes) == {
        "http.request.method": "GET",
        "server.address": host,
        "server.port": int(port),
        "url.full": f"{client.address}/items/7?q=1",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
    }
    assert client.span.name == "GET"


def test_an_unknown_method_is_not_taken_into_the_name(client):
    client.call(method="BREW")
    assert client.span.name == "HTTP"
    assert client.span.attributes["http.request.method_original"] == "BREW"


def test_credentials_and_secret_query_values_are_not_in_the_url(client):
    host = client.address.removeprefix("http://")
    client.call(f"http://user:pa55@{host}/items/7?q=1&sig=5ecret")
    # aiohttp takes them off the URL itself.
    assert client.span.attributes["url.full"] in {
        f"http://{shown}{host}/items/7?q=1&sig=REDACTED" for shown in ("", "REDACTED:REDACTED@")
    }
    assert client.sent["authorization"] == ["Basic dXNlcjpwYTU1"]


@pytest.mark.parametrize("status", [400, 404, 503])
def test_from_400_on_a_status_is_an_error_of_the_client(client, status):
    assert client.call(f"/status/{status}")[0] == status
    assert client.span.attributes["error.type"] == str(status)
    assert client.span.status.status_code is StatusCode.ERROR


def test_a_good_answer_is_no_error(client):
    client.call("/status/201")
    assert client.span.status.status_code is StatusCode.UNSET
    assert "error.type" not in client.span.attributes


def test_a_refused_connection_passes_unchanged_and_marks_the_span(client):
    with pytest.raises(client.refused) as caught:
        client.call("http://127.0.0.1:1/")
    kind = type(caught.value)
    assert client.span.attributes["error.type"] == f"{kind.__module__}.{kind.__qualname__}"
    assert client.span.status.status_code is StatusCode.ERROR
    assert "http.response.status_code" not in client.span.attributes


def test_a_wait_that_takes_too_long_marks_the_span(client):
    with pytest.raises((client.error, TimeoutError)):
        client.call("/stuck", wait=0.2)
    assert client.span.attributes["error.type"] == client.timeout_type
    assert client.span.status.status_code is StatusCode.ERROR


def test_a_cancelled_call_ends_its_span_without_an_error(client):
    if not client.is_async:
        return

    async def use(made):
        call = asyncio.create_task(client.open(made, "/stuck"))
        while not Server.got:  # noqa: ASYNC110  # another thread puts it there
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    client.run(use)
    assert client.span.status.status_code is StatusCode.UNSET
    assert "error.type" not in client.span.attributes


def test_fifty_calls_at_once_do_not_mix(client):
    async def one(made, number):
        context = trace.set_span_in_context(NonRecordingSpan(SpanContext(number, 1, True, TraceFlags(1))), Context())
        token = trace.context_api.attach(context)
        try:
            await client.read(await client.open(made))
        finally:
            trace.context_api.detach(token)

    async def all_of_them(made):
        await asyncio.gather(*(one(made, number) for number in range(1, 51)))

    client.run(all_of_them)
    assert sorted(span.context.trace_id for span in client.spans) == list(range(1, 51))
    assert set(parents()) == {traceparent_of(span) for span in client.spans}


# The body.


def test_the_span_ends_when_the_body_has_been_read(client):
    async def use(made):
        response = await client.open(made, "/slow")
        first = True
        async for _ in client.chunks(response):
            if first:
                assert client.spans == []
                Server.goes_on.set()
            first = False
        assert client.span.attributes["http.response.status_code"] == 200

    client.run(use)
    assert client.span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("reads", [0, 1])
def test_the_span_ends_when_a_body_is_closed_early(client, reads):
    async def use(made):
        response = await client.open(made, "/slow")
        if reads:
            async for _ in client.chunks(response):
                break
        assert client.spans == []
        await client.close(response)
        await client.close(response)
        assert client.span.status.status_code is StatusCode.UNSET

    client.run(use)


@pytest.mark.parametrize("in_chunks", [True, False])
def test_a_body_that_breaks_off_raises_what_the_library_raises_and_marks_the_span(client, in_chunks):
    async def use(made):
        response = await client.open(made, "/broken")
        with pytest.raises(client.error):
            if in_chunks:
                async for _ in client.chunks(response):
                    pass
            else:
                await client.read(response)
        await client.close(response)

    client.run(use)
    assert client.span.status.status_code is StatusCode.ERROR
    assert client.span.attributes["http.response.status_code"] == 200
    assert client.span.attributes["error.type"]


def test_a_body_that_takes_too_long_marks_the_span(client):
    async def use(made):
        with pytest.raises((client.error, TimeoutError)):
            await client.read(await client.open(made, "/slow", wait=0.2))

    client.run(use)
    assert client.span.attributes["error.type"]
    assert client.span.status.status_code is StatusCode.ERROR


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # so aiohttp says that it was dropped
def test_the_span_of_a_response_that_is_dropped_ends(client):
    """An aiohttp session holds on to it until it has closed."""

    async def ended():
        for _ in range(100):
            gc.collect()
            await asyncio.sleep(0.01)
            if client.spans:
                break
        assert client.span.attributes["http.response.status_code"] == 200
        assert client.span.status.status_code is StatusCode.UNSET

    async def use(made):
        await client.open(made, "/slow")
        if client.library is not aiohttp:
            await ended()

    client.run(use)
    asyncio.run(ended())


def test_an_answer_without_a_body_ends_the_span(client):
    client.call(method="HEAD")
    assert client.span.attributes["http.response.status_code"] == 200


# Others.


@pytest.mark.parametrize("suppress", [suppress_instrumentation, suppress_http_instrumentation])
def test_a_suppressed_call_has_no_span_and_carries_nothing_of_ours(client, suppress):
    async def use(made):
        with suppress():
            assert await client.read(await client.open(made)) == b"in stock"

    context = client.propagator.extract({"traceparent": VALID, "baggage": "shop=north", "x-request-id": "7"})
    client.run(use, within=context)
    assert client.spans == []
    assert PROPAGATED.isdisjoint(client.sent)


def test_where_a_client_further_out_suppresses_ours_we_make_no_span_and_withhold_what_is_not_to_go(
    client,
):
    """As contrib's instrumentation of requests does it."""
    client.propagator = MeshPropagator(baggage_to=("nobody.example",))

    async def use(made):
        with client.tracer.start_as_current_span("outer", kind=SpanKind.CLIENT) as outer:
            headers = {"baggage": "shop=north"}
            meshmw.MeshPropagator().inject(headers)
            with suppress_http_instrumentation():
                await client.read(await client.open(made, "/redirect", headers=headers))
        return outer

    outer = client.run(use, within=within(client, shop="north"))
    assert client.span.context == outer.context
    assert [by_name(lines)["traceparent"] for _, lines in Server.got] == [[traceparent_of(outer)]] * 3
    assert all("baggage" not in dict(lines) for _, lines in Server.got)
    assert "http.response.status_code" not in outer.attributes


@pytest.mark.parametrize("family", ["requests", "aiohttp"])
def test_the_span_of_a_response_that_is_held_when_the_process_ends_is_exported(address, family):
    program = f"""
import asyncio, meshmw
meshmw.configure(meshmw.Settings(exporter="console"))

async def main():
    if "{family}" == "requests":
        return meshmw.requests.Session().get("{address}/slow", stream=True)
    return await meshmw.aiohttp.ClientSession().get("{address}/slow")

loop = asyncio.new_event_loop()  # held, so that aiohttp has nothing to say of it
held = loop.run_until_complete(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r"CLIENT GET .* 127\.0\.0\.1  200$", done.stdout, re.MULTILINE), done.stdout + done.stderr
