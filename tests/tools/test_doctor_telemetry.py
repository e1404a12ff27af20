"""How `meshmw doctor` merges Telemetry objects, and where it finds the percentage that none of them says.

Istio's own sources are the measure; `tests/real/test_istio_merging.py` holds the same cases against its control plane.
"""

from __future__ import annotations

import pytest

from meshmw.__main__ import main
from meshmw._tools.doctor.manifests import read_manifests
from meshmw._tools.doctor.telemetry import merged_rules
from tests.tools.test_doctor_manifests import FULL, MESH, TELEMETRY, codes, findings

ZIPKIN = "zipkin: {service: zipkin.observability.svc.cluster.local, port: 9411}"
TWO = f"{MESH[:-1]}, {{name: zipkin, {ZIPKIN}}}]"
OTEL = "providers: [{name: otel}]"
CLEARS = "sampling.proxy-clears-the-flag"


def rules(*texts, namespace="istio-system", name="mesh"):
    listed = ", ".join(f"{{{text}}}" for text in texts)
    return f"{TELEMETRY}  tracing: [{listed}]".replace("istio-system", namespace).replace("name: mesh", f"name: {name}")


def merged(tmp_path, *documents):
    (tmp_path / "manifests.yaml").write_text("\n---\n".join(documents))
    rows = [each.rule for each in merged_rules(read_manifests([tmp_path / "manifests.yaml"]))]
    return [(rule.namespace, rule.mode, rule.provider, rule.sampling, rule.reports) for rule in rows]


def mode(word):
    return f"match: {{mode: {word}}}"


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        # Both directions are one.
        ([rules(f"{mode('CLIENT_AND_SERVER')}, {OTEL}")], [("", "otel", 1, True)]),
        ([rules(f"{mode('CLIENT')}, {OTEL}")], [("CLIENT", "otel", 1, True), ("SERVER", "", 1, True)]),
        # The rules of one object are for each other what others leave out, and a later one has the last word.
        (
            [rules(OTEL, f"{mode('SERVER')}, randomSamplingPercentage: 5", "randomSamplingPercentage: 7")],
            [("", "otel", 7, True)],
        ),
        (
            [rules(OTEL, "randomSamplingPercentage: 7", f"{mode('SERVER')}, randomSamplingPercentage: 5")],
            [("CLIENT", "otel", 7, True), ("SERVER", "otel", 5, True)],
        ),
        (
            [rules(OTEL, f"{mode('SERVER')}, disableSpanReporting: true")],
            [("CLIENT", "otel", 1, True), ("SERVER", "otel", 1, False)],
        ),
        (
            [rules(f"{mode('CLIENT')}, {OTEL}", f"{mode('SERVER')}, providers: [{{name: zipkin}}]")],
            [("CLIENT", "otel", 1, True), ("SERVER", "zipkin", 1, True)],
        ),
    ],
)
def test_the_rules_of_one_object(tmp_path, documents, expected):
    assert merged(tmp_path, TWO, *documents) == [("istio-system", *each) for each in expected]


def test_each_level_writes_over_the_one_above_it(tmp_path):
    root = rules(f"{OTEL}, randomSamplingPercentage: 5")
    shop = rules(f"{mode('SERVER')}, randomSamplingPercentage: 50", namespace="shop")
    one = rules("randomSamplingPercentage: 90", namespace="shop", name="one")
    one = one.replace("spec:", "spec:\n  selector: {a: b}")
    other = one.replace("namespace: shop", "namespace: istio-system")
    assert merged(tmp_path, MESH, root, shop, one, other) == [
        ("istio-system", "", "otel", 5, True),
        ("shop", "CLIENT", "otel", 5, True),
        ("shop", "SERVER", "otel", 50, True),
        ("shop", "", "otel", 90, True),
        ("istio-system", "", "otel", 90, True),
    ]


