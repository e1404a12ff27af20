"""What `meshmw doctor` finds in Istio's manifests; `tests/real` holds the same rules against Istio's control plane."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from meshmw import Settings
from meshmw.__main__ import main
from meshmw._tools.doctor.manifest_rules import judge_manifests
from meshmw._tools.doctor.manifests import ManifestError, read_manifests
from meshmw.errors import MissingExtraError

ROOT = Path(__file__).parents[2]
OTEL = "opentelemetry: {service: otel.observability.svc.cluster.local, port: 4317}"
MESH = f"extensionProviders: [{{name: otel, {OTEL}}}]"
TELEMETRY = """
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: mesh, namespace: istio-system}
spec:
"""
FULL = f"{TELEMETRY}  tracing: [{{providers: [{{name: otel}}], randomSamplingPercentage: 100}}]"
SERVICE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: shop}
spec:
  hosts: [shop]
"""


def findings(tmp_path, *documents, settings=None):
    file = tmp_path / "manifests.yaml"
    file.write_text("\n---\n".join(documents))
    return list(judge_manifests(read_manifests([file]), settings))


def codes(tmp_path, *documents, settings=None):
    return [finding.code for finding in findings(tmp_path, *documents, settings=settings)]


def rule(fields, namespace="istio-system"):
    return f"{TELEMETRY}  tracing: [{{{fields}}}]".replace("istio-system", namespace)


def test_the_manifests_of_this_repository_have_nothing_to_mend(tmp_path):
    assert list(judge_manifests(read_manifests([ROOT / "sample_apps/mesh/kubernetes"]))) == []
    printed = subprocess.run(
        [sys.executable, "-m", "meshmw", "mesh-config", "istio"], capture_output=True, text=True, check=True
    )
    assert codes(tmp_path, printed.stdout) == []


@pytest.mark.parametrize(
    "mesh",
    [
        f"kind: IstioOperator\nspec:\n  meshConfig:\n    {MESH}",
        f"kind: ConfigMap\nmetadata: {{name: istio}}\ndata:\n  mesh: |\n    {MESH}",
        f"kind: ConfigMap\ndata:\n  mesh:\n    {MESH}",
        f"meshConfig:\n  {MESH}",
        MESH,
        f"kind: IstioOperator\nspec:\n  values:\n    meshConfig:\n      {MESH}",
        f"kind: Istio\nspec:\n  values:\n    meshConfig:\n      {MESH}",
    ],
)
def test_a_mesh_configuration_is_found_wherever_it_stands(tmp_path, mesh):
    assert codes(tmp_path, mesh, FULL) == []
    (found,) = findings(tmp_path, mesh, FULL.replace("otel}", "otle}"))
    assert (found.severity, found.code) == ("error", "telemetry.provider-missing")
    assert "'otle'" in found.what
    assert "'otel', 'prometheus', 'stackdriver', 'envoy'" in found.what
    assert found.where == f"{tmp_path / 'manifests.yaml'} Telemetry mesh"


def test_a_name_without_regard_to_case_is_the_same_provider(tmp_path):
    assert codes(tmp_path, MESH, FULL.replace("name: otel", "name: OTel")) == []


def test_without_a_mesh_configuration_a_name_cannot_be_judged(tmp_path):
    assert codes(tmp_path, FULL) == ["mesh-config.none"]
    assert codes(tmp_path, "kind: IstioOperator\nspec: {}", "kind: ConfigMap\ndata: {}", "a: b", FULL) == [
        "mesh-config.none"
    ]


@pytest.mark.parametrize(
    "mesh",
    [
        'enableTracing: "true"',
        "extensionProviders: {otel: here}",
        "extensionProviders: [otel]",
        "extensionProviders: [{name: 5}]",
        "accessLogFormat: {a: b}\naccessLogFile: /dev/stdout",
        "kind: IstioOperator\nspec: {meshConfig: none}",
        'kind: ConfigMap\ndata: {mesh: "a: [b"}',
    ],
)
def test_a_mesh_configuration_that_istiod_refuses(tmp_path, mesh):
    (refused,) = findings(tmp_path, mesh, FULL)
    assert (refused.severity, refused.code) == ("error", "mesh-config.refused")
    assert "defaults" in refused.why


def test_a_file_that_is_no_yaml(tmp_path):
    found = findings(tmp_path, "meshConfig: {{ .Values.mesh }}\n  x: [")
    assert [each.code for each in found] == ["manifest.no-yaml"]
    assert "line 2" in found[0].what
    assert "\n" not in found[0].what


