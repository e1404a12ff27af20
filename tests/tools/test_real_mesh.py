"""`meshmw verify`, `doctor` and `access-log` on a mesh of real Envoys and real services."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from meshmw.__main__ import main
from meshmw._tools.verify import follow
from meshmw._tools.verify.evidence import LocalBackend, Watch
from meshmw._tools.verify.journey import Journey
from meshmw._tools.verify.logs import LogTail
from meshmw._tools.verify.probe import SYNTHETIC, make_probe, random_ids, send
from meshmw.testing import Envoy, EnvoyMesh, Listener, OtlpReceiver, Proxy, Service, Tracer, start_mesh
from tests.programs import envoy_or_skip

APPS = Path(__file__).parent / "apps"
SHOP = Service("shop", "shop:app", calls=["stock"], directory=APPS)
FORGETFUL = Service("shop", "forgetful:app", calls=["stock"], directory=APPS)
STOCK = Service("stock", "stock:app", interface="wsgi", directory=APPS)
TRACE_ID = SYNTHETIC[0]


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as running:
        yield running


@pytest.fixture(scope="module")
def meshes(request: pytest.FixtureRequest, receiver: OtlpReceiver) -> Iterator[object]:
    """Meshes by their shop, sidecars and edge, each started once."""
    envoy_or_skip(request)
    running: dict[tuple[object, ...], EnvoyMesh] = {}
    with ExitStack() as stack:

        def start(shop: Service = SHOP, sidecar: str = "otel", edge: str = "otel") -> EnvoyMesh:
            key = (shop.app, sidecar, edge)
            if key not in running:
                running[key] = stack.enter_context(
                    start_mesh(shop, STOCK, receiver=receiver, sidecar=sidecar, edge=edge)  # type: ignore[arg-type]
                )
            receiver.clear()
            return running[key]

        yield start


def log_of(envoy: Envoy) -> Path:
    return envoy._run_directory / "access.log"


def logs_of(mesh: EnvoyMesh) -> list[tuple[str, Path]]:
    proxies = {"edge": mesh.edge, **mesh.sidecars}
    return [(name, log_of(proxy)) for name, proxy in proxies.items()]


def in_way(mesh: EnvoyMesh) -> list[tuple[str, Path]]:
    found = dict(logs_of(mesh))
    return [(name, found[name]) for name in ("edge", "shop", "stock")]


def verify(mesh: EnvoyMesh, receiver: OtlpReceiver, variant: str = "w3c", **options: object) -> Journey:
    watch = Watch(
        tails=[LogTail(name, path) for name, path in in_way(mesh)],
        backends=[LocalBackend("the receiver", lambda: receiver.spans, everything=True)],
        settle=0.3,
        **{"timeout": 60.0, **options},  # type: ignore[arg-type]
    )
    probe = make_probe(f"{mesh.url}/", variant, ids=random_ids())  # type: ignore[arg-type]
    before = {proxy: len(proxy.access_log()) for proxy in (mesh.edge, *mesh.sidecars.values())}
    answer = send(probe)
    # Where something never comes, all that does must be there before the time is up.
    for proxy, lines in before.items():
        proxy.access_log(at_least=lines + 2 * len(proxy.proxy.listeners))
    return follow(probe, answer, watch, 0)


def codes(journey: Journey) -> set[str]:
    return {finding.code for finding in journey.findings}


def test_one_trace_is_said_to_be_one(meshes, receiver):
    journey = verify(meshes(), receiver)
    assert journey.verdict == "one", journey.to_json()
    assert journey.findings == ()
    assert [hop.name for hop in journey.hops] == [
        "probe",
        "edge",
        "shop inbound",
        "shop application",
        "shop stock",
        "stock inbound",
        "stock application",
    ]
    assert [hop.change for hop in journey.hops[1:6]] == ["rewritten"] * 5
    assert {hop.trace_id for hop in journey.hops[1:]} == {journey.trace_id}
    assert {span.maker for span in journey.spans} == {"proxy", "app"}
    assert not any(span.orphan for span in journey.spans)
    assert all(hop.span_ids for hop in journey.hops[1:])


def test_an_application_that_forgets_its_headers_is_named(meshes, receiver):
    journey = verify(meshes(FORGETFUL), receiver, timeout=1.0)
    assert journey.verdict == "broken"
    lost = next(finding for finding in journey.findings if finding.code == "verify.lost")
    assert lost.where == "shop application"
    assert [hop.name for hop in journey.hops if hop.lost] == ["shop application"]
    assert "shop application received the trace and sent no traceparent on" in journey.summary


def test_a_proxy_that_strips_the_headers_is_named(meshes, receiver):
    journey = verify(meshes(sidecar="strip"), receiver, timeout=1.0)
    assert journey.verdict == "broken"
    first = next(finding for finding in journey.findings if finding.code.startswith("verify."))
    assert first.code == "verify.lost"
    assert first.where == "edge -> shop inbound"


def test_the_variants(meshes, receiver):
    mesh = meshes()
    unsampled = verify(mesh, receiver, "unsampled")
    assert (unsampled.verdict, unsampled.findings, unsampled.spans) == ("one", (), ())
    receiver.clear()
    malformed = verify(mesh, receiver, "malformed", spans=4, alone=True)
    assert malformed.verdict == "one", malformed.to_json()
    assert malformed.trace_id not in ("", malformed.parent_id)
    assert [hop.change for hop in malformed.hops[1:3]] == ["malformed"] * 2
    receiver.clear()
    both = verify(mesh, receiver, "both")
    assert both.verdict == "one", both.to_json()
    receiver.clear()
    b3 = verify(mesh, receiver, "b3", timeout=1.0)
    assert b3.verdict == "broken"
    assert b3.hops[1].lost


def test_b3_alone_is_carried_on_by_an_edge_that_reads_both(meshes, receiver):
    journey = verify(meshes(edge="zipkin-b3-w3c"), receiver, "b3")
    assert journey.verdict == "one", journey.to_json()


def test_the_command_says_one_trace_and_writes_a_report(meshes, receiver, tmp_path, capsys):
    mesh = meshes()
    logs = [argument for name, path in in_way(mesh) for argument in ("-a", f"{name}={path}")]
    report = tmp_path / "report.html"
    assert (
        main(["verify", f"{mesh.url}/", *logs, "--random", "--settle=0.2", "--timeout=60", f"--report={report}"]) == 0
    )
    out = capsys.readouterr().out
    assert "ONE trace" in out
    assert "shop application" in out
    assert "<html" in report.read_text()
    assert main(["verify", f"{mesh.url}/", *logs, "--settle=0.2", "--timeout=60", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "one"
    assert found["trace_id"] == TRACE_ID
    assert found["sent"]["traceparent"] == f"00-{TRACE_ID}-{SYNTHETIC[1]}-01"


def test_the_logs_of_real_proxies_show_where_traces_are_lost(meshes, tmp_path, capsys):
    for shop, lost in ((SHOP, None), (FORGETFUL, "shop inbound (out) -> shop stock (in)")):
        mesh = meshes(shop)
        for _ in range(3):
            probe = make_probe(f"{mesh.url}/", ids=random_ids())
            assert send(probe).status_code == 200
        for proxy, lines in ((mesh.edge, 6), (mesh.sidecars["shop"], 12), (mesh.sidecars["stock"], 6)):
            proxy.access_log(at_least=lines)
        arguments = [f"{name}={path}" for name, path in in_way(mesh)]
        code = main(["access-log", "--json", *arguments])
        found = json.loads(capsys.readouterr().out)
        places = [finding["where"] for finding in found["findings"] if finding["code"] == "access-log.lost"]
        if lost is None:
            assert (places, found["first_loss"]) == ([], None)
        else:
            assert (code, places) == (1, [lost])


def test_doctor_reads_a_real_proxy(envoys, otlp_receiver, capsys):
    good = Tracer(collector=otlp_receiver.grpc_endpoint, sample_by_request_id=False)
    bad = Tracer(collector=otlp_receiver.grpc_endpoint, random_sampling=1.0)
    zipkin = Tracer(kind="zipkin-b3", collector="127.0.0.1:9", trace_id_128bit=False, shared_span_context=True)
    away = "127.0.0.1:9"
    fine, poor = envoys(
        Proxy("fine", [Listener(name="in", upstream=away, direction="inbound", tracer=good)]),
        Proxy(
            "poor",
            [
                Listener(name="sampled", upstream=away, tracer=bad, remove_headers=("traceparent",), edge=True),
                Listener(name="early", upstream=away, tracer=zipkin, early_remove_headers=("traceparent",)),
                Listener(name="plain", upstream=away, remove_headers=("baggage",), max_request_headers_kb=8),
            ],
        ),
    )
    assert main(["doctor", "--envoy-admin", fine.admin_url]) == 0
    out = capsys.readouterr().out
    assert "Envoy 1.40" in out
    assert "Nothing to mend." in out
    assert main(["doctor", "--envoy-admin", poor.admin_url.removeprefix("http://"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    by_listener = {(each["where"].split()[-1], each["code"]) for each in found["findings"]}
    assert by_listener >= {
        ("sampled", "sampling.proxy-clears-the-flag"),
        ("sampled", "headers.removed-in-vain"),
        # The tracer knows B3 alone: nobody writes a traceparent again.
        ("early", "headers.removed"),
        ("early", "formats.differ"),
        ("early", "zipkin.short-ids"),
        ("early", "zipkin.shared-spans"),
        ("plain", "headers.removed"),
        ("plain", "proxy.no-tracing"),
        ("plain", "limits.bytes"),
    }
    (proxy,) = found["proxies"]
    assert proxy["listeners"][0]["edge"] is True
    assert proxy["listeners"][0]["logs_traceparent"] is True
