"""Laws 2, 6 and 8 for every client: the current trace goes out once, and nothing else changes."""

import asyncio
import gc
import inspect
import re
import ssl
import subprocess
import sys
import threading

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags

from meshmw import MeshPropagator

VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE_HEADERS = {"traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "x-b3-flags"}
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


def within(caller, **of_baggage):
    """The context of an application's own span."""
    context = trace.set_span_in_context(caller.tracer.start_span("work"), Context())
    for key, value in of_baggage.items():
        context = baggage.set_baggage(key, value, context)
    return context


def traceparent_of(span):
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags & 3:02x}"


def test_a_call_is_a_client_span_of_the_current_trace_and_names_itself_to_the_server(caller):
    context = within(caller, shop="north")
    response = caller.call(within=context)
    assert response.text == "in stock"
    assert caller.span.parent.span_id == trace.get_current_span(context).get_span_context().span_id
    assert caller.sent["traceparent"] == [traceparent_of(caller.span)]
    assert caller.sent["baggage"] == ["shop=north"]


def test_a_call_outside_of_a_trace_starts_one(caller):
    caller.call()
    assert caller.span.parent is None
    assert caller.sent["traceparent"] == [traceparent_of(caller.span)]


def test_headers_are_replaced_and_never_appended_whatever_their_case(caller):
    caller.call(within=within(caller, own="1"), headers=STALE)
    assert caller.sent["traceparent"] == [traceparent_of(caller.span)]
    assert caller.sent["baggage"] == ["own=1"]
    assert TRACE_HEADERS & caller.sent.keys() == {"traceparent"}
    assert "x-b3-parentspanid" not in caller.sent


def test_duplicated_headers_of_the_caller_are_all_replaced(caller):
    caller.call(headers=[("traceparent", VALID), ("Traceparent", VALID), ("traceparent", "junk")])
    assert caller.sent["traceparent"] == [traceparent_of(caller.span)]


def test_b3_is_written_anew_where_it_is_a_format(in_memory):
    caller = in_memory(formats=("tracecontext", "b3", "b3multi"))
    caller.call(headers=STALE)
    assert caller.sent["b3"] == [f"{caller.span.context.trace_id:032x}-{caller.span.context.span_id:016x}-1"]
    assert caller.sent["x-b3-traceid"] == [f"{caller.span.context.trace_id:032x}"]
    assert {"x-b3-flags", "x-b3-parentspanid"}.isdisjoint(caller.sent)


def test_the_callers_request_is_not_changed(caller):
    async def use(client):
        request = client.build_request("POST", "/items/7", headers=STALE, json={"item": 7})
        headers, before = request.headers, list(request.headers.raw)
        response = await caller_result(client.send(request))
        assert request.headers is headers
        assert request.headers.raw == before
        assert response.request is request
        assert request.content == b'{"item":7}'

    caller.run(use)


async def caller_result(value):
    return await value if inspect.isawaitable(value) else value


def test_other_headers_go_out_as_they_are(caller):
    caller.call(headers=[("x-tag", "a"), ("X-Tag", "b"), ("x-latin", "caf\xe9".encode("latin-1"))])
    assert caller.sent["x-tag"] == ["a", "b"]
    assert caller.sent["x-latin"] == ["caf\xe9"]
    assert len(caller.sent["host"]) == 1


def test_a_transport_finds_the_content_of_the_request_that_the_library_gives_it(in_memory):
    """A test double may look at `request.content` without reading the stream first."""
    caller = in_memory()
    found = []

    class Double(caller.library.AsyncBaseTransport, caller.library.BaseTransport):
        def handle_request(self, request):
            found.append(request.content)
            return caller.library.Response(200)

        async def handle_async_request(self, request):
            return self.handle_request(request)

    caller.inner = Double()
    caller.call(method="POST", json={"item": 7})
    assert found == [b'{"item":7}']