@pytest.mark.parametrize(
    ("provider", "kind"),
    [
        ("envoyFileAccessLog: {path: /dev/stdout}", "envoyFileAccessLog"),
        ("openTelemetry: {service: a.b.svc.cluster.local, port: 4317}", "unknown to Istio"),
    ],
)
def test_a_provider_that_cannot_trace(tmp_path, provider, kind):
    (found,) = findings(tmp_path, f"extensionProviders: [{{name: otel, {provider}}}]", FULL)
    assert found.code == "telemetry.provider-cannot-trace"
    assert kind in found.what


def test_a_rule_without_a_provider_switches_tracing_off(tmp_path):
    alone = rule("randomSamplingPercentage: 100")
    assert codes(tmp_path, MESH, alone) == ["telemetry.no-provider"]
    assert codes(tmp_path, MESH + "\ndefaultProviders: {tracing: [otel]}", alone) == []
    in_shop = rule("disableSpanReporting: true", "shop")
    assert codes(tmp_path, MESH, FULL, in_shop) == []


@pytest.mark.parametrize(
    ("fields", "mesh", "clears"),
    [
        ("", "", True),
        ("randomSamplingPercentage: 10", "", True),
        ("randomSamplingPercentage: '100'", "", False),
        ("randomSamplingPercentage: true", "", True),
        ("", "defaultConfig: {tracing: {sampling: 100}}", False),
        ("", "defaultConfig: {tracing: {sampling: 10}}", True),
        ("useRequestIdForTraceSampling: false", "", False),
    ],
)
def test_a_rate_below_100_clears_flags(tmp_path, fields, mesh, clears):
    found = codes(tmp_path, f"{MESH}\n{mesh}", rule(f"providers: [{{name: otel}}], {fields}"))
    assert found == ["sampling.proxy-clears-the-flag"] * clears


def test_what_a_rule_leaves_out_it_has_from_the_mesh(tmp_path):
    in_shop = rule("providers: [{name: otel}]", "shop")
    assert codes(tmp_path, MESH, FULL, in_shop) == []
    selecting = FULL.replace("spec:", "spec:\n  selector: {matchLabels: {app: a}}")
    assert codes(tmp_path, MESH, selecting, in_shop) == ["sampling.proxy-clears-the-flag"]


def test_what_one_workloads_rule_leaves_out_it_has_from_its_namespace_first(tmp_path):
    in_shop = rule("providers: [{name: otel}], randomSamplingPercentage: 100", "shop")
    selecting = rule("useRequestIdForTraceSampling: true", "shop").replace("spec:", "spec:\n  selector: {a: b}")
    assert codes(tmp_path, MESH, in_shop, selecting) == []
    # That of another namespace is not asked.
    assert codes(tmp_path, MESH, in_shop, selecting.replace("shop", "bar")) == ["telemetry.no-provider"]


def test_proxies_that_report_nothing_have_no_tracer(tmp_path):
    """Which istiod leaves out whole: no provider, rate or format of such a rule counts."""
    off = "disableSpanReporting: true"
    zipkin = "extensionProviders: [{name: otel, zipkin: {service: z.b.svc.cluster.local, port: 9411}}]"
    for provider in ("otel", "nobody"):
        assert codes(tmp_path, zipkin, rule(f"providers: [{{name: {provider}}}], {off}")) == []
    bootstrap = "defaultConfig: {tracing: {zipkin: {address: zipkin:9411}}}"
    assert codes(tmp_path, bootstrap, rule(off)) == []
    # What one namespace takes back has the mesh's provider again.
    again = rule("disableSpanReporting: false", "shop")
    assert codes(tmp_path, zipkin, rule(f"providers: [{{name: otel}}], {off}"), again) == ["formats.differ"]
    assert codes(tmp_path, MESH, rule(f"providers: [{{name: otel}}], {off}"), again) == [
        "sampling.proxy-clears-the-flag"
    ]
    removal = f"{SERVICE}  http: [{{headers: {{request: {{remove: [traceparent]}}}}}}]"
    assert codes(tmp_path, MESH, rule(f"providers: [{{name: otel}}], {off}"), removal) == ["headers.removed"]


