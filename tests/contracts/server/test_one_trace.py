"""Laws 3, 4, 5 and 7 on every host: the parent is the request's own, there is one SERVER span, and nothing leaks."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, NoOpTracerProvider, SpanContext, SpanKind, TraceFlags

from tests.contracts.server.hosts.starlette import native_telemetry

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE_ID}-{PARENT_ID}-01"
UNSAMPLED = f"00-{TRACE_ID}-{PARENT_ID}-00"

LEAKS = {
    "recording": lambda tracer: tracer.start_span("stale"),
    "recording server": lambda tracer: tracer.start_span("stale", kind=SpanKind.SERVER),
    "recording server of another trace": lambda tracer: tracer.start_span(
        "stale", trace.set_span_in_context(NonRecordingSpan(SpanContext(5, 6, True, TraceFlags(1)))), SpanKind.SERVER
    ),
    "ended": lambda tracer: ended(tracer.start_span("stale", kind=SpanKind.SERVER)),
    "unsampled": lambda tracer: NonRecordingSpan(SpanContext(7, 8, False, TraceFlags(0))),
    "remote": lambda tracer: NonRecordingSpan(SpanContext(7, 8, True, TraceFlags(1))),
}


def ended(span):
    span.end()
    return span


def leak(kind):
    """A context that an earlier request left behind, with its span and its baggage."""
    span = LEAKS[kind](TracerProvider().get_tracer("earlier"))
    return trace.set_span_in_context(span, baggage.set_baggage("stale", "1", Context()))


def test_the_caller_is_the_parent_of_the_one_server_span(host):
    host.get(headers=[("traceparent", VALID), ("tracestate", "vendor=1")])
    span = host.server_span
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE_ID, PARENT_ID)
    assert span.parent.is_remote
    assert (host.seen.trace_id, host.seen.sampled) == (span.context.trace_id, True)
    assert host.seen.outbound["tracestate"] == "vendor=1"
    assert host.seen.outbound["traceparent"] == f"00-{TRACE_ID}-{host.seen.span_id:016x}-01"
    assert host.seen.span_id in {each.context.span_id for each in host.spans}


def test_a_request_without_headers_starts_one_trace_of_one_server_span(host):
    host.get()
    assert host.server_span.parent is None
    assert host.seen.trace_id == host.server_span.context.trace_id
    assert host.refusals == {}


def test_a_b3_caller_is_the_parent(host):
    host.get(headers=[("b3", f"{TRACE_ID}-{PARENT_ID}-1")])
    assert host.server_span.parent.span_id == int(PARENT_ID, 16)
    assert host.seen.outbound["b3"] == f"{TRACE_ID}-{host.seen.span_id:016x}-1"


def test_the_b3_debug_flag_goes_on(host):
    host.get(headers=[("b3", f"{TRACE_ID}-{PARENT_ID}-d")])
    assert host.seen.outbound["b3"].endswith("-d")
    assert host.seen.outbound["x-b3-flags"] == "1"


def test_x_request_id_goes_on(host):
    host.get(headers=[("x-request-id", "7b3c-1")])
    assert host.seen.outbound["x-request-id"] == "7b3c-1"


@pytest.mark.parametrize("kind", LEAKS)
@pytest.mark.parametrize("headers", [[("traceparent", VALID)], [("traceparent", VALID), ("baggage", "own=1")]])
def test_what_leaked_into_the_task_is_no_parent_of_a_request_with_headers(host, kind, headers):
    host.get(headers=headers, ambient=leak(kind))
    span = host.server_span
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE_ID, PARENT_ID)
    assert host.seen.baggage == ({"own": "1"} if len(headers) > 1 else {})
    assert "stale" not in host.seen.outbound.get("baggage", "")


@pytest.mark.parametrize("kind", LEAKS)
def test_what_leaked_into_the_task_is_no_parent_of_a_request_without_headers(host, kind):
    host.get(ambient=leak(kind))
    assert host.server_span.parent is None
    assert host.seen.trace_id == host.server_span.context.trace_id
    assert host.seen.baggage == {}


@pytest.mark.parametrize("kind", LEAKS)
def test_what_leaked_into_the_task_is_no_parent_of_a_malformed_request(host, kind):
    host.get(headers=[("traceparent", "junk")], ambient=leak(kind))
    assert host.server_span.parent is None
    assert host.seen.baggage == {}


def test_what_an_earlier_request_of_ours_left_is_no_parent(host):
    """A server may run the next request in the context that the last one was suspended in."""
    left = []
    host.during = lambda: left.append(Context(dict(trace.context_api.get_current())))
    host.get()
    host.visits.clear()
    host.during = None
    host.get(ambient=left[0])
    first, second = host.server_spans
    assert second.parent is None
    assert second.context.trace_id != first.context.trace_id


@pytest.mark.parametrize("kind", LEAKS)
def test_a_mark_of_starlette_without_a_span_proves_nothing(make, kind):
    """Starlette marks the scope also of a request that its telemetry leaves out."""
    host = make("StarletteHost")
    host.app = native_telemetry()(host.app, tracer_provider=host.tracer_provider, excluded_urls=["/items"])
    host.get(ambient=leak(kind))
    assert host.server_span.parent is None
    assert host.server_span.context.trace_id == host.seen.trace_id


@pytest.mark.parametrize("name", ["NativeFastAPI", "ContribFastAPI"])
def test_a_span_of_middleware_between_the_host_and_ours_stays_the_parent_of_what_follows(make, name):
    host = make(name)
    tracer = host.tracer_provider.get_tracer("application")

    class Audit:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            with tracer.start_as_current_span("audit"):
                await self.app(scope, receive, send)

    host.app.add_middleware(Audit)
    host.get(headers=[("traceparent", VALID)])
    (audit,) = [span for span in host.spans if span.name == "audit"]
    assert audit.parent.span_id == host.server_span.context.span_id
    assert host.seen.span_id == audit.context.span_id


@pytest.mark.parametrize("headers", [[], [("traceparent", VALID)]], ids=["root", "same caller"])
def test_a_request_that_is_being_served_lends_its_span_to_no_other(host, headers):
    """A server that reads the next request while it serves one may run it in the context of the first."""
    serve_within(host, headers)
    first, second = host.server_spans
    assert first.context.span_id != second.context.span_id
    assert first.parent == second.parent
    assert host.visits[0].span_id != host.visits[1].span_id


def serve_within(host, headers):
    def next_request():
        host.during = None
        context = trace.context_api.get_current()
        with ThreadPoolExecutor(1) as other:
            other.submit(lambda: host.get(headers=headers, ambient=context)).result()

    host.during = next_request
    host.get(headers=headers)


def test_a_leak_is_counted_and_said(new_host, caplog):
    host = new_host()
    host.get(headers=[("traceparent", VALID)], ambient=leak("remote"))
    if host.own_span:
        assert host.refusals == {("context", "leaked_span"): 1}
        assert "leaked_span" in caplog.text


def test_other_context_values_stay(host):
    seen = []
    host.during = lambda: seen.append(trace.context_api.get_value("tenant"))
    host.get(headers=[("traceparent", VALID)], ambient=Context({"tenant": "acme"}))
    kept = {None} if type(host).__name__ in REPLACES_THE_CONTEXT else {"acme"}
    assert set(seen) == kept


# Hosts outside of meshmw that attach what they extracted in place of the context that was there.
REPLACES_THE_CONTEXT = {"NativeFastAPI", "ContribASGIOutside", "ContribFastAPI", "ContribWSGIOutside"}


def test_an_unsampled_parent_means_no_recorded_span_and_the_trace_goes_on(host):
    host.get(headers=[("traceparent", UNSAMPLED), ("tracestate", "vendor=1"), ("baggage", "k=v;p=1")])
    assert host.spans == ()
    assert host.seen.outbound["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert host.seen.outbound["traceparent"].endswith("-00")
    assert host.seen.outbound["tracestate"] == "vendor=1"
    assert host.seen.outbound["baggage"] == "k=v;p=1"
    assert host.refusals == {}


def test_an_unsampled_root_is_unsampled_for_all_that_it_calls(new_host):
    host = new_host(tracer_provider=TracerProvider(sampler=ALWAYS_OFF))
    host.get()
    assert not int(host.seen.outbound["traceparent"][-2:], 16) & TraceFlags.SAMPLED
    assert host.refusals == {}


def test_the_sampler_is_asked_once_for_a_root(new_host):
    asked = []

    class Asked(TraceIdRatioBased):
        def should_sample(self, parent_context, trace_id, *rest, **named):
            asked.append(trace_id)
            return super().should_sample(parent_context, trace_id, *rest, **named)

    host = new_host(tracer_provider=TracerProvider(sampler=ParentBased(Asked(0.0))))
    host.get()
    assert len(asked) == 1


def test_without_an_sdk_the_caller_goes_out_again_unchanged(new_host):
    host = new_host(tracer_provider=NoOpTracerProvider())
    host.get(
        headers=[("traceparent", VALID), ("tracestate", "vendor=1"), ("baggage", "k=v;p=1"), ("x-request-id", "1")]
    )
    sent = {name: host.seen.outbound[name] for name in ("traceparent", "tracestate", "baggage", "x-request-id")}
    assert sent == {"traceparent": VALID, "tracestate": "vendor=1", "baggage": "k=v;p=1", "x-request-id": "1"}
    assert host.refusals == {}


def test_without_an_sdk_and_a_caller_nothing_goes_out(new_host):
    host = new_host(tracer_provider=NoOpTracerProvider())
    host.get()
    assert host.seen.outbound == {}


def test_without_an_sdk_a_malformed_caller_does_not_go_out(new_host):
    host = new_host(tracer_provider=NoOpTracerProvider())
    host.get(headers=[("traceparent", "junk"), ("tracestate", "a=1")])
    assert host.seen.outbound == {}
    assert host.seen.headers.keys().isdisjoint({"traceparent", "tracestate"})


@pytest.mark.parametrize("path", ["/health", "/health/"])
def test_an_excluded_path_has_no_span_of_ours_and_the_trace_goes_on(new_host, path):
    host = new_host(exclude=["/health"])
    host.get(path, headers=[("traceparent", VALID), ("x-request-id", "1")])
    assert not [span for span in host.spans if span.instrumentation_scope.name == "meshmw"]
    if host.visits:
        assert host.seen.outbound["traceparent"].startswith(f"00-{TRACE_ID}-")
        assert host.seen.outbound["x-request-id"] == "1"


def test_an_excluded_malformed_request_sends_nothing_on(new_host):
    host = new_host(exclude=["/health"])
    host.get("/health", headers=[("traceparent", "junk"), ("tracestate", "a=1")], ambient=leak("remote"))
    assert host.seen.headers.keys().isdisjoint({"traceparent", "tracestate"})
    assert not host.seen.outbound.get("traceparent", "").startswith(f"00-{7:032x}")


@pytest.mark.parametrize("name", ["BareASGI", "AroundNativeFastAPI", "BareWSGI", "ContribWSGIInside"])
def test_nested_middleware_opens_one_server_span(make, name):
    """An application that is wrapped twice, as a gateway that mounts an application with its own middleware."""
    host = make(name)
    host.app = type(host.app)(host.app, propagator=host.propagator, tracer_provider=host.tracer_provider)
    host.get(headers=[("traceparent", VALID)])
    assert host.server_span.parent.span_id == int(PARENT_ID, 16)


def test_a_hundred_requests_at_once_do_not_mix(asgi_host):
    async def all_of_them():
        asgi_host.during = None
        return await asyncio.gather(
            *(asgi_host.serve(headers=[("traceparent", f"00-{n + 1:032x}-{PARENT_ID}-01")]) for n in range(100))
        )

    replies = asyncio.run(all_of_them())
    got = [json.loads(reply.body)["traceparent"][3:35] for reply in replies]
    assert got == [f"{n + 1:032x}" for n in range(100)]
    assert sorted(span.context.trace_id for span in asgi_host.server_spans) == list(range(1, 101))


def test_a_hundred_requests_on_eight_threads_do_not_mix(wsgi_host):
    def one(n):
        return wsgi_host.get(headers=[("traceparent", f"00-{n + 1:032x}-{PARENT_ID}-01")])

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(one, range(100)))
    got = [json.loads(reply.body)["traceparent"][3:35] for reply in replies]
    assert got == [f"{n + 1:032x}" for n in range(100)]
    assert sorted(span.context.trace_id for span in wsgi_host.server_spans) == list(range(1, 101))