@pytest.mark.parametrize("held", [{}, {"__slots__": ("tenant",)}], ids=["in its dictionary", "in a slot"])
def test_a_request_of_a_class_of_the_applications_own_goes_out_whole(in_memory, held):
    caller = in_memory()
    found = []
    Tenants = type("Tenants", (caller.library.Request,), held)

    class Double(caller.library.AsyncBaseTransport, caller.library.BaseTransport):
        def handle_request(self, request):
            found.append((type(request), request.tenant, request.content, request.extensions["kept"]))
            return caller.library.Response(200)

        async def handle_async_request(self, request):
            return self.handle_request(request)

    caller.inner = Double()
    request = Tenants("POST", "http://shop.internal/", json={"item": 7}, extensions={"kept": 1})
    request.tenant = "blue"
    caller.run(lambda client: caller_result(client.send(request)))
    assert found == [(Tenants, "blue", b'{"item":7}', 1)]
    assert "traceparent" not in request.headers


def test_a_request_that_cannot_be_copied_raises_and_ends_the_span(in_memory):
    caller = in_memory()

    class Request(caller.library.Request):
        def __copy__(self):
            raise TypeError("there is one of it")

    async def use(client):
        await caller_result(client.send(Request("GET", "http://shop.internal/")))

    with pytest.raises(TypeError, match="there is one of it"):
        caller.run(use)
    assert caller.span.attributes["error.type"] == "TypeError"
    assert caller.got == []


def test_a_request_that_is_sent_twice_and_changed_by_the_transport_stays_the_callers(in_memory):
    """A copy of a copy must not be the caller's, and each sending has headers of its own."""
    caller = in_memory()
    inner = caller.inner

    class Changing(caller.library.AsyncBaseTransport, caller.library.BaseTransport):
        def handle_request(self, request):
            request.headers["x-changed"] = "1"
            request.method, request.stream = "PUT", caller.library.ByteStream(b"other")
            return inner.handle_request(request)

        async def handle_async_request(self, request):
            request.headers["x-changed"] = "1"
            request.method, request.stream = "PUT", caller.library.ByteStream(b"other")
            return await inner.handle_async_request(request)

    caller.inner = Changing()
    request = caller.library.Request("POST", "http://shop.internal/items/7", content=b"own", extensions={"kept": 1})
    before = vars(request).copy()

    async def twice(client):
        for _ in range(2):
            await caller_result(client.send(request))

    caller.run(twice)
    assert {name: value for name, value in vars(request).items() if name != "extensions"} == {
        name: value for name, value in before.items() if name != "extensions"
    }
    assert request.extensions["kept"] == 1
    assert [dict(lines)["traceparent"] for lines in caller.got] == [traceparent_of(span) for span in caller.spans]
    assert len(caller.spans) == 2


def test_streamed_uploads_go_out_whole(caller):
    async def of_async():
        yield b"a" * 9
        yield b"b"

    caller.call(
        method="POST",
        content=of_async() if caller.is_async else iter([b"a" * 9, b"b"]),
        headers={"content-length": "10"},
    )
    assert caller.span.attributes["http.response.status_code"] == 200


def test_each_redirect_hop_has_its_own_span_and_fresh_headers(caller):
    context = within(caller)
    response = caller.call("/redirect", within=context, follow_redirects=True, headers=STALE)
    assert response.status_code == 200
    assert [span.attributes["http.response.status_code"] for span in caller.spans] == [302, 307, 200]
    assert [dict(lines)["traceparent"] for lines in caller.got] == [traceparent_of(span) for span in caller.spans]
    assert {span.parent.span_id for span in caller.spans} == {
        trace.get_current_span(context).get_span_context().span_id
    }
    assert all("b3" not in dict(lines) for lines in caller.got)


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_from_400_on_a_status_is_an_error_of_the_client(caller, status):
    assert caller.call(f"/status/{status}").status_code == status
    assert caller.span.attributes["http.response.status_code"] == status
    assert caller.span.attributes["error.type"] == str(status)
    assert caller.span.status.status_code is StatusCode.ERROR


def test_a_good_answer_is_no_error(caller):
    caller.call("/status/201")
    assert caller.span.status.status_code is StatusCode.UNSET
    assert "error.type" not in caller.span.attributes


def test_a_refused_connection_passes_unchanged_and_marks_the_span(in_memory):
    caller = in_memory(address="http://127.0.0.1:1")
    caller.over = "network"
    with pytest.raises(caller.library.ConnectError) as caught:
        caller.call()
    assert type(caught.value) is caller.library.ConnectError
    assert caller.span.attributes["error.type"].endswith("ConnectError")
    assert caller.span.status.status_code is StatusCode.ERROR
    assert "http.response.status_code" not in caller.span.attributes