def test_a_rule_for_what_goes_out_has_what_the_rule_for_both_says(tmp_path):
    """It was taken for a rule by itself, whose provider nobody named."""
    in_shop = rules(OTEL, f"{mode('CLIENT')}, randomSamplingPercentage: 100", namespace="shop")
    found = findings(tmp_path, MESH, in_shop)
    # What comes in keeps istiod's own percentage.
    assert [each.code for each in found] == [CLEARS]
    assert "proxies start 1 % of traces" in found[0].what
    assert (
        codes(tmp_path, MESH, rules(f"{OTEL}, randomSamplingPercentage: 100", mode("CLIENT"), namespace="shop")) == []
    )


def test_a_direction_without_a_provider_is_named(tmp_path):
    client = f"{mode('CLIENT')}, {OTEL}, randomSamplingPercentage: 100"
    parted = rules(client, f"{mode('SERVER')}, randomSamplingPercentage: 9")
    (found,) = findings(tmp_path, MESH, parted)
    assert found.code == "telemetry.no-provider"
    assert "for what comes in" in found.what
    # That nothing at all is said of one direction is a choice.
    assert codes(tmp_path, MESH, rules(client)) == []


def test_each_direction_is_judged_by_its_own_provider(tmp_path):
    parted = rules(f"{mode('CLIENT')}, {OTEL}", f"{mode('SERVER')}, providers: [{{name: zipkin}}]")
    assert codes(tmp_path, TWO, parted) == [CLEARS, "formats.differ"]
    missing = rules(f"{OTEL}, randomSamplingPercentage: 100", f"{mode('SERVER')}, providers: [{{name: zikpin}}]")
    assert codes(tmp_path, TWO, missing) == ["telemetry.provider-missing"]


def test_a_fault_of_the_mesh_is_said_once_and_where_it_stands(tmp_path):
    root = rules("providers: [{name: otle}], randomSamplingPercentage: 5, disableContextPropagation: true")
    shops = [rules("enableIstioTags: false", namespace=name, name=name) for name in ("a", "b")]
    found = findings(tmp_path, MESH, root, *shops)
    assert [each.code for each in found] == ["telemetry.provider-missing", "proxy.injects-nothing"]
    assert {each.where for each in found} == {f"{tmp_path / 'manifests.yaml'} Telemetry mesh"}
    (found,) = findings(tmp_path, MESH, rules(f"{OTEL}, randomSamplingPercentage: 5"), *shops)
    assert (found.code, found.where) == (CLEARS, f"{tmp_path / 'manifests.yaml'} Telemetry mesh")


def test_of_two_objects_without_a_selector_istiod_takes_the_older(tmp_path):
    logging = f"{TELEMETRY}  accessLogging: [{{providers: [{{name: envoy}}]}}]".replace("name: mesh", "name: logs")
    (found,) = findings(tmp_path, MESH, FULL, logging)
    assert (found.code, found.severity) == ("telemetry.ignored", "warning")
    assert found.where.endswith("Telemetry logs")
    assert "cannot be seen here" in found.why

    def made(document, year):
        return document.replace("namespace: ", f'creationTimestamp: "{year}-01-01T00:00:00Z", namespace: ')

    found = findings(tmp_path, MESH, made(FULL, 2025), made(logging, 2024))
    assert [(each.code, each.where.endswith("Telemetry mesh")) for each in found] == [("telemetry.ignored", True)]
    assert "cannot be seen here" not in found[0].why
    assert merged(tmp_path, MESH, made(FULL, 2025), made(logging, 2024)) == []
    # The same object in two files, as in overlays, and objects of two namespaces.
    assert codes(tmp_path, MESH, FULL, FULL, logging.replace("istio-system", "shop")) == []


