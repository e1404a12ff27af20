"""Laws 4 and 6 beside contrib's instrumentation of the client, and what `suppress_instrumentation()` means to us."""

import asyncio
import inspect
from types import MappingProxyType

import pytest
from opentelemetry import baggage, propagate, trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.instrumentation import httpx as contrib
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.utils import suppress_http_instrumentation, suppress_instrumentation

from meshmw import MeshPropagator, asgi

SUPPRESSIONS = [suppress_instrumentation, suppress_http_instrumentation]
VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def result(value):
    return await value if inspect.isawaitable(value) else value


def within(caller, **of_baggage):
    context = trace.set_span_in_context(caller.tracer.start_span("work"), Context())
    for key, value in of_baggage.items():
        context = baggage.set_baggage(key, value, context)
    return context


def use_plain_client(caller, transport):
    """Have the caller use the library's own client, with a transport in which ours is."""
    kind = caller.library.AsyncClient if caller.is_async else caller.library.Client
    caller.client = lambda: kind(transport=transport, base_url=caller.address)


def traceparent_of(span):
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags & 3:02x}"


def instrumentor_of(caller):
    return contrib.HTTPXClientInstrumentor if caller.family == "httpx" else contrib.HTTPX2ClientInstrumentor


@pytest.fixture
def instrumented(caller):
    """A caller whose library contrib has instrumented as a whole, as `opentelemetry-instrument` does."""
    instrumentor = instrumentor_of(caller)()
    instrumentor.instrument(tracer_provider=caller.provider)
    yield caller
    instrumentor.uninstrument()


def test_a_call_is_one_client_span_and_its_server_the_child_of_that(instrumented):
    context = within(instrumented, shop="north")
    instrumented.call(within=context)
    assert instrumented.span.parent.span_id == trace.get_current_span(context).get_span_context().span_id
    assert instrumented.span.instrumentation_scope.name == "meshmw"
    assert instrumented.sent["traceparent"] == [traceparent_of(instrumented.span)]
    assert instrumented.sent["baggage"] == ["shop=north"]


def test_nothing_goes_where_nothing_is_to_go(instrumented):
    instrumented.propagator = MeshPropagator(propagate_to=())
    instrumented.call(within=within(instrumented, shop="north"))
    assert {"traceparent", "tracestate", "baggage"}.isdisjoint(instrumented.sent)
    assert len(instrumented.spans) == 1


def test_a_redirect_to_a_stranger_takes_no_baggage_along(instrumented):
    known, port = instrumented.address.removeprefix("http://").partition(":")[::2]
    instrumented.propagator = MeshPropagator(baggage_to=(known,))
    stranger = f"http://localhost:{port or 80}/items/7"

    async def use(client):
        await result(client.get("/items/7"))
        await result(client.get(stranger))

    instrumented.run(use, within=within(instrumented, shop="north"))
    assert [dict(lines).get("baggage") for lines in instrumented.got] == ["shop=north", None]
    assert [dict(lines)["traceparent"] for lines in instrumented.got] == list(map(traceparent_of, instrumented.spans))


def test_a_client_that_contrib_has_instrumented_by_itself_makes_one_span(caller):
    caller.propagator = MeshPropagator(propagate_to=())

    async def use(client):
        # The transport that our client asks is ours, around one that contrib has patched or a whole one of contrib.
        instrumentor_of(caller).instrument_client(client, tracer_provider=caller.provider)
        await result(client.get("/items/7"))

    caller.run(use, within=within(caller, shop="north"))
    assert len(caller.spans) == 1
    assert {"traceparent", "baggage"}.isdisjoint(caller.sent)


def test_a_span_of_a_transport_in_between_changes_nothing(instrumented):
    instrumented.propagator = MeshPropagator(propagate_to=())
    inner = instrumented.network()

    class Between(instrumented.library.BaseTransport, instrumented.library.AsyncBaseTransport):
        def handle_request(self, request):
            with instrumented.tracer.start_as_current_span("attempt"):
                return inner.handle_request(request)

        async def handle_async_request(self, request):
            with instrumented.tracer.start_as_current_span("attempt"):
                return await inner.handle_async_request(request)

        def close(self):
            inner.close()

        async def aclose(self):
            await inner.aclose()

    instrumented.network = Between
    instrumented.call(within=within(instrumented, shop="north"))
    assert len(instrumented.spans) == 1
    assert {"traceparent", "baggage"}.isdisjoint(instrumented.sent)