def test_the_default_provider_traces_where_no_telemetry_is_for_the_whole_mesh(tmp_path):
    default = f"{MESH}\ndefaultProviders: {{tracing: [otel]}}"
    found = findings(tmp_path, default)
    assert [each.code for each in found] == ["sampling.proxy-clears-the-flag"]
    assert found[0].where == f"{tmp_path / 'manifests.yaml'} meshConfig"
    assert codes(tmp_path, f"{default}\ndefaultConfig: {{tracing: {{sampling: 100}}}}") == []
    missing = default.replace("[otel]", "[otle]")
    assert codes(tmp_path, missing) == ["telemetry.provider-missing"]
    assert codes(tmp_path, missing, rule("randomSamplingPercentage: 100")) == ["telemetry.provider-missing"]
    # Nobody asks for it where the mesh's own Telemetry names another one.
    assert codes(tmp_path, missing, FULL) == []


def test_what_kubectl_prints_of_several_objects_is_read_object_by_object(tmp_path):
    def item(document):
        lines = document.strip().splitlines()
        return "\n".join(["- " + lines[0], *("  " + line for line in lines[1:])])

    misspelt = FULL.replace("otel}", "otle}")
    config_map = f"kind: ConfigMap\nmetadata: {{name: istio}}\ndata:\n  mesh: |\n    {MESH}"
    document = "\n".join(["apiVersion: v1", "kind: List", "items:", *map(item, (config_map, misspelt)), "- text"])
    assert codes(tmp_path, document) == ["telemetry.provider-missing"]


def test_a_sampler_of_the_provider_decides_alone(tmp_path):
    mesh = "extensionProviders: [{name: otel, opentelemetry: {service: a.b, port: 1, dynatraceSampler: {tenant: t}}}]"
    assert codes(tmp_path, mesh, rule("providers: [{name: otel}]")) == []


@pytest.mark.parametrize(
    ("option", "formats", "differ"),
    [
        ("", "tracecontext", True),
        ("traceContextOption: USE_B3", "tracecontext", True),
        ("traceContextOption: USE_B3_WITH_W3C_PROPAGATION", "tracecontext", False),
        ("", "tracecontext,b3multi", False),
    ],
)
def test_zipkin_that_reads_b3_alone(tmp_path, option, formats, differ):
    mesh = f"extensionProviders: [{{name: otel, zipkin: {{service: z.b.svc.cluster.local, port: 9411, {option}}}}}]"
    found = codes(tmp_path, mesh, FULL, settings=Settings(service_name="shop", propagators=formats))
    assert found == ["formats.differ"] * differ


def test_the_tracer_of_the_bootstrap(tmp_path):
    mesh = "defaultConfig: {tracing: {zipkin: {address: zipkin:9411}}}"
    assert codes(tmp_path, mesh) == ["formats.differ"]
    assert codes(tmp_path, f"{mesh}\nenableTracing: false") == []
    assert codes(tmp_path, f"{mesh}\n{MESH}", FULL) == []
    assert codes(tmp_path, "defaultConfig: {tracing: {datadog: {address: dd:8126}}}") == []


def test_short_ids(tmp_path):
    option = "traceContextOption: USE_B3_WITH_W3C_PROPAGATION, enable64bitTraceId: true"
    mesh = f"extensionProviders: [{{name: otel, zipkin: {{service: z.b, port: 9411, {option}}}}}]"
    assert codes(tmp_path, mesh, FULL) == ["zipkin.short-ids"]


def test_proxies_that_inject_nothing(tmp_path):
    fields = "providers: [{name: otel}], randomSamplingPercentage: 100, disableContextPropagation: true"
    assert codes(tmp_path, MESH, rule(fields)) == ["proxy.injects-nothing"]


@pytest.mark.parametrize(
    ("names", "silent", "expected"),
    [
        ("x-user", False, []),
        ("Traceparent", False, ["headers.removed-in-vain"]),
        ("traceparent, baggage", False, ["headers.removed-in-vain", "headers.removed"]),
        ("traceparent", True, ["proxy.injects-nothing", "headers.removed"]),
        ("x-request-id", False, ["request-id.removed"]),
        ("x-request-id, b3", False, ["request-id.removed", "headers.removed"]),
    ],
)
def test_a_virtual_service_that_removes_headers(tmp_path, names, silent, expected):
    tracing = FULL.replace("Percentage: 100", "Percentage: 100, disableContextPropagation: true") if silent else FULL
    headers = f"headers: {{request: {{remove: [{names}]}}}}"
    for_all = f"{SERVICE}  http: [{{route: [{{destination: {{host: a}}}}], {headers}}}]"
    weighted = f"{SERVICE}  http: [{{route: [{{destination: {{host: a}}, weight: 1, {headers}}}]}}]"
    assert codes(tmp_path, MESH, tracing, for_all) == expected
    assert codes(tmp_path, MESH, tracing, weighted) == expected