def test_an_error_of_the_transport_is_the_same_object(in_memory):
    caller = in_memory()
    error = caller.library.ReadTimeout("too slow")

    def fail(request):
        raise error

    caller.inner = caller.library.MockTransport(fail)
    with pytest.raises(caller.library.ReadTimeout) as caught:
        caller.call()
    assert caught.value is error
    assert len(caller.span.events) == 1


@pytest.mark.parametrize("family", ["httpx", "httpx2"])
def test_a_cancelled_call_ends_its_span_without_an_error(make, family):
    caller = make(family, True)

    async def cancel(client):
        started = asyncio.Event()

        async def stuck(request):
            started.set()
            await asyncio.Event().wait()

        client._transport = caller.wrap(caller.library.MockTransport(stuck))
        call = asyncio.create_task(client.get("/items/7"))
        await started.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    caller.run(cancel)
    assert caller.span.status.status_code is StatusCode.UNSET
    assert "error.type" not in caller.span.attributes


def test_a_hundred_calls_at_once_do_not_mix(in_memory):
    caller = in_memory()

    async def one(client, number):
        context = trace.set_span_in_context(NonRecordingSpan(SpanContext(number, 1, True, TraceFlags(1))), Context())
        token = trace.context_api.attach(context)
        try:
            await caller_result(client.get("/items/7"))
        finally:
            trace.context_api.detach(token)

    async def all_of_them(client):
        await asyncio.gather(*(one(client, number) for number in range(1, 101)))

    caller.run(all_of_them)
    assert sorted(span.context.trace_id for span in caller.spans) == list(range(1, 101))
    assert {dict(lines)["traceparent"] for lines in caller.got} == {traceparent_of(span) for span in caller.spans}


# The body.


class Stream:
    """A response body that is not there at once."""

    def __init__(self, caller, error=None):
        self.error = error
        self.closed = 0
        outer = self

        class Body(caller.library.SyncByteStream, caller.library.AsyncByteStream):
            def __iter__(self):
                yield b"a"
                yield b"b"
                if outer.error:
                    raise outer.error

            async def __aiter__(self):
                for chunk in self:
                    yield chunk

            def close(self):
                outer.closed += 1

            async def aclose(self):
                outer.closed += 1

        caller.inner = caller.library.MockTransport(lambda request: caller.library.Response(200, stream=Body()))


async def open_stream(caller, client):
    return await caller_result(client.send(client.build_request("GET", "/items/7"), stream=True))


def test_the_span_ends_when_the_body_has_been_read(in_memory):
    caller = in_memory()
    stream = Stream(caller)

    async def use(client):
        response = await open_stream(caller, client)
        assert caller.spans == []
        assert [chunk async for chunk in caller.chunks(response)] == [b"a", b"b"]
        assert caller.span.attributes["http.response.status_code"] == 200

    caller.run(use)
    assert stream.closed == 1


def test_the_span_ends_when_a_body_is_closed_that_was_never_read(in_memory):
    caller = in_memory()
    stream = Stream(caller)

    async def use(client):
        response = await open_stream(caller, client)
        await caller.close(response)
        await caller.close(response)

    caller.run(use)
    assert caller.span.status.status_code is StatusCode.UNSET
    assert stream.closed == 1


def test_the_span_ends_when_a_body_is_closed_early(in_memory):
    caller = in_memory()
    Stream(caller)

    async def use(client):
        response = await open_stream(caller, client)
        async for _ in caller.chunks(response):
            break
        await caller.close(response)

    caller.run(use)
    assert caller.span.status.status_code is StatusCode.UNSET


def test_an_error_while_reading_passes_unchanged_and_marks_the_span(in_memory):
    caller = in_memory()
    error = caller.library.ReadError("gone")
    stream = Stream(caller, error)

    async def use(client):
        response = await open_stream(caller, client)
        with pytest.raises(caller.library.ReadError) as caught:
            async for _ in caller.chunks(response):
                pass
        assert caught.value is error
        await caller.close(response)

    caller.run(use)
    assert caller.span.status.status_code is StatusCode.ERROR
    assert caller.span.attributes["error.type"].endswith("ReadError")
    assert stream.closed == 1


READERS = ["iter_bytes", "iter_raw", "iter_text", "iter_lines", "read", "the stream itself"]


