"""FastAPI with its own telemetry on, configured as a service is; each case is a process of its own."""

import json
import subprocess
import sys

import pytest

from tests.programs import clean_environment

TRACE_ID, PARENT_ID = "1" * 32, "2" * 16
VALID = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "baggage": "a=1"}
UNSAMPLED_BUT_SENT_SAMPLED = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00", "x-meshmw-sent": f"{PARENT_ID}-01"}

SERVICE = """
import asyncio, json, logging, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

case = json.loads(sys.argv[1])
logging.basicConfig(level=logging.WARNING)
exporter, own = InMemorySpanExporter(), InMemorySpanExporter()
provider, other = TracerProvider(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
other.add_span_processor(SimpleSpanProcessor(own))
trace.set_tracer_provider(provider)

import httpx, meshmw
if case.get("settings") is not None:
    meshmw.configure(meshmw.Settings(**case["settings"]))
from fastapi import FastAPI
from meshmw.asgi import TraceContextMiddleware

app = FastAPI()
options = case.get("options", {})
if options.pop("other_provider", False):
    options["tracer_provider"] = other
if options.pop("own_propagator", False):
    options["propagator"] = meshmw.MeshPropagator()

@app.get("/x")
async def x():
    headers = {}
    meshmw.inject(headers)
    return headers

served = app
if case.get("outermost"):
    served = TraceContextMiddleware(app, **options)
else:
    app.add_middleware(TraceContextMiddleware, **options)

async def main():
    transport = httpx.ASGITransport(served, client=(case.get("peer", "127.0.0.1"), 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
        return (await client.get("/x", headers=case["headers"])).json()

sent = asyncio.run(main())
from meshmw import _runtime as runtime

def told(span):
    return {
        "id": f"{span.context.span_id:016x}",
        "trace": f"{span.context.trace_id:032x}",
        "parent": span.parent and f"{span.parent.span_id:016x}",
        "kind": span.kind.name,
        "scope": span.instrumentation_scope.name,
        "events": [dict(event.attributes) for event in span.events],
        "links": [f"{link.context.span_id:016x}" for link in span.links],
    }

print(json.dumps({
    "sent": sent,
    "spans": [told(span) for span in exporter.get_finished_spans()],
    "own": [told(span) for span in own.get_finished_spans()],
    "counts": {f"{h} {r}": n for (h, r), n in runtime.current().propagator.rejections.counts.items()},
}))
"""