ZIPKIN = MESH.replace("opentelemetry", "zipkin").replace(
    "port: 4317", "traceContextOption: USE_B3_WITH_W3C_PROPAGATION, port: 9411"
)


def test_zipkins_tracer_leaves_tracestate_to_itself(tmp_path):
    removing = f"{SERVICE}  http: [{{headers: {{request: {{remove: [NAME]}}}}}}]"
    assert codes(tmp_path, ZIPKIN, FULL, removing.replace("NAME", "traceparent")) == ["headers.removed-in-vain"]
    assert codes(tmp_path, ZIPKIN, FULL, removing.replace("NAME", "tracestate")) == ["headers.removed"]


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("set: {x-user: a}", []),
        ("set: {Traceparent: a}", ["headers.overwritten"]),
        ("add: {traceparent: a}", ["headers.doubled"]),
        ("add: {baggage: a=b}", []),
        ("set: {baggage: a=b, b3: '0'}", ["headers.overwritten", "headers.overwritten"]),
        ("set: {x-request-id: a}", ["request-id.changed"]),
        ("set: 7", []),
    ],
)
def test_a_route_that_writes_headers(tmp_path, operation, expected):
    for_all = f"{SERVICE}  http: [{{route: [{{destination: {{host: a}}}}], headers: {{request: {{{operation}}}}}}}]"
    assert sorted(codes(tmp_path, for_all)) == expected
    # The tracer writes it again.
    found = [code for code in expected if "raceparent" not in operation]
    assert sorted(codes(tmp_path, MESH, FULL, for_all)) == (found or ["headers.removed-in-vain"] * len(expected))


@pytest.mark.parametrize("kind", ["HTTPRoute", "GRPCRoute"])
@pytest.mark.parametrize("place", ["filters: [FILTER]", "backendRefs: [{name: a, filters: [FILTER]}]"])
def test_a_route_of_the_gateway_api_that_changes_headers(tmp_path, kind, place):
    changes = "remove: [Tracestate, baggage], set: [{name: Traceparent, value: a}], add: [{name: b3, value: '0'}]"
    each = f"{{type: RequestHeaderModifier, requestHeaderModifier: {{{changes}}}}}"
    route = f"kind: {kind}\nmetadata: {{name: shop}}\nspec: {{rules: [{{{place.replace('FILTER', each)}}}]}}"
    found = findings(tmp_path, route)
    assert sorted((each.code, each.what) for each in found) == [
        ("headers.doubled", "it adds b3"),
        ("headers.overwritten", "it sets traceparent"),
        ("headers.removed", "it removes baggage, tracestate"),
    ]
    assert all(each.where.endswith(f"{kind} shop") for each in found)


def test_a_patch_of_proxies_cannot_be_judged(tmp_path):
    patch = "kind: EnvoyFilter\nspec: {configPatches: [{patch: {value: {inlineCode: NAME}}}]}"
    named = [("traceparent", "warning"), ("x-user", "note"), ("79c9f85128e8ab3d0b3", "note"), ("x-b3-of-ours", "note")]
    for name, severity in [*named, ("'h[\"b3\"] = 1'", "warning"), ("'%REQ(B3)%'", "warning")]:
        (tmp_path / "patch.yaml").write_text(patch.replace("NAME", name))
        (finding,) = judge_manifests(read_manifests([tmp_path / "patch.yaml"]))
        assert (finding.code, finding.severity) == ("unjudged.filter", severity)


def test_a_removal_where_no_tracer_is_known(tmp_path):
    removal = f"{SERVICE}  http: [{{headers: {{request: {{remove: [traceparent]}}}}}}]"
    assert codes(tmp_path, removal) == ["headers.removed"]


