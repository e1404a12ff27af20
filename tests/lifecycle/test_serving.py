"""How far a caller is trusted, who makes the span, and what the span tells, in ASGI and in WSGI alike."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshmw import MeshPropagator, asgi, wsgi
from meshmw import _runtime as runtime
from meshmw._policy.trust import RequestView, TrustPolicy
from meshmw.errors import MissingExtraError

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VALID = [("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"), ("baggage", "user=alice"), ("x-request-id", "abc")]


CONTRIB = f"""
import asyncio, json, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import meshmw
from meshmw.asgi import TraceContextMiddleware

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
meshmw.configure(meshmw.Settings(server_spans="contrib"))

async def app(scope, receive, send):
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b""}})

async def nothing(*message): pass

async def main():
    served = TraceContextMiddleware(app)
    for traceparent in ("00-{TRACE_ID}-{PARENT_ID}-01", "00-xyz"):
        headers = [(b"traceparent", traceparent.encode())]
        scope = {{"type": "http", "method": "GET", "path": "/", "headers": headers, "client": ("127.0.0.1", 1)}}
        scope |= {{"scheme": "http", "server": ("127.0.0.1", 80), "query_string": b"", "http_version": "1.1"}}
        await served(scope, nothing, nothing)

if sys.argv[1] == "True":
    with trace.use_span(provider.get_tracer("other").start_span("leaked")):
        asyncio.run(main())
else:
    asyncio.run(main())