def contribs_transport(caller, inner):
    suffix = "" if caller.family == "httpx" else "Httpx2"
    kind = "AsyncOpenTelemetryTransport" if caller.is_async else "SyncOpenTelemetryTransport"
    return getattr(contrib, kind + suffix)(inner, tracer_provider=caller.provider)


def test_the_span_of_contribs_transport_further_out_is_adopted_and_we_write_last(in_memory, monkeypatch):
    monkeypatch.setattr(propagate, "propagators", MeshPropagator())
    caller = in_memory()
    caller.propagator = MeshPropagator(baggage_to=("nobody.example",))
    use_plain_client(caller, contribs_transport(caller, caller.wrap(caller.inner)))

    async def use(client):
        await result(client.get("/items/7"))

    caller.run(use, within=within(caller, shop="north"))
    assert caller.span.instrumentation_scope.name == "opentelemetry.instrumentation.httpx"
    assert caller.sent["traceparent"] == [traceparent_of(caller.span)]
    assert "baggage" not in caller.sent


def test_a_span_that_says_its_kind_by_a_word_is_adopted_too(in_memory):
    """As those of ddtrace's bridge to OpenTelemetry do."""

    class OfDatadog(trace.NonRecordingSpan):
        kind = "client"

        def is_recording(self):
            return True

    caller = in_memory()
    span = OfDatadog(caller.tracer.start_span("http.request").get_span_context())

    async def use(client):
        context = span.get_span_context()
        written = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
        await result(client.get("/items/7", headers={"traceparent": written}))

    caller.run(use, within=trace.set_span_in_context(span, Context()))
    assert caller.spans == []
    assert caller.sent["traceparent"][0].split("-")[2] == f"{span.get_span_context().span_id:016x}"


def test_a_transport_of_ours_further_in_makes_no_second_span(in_memory):
    caller = in_memory()
    inner = caller.wrap(caller.inner)

    class Between(caller.library.BaseTransport, caller.library.AsyncBaseTransport):
        def handle_request(self, request):
            return inner.handle_request(request)

        async def handle_async_request(self, request):
            return await inner.handle_async_request(request)

    caller.inner = Between()
    caller.call(within=within(caller))
    assert caller.sent["traceparent"] == [traceparent_of(caller.span)]


@pytest.mark.parametrize("server", ["meshmw", "contrib", "bare"])
def test_an_application_within_this_process_is_traced_and_so_are_its_own_calls(make, server):
    """What stands back for one call is that call's telemetry, and not what happens at its other end."""
    caller = make("httpx", True)
    instrumentor = contrib.HTTPXClientInstrumentor()
    instrumentor.instrument(tracer_provider=caller.provider)
    options = {"tracer_provider": caller.provider}

    async def app(scope, receive, send):
        async with caller.library.AsyncClient(transport=contribs_transport(caller, caller.inner)) as client:
            await client.get("http://stock.internal/items/7")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    wrapped = {
        "meshmw": lambda: asgi.TraceContextMiddleware(app, propagator=MeshPropagator(), **options),
        "contrib": lambda: OpenTelemetryMiddleware(app, **options),
        "bare": lambda: app,
    }[server]()
    transport = caller.library.ASGITransport(wrapped)

    class Between(caller.library.AsyncBaseTransport):
        async def handle_async_request(self, request):
            return await transport.handle_async_request(request)

    try:
        inner = transport if server == "bare" else Between()
        caller.run(
            lambda client: client.get("/items/7"),
            within=within(caller),
            transport=caller.wrap(inner),
            base_url="http://shop.internal",
        )
    finally:
        instrumentor.uninstrument()
    # contrib's is INTERNAL where something is current.
    named = {"contrib": "opentelemetry.instrumentation.asgi", "meshmw": "meshmw", "bare": None}[server]
    served = [
        span.instrumentation_scope.name for span in caller.exporter.get_finished_spans() if span not in caller.spans
    ]
    assert set(served) == ({named} if named else set())
    assert len(caller.spans) == 2
    assert len(caller.sent["traceparent"]) == 1