MESH_CONFIG = f"meshConfig: {{{MESH}}}"
TEN = f"{{{MESH_CONFIG}, pilot: {{traceSampling: 10}}}}"
INSTALLATION = f"kind: IstioOperator\nmetadata: {{name: own}}\nspec:\n  meshConfig:\n    {MESH}\n"
ENV = "[{name: PILOT_TRACE_SAMPLING, VALUE}]"
# Of the first two Python makes numbers, and Go none.
NO_NUMBERS = ("100 ", "1_00", "nan", ".")
DEPLOYMENT = f"""
kind: Deployment
metadata: {{name: istiod, namespace: istio-system}}
spec: {{template: {{spec: {{containers: [{{name: other}}, {{name: discovery, env: {ENV}}}]}}}}}}
"""


def env(said):
    return DEPLOYMENT.replace("VALUE", said)


OF_COMPONENT = f"components: {{pilot: {{k8s: {{env: {ENV.replace('VALUE', 'value: 20.5')}}}}}}}"
LISTED = f"envVarFrom: {ENV.replace('VALUE', 'value: 10')}"
INDENTED = f"        {MESH_CONFIG}\n        traceSampling: 10"


@pytest.mark.parametrize(
    ("document", "percent", "place"),
    [
        (f"{INSTALLATION}  values: {{pilot: {{traceSampling: 10}}}}", "10", "IstioOperator own values traceSampling"),
        (f"{INSTALLATION}  values: {{pilot: {{traceSampling: 100}}}}", None, ""),
        (INSTALLATION, "1", "istiod's default)"),
        (
            f"{INSTALLATION}  {OF_COMPONENT}\n  values: {{pilot: {{traceSampling: 9}}}}",
            "20.5",
            "components.pilot.k8s.env",
        ),
        (f"kind: Istio\nspec: {{values: {TEN}}}", "10", "Istio values"),
        (f"kind: HelmRelease\nspec: {{values: {TEN}}}", "10", "HelmRelease values"),
        (f"kind: Application\nspec: {{source: {{helm: {{valuesObject: {TEN}}}}}}}", "10", "Application helm.values"),
        (
            f"kind: Application\nspec:\n  sources:\n  - helm:\n      values: |\n{INDENTED}",
            "10",
            "Application helm.values",
        ),
        (f"istiod: {TEN}", "10", "istiod traceSampling"),
        (f"{MESH_CONFIG}\npilot: {{traceSampling: 10}}", "10", "manifests.yaml traceSampling"),
        (f"{MESH_CONFIG}\ntraceSampling: 10", "10", "manifests.yaml traceSampling"),
        (f"{MESH_CONFIG}\ntraceSampling: 100\npilot: {{traceSampling: 10}}", "10", "traceSampling"),
        (f"{MESH_CONFIG}\ntraceSampling: 0\nenv: {{PILOT_TRACE_SAMPLING: '10'}}", "10", "env"),
        (f"{MESH_CONFIG}\ntraceSampling: 10\nenv: {{PILOT_TRACE_SAMPLING: 10, OTHER: 1}}", "10", "env"),
        (f"{MESH_CONFIG}\npilot: {{traceSampling: 10, {LISTED}}}", "10", "env"),
        (f"{MESH}\n---{env('value: 10')}", "10", "Deployment istiod env"),
        (f"{MESH}\n---{env('value: 10')}".replace("Deployment", "Pod"), "10", "Pod istiod env"),
    ],
)
def test_istiods_own_percentage(tmp_path, document, percent, place):
    found = findings(tmp_path, document, rules(OTEL))
    assert [each.code for each in found] == [CLEARS] * bool(percent)
    for each in found:
        assert f"proxies start {percent} % of traces sampled" in each.what
        assert place in each.what
    # What others say has the word.
    assert codes(tmp_path, document, FULL) == []


def test_the_mesh_configuration_has_the_word_before_istiod(tmp_path):
    mesh = MESH_CONFIG.replace("{ext", "{defaultConfig: {tracing: {sampling: 100}}, ext")
    assert codes(tmp_path, f"{mesh}\ntraceSampling: 10", rules(OTEL)) == []
    (found,) = findings(tmp_path, f"{mesh.replace('sampling: 100', 'sampling: 7')}\ntraceSampling: 10", rules(OTEL))
    assert "proxies start 7 % of traces sampled (as defaultConfig.tracing.sampling of" in found.what


