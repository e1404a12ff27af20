"""The real Jaeger: `meshmw verify` finds a request's trace in it, and the demonstration starts it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import httpx
import pytest

from meshmw._tools.verify.evidence import _PATHS, BackendError, HttpBackend
from meshmw._tools.verify.probe import SYNTHETIC
from meshmw.testing import EnvoyMesh, Service, dies_with_parent, start_mesh
from sample_apps.jaeger import running_jaeger
from tests.programs import clean_environment, envoy_or_skip
from tests.real.collector import SECONDS, Collector, Toward
from tests.real.install import real_server

ROOT = Path(__file__).parents[2]
APPS = ROOT / "tests" / "testing" / "services"
SHOP = Service("shop", "shop:app", calls=["stock"], directory=APPS)
STOCK = Service("stock", "stock:app", interface="wsgi", directory=APPS)
TRACE_ID = SYNTHETIC[0]


@pytest.fixture(scope="module")
def programs(request: pytest.FixtureRequest) -> Path:
    return real_server(request.config, "jaeger")


@pytest.fixture(scope="module")
def jaeger(programs: Path) -> Iterator[tuple[str, str]]:
    """Where a running Jaeger has its page, and where it takes OTLP over HTTP."""
    with running_jaeger(str(programs / "jaeger")) as address:
        page, _, otlp = address.partition(",")
        yield page, otlp


@pytest.fixture(scope="module")
def mesh(
    request: pytest.FixtureRequest, programs: Path, jaeger: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EnvoyMesh]:
    """Services and sidecars that report to a Collector, which reports to Jaeger."""
    envoy_or_skip(request)
    exporters = {"otlphttp": {"endpoint": jaeger[1]}}
    with (
        Collector(programs / "collector", tmp_path_factory.mktemp("collector"), exporters=exporters) as collector,
        Toward(collector) as receiver,
        start_mesh(SHOP, STOCK, receiver=receiver) as running,
    ):
        yield running


def verify(mesh: EnvoyMesh, page: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "meshmw", "verify", f"{mesh.url}/", "--jaeger", page, *arguments]
    return subprocess.run(
        command, env=clean_environment() | {"COLUMNS": "200"}, capture_output=True, text=True, timeout=2 * SECONDS
    )


def test_verify_finds_the_synthetic_trace_behind_a_collector(mesh, jaeger):
    page, _ = jaeger
    done = verify(mesh, page, "--spans=8", f"--timeout={SECONDS}", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    journey = json.loads(done.stdout)
    assert journey["verdict"] == "one"
    assert journey["links"] == [f"{page}/trace/{TRACE_ID}"]
    assert {span["service"] for span in journey["spans"]} == {"edge", "shop-sidecar", "shop", "stock-sidecar", "stock"}
    assert {span["trace_id"] for span in journey["spans"]} == {TRACE_ID}
    makers = {span["service"]: span["maker"] for span in journey["spans"]}
    assert (makers["edge"], makers["stock-sidecar"], makers["stock"]) == ("proxy", "proxy", "app")
    # The synthetic parent is the probe itself, which sends no span.
    assert not [finding for finding in journey["findings"] if finding["level"] == "error"]


def test_verify_prints_a_link_that_leads_to_the_trace(mesh, jaeger):
    page, _ = jaeger
    done = verify(mesh, page, "--random", "--spans=8", f"--timeout={SECONDS}")
    assert done.returncode == 0, done.stdout + done.stderr
    link = re.search(r"^see it at (\S+)$", done.stdout, re.MULTILINE)[1]
    assert link.startswith(f"{page}/trace/")
    shown = httpx.get(link, trust_env=False)
    assert (shown.status_code, shown.headers["content-type"].partition(";")[0]) == (200, "text/html")


def test_both_versions_of_its_api_are_read_alike(mesh, jaeger):
    page, _ = jaeger
    journey = json.loads(verify(mesh, page, "--random", "--spans=8", f"--timeout={SECONDS}", "--json").stdout)
    trace_id = journey["spans"][0]["trace_id"]
    (v3, read_v3), (v1, read_v1) = _PATHS["jaeger"]
    assert (v3, v1) == ("/api/v3/traces/{}", "/api/traces/{}")
    by_v3 = sorted(read_v3(answer(page, v3, trace_id)), key=attrgetter("span_id"))
    by_v1 = sorted(read_v1(answer(page, v1, trace_id)), key=attrgetter("span_id"))
    assert len(by_v3) == len(journey["spans"])
    # The first version has microseconds.
    assert [replace(span, start_ns=0, end_ns=0) for span in by_v3] == [
        replace(span, start_ns=0, end_ns=0) for span in by_v1
    ]
    assert [span.start_ns // 1000 for span in by_v3] == [span.start_ns // 1000 for span in by_v1]


def test_the_searches_of_the_page_find_the_trace(mesh, jaeger):
    page, _ = jaeger
    journey = json.loads(verify(mesh, page, "--random", "--spans=8", f"--timeout={SECONDS}", "--json").stdout)
    trace_id = journey["spans"][0]["trace_id"]
    (upstream,) = {
        tag["value"]
        for trace in answer(page, "/api/traces/{}", trace_id)["data"]
        for span in trace["spans"]
        for tag in span["tags"]
        if tag["key"] == "upstream_cluster" and span["operationName"].startswith("egress")
    }
    marks = [{}, {"component": "proxy"}, {"telemetry.sdk.name": "envoy"}, {"upstream_cluster": upstream}]
    wanted = [("shop", {}), *(("shop-sidecar", mark) for mark in marks)]
    deadline = time.monotonic() + SECONDS
    while missing := [each for each in wanted if trace_id not in search(page, *each)]:
        assert time.monotonic() < deadline, missing
        time.sleep(0.1)
    # Service and tags have to be one span's, and a scope's name is not looked at.
    assert search(page, "shop", {"component": "proxy"}) == set()
    assert search(page, "shop-sidecar", {"otel.scope.name": "envoy"}) == set()


def search(page: str, service: str, tags: dict[str, str]) -> set[str]:
    """The trace ids that its own page finds."""
    asked = {"service": service, "tags": json.dumps(tags), "limit": "100"}
    response = httpx.get(f"{page}/api/traces", params=asked, trust_env=False)
    assert response.status_code == 200
    return {trace["traceID"] for trace in response.json()["data"]}


def answer(page: str, path: str, trace_id: str) -> object:
    response = httpx.get(f"{page}{path.format(trace_id)}", trust_env=False)
    # The third version calls its JSON text/plain.
    assert response.status_code == 200
    return response.json()


def test_a_trace_that_it_does_not_have_yields_nothing(jaeger):
    assert HttpBackend("jaeger", jaeger[0]).spans([f"{0xDEAD:032x}"]) == []


def test_a_page_in_the_place_of_its_api_is_named(jaeger):
    with pytest.raises(BackendError, match=r"/api/v3/traces/ID answered something else .*; /api/traces/ID answered"):
        HttpBackend("jaeger", f"{jaeger[0]}/nowhere").spans([TRACE_ID])


def test_the_demonstration_starts_it_and_its_links_lead_to_the_traces(programs):
    command = dies_with_parent([sys.executable, "-u", "-m", "sample_apps", "--serve", "--without-meshmw", "--jaeger"])
    environment = clean_environment() | {"PATH": "", "MESHMW_JAEGER": str(programs / "jaeger")}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as demo:
        try:
            seen = ""
            for line in demo.stdout:
                seen += line
                if "Ctrl-C stops everything" in line:
                    break
            links = re.findall(r"^jaeger   (\S+)/trace/([0-9a-f]{32})$", seen, re.MULTILINE)
            assert len(links) == 3, seen
            backend = HttpBackend("jaeger", links[0][0])
            wanted = {trace_id for _, trace_id in links}
            deadline = time.monotonic() + SECONDS
            while wanted != (found := {span.trace_id for span in backend.spans(wanted)}):
                assert time.monotonic() < deadline, found
                time.sleep(0.1)
        finally:
            demo.send_signal(signal.SIGTERM)
            demo.communicate(timeout=SECONDS)
    assert demo.returncode == 130