spans = [span for span in exporter.get_finished_spans() if span.kind is trace.SpanKind.SERVER]
print(json.dumps([
    {{
        "trace": f"{{span.context.trace_id:032x}}",
        "parent": span.parent and f"{{span.parent.span_id:016x}}",
        "scope": span.instrumentation_scope.name,
    }}
    for span in spans
]))
"""


@dataclass
class Served:
    """One application, behind either middleware."""

    kind: str
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    seen: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def note(self, headers: dict[str, str]) -> None:
        current = trace.get_current_span().get_span_context()
        outgoing: dict[str, str] = {}
        MeshPropagator().inject(outgoing)
        self.seen = {
            "trace_id": f"{current.trace_id:032x}",
            "headers": headers,
            "baggage": dict(baggage.get_all()),
            "outgoing": outgoing,
        }

    def get(self, headers: list[tuple[str, str]], *, peer: str = "10.1.2.3", path: str = "/x", **how: Any) -> None:
        how = {"tracer_provider": self.provider, **how}
        if self.kind == "asgi":
            asyncio.run(self._get_asgi(headers, peer, path, how))
        else:
            self._get_wsgi(headers, peer, path, how)

    async def _get_asgi(self, headers: list[tuple[str, str]], peer: str, path: str, how: dict[str, Any]) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            self.note({name.decode(): value.decode() for name, value in scope["headers"]})
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        async def send(message: Any) -> None: ...

        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "headers": [(name.encode(), value.encode()) for name, value in headers],
            "client": (peer, 1234),
        }
        await asgi.TraceContextMiddleware(app, **how)(scope, send, send)

    def _get_wsgi(self, headers: list[tuple[str, str]], peer: str, path: str, how: dict[str, Any]) -> None:
        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            self.note({k[5:].lower().replace("_", "-"): v for k, v in environ.items() if k.startswith("HTTP_")})
            start_response("200 OK", [])
            return []

        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "REMOTE_ADDR": peer}
        environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers}
        list(wsgi.TraceContextMiddleware(app, **how)(environ, lambda *_: lambda _: None))

    @property
    def span(self) -> ReadableSpan:
        (span,) = self.exporter.get_finished_spans()
        return span


@pytest.fixture(params=["asgi", "wsgi"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    before = runtime._installed
    yield Served(request.param)
    runtime._installed = before


Decide = Callable[[RequestView], Any]


class TestTrust:
    def test_a_caller_that_is_not_trusted_gets_a_new_trace_that_links_to_his(self, served: Served) -> None:
        served.get(VALID, propagator=MeshPropagator(), trust="restart")
        assert served.span.parent is None
        assert served.seen["trace_id"] != TRACE_ID
        assert served.seen["baggage"] == {}
        (link,) = served.span.links
        assert f"{link.context.trace_id:032x}-{link.context.span_id:016x}" == f"{TRACE_ID}-{PARENT_ID}"
        assert dict(link.attributes or {}) == {"meshmw.link": "rejected_parent"}

    def test_his_headers_are_gone_for_everybody_further_in_but_his_request_id_is_not(self, served: Served) -> None:
        served.get(VALID, propagator=MeshPropagator(), trust="restart")
        assert served.seen["headers"] == {"x-request-id": "abc"}
        assert served.seen["outgoing"]["x-request-id"] == "abc"
        assert "baggage" not in served.seen["outgoing"]

    def test_of_what_he_wanted_passed_on_only_the_request_id_is(self, served: Served) -> None:
        propagator = MeshPropagator(passthrough_headers=["x-request-id", "x-cloud-trace-context"])
        context = propagator.extract({**dict(VALID), "x-cloud-trace-context": "a/1"})
        outgoing: dict[str, str] = {}
        MeshPropagator(trust="restart", passthrough_headers=propagator.passthrough).inject(outgoing, context)
        assert outgoing["x-cloud-trace-context"] == "a/1"
        strict = MeshPropagator(trust="restart", passthrough_headers=propagator.passthrough)
        outgoing = {}
        strict.inject(outgoing, strict.extract({**dict(VALID), "x-cloud-trace-context": "a/1"}))
        assert outgoing == {"x-request-id": "abc"}

    def test_his_sampled_flag_is_not_trusted(self, served: Served) -> None:
        unsampled = [("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-00")]
        served.get(unsampled, propagator=MeshPropagator(), trust="restart")
        assert served.span.context.trace_flags.sampled

    def test_one_that_is_ignored_leaves_not_even_a_link(self, served: Served) -> None:
        served.get(VALID, propagator=MeshPropagator(), trust="ignore")
        assert served.span.parent is None
        assert served.span.links == ()

    @pytest.mark.parametrize("trust", ["restart", "ignore"])
    def test_a_propagator_that_does_not_trust_extracts_nothing(self, trust: Any) -> None:
        context = MeshPropagator(trust=trust).extract(dict(VALID))
        assert not trace.get_current_span(context).get_span_context().is_valid
        assert baggage.get_all(context) == {}

    def test_a_callable_sees_the_request_and_decides(self, served: Served) -> None:
        asked: list[tuple[str, str, str | None, str | None]] = []

        def decide(view: RequestView) -> Any:
            asked.append((view.method, view.path, view.peer, view.header("X-Request-Id")))
            return "ignore"

        served.get(VALID, propagator=MeshPropagator(), trust=decide)
        assert asked == [("GET", "/x", "10.1.2.3", "abc")]
        assert served.span.parent is None

    def test_a_callable_that_raises_starts_a_new_trace_and_changes_no_response(self, served: Served) -> None:
        propagator = MeshPropagator()
        served.get(VALID, propagator=propagator, trust=lambda view: 1 / 0)
        assert served.span.parent is None
        assert ("context", "trust_raised") in propagator.rejections.counts

    @pytest.mark.parametrize(
        ("peer", "continued"), [("10.1.2.3", True), ("fd00::7", True), ("203.0.113.9", False), ("unix", False)]
    )
    def test_peers_in_the_named_networks_are_continued_and_others_restarted(
        self, served: Served, peer: str, continued: bool
    ) -> None:
        policy = TrustPolicy("continue", ["10.0.0.0/8", "fd00::/8"])
        runtime.install(runtime.Runtime(trust=policy))
        served.get(VALID, peer=peer)
        assert (served.seen["trace_id"] == TRACE_ID) is continued
        assert bool(served.span.links) is not continued

    def test_a_host_that_trusted_the_caller_is_not_adopted_and_it_is_said(self, served: Served) -> None:
        propagator = MeshPropagator()
        tracer = served.provider.get_tracer("host")
        context = propagator.extract(dict(VALID))
        with tracer.start_as_current_span("host", context, kind=trace.SpanKind.SERVER):
            served.get(VALID, propagator=propagator, trust="restart")
        assert served.seen["trace_id"] != TRACE_ID
        assert propagator.rejections.counts[("context", "host_trust")] == 1

    def test_a_host_with_a_propagator_of_the_same_mind_is_adopted(self, served: Served) -> None:
        propagator = MeshPropagator(trust="restart")
        tracer = served.provider.get_tracer("host")
        with tracer.start_as_current_span("host", propagator.extract(dict(VALID)), kind=trace.SpanKind.SERVER):
            served.get(VALID, propagator=propagator, trust="restart")
        assert served.span.name == "host"
        assert [f"{link.context.trace_id:032x}" for link in served.span.links] == [TRACE_ID]


class TestWhatTheSpanTells:
    def test_every_refusal_is_an_event_of_the_fresh_root(self, served: Served) -> None:
        served.get([("traceparent", "00-xyz"), ("baggage", "=1,a=1")], propagator=MeshPropagator())
        events = [(event.name, dict(event.attributes or {})) for event in served.span.events]
        assert events == [
            ("meshmw.header.refused", {"meshmw.header": "traceparent", "meshmw.reason": "hex"}),
            ("meshmw.header.refused", {"meshmw.header": "baggage", "meshmw.reason": "key"}),
        ]
        assert served.span.links == ()

    def test_a_refused_parent_that_still_parses_is_a_link(self, served: Served) -> None:
        served.get([("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01".upper())], propagator=MeshPropagator())
        assert served.span.parent is None
        assert [f"{link.context.span_id:016x}" for link in served.span.links] == [PARENT_ID]


class TestServerSpans:
    @pytest.mark.parametrize("how", [{"server_spans": "off"}, {"exclude": ["/x"]}])
    def test_without_a_span_the_trace_goes_on(self, served: Served, how: dict[str, Any]) -> None:
        served.get(VALID, propagator=MeshPropagator(), **how)
        assert served.exporter.get_finished_spans() == ()
        assert served.seen["outgoing"]["traceparent"] == VALID[0][1]
        assert served.seen["outgoing"]["baggage"] == "user=alice"

    def test_the_setting_decides_where_the_middleware_is_told_nothing(self, served: Served) -> None:
        runtime.install(runtime.Runtime(server_spans="off"))
        served.get(VALID)
        assert served.exporter.get_finished_spans() == ()
        served.get(VALID, server_spans="auto")
        assert served.span.kind is trace.SpanKind.SERVER

    @pytest.mark.parametrize("leaked", [False, True])
    def test_contrib_makes_the_span_below_our_extraction(self, leaked: bool) -> None:
        """In a process of its own: contrib's middleware knows the global provider alone."""
        ran = subprocess.run([sys.executable, "-c", CONTRIB, str(leaked)], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        spans = json.loads(ran.stdout)
        assert [span["parent"] for span in spans] == [PARENT_ID, None]
        assert {span["scope"] for span in spans} == {"opentelemetry.instrumentation.asgi"}
        assert spans[0]["trace"] == TRACE_ID

    def test_wsgi_has_no_such_mode_and_makes_its_own(self) -> None:
        served = Served("wsgi")
        served.get(VALID, propagator=MeshPropagator(), server_spans="contrib")
        assert served.span.kind is trace.SpanKind.SERVER

    def test_contrib_that_is_not_installed_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.asgi", None)
        with pytest.raises(MissingExtraError, match=r"meshmw\[contrib\]"):
            Served("asgi").get(VALID, propagator=MeshPropagator(), server_spans="contrib")


class TestOwnPropagator:
    """A middleware with a propagator of its own is asked for what that one says, and the settings for the rest."""

    def test_its_trust_counts(self, served: Served) -> None:
        served.get(VALID, propagator=MeshPropagator(trust="restart"))
        assert served.span.parent is None
        assert [f"{link.context.span_id:016x}" for link in served.span.links] == [PARENT_ID]

    def test_the_settings_trust_counts_where_it_says_nothing(self, served: Served) -> None:
        runtime.install(runtime.Runtime(trust=TrustPolicy("restart")))
        served.get(VALID, propagator=MeshPropagator())
        assert served.span.parent is None


@pytest.mark.parametrize("pattern", ["health", "", "?", "[a]"])
def test_a_path_pattern_that_could_never_match_is_refused(served: Served, pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern of paths"):
        served.get(VALID, propagator=MeshPropagator(), exclude=[pattern])


class _Unspeakable:
    """Stands for what an application may leave where a framework leaves its own."""

    def __str__(self):
        raise ValueError("no text")


@pytest.mark.parametrize(
    "left", [{"root_path": _Unspeakable()}, {"fastapi": {"effective_route_context": 7}, "router": 7}]
)
def test_what_cannot_be_read_of_a_route_changes_no_response(left):
    exporter, sent = InMemorySpanExporter(), []
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def app(scope, receive, send):
        scope |= {"route": type("Route", (), {"path": "/"})(), **left}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def send(message):
        sent.append(message["type"])

    scope = {"type": "http", "method": "GET", "path": "/7", "headers": []}
    served = asgi.TraceContextMiddleware(app, tracer_provider=provider, propagator=MeshPropagator())
    asyncio.run(served(scope, None, send))
    assert sent == ["http.response.start", "http.response.body"]
    (span,) = exporter.get_finished_spans()
    assert span.name in ("GET", "GET /")