async def read_with(caller, response, reader):
    """Read a response in one of the ways that the library has, until it raises."""
    if reader == "the stream itself":
        chunks = response.stream
    else:
        chunks = getattr(response, f"a{reader}" if caller.is_async else reader)()
    if reader == "read":
        await caller_result(chunks)
    elif caller.is_async:
        async for _ in chunks:
            pass
    else:
        for _ in chunks:
            pass


@pytest.mark.parametrize("reader", READERS)
def test_the_span_ends_when_a_body_raises_half_way_and_nobody_closes_it(in_memory, reader):
    caller = in_memory()
    Stream(caller, caller.library.ReadError("gone"))

    async def use(client):
        response = await open_stream(caller, client)
        with pytest.raises(caller.library.ReadError):
            await read_with(caller, response, reader)
        assert caller.span.attributes["error.type"].endswith("ReadError")
        assert caller.span.attributes["http.response.status_code"] == 200
        await caller.close(response)

    caller.run(use)
    assert len(caller.spans) == 1


async def drop_unread(caller, response):
    pass


async def drop_half_read(caller, response):
    async for _ in caller.chunks(response):
        break


async def drop_read_with_one_next(caller, response):
    await (anext(response.aiter_lines()) if caller.is_async else asyncio.to_thread(next, response.iter_raw()))


@pytest.mark.parametrize("drop", [drop_unread, drop_half_read, drop_read_with_one_next])
def test_the_span_of_a_response_that_is_dropped_without_close_ends(in_memory, drop):
    caller = in_memory()
    Stream(caller)

    async def use(client):
        response = await open_stream(caller, client)
        await drop(caller, response)
        del response

    async def whole(client):
        await use(client)
        for _ in range(40):
            # What closes a dropped async generator is a task of the loop, one for each that is inside another.
            await asyncio.sleep(0)
            gc.collect()
            if caller.spans:
                break
        assert caller.span.attributes["http.response.status_code"] == 200
        assert caller.span.status.status_code is StatusCode.UNSET

    caller.run(whole)


@pytest.mark.parametrize("how", ["close", "block", "transport"])
def test_the_span_of_a_response_that_is_held_when_the_client_closes_ends(in_memory, how):
    caller = in_memory()
    Stream(caller)
    library = caller.library
    wrapped, plain = caller.wrap(caller.inner), (library.AsyncClient if caller.is_async else library.Client)

    async def use():
        client = plain(transport=wrapped) if how == "transport" else caller.client()
        if how != "close":
            await caller_result(client.__aenter__() if caller.is_async else client.__enter__())
        sent = client.send(client.build_request("GET", "http://shop.internal/"), stream=True)
        held = await caller_result(sent)
        assert not caller.spans
        if how != "close":
            end = client.__aexit__ if caller.is_async else client.__exit__
            await caller_result(end(None, None, None))
        else:
            await caller_result(client.aclose() if caller.is_async else client.close())
        assert caller.span.attributes["http.response.status_code"] == 200
        del held

    asyncio.run(use())


@pytest.mark.parametrize("closes", ["close", "block"])
def test_so_it_does_where_the_client_has_wrapped_its_own_transport(in_memory, closes):
    caller = in_memory()
    program = f"""
import asyncio, inspect
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
import {caller.family} as library
from meshmw.{caller.family} import {"AsyncClient" if caller.is_async else "Client"} as Client

exporter = InMemorySpanExporter()
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))

class Body(library.SyncByteStream, library.AsyncByteStream):
    def __iter__(self):
        yield b"a"
    async def __aiter__(self):
        yield b"a"

async def result(value):
    return await value if inspect.isawaitable(value) else value

async def main():
    client = Client(transport=library.MockTransport(lambda request: library.Response(200, stream=Body())))
    block = {closes == "block"}
    if block:
        await result(client.__aenter__() if {caller.is_async} else client.__enter__())
    held = [await result(client.send(client.build_request("GET", "http://shop.internal/"), stream=True)) for _ in "ab"]
    assert not exporter.get_finished_spans()
    if block:
        await result(client.__aexit__(None, None, None) if {caller.is_async} else client.__exit__(None, None, None))
    else:
        await result(client.aclose() if {caller.is_async} else client.close())
    assert len(exporter.get_finished_spans()) == 2

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_span_of_a_response_that_is_held_when_the_process_ends_is_exported(in_memory):
    caller = in_memory()
    program = f"""
