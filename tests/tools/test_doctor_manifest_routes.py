"""What `meshmw doctor` finds in what routes of Istio and of the Gateway API do to request headers, in manifests."""

from __future__ import annotations

import pytest

from tests.tools.test_doctor_manifests import FULL, MESH, SERVICE, TELEMETRY, findings, rule

ZIPKIN = MESH.replace("opentelemetry", "zipkin").replace("port: 4317", "port: 9411")
DATADOG = MESH.replace("opentelemetry", "datadog")
SKYWALKING = MESH.replace("opentelemetry", "skywalking")
TRACES = "providers: [{name: otel}], randomSamplingPercentage: 100"
SELECTS = "spec:\n  selector: {matchLabels: {app: a}}"


def route(operation, namespace="pay"):
    return f"{SERVICE}  http: [{{headers: {{request: {{{operation}}}}}}}]".replace(
        "namespace: shop", f"namespace: {namespace}"
    )


def gateway_route(changes):
    each = f"{{type: RequestHeaderModifier, requestHeaderModifier: {{{changes}}}}}"
    return f"kind: HTTPRoute\nmetadata: {{name: a, namespace: pay}}\nspec: {{rules: [{{filters: [{each}]}}]}}"


def found(tmp_path, *documents):
    return [(each.severity, each.code) for each in findings(tmp_path, *documents)]


@pytest.mark.parametrize(
    ("tracing", "severity"),
    [
        # Others have no tracer that would write it again.
        (rule(TRACES, "shop"), "error"),
        (rule(TRACES).replace("spec:", SELECTS), "error"),
        (rule(f"{TRACES}, match: {{mode: SERVER}}"), "error"),
        (rule(TRACES, "pay").replace("spec:", SELECTS), "error"),
        # A proxy of another namespace follows the route too.
        (rule(TRACES, "pay"), "warning"),
        (rule(f"{TRACES}, match: {{mode: CLIENT}}", "pay"), "warning"),
        # A waypoint takes requests in.
        (rule(f"{TRACES}, match: {{mode: CLIENT}}"), "warning"),
        (rule(TRACES), "note"),
        (rule(f"{TRACES}, match: {{mode: CLIENT_AND_SERVER}}"), "note"),
        ("defaultProviders: {tracing: [otel]}\ndefaultConfig: {tracing: {sampling: 100}}", "note"),
    ],
)
def test_a_change_is_in_vain_where_each_proxy_of_the_mesh_has_a_tracer(tmp_path, tracing, severity):
    files = [f"{MESH}\n{tracing}"] if tracing.startswith("default") else [MESH, tracing]
    for changing, code in [
        (route("remove: [traceparent, tracestate]"), "removed"),
        (gateway_route("remove: [traceparent]"), "removed"),
        (route("set: {traceparent: x}"), "overwritten"),
        (gateway_route("set: [{name: traceparent, value: x}]"), "overwritten"),
    ]:
        code = "removed-in-vain" if severity == "note" else code
        (one,) = findings(tmp_path, *files, changing)
        assert (one.severity, one.code) == (severity, f"headers.{code}")
        assert ("unless" in one.why) == (severity == "warning")


def test_a_provider_that_is_not_among_the_files_may_write_it_again(tmp_path):
    assert found(tmp_path, FULL, route("remove: [traceparent]"))[1:] == [("warning", "headers.removed")]
    assert found(tmp_path, FULL, route("remove: [baggage]"))[1:] == [("error", "headers.removed")]
    selecting = FULL.replace("spec:", SELECTS)
    assert found(tmp_path, selecting, route("remove: [traceparent]"))[1:] == [("error", "headers.removed")]


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ('set: {traceparent: "%REQ(traceparent)%"}', []),
        ('set: {Traceparent: "%request_header(TraceParent)%"}', []),
        ('set: {x-request-id: "%REQ(X-REQUEST-ID)%"}', []),
        ('add: {traceparent: "%REQ(traceparent)%"}', [("error", "headers.doubled")]),
        ('add: {x-request-id: "%REQ(x-request-id)%"}', [("warning", "request-id.changed")]),
        ('set: {traceparent: "%REQ(x-was)%"}', [("warning", "unjudged.filter")]),
        ('set: {traceparent: "%REQ(traceparent):30%"}', [("warning", "unjudged.filter")]),
        ('set: {x-request-id: "%REQ(x-correlation-id)%"}', [("warning", "unjudged.filter")]),
        ("set: {traceparent: 5}", [("error", "headers.overwritten")]),
        ("set: {traceparent: }", [("error", "headers.overwritten")]),
    ],
)
def test_what_envoy_fills_in(tmp_path, operation, expected):
    assert found(tmp_path, route(operation)) == expected
    name, value = operation.partition("{")[2].rstrip("}").split(":", 1)
    listed = f"{operation[:3]}: [{{name: {name}, value: {value}}}]"
    assert found(tmp_path, gateway_route(listed)) == expected