def test_nothing_at_all_is_sampled(tmp_path):
    (found,) = findings(tmp_path, MESH, env("value: '0'"), rules(OTEL))
    assert "proxies start 0 % of traces sampled" in found.what
    assert "clear the sampled flag of every request" in found.what


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (f"meshConfig: {{{MESH}}}\npilot: {{traceSampling: 0}}", "takes 0 for no value"),
        (f"meshConfig: {{{MESH}}}\npilot: {{traceSampling: 250}}", "'250' is no percentage"),
        (f"{MESH}\n---{env('value: all')}", "'all' is no percentage"),
        *((f"{MESH}\n---{env(f'value: {odd!r}')}", f"{odd!r} is no percentage") for odd in NO_NUMBERS),
        (f"{MESH}\ndefaultConfig: {{tracing: {{sampling: 0}}}}", "takes 0 there for no value"),
        (f"{MESH}\ndefaultConfig: {{tracing: {{sampling: 101}}}}", "101 is no percentage"),
    ],
)
def test_a_percentage_that_istiod_does_not_take(tmp_path, document, why):
    """Of `sampling: 0`: https://github.com/istio/istio/issues/36750."""
    found = findings(tmp_path, document, rules(OTEL))
    assert [each.code for each in found] == [CLEARS, "sampling.not-taken"]
    assert "proxies start 1 % of traces sampled" in found[0].what
    assert (found[1].severity, why in found[1].why) == ("note", True)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (
            f"{MESH}\n---{env('valueFrom: {configMapKeyRef: {key: a}}')}",
            "comes from another object",
        ),
        (
            f"{MESH}\n---{env('value: 1}, {name: PILOT_TRACE_SAMPLING, value: 100')}",
            "is there twice",
        ),
        # deployment.yaml of the chart writes traceSampling, which is 1 where nobody sets it, behind env.
        (f"meshConfig: {{{MESH}}}\nenv: {{PILOT_TRACE_SAMPLING: 100}}", "twice, by env and by traceSampling"),
        (f"meshConfig: {{{MESH}}}\ntraceSampling: 100\n---{env('value: 10')}", "differs: "),
    ],
)
def test_a_percentage_that_cannot_be_known(tmp_path, document, why):
    (found,) = findings(tmp_path, document, rules(OTEL))
    assert (found.severity, found.code, why in found.what) == ("warning", "unjudged.sampling", True)
    assert codes(tmp_path, document, FULL) == []


WORKLOAD = """
kind: Deployment
metadata: {name: cart, namespace: shop}
spec: {template: {metadata: {annotations: {proxy.istio.io/config: "tracing: {sampling: PERCENT}"}}}}
"""


def test_a_workloads_own_percentage(tmp_path):
    """https://github.com/istio/istio/issues/30809 and 54472."""
    mesh = f"{MESH}\ndefaultConfig: {{tracing: {{sampling: 100}}}}"
    (found,) = findings(tmp_path, mesh, rules(OTEL), WORKLOAD.replace("PERCENT", "5"))
    assert (found.code, "Deployment cart proxy.istio.io/config" in found.where) == (CLEARS, True)
    assert "proxies start 5 % of traces sampled (as its annotation says)" in found.what
    annotations = "{proxy.istio.io/config: 'tracing: {sampling: 5}'}"
    pod = f"kind: Pod\nmetadata: {{name: a, namespace: shop, annotations: {annotations}}}"
    assert codes(tmp_path, mesh, rules(OTEL), pod) == [CLEARS]
    assert codes(tmp_path, mesh, rules(OTEL), WORKLOAD.replace("PERCENT", "100")) == []
    for nothing in ("0", "[", "a: b"):
        assert codes(tmp_path, mesh, rules(OTEL), WORKLOAD.replace("PERCENT", nothing)) == []
    # Where a Telemetry says another it counts for nothing.
    (found,) = findings(tmp_path, mesh, FULL, WORKLOAD.replace("PERCENT", "5"))
    assert (found.code, found.severity) == ("sampling.not-taken", "note")
    assert "Telemetry mesh" in found.why
    server = rules(f"{mode('SERVER')}, randomSamplingPercentage: 100", namespace="shop")
    assert codes(tmp_path, mesh, rules(OTEL), server, WORKLOAD.replace("PERCENT", "5")) == [CLEARS]
    assert codes(tmp_path, mesh, WORKLOAD.replace("PERCENT", "5")) == []
    # Which workloads a selector means cannot be seen.
    selecting = rules("randomSamplingPercentage: 100", namespace="shop").replace("spec:", "spec:\n  selector: {a: b}")
    assert codes(tmp_path, mesh, rules(OTEL), selecting, WORKLOAD.replace("PERCENT", "5")) == ["unjudged.sampling"]