import asyncio, inspect
import meshmw
from meshmw.{caller.family} import {"AsyncClient" if caller.is_async else "Client"} as Client
import {caller.family} as library

meshmw.configure(meshmw.Settings(exporter="console"))

class Body(library.SyncByteStream, library.AsyncByteStream):
    def __iter__(self):
        yield b"a"
    async def __aiter__(self):
        yield b"a"

client = Client(transport=library.MockTransport(lambda request: library.Response(200, stream=Body())))
request = client.build_request("GET", "http://shop.internal/")

async def main():
    sent = client.send(request, stream=True)
    return await sent if inspect.isawaitable(sent) else sent

held = asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.search(r"CLIENT GET .* shop\.internal  200$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("drop", [drop_unread, drop_half_read])
def test_a_dropped_response_may_be_collected_within_a_lock_that_the_end_of_a_span_takes(in_memory, drop):
    """Such as those of OpenTelemetry's metrics, within which the garbage collector may run."""
    caller = in_memory()
    Stream(caller)
    lock, ended, taken = threading.Lock(), threading.Event(), []

    class Locking(SpanProcessor):
        def on_end(self, span):
            taken.append(lock.acquire(timeout=5))
            if taken[-1]:
                lock.release()
            ended.set()

    caller.provider.add_span_processor(Locking())

    async def use(client):
        await drop(caller, await open_stream(caller, client))

    async def whole(client):
        await use(client)
        while not ended.is_set():
            await asyncio.sleep(0)
            with lock:
                gc.collect()
        assert taken == [True]

    caller.run(whole)


def test_an_error_while_closing_passes_and_ends_the_span(in_memory):
    caller = in_memory()
    Stream(caller)

    async def use(client):
        response = await open_stream(caller, client)
        error = OSError("no")

        class Broken(caller.library.SyncByteStream, caller.library.AsyncByteStream):
            def close(self):
                raise error

            async def aclose(self):
                raise error

        response.stream._stream._stream = Broken()
        with pytest.raises(OSError, match="no"):
            await caller.close(response)

    caller.run(use)
    assert caller.span.end_time is not None


def test_a_json_answer_over_the_network_is_read_as_ever(caller):
    async def use(client):
        response = await open_stream(caller, client)
        return b"".join([chunk async for chunk in caller.chunks(response)])

    assert caller.run(use) == b"in stock"
    assert caller.span.end_time is not None


# What goes along.


def test_x_request_id_goes_on_but_the_callers_own_wins(caller):
    inbound = caller.propagator.extract({"traceparent": VALID, "x-request-id": "from-the-mesh"})
    caller.call(within=inbound)
    assert caller.sent["x-request-id"] == ["from-the-mesh"]
    caller.got.clear()
    caller.call(within=inbound, headers={"X-Request-ID": "own"})
    assert caller.sent["x-request-id"] == ["own"]


def test_inbound_baggage_goes_on_as_it_came(caller):
    caller.call(within=caller.propagator.extract({"traceparent": VALID, "baggage": "k=v;p=1,a=%20b%20"}))
    assert caller.sent["baggage"] == ["k=v;p=1,a=%20b%20"]


@pytest.mark.parametrize("name", ["traceparent", "Traceparent"])
@pytest.mark.parametrize("own_trace", [True, False])
def test_a_malformed_traceparent_that_the_application_wrote_never_leaves(in_memory, name, own_trace):
    caller = in_memory()
    if not own_trace:
        caller.provider = trace.NoOpTracerProvider()
    caller.call(headers={name: VALID.upper(), "tracestate": "a=1", "baggage": "=,ok=1"})
    assert caller.sent.get("traceparent") == ([traceparent_of(caller.span)] if own_trace else None)
    assert "tracestate" not in caller.sent
    assert caller.sent.get("baggage") == (None if own_trace else ["ok=1"])


@pytest.mark.parametrize("of_baggage", [{}, {"own": "1"}])
def test_the_context_decides_of_baggage_that_the_application_wrote(caller, of_baggage):
    caller.call(headers={"Baggage": "written=1"}, within=within(caller, **of_baggage))
    assert caller.sent.get("baggage") == (["own=1"] if of_baggage else None)


def test_a_valid_traceparent_that_the_application_wrote_stays_where_there_is_no_trace_of_ours(in_memory):
    caller = in_memory()
    caller.provider = trace.NoOpTracerProvider()
    caller.call(headers={"traceparent": VALID, "tracestate": "a=1"})
    assert (caller.sent["traceparent"], caller.sent["tracestate"]) == ([VALID], ["a=1"])


def test_without_an_sdk_the_inbound_caller_goes_out_unchanged(in_memory):
    caller = in_memory()
    caller.provider = trace.NoOpTracerProvider()
    caller.call(within=caller.propagator.extract({"traceparent": VALID, "tracestate": "a=1"}))
    assert (caller.sent["traceparent"], caller.sent["tracestate"]) == ([VALID], ["a=1"])


def test_an_unsampled_trace_goes_on_unsampled(in_memory):
    caller = in_memory()
    caller.provider = TracerProvider(sampler=ALWAYS_OFF)
    caller.call()
    assert not int(caller.sent["traceparent"][0][-2:], 16) & 1
    assert caller.spans == []


# What the span says.


def test_the_span_says_what_the_stable_conventions_ask(caller):
    caller.call("/items/7?q=1")
    attributes = dict(caller.span.attributes)
    host, _, port = caller.address.removeprefix("http://").partition(":")
    version = attributes.pop("network.protocol.version", None)
    assert version == ("1.1" if caller.over == "network" else None)
    assert attributes == {
        "http.request.method": "GET",
        "server.address": host,
        "server.port": int(port or 80),
        "url.full": f"{caller.address}/items/7?q=1",
        "http.response.status_code": 200,
    }
    assert caller.span.name == "GET"


def test_an_unknown_method_is_not_taken_into_the_name(caller):
    caller.call(method="BREW")
    assert caller.span.name == "HTTP"
    assert caller.span.attributes["http.request.method"] == "_OTHER"
    assert caller.span.attributes["http.request.method_original"] == "BREW"


def test_credentials_and_secret_query_values_are_not_in_the_url(in_memory):
    caller = in_memory()
    caller.call("http://user:pa55@shop.internal/items/7?q=1&X-Amz-Signature=5ecret&sig=5ecret")
    assert caller.span.attributes["url.full"] == (
        "http://REDACTED:REDACTED@shop.internal/items/7?q=1&X-Amz-Signature=REDACTED&sig=REDACTED"
    )
    assert caller.sent["authorization"] == ["Basic dXNlcjpwYTU1"]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("/p/http://user:pa55@x/@me?q=1", "/p/http://REDACTED@x/@me?q=1"),
        ("/cb#access_token=pa55&x=1", "/cb#access_token=REDACTED&x=1"),
        ("/cb?q=1#top", "/cb?q=1#top"),
        ("/@me", "/@me"),
    ],
)
def test_neither_path_nor_fragment_shows_a_secret(in_memory, url, shown):
    caller = in_memory()
    caller.call(f"http://shop.internal{url}")
    assert caller.span.attributes["url.full"] == f"http://shop.internal{shown}"


