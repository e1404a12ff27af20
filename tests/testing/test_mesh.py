"""A mesh of one's own services, on real Envoys."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from meshmw.errors import MeshError
from meshmw.testing import (
    Envoy,
    LinkerdLike,
    Service,
    assert_child_of,
    assert_one_trace,
    find_span,
    render_tree,
    roots,
    start_mesh,
)
from meshmw.testing._processes import Sidecar

HERE = Path(__file__).parent / "services"
SHOP = Service("shop", "shop:app", calls=["stock"], directory=HERE)
STOCK = Service("stock", "stock:app", interface="wsgi", directory=HERE)


def wait_for_logs(mesh, requests=1):
    """Wait for both lines of each request at each listener: a broken journey is told as it is after its time."""
    for proxy in filter(None, (mesh.edge, *mesh.sidecars.values())):
        proxy.access_log(at_least=2 * requests * len(proxy.proxy.listeners))


KEEPING = ["none", "otel", "zipkin-b3-w3c", "linkerd-like"]


@pytest.mark.parametrize("sidecar", KEEPING)
def test_services_go_in_as_they_are_and_come_out_as_one_trace(envoy_mesh, sidecar):
    mesh = envoy_mesh(SHOP, STOCK, sidecar=sidecar)
    assert mesh.get("/").json()["item"] == "teapot"
    spans = mesh.spans()
    assert_one_trace(spans)
    assert {"edge", "shop", "stock"} <= {span.service for span in spans}
    if sidecar != "none":
        behind = find_span(spans, service="stock-sidecar")
        assert_child_of(find_span(spans, service="stock"), behind)
        # By this attribute docs/mesh/spans.md tells them apart in Jaeger, whichever format they came in.
        assert sidecar == "linkerd-like" or behind.attributes["component"] == "proxy"


@pytest.fixture(scope="module")
def untraced():
    """A mesh that each case asks once, and how often it was asked."""
    with start_mesh(SHOP, STOCK, sidecar="none", edge="none") as mesh:
        with pytest.raises(MeshError, match="no request was sent"):
            mesh.journey()
        yield mesh, itertools.count(1)


@pytest.mark.usefixtures("envoy_mesh")  # says what is not installed
@pytest.mark.meshmw_headers("none", "w3c", "b3", "both", "twice")
def test_what_the_mesh_makes_of_the_headers(request, trace_headers):
    mesh, requests = request.getfixturevalue("untraced")
    assert mesh.get("/", trace_headers).status == 200
    wait_for_logs(mesh, next(requests))
    breaks = trace_headers.name in ("b3", "twice")
    journey = mesh.journey(timeout=1 if breaks else 60)
    assert [hop.kind for hop in journey.hops] == ["client", "proxy", "proxy", "app", "proxy", "proxy", "app"]
    assert journey.status_code == 200
    # Services that read W3C alone do not go on with B3, strict ones not with one of two.
    assert journey.verdict == ("broken" if breaks else "one"), journey.summary
    if journey.verdict == "one":
        spans = mesh.spans()
        assert_one_trace(spans)
        assert (spans[0].trace_id == trace_headers.trace_id) == bool(trace_headers.sampled)


def test_a_sidecar_that_strips_headers_is_seen_to_break_the_trace(envoy_mesh):
    mesh = envoy_mesh(SHOP, STOCK, sidecar="strip")
    mesh.get("/")
    places = {"edge", "shop", "stock"}
    mesh.receiver.wait_for(lambda spans: {root.service for root in roots(spans)} >= places, timeout=60)
    spans = mesh.receiver.spans
    with pytest.raises(AssertionError, match="3 traces, wanted one"):
        assert_one_trace(spans)
    assert {root.service for root in roots(spans)} == places
    wait_for_logs(mesh)
    journey = mesh.journey(timeout=1)
    assert journey.summary.startswith("BROKEN at edge -> shop-sidecar inbound: ")


TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SENT = {
    "traceparent": f"00-{TRACE}-{SPAN}-01",
    "tracestate": "a=1",
    "baggage": "k=1",
    "b3": f"{TRACE}-{SPAN}-1",
    "x-b3-flags": "0",
}
ECHO = [sys.executable, str(HERE / "echo.py"), "{port}"]
# What becomes of traceparent, tracestate, baggage, b3: kept, gone, or the same trace with another span.
FATES = {
    "none": ["kept", "kept", "kept", "kept"],
    "otel": ["span", "kept", "kept", "kept"],
    "zipkin-b3": ["kept", "kept", "kept", "span"],
    "zipkin-b3-w3c": ["span", "kept", "kept", "span"],
    "strip": ["gone", "gone", "gone", "gone"],
    "linkerd-like": ["span", "kept", "kept", "kept"],
}


def meshes(style, position):
    """What `envoy_mesh` takes for a mesh with one proxy alone that does something, which says what came behind it."""
    plain = {"sidecar": "none", "edge": None}
    if position == "edge":
        return [Service("echo", command=ECHO)], plain | {"edge": style}
    if position == "inbound":
        return [Service("echo", command=ECHO, sidecar=style)], plain
    relay = [sys.executable, str(HERE / "relay.py"), "{port}", "{echo}"]
    sends = {"SENDS": json.dumps(SENT)}
    return [
        Service("relay", command=relay, calls=["echo"], environment=sends, sidecar=style),
        Service("echo", command=ECHO),
    ], plain


def fate(name, arrived):
    if name not in arrived:
        return "gone"
    if arrived[name] == SENT[name]:
        return "kept"
    return "span" if TRACE in arrived[name] and f"{TRACE}-{SPAN}" not in arrived[name] else arrived[name]


@pytest.mark.parametrize("position", ["edge", "inbound", "outbound"])
@pytest.mark.parametrize("style", get_args(Sidecar))
def test_every_style_does_at_every_place_what_it_is_named_after(envoy_mesh, style, position):
    services, styles = meshes(style, position)
    answer = envoy_mesh(*services, **styles).get("/", SENT)
    arrived = {name.lower(): value for name, value in (line.split(": ", 1) for line in answer.text.splitlines())}
    # What comes in is stripped, and not what goes out.
    expected = FATES["none"] if (style, position) == ("strip", "outbound") else FATES[style]
    assert [fate(name, arrived) for name in list(SENT)[:4]] == expected, answer.text
    if style == "strip":
        assert ("x-b3-flags" in arrived) == (position == "outbound")


def test_a_fault_planted_at_the_edge_is_found_there(envoy_mesh):
    mesh = envoy_mesh(SHOP, STOCK, edge="strip")
    mesh.get("/", SENT)
    wait_for_logs(mesh)
    with pytest.raises(AssertionError, match="2 traces, wanted one"):
        assert_one_trace(mesh.spans(timeout=5))
    journey = mesh.journey(timeout=1)
    assert journey.verdict == "broken"
    assert "edge" in journey.summary


def test_linkerd_at_the_edge_has_its_span_and_its_log(envoy_mesh):
    mesh = envoy_mesh(SHOP, STOCK, edge="linkerd-like")
    assert isinstance(mesh.edge, LinkerdLike)
    mesh.get("/", SENT)
    spans = mesh.spans("edge", "shop", "stock")
    assert_one_trace(spans)
    edge = find_span(spans, service="edge")
    assert (edge.kind, edge.name, edge.parent_id) == ("SERVER", "linkerd-like inbound", SPAN)
    assert [line["listener"] for line in mesh.edge.access_log(at_least=2)] == ["edge", "edge"]
    assert mesh.journey().verdict == "one"


# An export that fails is given up after a second.
QUICK = {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("refuse", "UNAVAILABLE"),
        ("hang", "DEADLINE_EXCEEDED"),
        ("reset", "UNAVAILABLE"),
        ("unavailable", "data refused due to high memory usage"),
    ],
)
def test_services_answer_while_the_collector_is_away_and_report_when_it_is_back(envoy_mesh, fault, reason):
    mesh = envoy_mesh(replace(SHOP, environment=QUICK), replace(STOCK, environment=QUICK))
    assert mesh.get("/").status == 200
    assert_one_trace(mesh.spans())
    with mesh.collector_outage(fault):
        assert mesh.get("/").json()["item"] == "teapot"
        for name in ("shop", "stock"):
            log = mesh.wait_for_log(name, "are dropped until it answers; requests are unaffected", timeout=60)
            assert reason in log
            assert "Traceback" not in log
    # The first exports after it may find a connection that waits before it is tried again.
    deadline = time.monotonic() + 60
    while not {"edge", "shop", "stock"} <= {span.service for span in mesh.receiver.spans}:
        assert time.monotonic() < deadline, render_tree(mesh.receiver.spans)
        assert mesh.get("/").json()["item"] == "teapot"
        time.sleep(0.5)
    for name in ("shop", "stock"):
        assert " again" in mesh.wait_for_log(name, "spans reach ")


def test_an_outage_that_does_not_exist_and_a_log_line_that_does_not_come_are_named(envoy_mesh):
    mesh = envoy_mesh(STOCK, edge=None, sidecar="none")
    with pytest.raises(MeshError, match="fault takes refuse, hang, "), mesh.collector_outage("explode"):
        pass
    with pytest.raises(AssertionError, match=r"stock did not write 'no such words' in 0\.1 seconds, but:"):
        mesh.wait_for_log("stock", "no such words", timeout=0.1)


def test_each_service_may_have_its_own_sidecar_and_there_may_be_no_edge(envoy_mesh):
    linkerd = Service("stock", "stock:app", interface="wsgi", directory=HERE, sidecar="linkerd-like")
    mesh = envoy_mesh(SHOP, linkerd, edge=None)
    assert mesh.edge is None
    assert isinstance(mesh.sidecars["shop"], Envoy)
    mesh.get("/", {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
    spans = mesh.spans()
    assert_one_trace(spans)
    assert find_span(spans, service="stock-sidecar").scope == "linkerd-like"
    assert [span.service for span in roots(spans)] == ["client"]
    lines = mesh.sidecars["stock"].access_log()
    assert [line["type"] for line in lines] == ["DownstreamStart", "DownstreamEnd"]
    assert all(line["traceparent"].startswith("00-0af7651916cd43dd8448eb211c80319c-") for line in lines)
    assert mesh.sidecars["shop"].access_log(at_least=4)
    journey = mesh.journey()
    assert journey.verdict == "one", journey.summary
    assert [hop.name for hop in journey.hops if hop.kind == "proxy"] == [
        "shop-sidecar inbound",
        "shop-sidecar stock",
        "stock-sidecar inbound",
    ]


def test_six_envoys_and_any_command(envoy_mesh):
    relay = [sys.executable, str(HERE / "relay.py"), "{port}"]
    names = ["a", "b", "c", "d", "e"]
    chain = [
        Service(name, command=[*relay, f"{{{after}}}"], calls=[after]) for name, after in itertools.pairwise(names)
    ]
    mesh = envoy_mesh(*chain, Service("e", command=relay, environment={"SAYS": "from port {port}"}))
    answer = mesh.get("/", [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")])
    assert answer.text.startswith("from port ")
    assert dict(answer.headers)["content-length"] == str(len(answer.body))
    spans = mesh.spans("edge", *(f"{name}-sidecar" for name in names))
    assert len({span.service for span in spans}) == 7, render_tree(spans)


def test_the_client_sends_what_it_is_given(envoy_mesh):
    mesh = envoy_mesh(
        Service("echo", command=[sys.executable, str(HERE / "relay.py"), "{port}"]), sidecar="none", edge=None
    )
    answer = mesh.request("POST", "/", [("traceparent", "malformed")], b"body")
    assert (answer.status, answer.body) == (200, b"POST body")
    assert mesh.spans(timeout=0.1) == []
    # What the proxy logs of a request after it was answered is no part of the next one's journey.
    for digit in "123":
        mesh.get("/", {"traceparent": f"00-{digit * 32}-{digit * 16}-01"})
    (proxy,) = (hop for hop in mesh.journey(timeout=15).hops if hop.kind == "proxy")
    assert proxy.received["traceparent"] == proxy.sent["traceparent"] == f"00-{'3' * 32}-{'3' * 16}-01"


def test_a_service_that_does_not_start_is_named_with_its_last_words(envoy_mesh):
    broken = Service("broken", command=[sys.executable, "-c", "raise SystemExit('no database')"])
    with pytest.raises(MeshError, match=r"service 'broken' ended:\nno database"):
        envoy_mesh(broken)


def test_a_program_that_is_not_there_is_named(envoy_mesh):
    with pytest.raises(MeshError, match="'no-such-server' is not a program"):
        envoy_mesh(Service("shop", command=["no-such-server", "--port={port}"]))


def test_a_style_that_does_not_exist_is_refused(envoy_mesh):
    with pytest.raises(MeshError, match=r"sidecar takes none, otel, .*, not 'istio'"):
        envoy_mesh(STOCK, sidecar="istio")


def test_ctrl_c_leaves_nothing_running(tmp_path):
    program = tmp_path / "interrupted.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import sys, time
            from pathlib import Path
            from meshmw.testing import OtlpReceiver, Service, start_mesh

            stock = Service("stock", "stock:app", interface="wsgi", directory=Path({str(HERE)!r}))
            with OtlpReceiver() as receiver, start_mesh(stock, receiver=receiver) as mesh:
                print(*(envoy._process.pid for envoy in (mesh.edge, mesh.sidecars["stock"])), flush=True)
                time.sleep(60)
            """
        )
    )
    process = subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2, process.communicate()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