@pytest.mark.parametrize("profile", ["profile: demo", "values: {profile: demo}", "values: {global: {profile: demo}}"])
def test_the_profile_demo_brings_providers_and_its_percentage(tmp_path, profile):
    installation = f"kind: IstioOperator\nspec:\n  {profile}"
    for name in ("otel-tracing", "jaeger"):
        assert codes(tmp_path, installation, rules(f"providers: [{{name: {name}}}]")) == []
    # An own list of providers takes the place of the profile's.
    own = f"{installation}\n  meshConfig: {{{MESH}}}"
    assert codes(tmp_path, own, rules(OTEL)) == []
    assert codes(tmp_path, own, rules("providers: [{name: otel-tracing}]")) == ["telemetry.provider-missing"]


RELEASE = "kind: HelmRelease\nmetadata: {name: NAME}\nspec: {chart: {spec: {chart: NAME}}, values: VALUES}"
SOURCE = "kind: Application\nmetadata: {name: NAME}\nspec: {source: {chart: NAME, helm: {valuesObject: VALUES}}}"


def chart(form, name, values):
    return form.replace("NAME", name).replace("VALUES", values)


@pytest.mark.parametrize("form", [RELEASE, SOURCE])
@pytest.mark.parametrize("name", ["base", "shop"])
def test_a_profile_of_another_chart_says_nothing_of_the_mesh(tmp_path, form, name):
    other = chart(form, name, "{profile: demo}")
    assert codes(tmp_path, other, TEN, FULL) == []
    (found,) = findings(tmp_path, other, TEN, rules(OTEL))
    assert (found.code, "proxies start 10 %" in found.what) == (CLEARS, True)
    assert codes(tmp_path, other, FULL) == ["mesh-config.none"]
    assert codes(tmp_path, "profile: demo\nreplicas: 3", FULL) == ["mesh-config.none"]


@pytest.mark.parametrize(
    "document",
    [
        chart(RELEASE, "istiod", "{profile: demo}"),
        chart(SOURCE, "istiod", "{global: {profile: demo}}"),
        chart(RELEASE, "own", "{profile: demo, pilot: {replicaCount: 2}}"),
        "profile: demo\nmeshConfig: {enableAutoMtls: true}",
        "profile: demo\nmeshConfig:\n",
        "kind: Istio\nspec: {values: {profile: demo}}",
        "kind: Istio\nspec: {profile: demo}",
        "kind: Istio\nspec: {profile: demo, values: {meshConfig: {enableTracing: true}}}",
        chart(RELEASE, "./charts/istiod/", "{profile: demo}"),
        chart(RELEASE, "own", "{istiod: {profile: demo, meshConfig: {enableTracing: true}}}"),
        chart(SOURCE, "own", "{global: {profile: demo}, istiod: {meshConfig: {enableTracing: true}}}"),
        "global: {profile: demo}\nistiod: {meshConfig: {enableTracing: true}}",
        "global: {profile: demo}\nistiod: {global: {hub: x, profile: own}, meshConfig: {enableTracing: true}}",
    ],
)
def test_the_profile_demo_of_istiods_own_chart(tmp_path, document):
    assert codes(tmp_path, document, rules("providers: [{name: jaeger}]")) == []