def serve(headers, *, environment=None, **case):
    kept = clean_environment()
    done = subprocess.run(
        [sys.executable, "-c", SERVICE, json.dumps({"headers": headers, **case})],
        env=kept | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def servers(found):
    return [span for span in found["spans"] if span["kind"] == "SERVER"]


@pytest.mark.parametrize("outermost", [False, True])
def test_a_flag_that_flipped_is_counted_once_wherever_the_middleware_stands(outermost):
    found = serve(UNSAMPLED_BUT_SENT_SAMPLED, settings={}, outermost=outermost)
    assert found["counts"] == {"traceparent flipped": 1}


@pytest.mark.parametrize("outermost", [False, True])
def test_a_newer_b3_is_preferred_wherever_the_middleware_stands(outermost):
    headers = {**VALID, "b3": f"{TRACE_ID}-{'3' * 16}-1", "x-meshmw-sent": f"{PARENT_ID}-01"}
    settings = {"propagators": ["tracecontext", "b3"], "prefer": "auto"}
    (server,) = servers(serve(headers, settings=settings, outermost=outermost))
    assert server["parent"] == "3" * 16


class TestTrust:
    @pytest.mark.parametrize("outermost", [False, True])
    def test_the_setting_restarts_every_caller_in_one_server_span(self, outermost):
        found = serve(VALID, settings={"trust": "restart"}, outermost=outermost)
        (server,) = servers(found)
        assert (server["parent"], server["links"]) == (None, [PARENT_ID])
        assert found["sent"]["traceparent"].split("-")[1] == server["trace"]
        assert "baggage" not in found["sent"]

    def test_around_the_application_a_stranger_gets_one_new_trace(self):
        found = serve(VALID, settings={"trusted_peers": ["10.0.0.0/8"]}, outermost=True)
        (server,) = servers(found)
        assert (server["parent"], server["links"]) == (None, [PARENT_ID])
        assert found["counts"] == {}

    def test_inside_the_host_a_stranger_still_gets_one_server_span_and_nothing_of_him_goes_on(self):
        found = serve(VALID, settings={"trusted_peers": ["10.0.0.0/8"]})
        (server,) = servers(found)
        assert server["scope"] == "fastapi"
        assert found["sent"]["traceparent"].split("-")[1] != TRACE_ID
        assert "baggage" not in found["sent"]
        assert found["counts"] == {"context host_trust": 1}

    @pytest.mark.parametrize("outermost", [False, True])
    def test_a_trusted_peer_is_continued(self, outermost):
        found = serve(VALID, settings={"trusted_peers": ["10.0.0.0/8"]}, peer="10.1.2.3", outermost=outermost)
        (server,) = servers(found)
        assert server["parent"] == PARENT_ID
        assert found["counts"] == {}

    def test_a_middleware_with_a_propagator_of_its_own_keeps_every_other_setting(self):
        settings = {"trust": "restart", "exclude": ["/x"]}
        found = serve(VALID, settings=settings, outermost=True, options={"own_propagator": True})
        assert servers(found) == []
        assert TRACE_ID not in found["sent"].get("traceparent", "")

    def test_settings_count_without_configure_too(self):
        environment = {"OTEL_PROPAGATORS": "meshmw", "MESHMW_TRUST": "restart", "MESHMW_EXCLUDE": "/x"}
        found = serve(VALID, environment=environment, outermost=True)
        assert servers(found) == []
        assert TRACE_ID not in found["sent"].get("traceparent", "")


class TestWithoutOurSpan:
    @pytest.mark.parametrize("settings", [{"exclude": ["/x"]}, {"server_spans": "off"}])
    def test_the_hosts_own_spans_keep_their_parents(self, settings):
        found = serve(VALID, settings=settings)
        (server,) = servers(found)
        assert server["parent"] == PARENT_ID
        assert {span["parent"] for span in found["spans"] if span is not server} == {server["id"]}

    @pytest.mark.parametrize("settings", [{"exclude": ["/x"]}, {"server_spans": "off"}])
    def test_around_the_host_there_is_none_and_the_trace_goes_on(self, settings):
        found = serve(VALID, settings=settings, outermost=True)
        assert found["spans"] == []
        assert found["sent"]["traceparent"] == VALID["traceparent"]


class TestContrib:
    SCOPE = "opentelemetry.instrumentation.asgi"

    def test_inside_a_host_that_made_its_span_contrib_makes_none(self):
        (server,) = servers(serve(VALID, settings={"server_spans": "contrib"}))
        assert (server["scope"], server["parent"]) == ("fastapi", PARENT_ID)

    def test_around_the_host_contrib_makes_the_one_span(self):
        (server,) = servers(serve(VALID, settings={"server_spans": "contrib"}, outermost=True))
        assert (server["scope"], server["parent"]) == (self.SCOPE, PARENT_ID)

    def test_an_excluded_path_gets_none(self):
        settings = {"server_spans": "contrib", "exclude": ["/x"]}
        assert servers(serve(VALID, settings=settings, outermost=True)) == []

    def test_the_middlewares_provider_is_contribs(self):
        options = {"other_provider": True}
        found = serve(VALID, settings={"server_spans": "contrib"}, outermost=True, options=options)
        assert [span["scope"] for span in found["own"] if span["kind"] == "SERVER"] == [self.SCOPE]
        assert found["spans"] == []

    @pytest.mark.parametrize(
        ("headers", "settings", "events", "links"),
        [
            ({"traceparent": "00-xyz"}, {}, [{"meshmw.header": "traceparent", "meshmw.reason": "hex"}], []),
            (VALID, {"trust": "restart"}, [], [PARENT_ID]),
        ],
    )
    def test_what_contrib_does_not_know_is_on_its_span(self, headers, settings, events, links):
        found = serve(headers, settings={"server_spans": "contrib", **settings}, outermost=True)
        (server,) = servers(found)
        assert (server["parent"], server["events"], server["links"]) == (None, events, links)
