"""What is wrong with a process and its proxy, one fault at a time; a real Envoy is asked next door."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
from opentelemetry import propagate
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

from meshmw import MeshPropagator, Settings
from meshmw._tools.doctor import examine
from meshmw._tools.doctor.headers import HeaderChange
from meshmw._tools.doctor.judge import judge_process
from meshmw._tools.doctor.judge_proxy import judge_both, judge_proxy
from meshmw._tools.doctor.process import AppError, ProcessFacts, load_app, look_at_process
from meshmw._tools.doctor.proxy import AdminError, ProxyConfig, ProxyListener, ask_proxy, read_dump, read_proxy
from tests.tools.test_http_client import body, serving

ASGI = "meshmw.asgi.TraceContextMiddleware"
FINE = ProcessFacts(
    target="shop:app",
    framework="fastapi",
    middleware=(ASGI,),
    settings=Settings(service_name="shop"),
    propagator="MeshPropagator",
    formats=("tracecontext", "baggage"),
    strict=True,
    provider="TracerProvider",
    exporters=("OTLPSpanExporter",),
    service_name="shop",
    sampler="ParentBased{root:AlwaysOnSampler}",
    versions={"opentelemetry-api": "1.45.1", "opentelemetry-sdk": "1.45.1"},
)


def settings(**values):
    return Settings(service_name="shop", **values)


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({}, []),
        ({"settings": None, "settings_fault": "meshmw cannot start:\n  - x"}, ["settings.unusable"]),
        ({"strict": False, "propagator": "CompositePropagator(B3)"}, ["propagator.not-strict"]),
        ({"part_of_composite": True}, ["propagator.composite"]),
        ({"formats": ("baggage",)}, ["propagator.no-format"]),
        ({"middleware": ()}, ["middleware.missing"]),
        ({"middleware": (ASGI, ASGI)}, ["middleware.twice"]),
        ({"middleware": ("shop.Auth", ASGI)}, ["middleware.order"]),
        ({"middleware": ("starlette.middleware.cors.CORSMiddleware", ASGI)}, []),
        (
            {"middleware": (ASGI, "opentelemetry.instrumentation.asgi.OpenTelemetryMiddleware")},
            ["instrumentation.twice"],
        ),
        ({"instrumented": ("httpx",)}, ["instrumentation.httpx"]),
        ({"collector": "c:4317", "collector_fault": "refused"}, ["exporter.unreachable"]),
        ({"sdk_disabled": True}, ["exporter.disabled"]),
        ({"settings": settings(exporter="console")}, ["exporter.nowhere"]),
        ({"exporters": ()}, ["exporter.none"]),
        ({"provider": "ProxyTracerProvider"}, ["provider.none"]),
        ({"service_name": "unknown_service"}, ["resource.no-name"]),
        ({"service_name": "", "settings": Settings()}, ["resource.no-name"]),
        ({"sampler": "TraceIdRatioBased{0.1}"}, ["sampling.not-parent-based"]),
        ({"sampler": "TraceIdRatioBased{0.1}", "settings": settings(sampling_owner="service")}, []),
        ({"sampler": "AlwaysOnSampler"}, []),
        ({"settings": settings(baggage_to=("*",))}, ["baggage.everywhere"]),
        ({"settings": settings(baggage_max_members=0)}, ["baggage.none-kept"]),
        ({"settings": settings(baggage_keys=())}, ["baggage.none-kept"]),
        ({"versions": {"opentelemetry-api": "1.40.0", "opentelemetry-sdk": "1.45.1"}}, ["versions.differ"]),
        ({"framework": "", "middleware": (), "target": "", "exporters": (), "provider": "ProxyTracerProvider"}, []),
    ],
)
def test_each_fault_of_a_process(changes, codes):
    findings = list(judge_process(replace(FINE, **changes)))
    assert [finding.code for finding in findings] == codes
    for finding in findings:
        assert finding.what
        assert finding.why
        assert finding.fix


OTEL = ProxyListener(name="in", tracer="opentelemetry", formats=("w3c",), logs_traceparent=True, direction="INBOUND")
PROXY = ProxyConfig(where="http://127.0.0.1:15000", node="shop", version=(1, 40, 0), listeners=(OTEL,))


def changed(effect: str, header: str = "traceparent") -> dict[str, object]:
    return {"changes": (HeaderChange(header, effect, "route /"),)}


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({}, []),
        ({"tracer": "", "formats": ()}, ["proxy.no-tracing"]),
        ({"tracer": "datadog", "formats": ()}, ["proxy.other-tracer"]),
        ({"writes_nothing": True}, ["proxy.injects-nothing"]),
        ({"random_sampling": 1.0}, ["sampling.proxy-clears-the-flag"]),
        ({"random_sampling": 1.0, "uses_request_id": False}, []),
        (
            {"random_sampling": 1.0, "sampler": "always_on"},
            ["sampling.proxy-sets-the-flag", "sampling.proxy-clears-the-flag"],
        ),
        ({"sampler": "trace_id_ratio_based"}, ["sampling.proxy-sets-the-flag"]),
        ({"exports_nothing": True}, ["exporter.proxy-none"]),
        ({"sampler": "trace_id_ratio_based", "sampler_rate": 5.0}, ["sampling.proxy-clears-the-flag"]),
        ({"sampler": "cel"}, ["unjudged.sampler"]),
        ({"makes_request_id": False}, ["request-id.not-made"]),
        (changed("restarted"), ["headers.removed-early"]),
        (changed("in vain"), ["headers.removed-in-vain"]),
        (changed("removed") | {"tracer": "", "formats": ()}, ["proxy.no-tracing", "headers.removed"]),
        (changed("removed", "baggage"), ["headers.removed"]),
        (changed("overwritten"), ["headers.overwritten"]),
        (changed("doubled"), ["headers.doubled"]),
        (changed("added"), ["headers.added"]),
        (changed("removed", "x-request-id"), ["request-id.removed"]),
        (changed("overwritten", "x-request-id"), ["request-id.changed"]),
        ({"rates": (("", 100.0), ("route /", 5.0))}, ["sampling.proxy-clears-the-flag"]),
        ({"random_sampling": 1.0, "rates": (("route /", 100.0),)}, []),
        ({"redirects": ("route /",)}, ["sampling.proxy-clears-the-flag"]),
        ({"redirects": ("route /",), "tracer": "zipkin"}, []),
        ({"missing": True, "tracer": "", "formats": ()}, ["unjudged.tracer"]),
        ({"missing_routes": ("a", "b", "c", "d")}, ["unjudged.routes"]),
        ({"unjudged": ("filter lua",)}, ["unjudged.filter"]),
        ({"unjudged": ("filter lua, which names b3", "filter wasm")}, ["unjudged.filter", "unjudged.filter"]),
        ({"short_ids": True}, ["zipkin.short-ids"]),
        ({"shared_spans": True}, ["zipkin.shared-spans"]),
        ({"logs_traceparent": False}, ["access-log.not-logged"]),
        ({"logs_traceparent": None}, ["access-log.not-logged"]),
        ({"collector": "otlp"}, ["exporter.proxy-unreachable"]),
    ],
)
def test_each_fault_of_a_proxy(changes, codes):
    proxy = replace(PROXY, listeners=(replace(OTEL, **changes),), failing=("otlp",))
    assert [finding.code for finding in judge_proxy(proxy)] == codes


def test_faults_of_a_whole_proxy():
    zipkin = replace(OTEL, tracer="zipkin", formats=("b3",))
    assert [each.code for each in judge_proxy(replace(PROXY, listeners=(OTEL, zipkin)))] == ["proxy.mixed-formats"]
    assert [each.code for each in judge_proxy(replace(PROXY, listeners=()))] == ["proxy.no-http"]
    part = replace(PROXY, missing=("clusters",))
    assert [each.code for each in judge_proxy(part)] == ["unjudged.clusters"]
    assert [each.code for each in judge_proxy(replace(part, listeners=(), missing=("listeners",)))] == [
        "unjudged.listeners"
    ]
    datadog = replace(OTEL, tracer="datadog", formats=("w3c", "datadog"))
    assert list(judge_proxy(replace(PROXY, listeners=(OTEL, datadog)))) == []
    old = replace(PROXY, version=(1, 38, 3), listeners=(replace(OTEL, random_sampling=1.0),))
    assert list(judge_proxy(old)) == []


@pytest.mark.parametrize(
    ("header", "effect", "listener", "severity"),
    [
        ("traceparent", "removed", {}, "error"),
        ("tracestate", "removed", {}, "warning"),
        ("baggage", "overwritten", {}, "warning"),
        ("b3", "removed", {}, "note"),
        ("b3", "removed", {"tracer": "", "formats": ()}, "error"),
        ("x-b3-traceid", "restarted", {"tracer": "zipkin", "formats": ("b3",)}, "error"),
        ("uber-trace-id", "removed", {}, "note"),
        ("x-datadog-trace-id", "restarted", {"tracer": "datadog", "formats": ("w3c", "datadog")}, "warning"),
        ("traceparent", "in vain", {}, "note"),
    ],
)
def test_how_bad_a_change_is(header, effect, listener, severity):
    proxy = replace(PROXY, listeners=(replace(OTEL, **listener, **changed(effect, header)),))
    (finding,) = (each for each in judge_proxy(proxy) if each.code.startswith("headers."))
    assert finding.severity == severity


def test_identical_findings_are_one_with_a_count():
    listeners = tuple(replace(OTEL, name=f"in{number}", logs_traceparent=None) for number in range(5))
    (finding,) = examine(FINE, [replace(PROXY, listeners=listeners)], process_too=False).findings
    assert finding.where == "shop in0, shop in1, shop in2 and 2 more"


@pytest.mark.parametrize(
    ("listener", "facts", "codes"),
    [
        ({}, {}, []),
        ({"tracer": "zipkin", "formats": ("b3",)}, {}, ["formats.differ"]),
        ({"tracer": "zipkin", "formats": ("b3", "w3c")}, {}, []),
        ({}, {"formats": ("b3multi", "baggage")}, ["formats.differ"]),
        ({}, {"strict": False, "settings": settings(propagators=("b3",))}, ["formats.differ"]),
        ({"max_kb": 8}, {}, ["limits.bytes"]),
        ({"max_count": 50}, {}, ["limits.count"]),
        ({"random_sampling": 10.0}, {"settings": settings(passthrough_headers=())}, ["request-id.not-passed-on"]),
        ({}, {"settings": settings(passthrough_headers=())}, []),
        ({"random_sampling": 10.0}, {"settings": settings(sampling_ratio=0.5)}, ["sampling.rates-differ"]),
        ({"direction": "OUTBOUND"}, {"settings": settings(sampling_ratio=0.5)}, []),
        ({"tracer": "zipkin", "formats": ("b3",)}, {"settings": None, "strict": False}, []),
    ],
)
def test_each_fault_between_the_two(listener, facts, codes):
    proxy = replace(PROXY, listeners=(replace(OTEL, **listener),))
    assert [finding.code for finding in judge_both(replace(FINE, **facts), proxy)] == codes


def test_both_sides_are_judged_together():
    diagnosis = examine(replace(FINE, middleware=()), [PROXY])
    assert [finding.code for finding in diagnosis.findings] == ["middleware.missing"]
    assert examine(replace(FINE, middleware=()), [PROXY], process_too=False).findings == ()
    found = json.loads(json.dumps(diagnosis.to_json()))
    assert found["proxies"][0]["version"] == "1.40.0"
    assert found["process"]["service_name"] == "shop"


HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


def dump(manager: dict[str, object], **listener: object) -> dict[str, object]:
    filters = [{"typed_config": {"@type": HCM, **manager}}, {"typed_config": {"@type": "other"}}]
    active = {"listener": {"name": "in", "filter_chains": [{"filters": filters}], **listener}}
    route = {"match": {"path": "/a"}, "route": {"cluster": "c"}, "request_headers_to_remove": ["TraceParent", "cookie"]}
    hosts = [{"name": "all", "request_headers_to_remove": ["B3"], "routes": [route]}]
    named = {"route_config": {"name": "rds", "virtual_hosts": hosts}}
    return {
        "configs": [
            {"bootstrap": {"node": {"id": "sidecar~10.0.0.1~shop", "metadata": {"ISTIO_VERSION": "1.29.0"}}}},
            {"dynamic_active_clusters": [{"cluster": {"name": "c"}}], "dynamic_warming_clusters": [{"cluster": {}}]},
            {"dynamic_listeners": [{"active_state": active}, {"name": "warming"}]},
            {"dynamic_route_configs": [named, {"route_config": {"virtual_hosts": []}}]},
        ]
    }


def listener_of(manager: dict[str, object], **listener: object) -> ProxyListener:
    return read_proxy("x", dump(manager, **listener)).listeners[0]


def test_what_istio_sends_by_xds_is_read():
    found = listener_of({"rds": {"route_config_name": "rds"}, "generate_request_id": {"value": False}})
    assert [(each.header, each.effect, each.place) for each in found.changes] == [
        ("traceparent", "removed", "request_headers_to_remove of route /a of virtual host all"),
        ("b3", "removed", "request_headers_to_remove of virtual host all"),
    ]
    assert (found.makes_request_id, found.tracer) == (False, "")
    other = listener_of({"rds": {"route_config_name": "other"}})
    assert (other.changes, other.missing_routes) == ((), ("other",))
    proxy = read_proxy("x", dump({}), {"version": "c/1.40.1-dev/Clean"}, None)
    assert (proxy.node, proxy.version, proxy.istio) == ("sidecar~10.0.0.1~shop", (1, 40, 1), (1, 29, 0))
    chained = read_proxy("x", dump({}, default_filter_chain={"filters": [{"typed_config": {"@type": HCM}}]}))
    assert len(chained.listeners) == 2


def tracer(name: str, config: dict[str, object] | None = None, **tracing: object) -> ProxyListener:
    return listener_of({"tracing": {"provider": {"name": name, "typed_config": config or {}}, **tracing}})


def test_tracers_are_read():
    otel = tracer(
        "envoy.tracers.opentelemetry",
        {"grpc_service": {"envoy_grpc": {"cluster_name": "c"}}, "sampler": {"name": "a.b.always_on"}},
        no_context_propagation=True,
        random_sampling={},
        overall_sampling={"value": 50},
    )
    assert (otel.tracer, otel.formats, otel.collector, otel.sampler) == ("opentelemetry", ("w3c",), "c", "always_on")
    assert (otel.writes_nothing, otel.random_sampling) == (True, 0.0)
    assert (
        tracer("x", {"@type": "y.OpenTelemetryConfig", "http_service": {"http_uri": {"cluster": "h"}}}).collector == "h"
    )
    zipkin = tracer(
        "envoy.tracers.zipkin", {"collector_cluster": "z", "shared_span_context": False, "trace_id_128bit": True}
    )
    assert (zipkin.formats, zipkin.collector, zipkin.shared_spans, zipkin.short_ids) == (("b3",), "z", False, False)
    both = tracer("envoy.tracers.zipkin", {"trace_context_option": "USE_B3_WITH_W3C_PROPAGATION"})
    assert (both.formats, both.shared_spans, both.short_ids) == (("b3", "w3c"), True, True)
    assert (tracer("envoy.tracers.datadog").tracer, tracer("mystery").tracer) == ("datadog", "unknown")
    assert listener_of({"tracing": {}}).tracer == ""
    google = tracer("envoy.tracers.opentelemetry", {"grpc_service": {"google_grpc": {"target_uri": "otel:4317"}}})
    assert (google.collector, google.exports_nothing) == ("", False)
    assert tracer("envoy.tracers.opentelemetry", {"service_name": "a"}).exports_nothing
    # An exporter that is an extension.
    assert not tracer("envoy.tracers.opentelemetry", {"service_name": "a", "mine": {}}).exports_nothing
    assert listener_of({"access_log": [{"typed_config": {"format": "%REQ(:PATH)%"}}]}).logs_traceparent is False


def test_a_collector_that_refuses_is_seen():
    stats = [{"name": "cx_connect_fail", "value": "5"}, {"name": "cx_total", "value": "5"}, {"name": "rq_total"}]
    clusters = {"cluster_statuses": [{"name": "otlp", "host_statuses": [{"stats": stats}]}, {"name": "app"}]}
    assert read_proxy("x", dump({}), {}, clusters).failing == ("otlp",)
    stats[1]["value"] = "9"
    assert read_proxy("x", dump({}), {}, clusters).failing == ()


def test_a_dump_in_a_file(tmp_path):
    path = tmp_path / "dump.json"
    path.write_text(json.dumps(dump({})))
    assert read_dump(path)[0].listeners[0].name == "in"
    endless = json.dumps(dump({"common_http_protocol_options": {"max_headers_count": math.inf}}))
    for text in ("{}", "[]", "x", '{"configs": [1]}', "[" * 100_000, endless):
        path.write_text(text)
        with pytest.raises(AdminError, match=r"dump\.json holds no config_dump"):
            read_dump(path)
    with pytest.raises(AdminError, match="No such file"):
        read_dump(tmp_path / "none.json")


def test_an_address_that_is_no_proxys():
    with pytest.raises(AdminError, match=r"http://127\.0\.0\.1:9 cannot be asked"):
        ask_proxy("127.0.0.1:9")
    with (
        serving(body(b'{"a": 1}')) as (url, _),
        pytest.raises(AdminError, match="is no Envoy administration interface"),
    ):
        ask_proxy(url)
    refused = pytest.raises(AdminError, match=r"is no Envoy administration interface \(RecursionError\)")
    with serving(body(b"[" * 100_000)) as (url, _), refused:
        ask_proxy(url)
    lacks = pytest.raises(AdminError, match=r"answered 404 .* Linkerd 2\.11 lacks W3C headers")
    with serving(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n") as (url, _), lacks:
        ask_proxy(url)


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("shop", "'shop' is not MODULE:APP"),
        ("no_such_module:app", "ModuleNotFoundError"),
        ("json:nothing", "AttributeError"),
        ("json:loads()", "TypeError"),
        ("sys:exit()", "SystemExit"),
    ],
)
def test_an_application_that_cannot_be_loaded(target, fault):
    with pytest.raises(AppError, match=fault):
        load_app(target)


def test_an_application_is_loaded_as_servers_do():
    assert load_app("json:JSONDecoder().decode".replace("().decode", "")) is json.JSONDecoder
    assert isinstance(load_app("json:JSONDecoder()"), json.JSONDecoder)


def test_the_rows_of_middleware():
    from fastapi import FastAPI
    from flask import Flask
    from starlette.middleware.gzip import GZipMiddleware

    import meshmw.flask
    from meshmw.asgi import TraceContextMiddleware
    from meshmw.wsgi import TraceContextMiddleware as Wsgi

    app = FastAPI()
    app.add_middleware(TraceContextMiddleware)
    app.add_middleware(GZipMiddleware)
    facts = look_at_process("x:app", app, connect=False)
    assert facts.framework == "fastapi"
    assert facts.middleware == ("starlette.middleware.gzip.GZipMiddleware", ASGI)
    around = look_at_process("x:app", TraceContextMiddleware(app), connect=False)
    assert around.middleware[0] == ASGI
    assert around.framework == "fastapi"
    flask = Flask("x")
    meshmw.flask.init_app(flask)
    facts = look_at_process("x:app", flask, connect=False)
    assert (facts.framework, facts.middleware) == ("flask", ("meshmw.wsgi.TraceContextMiddleware",))
    assert look_at_process("x:app", Wsgi(len), connect=False).framework == "asgi or wsgi"
    circle = TraceContextMiddleware(app)
    circle.app = circle
    assert look_at_process("x:app", circle, connect=False).middleware == (ASGI,)


def test_what_a_process_has(monkeypatch):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    monkeypatch.setattr(
        propagate, "get_global_textmap", lambda: CompositePropagator([MeshPropagator(), MeshPropagator()])
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("MESHMW_ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        facts = look_at_process()
    provider.shutdown()
    assert facts.exporters == ("ConsoleSpanExporter", "ConsoleSpanExporter")
    assert (facts.strict, facts.part_of_composite, facts.formats) == (True, True, ("tracecontext", "baggage"))
    assert facts.propagator == "CompositePropagator(MeshPropagator, MeshPropagator)"
    assert facts.service_name.startswith("unknown_service")
    assert facts.sampler.startswith("ParentBased")
    assert facts.collector_fault == ""
    assert facts.versions["opentelemetry-api"]
    monkeypatch.setenv("MESHMW_ENDPOINT", "http://127.0.0.1:9")
    assert look_at_process().collector_fault == "Connection refused"
    monkeypatch.setenv("MESHMW_EXPORTER", "none")
    assert look_at_process().collector == ""
    monkeypatch.setenv("MESHMW_EXPORTER", "nonsense")
    bad = look_at_process()
    assert (bad.settings, bad.collector) == (None, "")
    assert "MESHMW_EXPORTER" in bad.settings_fault


def test_packages_and_patches_that_are_there_are_seen(monkeypatch):
    import importlib.metadata

    class Instrumentor:
        is_instrumented_by_opentelemetry = True

    module = type(sys)("opentelemetry.instrumentation.httpx")
    module.HTTPXClientInstrumentor = Instrumentor
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert "httpx" in look_at_process(connect=False).instrumented
    found = importlib.metadata.version

    def version(package: str) -> str:
        if package.startswith("opentelemetry-exporter"):
            raise importlib.metadata.PackageNotFoundError
        return found(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert "opentelemetry-exporter-otlp-proto-grpc" not in look_at_process(connect=False).versions


def test_a_whole_program_is_looked_at(tmp_path):
    """In a process of its own, because it sets OpenTelemetry's globals."""
    (tmp_path / "shop.py").write_text(
        "import meshmw\nmeshmw.configure(meshmw.Settings(service_name='shop', endpoint='http://127.0.0.1:9'))\n"
        "from fastapi import FastAPI\nfrom meshmw.asgi import TraceContextMiddleware\n"
        "app = FastAPI()\napp.add_middleware(TraceContextMiddleware)\n"
    )
    command = [sys.executable, "-m", "meshmw", "doctor", "shop:app", "--json", "--no-connect"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert found["findings"] == []
    assert found["process"]["middleware"] == [ASGI]
    assert found["process"]["exporters"] == ["OTLPSpanExporter"]
    assert found["process"]["service_name"] == "shop"


def test_a_propagator_that_is_not_installed_is_no_crash():
    code = (
        "import os\nos.environ['OTEL_PROPAGATORS'] = 'nonsense'\n"
        "from meshmw._tools.doctor.process import look_at_process\n"
        "print(look_at_process(connect=False).propagator)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "ValueError\n", done.stderr