def test_what_the_sail_operators_user_says_goes_before_its_profile(tmp_path):
    installation = "kind: Istio\nspec: {profile: demo, values: {profile: default, meshConfig: {enableTracing: true}}}"
    assert codes(tmp_path, installation, rules("providers: [{name: jaeger}]")) == ["telemetry.provider-missing"]


@pytest.mark.parametrize(("name", "is_istios"), [("istio", True), ("istio-canary", True), ("app", False)])
def test_a_mesh_configuration_stands_in_a_config_map_of_istios_name(tmp_path, name, is_istios):
    other = f"kind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{mesh: 'rootNamespace: b'}}"
    demo = "kind: IstioOperator\nspec: {profile: demo}"
    found = codes(tmp_path, demo, other, rules("providers: [{name: jaeger}]"))
    assert ("telemetry.provider-missing" in found) is is_istios


def test_a_mesh_configuration_that_somebody_wrote_goes_before_a_profiles(tmp_path):
    installation = "kind: IstioOperator\nspec: {profile: demo}"
    written = f"kind: ConfigMap\nmetadata: {{name: istio}}\ndata:\n  mesh: |\n    {MESH}"
    for documents in ([installation, written], [written, installation]):
        assert codes(tmp_path, *documents, FULL) == []
        assert codes(tmp_path, *documents, rules("providers: [{name: jaeger}]")) == ["telemetry.provider-missing"]
    # One that istiod does not take leaves the profile's.
    refused = written.replace(MESH, "enableTracing: 5")
    assert codes(tmp_path, refused, installation, rules("providers: [{name: jaeger}]")) == ["mesh-config.refused"]


@pytest.mark.parametrize(
    "document",
    [
        "kind: IstioOperator\nspec:\n  meshConfig:\n  # enableTracing: true",
        "meshConfig:\npilot: {traceSampling: 100}",
        "kind: ConfigMap\nmetadata: {name: istio}\ndata: {mesh: ''}",
        "kind: ConfigMap\nmetadata: {name: istio}\ndata: {mesh: '# enableTracing: true'}",
        "kind: ConfigMap\nmetadata: {name: istio}\ndata: {mesh: }",
    ],
)
def test_an_empty_mesh_configuration_is_none(tmp_path, document):
    assert codes(tmp_path, document, FULL) == ["mesh-config.none"]


def test_an_empty_field_is_as_one_that_is_not_there(tmp_path):
    zipkin = "defaultConfig: {tracing: {zipkin: {address: 'zipkin:9411'}}}"
    for said in ("", "enableTracing:", "enableTracing: true"):
        assert codes(tmp_path, f"{zipkin}\n{said}") == ["formats.differ"]
    assert codes(tmp_path, f"{zipkin}\nenableTracing: false") == []
    whole = f"kind: IstioOperator\nspec:\n  meshConfig:\n  values: {{meshConfig: {{{MESH}}}}}"
    assert codes(tmp_path, whole, FULL) == []


HUGE = "1" + "0" * 400


@pytest.mark.parametrize("said", ["traceSampling: '50'", "traceSampling: 50.0", "traceSampling:"])
def test_a_percentage_that_is_said_twice_alike(tmp_path, said):
    """Helm's merge keeps an empty value, of which the chart then writes nothing."""
    chart = f"{MESH_CONFIG}\npilot: {{env: {{PILOT_TRACE_SAMPLING: '50'}}, SAID}}".replace("SAID", said)
    (found,) = findings(tmp_path, chart, rules(OTEL))
    assert (found.code, "proxies start 50 % of traces" in found.what) == (CLEARS, True)