# Drop-in.


def test_the_client_takes_what_the_library_takes(in_memory):
    caller = in_memory()
    for name in ("Client", "AsyncClient"):
        assert inspect.signature(getattr(caller.ours, name)) == inspect.signature(getattr(caller.library, name))
        assert issubclass(getattr(caller.ours, name), getattr(caller.library, name))


def test_every_argument_of_the_client_is_accepted_at_once(in_memory):
    caller = in_memory()
    library = caller.library
    plain = library.AsyncHTTPTransport() if caller.is_async else library.HTTPTransport()
    seen = []

    async def on_async_event(message):
        seen.append(type(message).__name__)

    hook = on_async_event if caller.is_async else (lambda message: seen.append(type(message).__name__))
    options = {
        "auth": ("user", "pass"),
        "params": {"q": "1"},
        "headers": {"x-own": "1"},
        "cookies": {"c": "1"},
        "verify": ssl.create_default_context(),
        "cert": None,
        "http1": True,
        "http2": True,
        "proxy": "http://127.0.0.1:9",
        "mounts": {"https://": plain, "http://skip.mesh": None},
        "timeout": 3.0,
        "follow_redirects": True,
        "limits": library.Limits(max_connections=2),
        "max_redirects": 3,
        "event_hooks": {"request": [hook], "response": [hook]},
        "base_url": "http://shop.internal",
        "transport": caller.wrap(caller.inner),
        "trust_env": False,
        "default_encoding": "utf-8",
    }
    parameters = inspect.signature(caller.ours.AsyncClient if caller.is_async else caller.ours.Client).parameters
    assert set(parameters) <= set(options)
    del options["proxy"]  # every request would go there instead
    caller.run(lambda client: caller_result(client.get("/items/7")), **options)
    assert caller.sent["x-own"] == ["1"]
    assert caller.sent["cookie"] == ["c=1"]
    assert caller.sent["authorization"][0].startswith("Basic ")
    assert caller.sent["traceparent"] == [traceparent_of(caller.span)]
    assert caller.span.attributes["url.full"].endswith("?q=1")
    assert seen == ["Request", "Response"]