@pytest.mark.parametrize(
    ("hosts", "service", "missing"),
    [
        ("./*, istio-system/*", "otel.observability.svc.cluster.local", True),
        ("shop.example.com", "otel.observability.svc.cluster.local", True),
        ("observability/*", "otel.observability.svc.cluster.local", False),
        ("'*/*'", "otel.observability.svc.cluster.local", False),
        ("./*", "observability/otel.example.com", True),
        ("./*", "otel.shop.svc.cluster.local", False),
        ("istio-system/*", "otel.example.com", False),
    ],
)
def test_a_sidecar_that_leaves_the_collector_out(tmp_path, hosts, service, missing):
    sidecar = f"kind: Sidecar\nmetadata: {{name: default, namespace: shop}}\nspec: {{egress: [{{hosts: [{hosts}]}}]}}"
    mesh = MESH.replace("otel.observability.svc.cluster.local", service)
    assert codes(tmp_path, mesh, FULL, sidecar) == ["egress.collector-missing"] * missing
    assert codes(tmp_path, mesh, FULL.replace("otel}", "envoy}"), sidecar) == ["telemetry.provider-cannot-trace"]


def test_a_sidecar_is_judged_by_the_providers_of_its_own_namespace(tmp_path):
    sidecar = "kind: Sidecar\nmetadata: {name: default, namespace: shop}\nspec: {egress: [{hosts: [./*]}]}"
    elsewhere = rule("providers: [{name: otel}], randomSamplingPercentage: 100", "pay")
    here = rule("providers: [{name: otel}], randomSamplingPercentage: 100", "shop")
    some = here.replace("spec:", "spec:\n  selector: {a: b}")
    assert codes(tmp_path, MESH, elsewhere, sidecar) == []
    for telemetry in (here, some, FULL):
        assert codes(tmp_path, MESH, telemetry, sidecar) == ["egress.collector-missing"]
    # That of the root namespace is for all.
    assert codes(tmp_path, MESH, elsewhere, sidecar.replace("shop", "istio-system")) == ["egress.collector-missing"]
    # Proxies without a tracer send nothing.
    assert codes(tmp_path, MESH, FULL, rule("disableSpanReporting: true", "shop"), sidecar) == []


def test_names_with_underscores_are_names_too(tmp_path):
    """As istiod itself takes them, seen in its own `/debug/mesh`."""
    mesh = MESH.replace("extensionProviders", "extension_providers")
    for document in (mesh, f"kind: ConfigMap\ndata:\n  mesh: |\n    {mesh}", f"meshConfig: {{{mesh}}}"):
        assert codes(tmp_path, document, FULL) == []
    option = "trace_context_option: USE_B3_WITH_W3C_PROPAGATION, enable_64bit_trace_id: true"
    zipkin = f"extension_providers: [{{name: otel, zipkin: {{service: z.b, port: 9411, {option}}}}}]"
    assert codes(tmp_path, zipkin, FULL) == ["zipkin.short-ids"]
    dropped = f"{mesh}\ndefault_config: {{tracing: {{sampling: 100}}}}\ndefault_providers: {{tracing: [otel]}}"
    found = codes(tmp_path, dropped, rule("providers: [{name: otel}]"))
    assert found == ["mesh-config.dropped", "mesh-config.dropped", "sampling.proxy-clears-the-flag"]


def test_a_sidecar_without_egress_limits_nothing(tmp_path):
    assert codes(tmp_path, MESH, FULL, "kind: Sidecar\nspec: {egress: [{port: {number: 80}}]}") == []


def test_access_logs(tmp_path):
    file = "accessLogFile: /dev/stdout\n"
    assert codes(tmp_path, file) == ["access-log.not-logged"]
    assert codes(tmp_path, f'{file}accessLogFormat: "%REQ(TRACEPARENT)%"') == []
    logging = f"{TELEMETRY}  accessLogging: [{{providers: [{{name: envoy}}]}}]"
    assert codes(tmp_path, file, logging) == []
    (missing,) = findings(tmp_path, file, logging.replace("envoy", "mesh-log"))
    assert (missing.severity, missing.code) == ("warning", "telemetry.provider-missing")


def test_other_shapes_are_read_past(tmp_path):
    odd = ["[]", "kind: Telemetry\nspec: {tracing: [x, {providers: x}], accessLogging: x}", "kind: VirtualService"]
    assert codes(tmp_path, *odd) == []


