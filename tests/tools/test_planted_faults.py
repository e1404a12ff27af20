"""`verify` on meshes in which one fault is planted: it names the place, and what causes it there."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from meshmw._tools.verify.probe import SYNTHETIC, Variant
from tests.tools.planted import (
    OTHER,
    Fault,
    PlantedMesh,
    cleared,
    lost,
    malformed,
    restarted,
    set_again,
    stateless,
)

TRACE_ID = SYNTHETIC[0]
FOLLOW, ENVOY, APP = "OTEL_TRACES_SAMPLER", "Envoy since 1.39", "TraceContextMiddleware"
ISTIO, GATEWAY, CONSUL = (
    "outbound|80||{}.ns.svc.cluster.local",
    "httproute/ns/{}/rule/0",
    "{}.default.dc1.internal.x.consul",
)


@dataclass(frozen=True)
class Case:
    """Holds what is planted, where `verify` has to see it, and words of the cause and of the fix."""

    name: str
    fault: Fault
    code: str
    where: str
    says: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    variant: Variant = "w3c"
    cluster: str = "{}"


def at(name: str, change, **more) -> Fault:
    return Fault({name: change}, **more)


CASES = (
    Case("edge removes it", at("edge", lost), "verify.lost", "edge", ("doctor --envoy-admin",)),
    Case(
        "edge removes it, Istio", at("edge", lost), "verify.lost", "edge", ("istioctl",), ("HTTPRoute",), cluster=ISTIO
    ),
    Case(
        "edge removes it, Envoy Gateway",
        at("edge", lost),
        "verify.lost",
        "edge",
        ("HTTPRoute",),
        ("Istio", "istio"),
        cluster=GATEWAY,
    ),
    Case(
        "something before the shop removes it",
        at("edge->shop", lost),
        "verify.lost",
        "edge -> shop inbound",
        ("terminator",),
    ),
    Case(
        "something before the shop spoils it",
        at("edge->shop", malformed),
        "verify.malformed",
        "edge -> shop inbound",
        ("terminator",),
    ),
    Case(
        "the sidecar restarts it",
        at("shop inbound", restarted),
        "verify.restarted",
        "shop inbound",
        ("doctor --envoy-admin",),
    ),
    Case(
        "the sidecar records apart",
        Fault(own=frozenset({"shop inbound"})),
        "verify.other-trace",
        "shop inbound",
        ("USE_B3_WITH_W3C",),
    ),
    Case("the application loses it", at("shop application", lost), "verify.lost", "shop application", (APP,)),
    Case(
        "the application loses it, its proxy starts one",
        at("shop application", lost, starts=frozenset({"shop stock"})),
        "verify.lost",
        "shop application",
        (APP,),
    ),
    Case(
        "the application restarts it", at("shop application", restarted), "verify.restarted", "shop application", (APP,)
    ),
    Case(
        "the application spoils it", at("shop application", malformed), "verify.malformed", "shop application", (APP,)
    ),
    Case(
        "the second call loses it",
        at("shop application->price", lost),
        "verify.lost",
        "shop application -> shop price",
        (APP,),
        ("terminator",),
    ),
    Case(
        "what lies before price removes it",
        at("shop->price", lost),
        "verify.lost",
        "shop price -> price inbound",
        ("terminator",),
    ),
    Case("edge clears the flag", at("edge", cleared), "verify.flipped", "edge", (ENVOY, "random_sampling"), (FOLLOW,)),
    Case(
        "edge clears the flag, Istio",
        at("edge", cleared),
        "verify.flipped",
        "edge",
        (ENVOY, "randomSamplingPercentage"),
        ("Gateway",),
        cluster=ISTIO,
    ),
    Case(
        "edge clears the flag, Envoy Gateway",
        at("edge", cleared),
        "verify.flipped",
        "edge",
        (ENVOY, "samplingRate"),
        ("Istio",),
        cluster=GATEWAY,
    ),
    Case(
        "edge clears the flag, Consul",
        at("edge", cleared),
        "verify.flipped",
        "edge",
        (ENVOY, "proxy-defaults"),
        ("Istio",),
        cluster=CONSUL,
    ),
    Case(
        "the application clears the flag",
        at("shop application", cleared),
        "verify.flipped",
        "shop application",
        (FOLLOW,),
        (ENVOY, "Istio"),
    ),
    Case(
        "something between clears the flag",
        at("edge->shop", cleared),
        "verify.flipped",
        "edge -> shop inbound",
        (FOLLOW, "random_sampling"),
    ),
    Case(
        "the second call's proxy clears the flag",
        at("shop price", cleared),
        "verify.flipped",
        "shop price",
        (ENVOY,),
        (FOLLOW,),
    ),
    Case(
        "the application sets the flag again",
        at("shop application", set_again),
        "verify.sampled-again",
        "shop application",
        (FOLLOW,),
        ("parent_based",),
        "unsampled",
    ),
    Case(
        "edge sets the flag again",
        at("edge", set_again),
        "verify.sampled-again",
        "edge",
        ("parent_based",),
        (FOLLOW,),
        "unsampled",
    ),
    Case(
        "the application loses tracestate",
        at("shop application", stateless),
        "verify.tracestate-lost",
        "shop application",
        ("OTEL_PROPAGATORS",),
        ("Envoy",),
    ),
    Case(
        "the sidecar loses tracestate",
        at("shop inbound", stateless),
        "verify.tracestate-lost",
        "shop inbound",
        ("proxy",),
        ("OTEL_PROPAGATORS",),
    ),
    Case(
        "tracestate is lost between",
        at("shop->price", stateless),
        "verify.tracestate-lost",
        "shop price -> price inbound",
        ("rule", "OTEL_PROPAGATORS"),
    ),
    Case(
        "a leaf exports nowhere",
        Fault(silent=frozenset({"price application"})),
        "verify.not-exported",
        "price application",
        ("MODULE:APP",),
    ),
    Case(
        "a leaf's sidecar exports nowhere",
        Fault(silent=frozenset({"price inbound"})),
        "verify.orphan",
        "price inbound",
        ("exports nothing",),
    ),
    Case(
        "shop exports nowhere",
        Fault(silent=frozenset({"shop application"})),
        "verify.orphan",
        "shop application",
        ("exports nothing",),
    ),
    Case("edge exports nowhere", Fault(silent=frozenset({"edge"})), "verify.orphan", "edge", ("exports nothing",)),
    Case(
        "a leaf and its sidecar export nowhere",
        Fault(silent=frozenset({"price inbound", "price application"})),
        "verify.not-exported",
        "price inbound",
        ("envoy-admin",),
    ),
    Case(
        "the application passes junk on",
        at("shop application", dict),
        "verify.malformed-forwarded",
        "shop application",
        (APP,),
        variant="malformed",
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_place_and_cause_of_a_planted_fault(case, tmp_path):
    journey = PlantedMesh(tmp_path, case.fault, cluster=case.cluster).run(case.variant)
    # A trace that goes on as another splits the spans as well; the first finding is where it began.
    first = next(each for each in journey.findings if each.code != "verify.split")
    assert (first.code, first.where) == (case.code, case.where), journey.to_json()
    said = f"{first.why} {first.fix}"
    assert [word for word in case.says if word not in said] == []
    assert [word for word in case.never if word in said] == []


@pytest.mark.parametrize(
    "fault",
    [Fault(), Fault(passive=frozenset({"edge", "shop inbound", "shop stock", "shop price", "stock inbound"}))],
    ids=["tracing proxies", "proxies that do not trace"],
)
@pytest.mark.parametrize("cluster", ["{}", ISTIO])
@pytest.mark.parametrize("variant", ["w3c", "unsampled"])
def test_a_good_mesh_is_not_accused(tmp_path, fault, cluster, variant):
    journey = PlantedMesh(tmp_path, fault, cluster=cluster).run(variant)
    assert (journey.verdict, journey.findings) == ("one", ())
    assert [(hop.name, hop.parent and journey.hops[hop.parent].name) for hop in journey.hops[1:]] == [
        ("edge", 0),
        ("shop inbound", "edge"),
        ("shop application", "shop inbound"),
        ("shop stock", "shop application"),
        ("shop price", "shop application"),
        ("stock inbound", "shop stock"),
        ("stock application", "stock inbound"),
        ("price inbound", "shop price"),
        ("price application", "price inbound"),
    ]


@pytest.mark.parametrize("change", [lost, restarted, malformed])
def test_after_a_break_the_trace_that_was_sent_is_still_the_one_looked_for(tmp_path, change):
    fault = at("shop application", change, starts=frozenset({"shop stock", "shop price"}))
    journey = PlantedMesh(tmp_path, fault).run()
    assert journey.trace_id == TRACE_ID
    (split,) = (each for each in journey.findings if each.code == "verify.split")
    strays = [span for span in journey.spans if span.trace_id != TRACE_ID]
    assert f"{len(strays)} of {len(journey.spans)} spans" in split.what
    assert strays
    assert len(journey.spans) > len(strays)


def test_a_trace_that_ends_at_the_first_proxy_is_still_looked_for(tmp_path):
    journey = PlantedMesh(tmp_path, at("edge->shop", restarted, silent=frozenset({"edge"}))).run()
    assert journey.trace_id == TRACE_ID
    assert {span.trace_id for span in journey.spans} == {OTHER}
    assert "verify.split" in {each.code for each in journey.findings}


def test_the_fresh_trace_of_a_malformed_probe_is_looked_for(tmp_path):
    journey = PlantedMesh(tmp_path, Fault(starts=frozenset({"shop application"}))).run("malformed")
    assert (journey.verdict, journey.trace_id) == ("one", "e" * 32)


def test_echoes_stand_where_their_applications_are(tmp_path):
    journey = PlantedMesh(tmp_path, Fault()).run(echo=True)
    assert journey.findings == ()
    apps = {hop.name: hop for hop in journey.hops if hop.kind == "app"}
    before = {hop.name: journey.hops[hop.parent or 0] for hop in apps.values()}
    for name, hop in apps.items():
        assert hop.received["traceparent"] == before[name].sent["traceparent"]


def test_echoes_alone_name_the_application_that_lost_it(tmp_path):
    fault = at("shop application", stateless)
    journey = PlantedMesh(tmp_path, fault).run(echo=True, logs=False, spans=False)
    assert [(finding.code, finding.where) for finding in journey.findings] == [
        ("verify.tracestate-lost", f"probe -> application (answer.{name})") for name in ("stock", "price")
    ]