@pytest.mark.parametrize("suppress", SUPPRESSIONS)
def test_a_suppressed_call_has_no_span_and_carries_nothing_of_ours(caller, suppress):
    async def use(client):
        with suppress():
            response = await result(client.get("/items/7"))
        assert response.text == "in stock"

    context = caller.propagator.extract({"traceparent": VALID, "baggage": "shop=north", "x-request-id": "7"})
    caller.run(use, within=context)
    assert caller.spans == []
    assert {"traceparent", "tracestate", "baggage", "x-meshmw-sent", "x-request-id"}.isdisjoint(caller.sent)


def test_what_suppresses_is_current_further_in_and_not_what_stands_down(in_memory):
    caller = in_memory()
    seen = []

    def look(request):
        seen.append(trace.get_current_span())
        return caller.answer(request)

    caller.inner = caller.library.MockTransport(look)
    context = within(caller)

    async def use(client):
        with suppress_instrumentation():
            await result(client.get("/items/7"))

    caller.run(use, within=context)
    assert seen == [trace.get_current_span(context)]


def test_a_malformed_header_of_the_callers_does_not_leave_a_suppressed_call_either(in_memory):
    caller = in_memory()
    token = attach(Context({"suppress_instrumentation": True}))
    try:
        caller.call(headers={"traceparent": VALID.upper(), "baggage": "=,ok=1"})
    finally:
        detach(token)
    assert "traceparent" not in caller.sent
    assert caller.sent["baggage"] == ["ok=1"]


def test_each_hop_of_a_redirect_says_how_often_the_request_was_sent_before(caller):
    caller.call("/redirect", follow_redirects=True)
    assert [span.attributes.get("http.request.resend_count") for span in caller.spans] == [None, 1, 2]


def test_a_retry_says_how_often_the_request_was_sent_before(in_memory):
    caller = in_memory()
    answers = iter([503, 503, 200, 200])
    caller.inner = caller.library.MockTransport(lambda request: caller.library.Response(next(answers)))
    ours = caller.wrap(caller.inner)

    class Retries(caller.library.BaseTransport, caller.library.AsyncBaseTransport):
        def handle_request(self, request):
            return next(found for found in iter(lambda: ours.handle_request(request), None) if found.is_success)

        async def handle_async_request(self, request):
            while not (found := await ours.handle_async_request(request)).is_success:
                pass
            return found

    async def use(client):
        await result(client.get("/items/7"))
        await result(client.get("/items/7"))

    use_plain_client(caller, Retries())
    caller.run(use)
    assert [span.attributes.get("http.request.resend_count") for span in caller.spans] == [None, 1, 2, None]


def test_a_request_that_is_sent_again_to_authenticate_says_so(in_memory):
    caller = in_memory()
    challenge = {"www-authenticate": 'Digest realm="a", nonce="b", qop="auth"'}
    answers = iter([(401, challenge), (200, {})])
    caller.inner = caller.library.MockTransport(
        lambda request: (lambda found: caller.library.Response(found[0], headers=found[1]))(next(answers))
    )
    caller.call(auth=caller.library.DigestAuth("user", "pass"))
    assert [span.attributes.get("http.request.resend_count") for span in caller.spans] == [None, 1]


def test_a_request_whose_extensions_cannot_be_changed_is_sent_all_the_same(in_memory):
    caller = in_memory()

    async def use(client):
        request = client.build_request("GET", "/items/7")
        request.extensions = MappingProxyType(request.extensions)
        for _ in range(2):
            await result(client.send(request))

    caller.run(use)
    assert [span.attributes.get("http.request.resend_count") for span in caller.spans] == [None, None]


def test_what_stands_back_for_a_call_does_not_for_what_outlives_it(make):
    """A task that a transport starts copies the context."""
    caller = make("httpx", True)
    left = asyncio.Event()
    found = []

    async def later():
        await left.wait()
        from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled

        found.append(is_http_instrumentation_enabled())

    class Starts(caller.library.AsyncBaseTransport):
        async def handle_async_request(self, request):
            self.task = asyncio.create_task(later())
            return caller.answer(request)

    caller.inner = Starts()

    async def use(client):
        await client.get("/items/7")
        left.set()
        await caller.inner.task

    caller.run(use, within=within(caller))
    assert found == [True]