def test_a_client_wraps_its_own_transport_mounts_and_proxy(in_memory):
    caller = in_memory()
    mounted = caller.library.MockTransport(caller.answer)

    async def use(client):
        for url in ("http://shop.internal/a", "http://mounted.mesh/b"):
            await caller_result(client.get(url))
        proxied = client._transport_for_url(caller.library.URL("https://shop.internal"))
        ours = caller.ours.AsyncTraceContextTransport if caller.is_async else caller.ours.TraceContextTransport
        assert type(proxied) is ours

    caller.run(
        use,
        within=within(caller),
        transport=caller.library.MockTransport(caller.answer),
        mounts={"http://mounted.mesh": mounted, "https://": caller.network()},
    )
    assert len({dict(lines)["traceparent"][:35] for lines in caller.got}) == 1


def test_a_client_makes_one_wrapper_for_each_transport_that_it_uses_also_for_one_put_in_later(in_memory):
    caller = in_memory()
    url = caller.library.URL("http://shop.internal/a")

    def transport():
        return caller.library.MockTransport(caller.answer)

    async def use(client):
        first, mounted = (client._transport_for_url(each) for each in (url, caller.library.URL("http://mounted.mesh")))
        await caller_result(client.get(url))
        assert client._transport_for_url(url) is first is not mounted
        for replaced in (transport(), transport()):
            client._transport = replaced
            await caller_result(client.get(url))
        assert client._transport_for_url(url)._transport is replaced
        (pattern,) = client._mounts
        client._mounts[pattern] = late = transport()
        assert client._transport_for_url(caller.library.URL("http://mounted.mesh"))._transport is late

    caller.run(use, within=within(caller), transport=transport(), mounts={"http://mounted.mesh": transport()})
    assert len({dict(lines)["traceparent"][:35] for lines in caller.got}) == 1
    assert len(caller.got) == 3


def test_a_transport_that_is_given_wrapped_is_not_wrapped_twice(in_memory):
    caller = in_memory()
    caller.call()
    assert len(caller.spans) == 1


def test_closing_the_transport_closes_the_one_within(in_memory):
    caller = in_memory()
    closed = []

    class Inner(caller.library.BaseTransport, caller.library.AsyncBaseTransport):
        def close(self):
            closed.append("close")

        async def aclose(self):
            closed.append("aclose")

        def __enter__(self):
            closed.append("enter")
            return self

        async def __aenter__(self):
            closed.append("enter")
            return self

    async def use():
        if caller.is_async:
            await caller.wrap(Inner()).aclose()
            async with caller.wrap(Inner()) as entered:
                return entered
        caller.wrap(Inner()).close()
        with caller.wrap(Inner()) as entered:
            return entered

    entered = asyncio.run(use())
    assert isinstance(entered, (caller.ours.AsyncTraceContextTransport, caller.ours.TraceContextTransport))
    close = "aclose" if caller.is_async else "close"
    assert closed == [close, "enter", close]


def test_transports_follow_the_configured_propagator_where_none_is_given(in_memory, monkeypatch):
    from meshmw import _runtime as runtime

    caller = in_memory()
    monkeypatch.setattr(runtime, "_installed", runtime.Runtime(propagator=MeshPropagator(["b3"])))
    caller.propagator = None
    caller.call()
    assert "b3" in caller.sent
    assert "traceparent" not in caller.sent
