"""What `meshmw doctor` says of a proxy, beside what an upstream behind that proxy saw.

Each row plants one set-up in a listener of a real Envoy. A request with a known trace goes through it, and the headers
that arrive are compared with the codes of the findings. Nothing here knows how doctor reads a configuration.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshmw._tools.doctor import examine
from meshmw._tools.doctor.process import look_at_process
from meshmw._tools.doctor.proxy import ProxyConfig, ask_proxy, read_dump
from meshmw.testing import find_envoy, start_process, stop_processes
from tests.programs import envoy_or_skip
from tests.tools.doctor_parts import (
    B3,
    CODEC,
    MANAGER,
    OTHER,
    REMOVE,
    ROUTER,
    SPAN_ID,
    TRACE_ID,
    TRACERS,
    TYPE,
    W3C,
    Json,
    provider,
    zipkin,
)
from tests.tools.doctor_rows import CLEARED, REMOVED, ROWS, Row

# The codes that say what becomes of a header on its way through a proxy.
ABOUT_HEADERS = {
    "headers.removed",
    "headers.removed-early",
    "headers.overwritten",
    "headers.doubled",
    "headers.added",
    "sampling.proxy-clears-the-flag",
    "sampling.proxy-sets-the-flag",
    "proxy.injects-nothing",
}


NO_PROCESS = look_at_process(connect=False)


class Echo(BaseHTTPRequestHandler):
    """Answers with the header lines that it received; redirects once where it is asked to."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def do_GET(self) -> None:
        redirected = self.path == "/redirect"
        body = json.dumps([[name.lower(), value] for name, value in self.headers.items()]).encode()
        self.send_response(302 if redirected else 200)
        if redirected:
            self.send_header("Location", f"http://{self.headers['Host']}/")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Upstream(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing where the proxy resets a connection, as it does when it ends."""


def listener_of(name: str, row: Row) -> Json:
    cluster = f"to {name}"
    action: Json = {"cluster": cluster}
    if row.weight:
        action = {"weighted_clusters": {"clusters": [{"name": cluster, "weight": 1, **row.weight}]}}
    route = {"match": {"prefix": "/"}, **row.route, "route": {**action, **row.route.get("route", {})}}
    tracing: Json = {"random_sampling": {"value": 100}, **row.tracing}
    if row.tracer:
        tracing |= {"provider": TRACERS[row.tracer]} if row.tracer in TRACERS else {}
    manager = {
        "@type": MANAGER,
        "stat_prefix": "x",
        **({"tracing": tracing} if row.tracer else {}),
        "http_filters": [*row.filters, ROUTER],
        "route_config": {
            "name": name,
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route], **row.host}],
            **row.table,
        },
        **row.manager,
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [chain],
    }


def cluster_of(name: str, port: int, upstream: Sequence[Json] = ()) -> Json:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    options = {
        "@type": f"{TYPE}envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http_protocol_options": {}},
        **({"http_filters": [*upstream, CODEC]} if upstream else {}),
    }
    return {
        "name": name,
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    }


@contextlib.contextmanager
def running(directory: Path, rows: Mapping[str, Row], **bootstrap: object) -> Iterator[Proxy]:
    """Run one Envoy with a listener for each row, in front of one upstream that echoes."""
    server = Upstream(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    clusters = [cluster_of(f"to {name}", server.server_port, row.upstream) for name, row in rows.items()]
    config: Json = {
        "node": {"id": "oracle", "cluster": "oracle"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {
            "listeners": [listener_of(name, row) for name, row in rows.items()],
            "clusters": [*clusters, cluster_of("nowhere", 9)],
        },
        **bootstrap,
    }
    path, admin = directory / "envoy.json", directory / "admin"
    path.write_text(json.dumps(config))
    command = [str(find_envoy()), "-c", str(path), "--disable-hot-restart", "--concurrency", "1", "-l", "warning"]
    process = start_process([*command, "--admin-address-path", str(admin)], directory / "envoy.log")
    try:
        yield Proxy(_wait_until_ready(process, admin, directory / "envoy.log"), config)
    finally:
        stop_processes([process])
        server.shutdown()
        server.server_close()


def _wait_until_ready(process: Any, admin: Path, log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError, ValueError):
            url = f"http://{admin.read_text().strip()}"
            if admin.exists() and urllib.request.urlopen(f"{url}/ready", timeout=5).read() == b"LIVE\n":
                return url
        time.sleep(0.02)
    raise AssertionError(log.read_text())


@dataclass(frozen=True)
class Proxy:
    """A running Envoy: where it is asked, and the configuration that it was given."""

    admin: str
    config: Json

    def ports(self) -> dict[str, int]:
        answer = json.load(urllib.request.urlopen(f"{self.admin}/listeners?format=json", timeout=10))
        return {
            each["name"]: each["local_address"]["socket_address"]["port_value"] for each in answer["listener_statuses"]
        }

    def said(self) -> dict[str, set[str]]:
        """The codes of doctor's findings, by listener."""
        return said_by_listener(ask_proxy(self.admin))


def said_by_listener(proxy: ProxyConfig) -> dict[str, set[str]]:
    return {each.name: codes_of(replace(proxy, listeners=(each,))) for each in proxy.listeners}


def codes_of(proxy: ProxyConfig) -> set[str]:
    findings = examine(NO_PROCESS, [proxy], process_too=False).findings
    return {finding.code for finding in findings}


def seen_behind(port: int, path: str, sends: Mapping[str, str], body: str = "") -> dict[str, list[str]]:
    """The header lines that reach the upstream, by name."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    more = {"content-type": "application/json"} if body else {}
    connection.request("POST" if body else "GET", path, body or None, headers={**sends, **more})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status == 200, (answer.status, text)
    lines: dict[str, list[str]] = {}
    for name, value in json.loads(text):
        lines.setdefault(name, []).append(value)
    return lines


# The header in which each tracer carries a trace on.
CARRIES = {
    "otel": "traceparent",
    "fluentd": "traceparent",
    "datadog": "traceparent",
    "b3+w3c": "traceparent",
    "b3": "x-b3-traceid",
}


def what_happened(row: Row, seen: Mapping[str, list[str]]) -> set[str]:
    """Name what became of the headers that were sent, by the codes that would say so."""
    happened = set()
    for name in dict.fromkeys(("traceparent", "b3", "x-b3-traceid", *row.sends)):
        sent, lines = row.sends.get(name, ""), seen.get(name, [])
        if not sent:
            happened |= {"headers.added"} if any(OTHER in line for line in lines) else set()
        elif not lines:
            # Zipkin's tracer writes a trace of its own in another form.
            restarted = name == "b3" and "x-b3-traceid" in seen
            happened.add("headers.removed-early" if restarted else "headers.removed")
        elif name in ("tracestate", "baggage"):
            if all(sent not in line for line in lines) and "headers.removed-early" not in happened:
                happened.add("headers.overwritten" if "a=b" in lines[0] else "headers.removed")
        elif len(lines) > 1:
            happened.add("headers.doubled")
        elif TRACE_ID in sent:
            happened |= _of_trace(sent, lines[0])
    span_ids = [*seen.get("traceparent", ()), *seen.get("x-b3-spanid", ())]
    if row.tracer in CARRIES and CARRIES[row.tracer] in row.sends and SPAN_ID in "".join(span_ids):
        happened.add("proxy.injects-nothing")
    return happened


def _of_trace(sent: str, received: str) -> set[str]:
    if OTHER in received or not received:
        return {"headers.overwritten"}
    if TRACE_ID not in received:
        return {"headers.removed-early"}
    flag = received.rpartition("-")[2]
    flipped = {"0100": "sampling.proxy-clears-the-flag", "0001": "sampling.proxy-sets-the-flag"}
    return {name for flags, name in flipped.items() if sent[-2:] + flag == flags}


@pytest.fixture(scope="module")
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    envoy_or_skip(request)
    with running(tmp_path_factory.mktemp("oracle"), ROWS) as started:
        yield started


@pytest.fixture(scope="module")
def said(proxy: Proxy) -> dict[str, set[str]]:
    return proxy.said()


@pytest.fixture(scope="module")
def ports(proxy: Proxy) -> dict[str, int]:
    return proxy.ports()


@pytest.mark.parametrize("name", ROWS)
def test_what_is_said_is_what_happens(name, said, ports):
    row = ROWS[name]
    happened = what_happened(row, seen_behind(ports[name], row.path, row.sends, row.body))
    assert said[name] & ABOUT_HEADERS == set(row.says)
    assert row.unjudged or happened == set(row.says) - {row.unseen}
    assert row.unjudged == any(code.startswith("unjudged.") for code in said[name])


LEGACY: dict[str, Row] = {
    "legacy": Row(tracer="the bootstrap's", sends=B3),
    "legacy, w3c": Row(tracer="the bootstrap's"),
    "legacy, route removes": Row(REMOVED, tracer="the bootstrap's", route=REMOVE),
    "legacy, own tracer": Row(CLEARED, tracer="otel"),
    "legacy, no tracing": Row(),
}
RUNTIME: Json = {"layers": [{"name": "told", "static_layer": {"tracing.random_sampling": 0}}]}


def test_a_tracer_of_the_bootstrap_and_its_runtime(request, tmp_path):
    envoy_or_skip(request)
    with running(tmp_path, LEGACY, tracing={"http": zipkin()}, layered_runtime=RUNTIME) as proxy:
        said, ports = proxy.said(), proxy.ports()
        for name, row in LEGACY.items():
            happened = what_happened(row, seen_behind(ports[name], row.path, row.sends))
            assert (name, happened) == (name, set(row.says))
            assert (name, said[name] & ABOUT_HEADERS) == (name, set(row.says))
        tracers = {listener.name: listener.tracer for listener in ask_proxy(proxy.admin).listeners}
    assert tracers == {
        "legacy": "zipkin",
        "legacy, w3c": "zipkin",
        "legacy, route removes": "zipkin",
        "legacy, own tracer": "opentelemetry",
        "legacy, no tracing": "",
    }


SAMPLED: dict[str, Row] = {
    "otel": Row(tracer="otel"),
    "otel, random 0": Row(tracer="otel", tracing={"random_sampling": {"value": 0}}),
    "otel, route 100": Row(tracer="otel", route={"tracing": {"operation": "x"}}),
    "otel, route 0": Row(tracer="otel", route={"tracing": {"random_sampling": {"numerator": 0}}}),
}
EACH, NONE, AS_TOLD = set(SAMPLED), set(), {"otel, random 0", "otel, route 0"}


@pytest.mark.parametrize(
    ("runtime", "cleared"),
    [
        ({"tracing.random_sampling": 0}, EACH),
        ({"tracing.random_sampling": "0"}, EACH),
        ({"tracing": {"random_sampling": {"numerator": 0, "denominator": "HUNDRED"}}}, EACH),
        ({"tracing.global_enabled": 0}, EACH),
        ({"tracing.random_sampling": 10_000}, NONE),
        ({"tracing.random_sampling": "100"}, NONE),
        ({"tracing.random_sampling": False}, AS_TOLD),
        ({"tracing.random_sampling": -1}, AS_TOLD),
        ({"tracing.client_enabled": 0}, AS_TOLD),
    ],
)
def test_what_the_runtime_says_of_sampling(request, tmp_path, runtime, cleared):
    envoy_or_skip(request)
    layers = {"layers": [{"name": "told", "static_layer": runtime}]}
    with running(tmp_path, SAMPLED, layered_runtime=layers) as proxy:
        said, ports = proxy.said(), proxy.ports()
        happened = {name for name in SAMPLED if what_happened(SAMPLED[name], seen_behind(ports[name], "/", W3C))}
    assert happened == cleared
    assert {name for name in SAMPLED if said[name] & ABOUT_HEADERS} == cleared


def camel(value: Any) -> Any:
    """A configuration with protojson's names."""
    if isinstance(value, dict):
        return {
            # The names of filters are no fields.
            key if "." in key else re.sub("_([a-z0-9])", lambda found: found[1].upper(), key): camel(each)
            for key, each in value.items()
        }
    return [camel(each) for each in value] if isinstance(value, list) else value


def answer_of(proxy: Proxy, path: str) -> Any:
    return json.load(urllib.request.urlopen(f"{proxy.admin}{path}", timeout=10))


def said_of(tmp_path: Path, text: str) -> tuple[dict[str, set[str]], set[str]]:
    """The codes about headers, by listener, that doctor gives for a file; and those of the whole."""
    path = tmp_path / "file"
    path.write_text(text)
    (proxy,) = read_dump(path)
    return {name: codes & ABOUT_HEADERS for name, codes in said_by_listener(proxy).items()}, codes_of(proxy)


def test_files_in_every_shape_say_the_same(proxy, said, tmp_path):
    expected = {name: codes & ABOUT_HEADERS for name, codes in said.items()}
    dump, resources = answer_of(proxy, "/config_dump"), proxy.config["static_resources"]
    for document in (
        dump,
        camel(dump),
        proxy.config,
        camel(proxy.config),
        {"bootstrap": proxy.config},
        [*resources["listeners"], *resources["clusters"]],
        {"resources": camel([*resources["listeners"], *resources["clusters"]])},
    ):
        assert said_of(tmp_path, json.dumps(document))[0] == expected
    assert said_of(tmp_path, yaml.dump(proxy.config, Dumper=yaml.CSafeDumper))[0] == expected
    (from_dump,) = read_dump(written(tmp_path, dump))
    assert from_dump.version == ask_proxy(proxy.admin).version


def written(tmp_path: Path, document: Any) -> Path:
    path = tmp_path / "written"
    path.write_text(json.dumps(document))
    return path


def test_a_dump_in_part_says_what_is_missing(proxy, said, tmp_path):
    expected = {name: codes & ABOUT_HEADERS for name, codes in said.items()}
    listeners, of_all = said_of(tmp_path, json.dumps(answer_of(proxy, "/config_dump?resource=static_listeners")))
    assert {name for name in listeners if listeners[name] != expected[name]} == {
        "upstream removes", "otel, upstream removes", "otel, upstream sets", "b3, upstream removes single b3",
        "router removes, the cluster has its own", "otel, router removes, the cluster has its own",
    }  # fmt: skip
    assert "unjudged.clusters" in of_all
    for path in ("?resource=static_clusters", "?resource=static_route_configs", "?mask=static_clusters"):
        listeners, of_all = said_of(tmp_path, json.dumps(answer_of(proxy, f"/config_dump{path}")))
        assert (listeners, "unjudged.listeners" in of_all) == ({}, True)
    listeners, _ = said_of(tmp_path, json.dumps(answer_of(proxy, "/config_dump?mask=bootstrap")))
    assert listeners == expected


def test_a_collector_whose_cluster_the_proxy_refused_is_said(request, tmp_path):
    envoy_or_skip(request)
    tracer = provider("envoy.tracers.opentelemetry", "OpenTelemetryConfig", service_name="a", grpc_service=LOST)
    row = Row(tracer="of its own", tracing={"provider": tracer}, table={"validate_clusters": False})
    listener = listener_of("in", row)
    # An EDS cluster has to say where its endpoints come from.
    resources = {
        "lds": {"@type": f"{TYPE}envoy.config.listener.v3.Listener", **listener},
        "cds": {"@type": f"{TYPE}envoy.config.cluster.v3.Cluster", "name": "refused", "type": "EDS"},
    }
    sources = {}
    for name, resource in resources.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"version_info": "1", "resources": [resource]}))
        sources[f"{name}_config"] = {"resource_api_version": "V3", "path_config_source": {"path": str(path)}}
    with running(tmp_path, {}, dynamic_resources=sources) as proxy:
        deadline = time.monotonic() + 60
        while not (found := ask_proxy(proxy.admin)).listeners and time.monotonic() < deadline:
            time.sleep(0.05)
    assert ([each.name for each in found.listeners], found.unknown) == (["in"], ("refused",))
    assert "exporter.proxy-no-cluster" in codes_of(found)


LOST: Json = {"envoy_grpc": {"cluster_name": "refused"}, "timeout": "0.25s"}