def test_what_envoy_fills_in_is_in_vain_too_where_a_tracer_writes(tmp_path):
    assert found(tmp_path, MESH, FULL, route('set: {traceparent: "%REQ(x-was)%"}')) == [
        ("note", "headers.removed-in-vain")
    ]
    (one,) = findings(tmp_path, MESH, rule(TRACES, "pay"), route('set: {traceparent: "%REQ(x-was)%"}'))
    assert (one.severity, one.code, one.what) == ("warning", "unjudged.filter", "it sets traceparent to '%REQ(x-was)%'")
    assert "unless" in one.why


NONE = "a: b"


@pytest.mark.parametrize(
    ("mesh", "operation", "expected"),
    [
        (NONE, "remove: [x-b3-traceid, sw8, x-datadog-trace-id]", {"error": "x-b3-traceid", "note": "sw8, x-datadog"}),
        (NONE, "set: {x-b3-traceid: a}", {"error": "x-b3-traceid"}),
        (NONE, "add: {sw8: a}", {"note": "sw8"}),
        # OpenTelemetry's tracer neither reads nor writes these.
        (MESH, "remove: [b3, sw8]", {"note": "b3, sw8"}),
        (ZIPKIN, "remove: [b3, x-b3-traceid]", {"note": "b3, x-b3-traceid"}),
        (ZIPKIN, "remove: [traceparent]", {"error": "traceparent"}),
        # It leaves what it finds in the form that the caller did not use.
        (ZIPKIN, "set: {b3: '0'}", {"warning": "b3"}),
        (DATADOG, "remove: [traceparent, x-datadog-trace-id]", {"note": "traceparent, x-datadog-trace-id"}),
        (SKYWALKING, "remove: [sw8]", {"note": "sw8"}),
        (SKYWALKING, "set: {traceparent: a}", {"error": "traceparent"}),
    ],
)
def test_the_headers_of_other_formats(tmp_path, mesh, operation, expected):
    telemetry = [] if mesh == NONE else [FULL]
    listed = [each for each in findings(tmp_path, mesh, *telemetry, route(operation)) if "VirtualService" in each.where]
    assert {each.severity: each.what for each in listed}.keys() == expected.keys()
    for each in listed:
        assert expected[each.severity] in each.what


def test_a_header_of_anothers_that_a_tracer_reads_somewhere_is_no_rubbish(tmp_path):
    shop = f"{TELEMETRY}  tracing: [{{providers: [{{name: otel}}]}}]".replace("istio-system", "shop")
    assert found(tmp_path, SKYWALKING, shop, route("remove: [sw8]")) == [("error", "headers.removed")]


def test_two_destinations_may_write_the_same(tmp_path):
    each = "{destination: {host: a}, weight: 50, headers: {request: {set: {traceparent: x}}}}"
    assert found(tmp_path, f"{SERVICE}  http: [{{route: [{each}, {each}]}}]") == [("error", "headers.overwritten")]


def test_more_digits_than_python_makes_a_number_of_end_no_command(tmp_path):
    assert found(tmp_path, route(f"set: {{x-request-id: '%REQ(x-request-id):{'1' * 5000}%'}}"))