@pytest.mark.parametrize("said", ["", "traceSampling: '1.0'", "traceSampling: 1"])
def test_the_default_percentage_may_be_said_too(tmp_path, said):
    chart = f"{MESH_CONFIG}\npilot: {{env: {{PILOT_TRACE_SAMPLING: '1.0'}}, {said}}}"
    assert codes(tmp_path, chart, rules(OTEL)) == [CLEARS]


def test_an_empty_percentage_is_none(tmp_path):
    (found,) = findings(tmp_path, f"{MESH_CONFIG}\ntraceSampling:", rules(OTEL))
    assert "proxies start 1 % of traces sampled (istiod's default)" in found.what


@pytest.mark.parametrize(("first", "second"), [("'1'", "'1.0'"), ("all", "all"), ("10", "'10'")])
def test_a_variable_that_is_there_twice_alike(tmp_path, first, second):
    for other, differ in ((second, False), ("none", True)):
        twice = env(f"value: {first}}}, {{name: PILOT_TRACE_SAMPLING, value: {other}")
        assert ("unjudged.sampling" in codes(tmp_path, MESH, twice, rules(OTEL))) == differ


@pytest.mark.parametrize("said", [HUGE, ".nan", ".inf", "-.inf", "1e999"])
def test_what_is_no_number_is_no_percentage(tmp_path, said):
    default = "proxies start 1 % of traces sampled"
    tracing = f"defaultConfig: {{tracing: {{sampling: {said}}}}}"
    for documents in (
        (f"{MESH}\n{tracing}", rules(OTEL)),
        (MESH, rules(f"{OTEL}, randomSamplingPercentage: {said}")),
        (f"{MESH_CONFIG}\ntraceSampling: {said}", rules(OTEL)),
    ):
        found = findings(tmp_path, *documents)
        assert (found[0].code, default in found[0].what) == (CLEARS, True)


def test_a_negative_percentage_is_named(tmp_path):
    mesh = f"{MESH}\ndefaultConfig: {{tracing: {{sampling: -5}}}}"
    odd = findings(tmp_path, mesh, rules(OTEL))[-1]
    assert (odd.code, "-5 is no percentage" in odd.why) == ("sampling.not-taken", True)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("'2024-01-01T08:00:00Z'", "2024-01-01T09:00:00Z"),
        ("2024-01-01T08:00:00Z", "'2024-01-01T09:00:00Z'"),
        ("2024-01-01T08:00:00", "'2024-01-01T08:30:00Z'"),
        ("'2024-01-01T10:00:00+04:00'", "2024-01-01T09:00:00Z"),
    ],
)
def test_the_older_object_in_whatever_form_its_time_is_written(tmp_path, earlier, later):
    def made(document, time):
        return document.replace("namespace: ", f"creationTimestamp: {time}, namespace: ")

    other = FULL.replace("name: mesh", "name: other").replace("100", "5")
    for documents in ((made(FULL, earlier), made(other, later)), (made(other, later), made(FULL, earlier))):
        (found,) = findings(tmp_path, MESH, *documents)
        assert (found.code, found.where.endswith("Telemetry other")) == ("telemetry.ignored", True)
        assert "cannot be seen here" not in found.why


@pytest.mark.parametrize("time", ["yesterday", "'0001-01-01T00:00:00+14:00'"])
def test_a_time_that_is_none_is_not_known(tmp_path, time):
    dated = FULL.replace("namespace: ", f"creationTimestamp: {time}, namespace: ")
    found = findings(tmp_path, MESH, FULL.replace("name: mesh", "name: other"), dated)
    assert "cannot be seen here" in found[0].why


def test_the_command_shows_both_directions(tmp_path, capsys):
    twice = env("value: 1}, {name: PILOT_TRACE_SAMPLING, value: 2")
    parted = rules(OTEL, f"{mode('SERVER')}, randomSamplingPercentage: 5")
    (tmp_path / "a.yaml").write_text(f"{MESH}\n---{parted}\n---{twice}")
    assert main(["doctor", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "? % by the request id" in printed
    assert "5 % by the request id" in printed
    assert "CLIENT" in printed