CONTOUR = "apiVersion: projectcontour.io/v1\nkind: HTTPProxy\nmetadata: {name: shop}\nspec: {routes: [SPEC]}"
OF_OTHERS = [
    CONTOUR.replace("SPEC", "{requestHeadersPolicy: {remove: [Traceparent]}}"),
    "apiVersion: projectcontour.io/v1alpha1\nkind: ContourConfiguration\nspec: {tracing: {overallSampling: '10'}}",
    "apiVersion: gateway.kgateway.dev/v1alpha1\nkind: HTTPListenerPolicy\nspec: {tracing: {randomSampling: 0}}",
    "apiVersion: gateway.solo.io/v1\nkind: Gateway\nspec: {httpGateway: {options: {hcm: {tracing: {verbose: true}}}}}",
    "apiVersion: gateway.envoyproxy.io/v1alpha1\nkind: EnvoyProxy\nspec: {telemetry: {tracing: {samplingRate: 1}}}",
    "apiVersion: consul.hashicorp.com/v1alpha1\nkind: ProxyDefaults\nspec: {config: {envoy_tracing_json: '{}'}}",
    "apiVersion: kuma.io/v1alpha1\nkind: MeshTrace\nspec: {default: {sampling: {overall: 80}}}",
    "apiVersion: appmesh.k8s.aws/v1beta2\nkind: VirtualNode\nspec: {env: [{name: ENABLE_ENVOY_JAEGER_TRACING}]}",
    "apiVersion: cilium.io/v2\nkind: CiliumEnvoyConfig\nspec: {resources: [{tracing: {}}]}",
    "static_resources: {listeners: [{name: in, filter_chains: []}]}",
    "staticResources: {listeners: [{name: in, filterChains: []}]}",
]


@pytest.mark.parametrize("document", OF_OTHERS)
def test_what_other_control_planes_have_is_not_called_well(tmp_path, document):
    (found,) = findings(tmp_path, document)
    assert found.code == "unjudged.manifest"
    is_fault = "Traceparent" in document or "esources: {" in document
    assert found.is_fault == is_fault
    assert ("--config-dump" in found.fix, "names traceparent" in found.what) == (True, "Traceparent" in document)


def test_files_without_anything_of_istio_are_not_called_well(tmp_path, capsys):
    plain = CONTOUR.replace("SPEC", "{services: [{name: a}]}")
    service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}"
    for documents in ([service], [plain], [plain, service]):
        (found,) = findings(tmp_path, *documents)
        assert (found.severity, found.code) == ("warning", "unjudged.manifest")
        assert f"none of {len(documents)} objects" in found.what
        assert main(["doctor", str(tmp_path)]) == 1
        assert "Nothing to mend in what can be judged; 1 that cannot." in capsys.readouterr().out
    assert codes(tmp_path, service, plain, MESH, FULL) == []


def test_a_file_that_nobody_can_walk_through(tmp_path):
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    laughs += "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 8))
    for text in (laughs, "kind: EnvoyFilter\nspec: &a {b: *a}"):
        (found,) = findings(tmp_path, text)
        assert found.code == "manifest.no-yaml"


def test_the_command_prints_what_it_read(tmp_path, capsys):
    file = tmp_path / "mesh.yml"
    quiet = rule("disableSpanReporting: true", "quiet")
    file.write_text(f"{MESH}\n---\n{FULL}\n---\n{rule('providers: [{name: nobody}]', 'shop')}\n---\n{quiet}")
    assert main(["doctor", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "otel (opentelemetry)" in printed
    assert "nobody (?)" in printed
    assert "no spans" in printed
    assert "propagator" not in printed
    assert main(["doctor", str(file), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["manifests"]["tracing"][0]["provider"] == "otel"
    assert [finding["code"] for finding in document["findings"]] == ["telemetry.provider-missing"]


def test_the_command_prints_a_refused_mesh_configuration(tmp_path, capsys):
    (tmp_path / "mesh.yaml").write_text("enableTracing: 'yes'")
    assert main(["doctor", str(tmp_path / "mesh.yaml")]) == 1
    assert "refused" in capsys.readouterr().out


def test_a_missing_reader_of_yaml_is_named_with_its_extra(tmp_path, monkeypatch):
    (tmp_path / "mesh.yaml").write_text(MESH)
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtraError, match=r"PyYAML .* 'meshmw\[cli\]'"):
        read_manifests([tmp_path])


def test_what_cannot_be_read_is_said_in_one_line(tmp_path, capsys):
    for arguments in ([str(tmp_path)], [str(tmp_path / "gone.yaml")], ["a:b", "c:d"]):
        assert main(["doctor", *arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ManifestError, match="holds no"):
        read_manifests([tmp_path])
