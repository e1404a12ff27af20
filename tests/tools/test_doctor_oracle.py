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
from dataclasses import dataclass, field, replace
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

Json = dict[str, Any]
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
OTHER = "11111111111111111111111111111111"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
PLANTED = f"00-{OTHER}-2222222222222222-01"
W3C = {"traceparent": TRACEPARENT, "tracestate": "a=1", "baggage": "user=alice"}
B3 = {"x-b3-traceid": TRACE_ID, "x-b3-spanid": SPAN_ID, "x-b3-sampled": "1", "baggage": "user=alice"}
B3_SINGLE = {"b3": f"{TRACE_ID}-{SPAN_ID}-1"}
TYPE = "type.googleapis.com/"
HTTP = f"{TYPE}envoy.extensions.filters.http."
MANAGER = f"{TYPE}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{HTTP}router.v3.Router"}}
# The codes that say what becomes of a header on its way through a proxy.
ABOUT_HEADERS = {
    "headers.removed",
    "headers.removed-early",
    "headers.overwritten",
    "headers.doubled",
    "headers.added",
    "sampling.proxy-clears-the-flag",
    "proxy.injects-nothing",
}


NO_PROCESS = look_at_process(connect=False)


class Echo(BaseHTTPRequestHandler):
    """Answers with the header lines that it received; redirects once where it is asked to."""

    protocol_version = "HTTP/1.1"

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


@dataclass(frozen=True)
class Row:
    """One set-up, and what doctor has to say of it.

    Attributes:
        manager: Fields of the connection manager.
        tracer: The tracer's name in `TRACERS`; None for no `tracing` at all.
        tracing: More fields of `tracing`.
        routing: Fields of the route configuration, virtual host, route, and weighted cluster.
        filters: HTTP filters before the router.
        upstream: HTTP filters of the cluster.
        sends: The headers of the request.
        path: Its path.
        says: The codes about headers that doctor must give, beside what the upstream saw.
        unseen: A code that this request cannot show.
        unjudged: Whether doctor says that it cannot judge this.
    """

    says: tuple[str, ...] = ()
    tracer: str | None = None
    tracing: Json = field(default_factory=dict)
    manager: Json = field(default_factory=dict)
    table: Json = field(default_factory=dict)
    host: Json = field(default_factory=dict)
    route: Json = field(default_factory=dict)
    weight: Json = field(default_factory=dict)
    filters: Sequence[Json] = ()
    upstream: Sequence[Json] = ()
    sends: Mapping[str, str] = field(default_factory=lambda: W3C)
    path: str = "/"
    unseen: str = ""
    unjudged: bool = False


REMOVE: Json = {"request_headers_to_remove": ["traceparent", "tracestate"]}
REMOVED, RESTARTED = ("headers.removed",), ("headers.removed-early",)
CLEARED = ("sampling.proxy-clears-the-flag",)
OVERWRITTEN, DOUBLED = ("headers.overwritten",), ("headers.doubled",)


def adding(action: str = "", header: str = "traceparent", value: str = PLANTED, **more: object) -> Json:
    option = {"header": {"key": header, "value": value}, **({"append_action": action} if action else {}), **more}
    return {"request_headers_to_add": [option]}


def mutating(*mutations: Json) -> Json:
    """The filter that changes headers."""
    config = {"@type": f"{HTTP}header_mutation.v3.HeaderMutation", "mutations": {"request_mutations": [*mutations]}}
    return {"name": "envoy.filters.http.header_mutation", "typed_config": config}


def per_route(*mutations: Json) -> Json:
    config = {"@type": f"{HTTP}header_mutation.v3.HeaderMutationPerRoute"}
    return {
        "typed_per_filter_config": {
            "envoy.filters.http.header_mutation": {**config, "mutations": {"request_mutations": [*mutations]}}
        }
    }


def early(*mutations: Json) -> Json:
    kind = f"{TYPE}envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation"
    extension = {"name": "early", "typed_config": {"@type": kind, "mutations": [*mutations]}}
    return {"early_header_mutation_extensions": [extension]}


def lua(removed: str) -> Json:
    code = f"function envoy_on_request(handle)\n  handle:headers():remove({removed})\nend\n"
    config = {"@type": f"{HTTP}lua.v3.Lua", "default_source_code": {"inline_string": code}}
    return {"name": "envoy.filters.http.lua", "typed_config": config}


def off(name: str) -> Json:
    config = {"@type": f"{TYPE}envoy.config.route.v3.FilterConfig", "disabled": True, "config": {}}
    return {"typed_per_filter_config": {name: config}}


def ids(**fields: object) -> Json:
    kind = f"{TYPE}envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig"
    return {"request_id_extension": {"typed_config": {"@type": kind, **fields}}}


CODEC: Json = {
    "name": "envoy.filters.http.upstream_codec",
    "typed_config": {"@type": f"{HTTP}upstream_codec.v3.UpstreamCodec"},
}
LUA_OFF: Json = {
    "typed_per_filter_config": {"envoy.filters.http.lua": {"@type": f"{HTTP}lua.v3.LuaPerRoute", "disabled": True}}
}


def matching(action: Json) -> Json:
    """A matcher that does something with every request for a path."""
    header = {"@type": f"{TYPE}envoy.type.matcher.v3.HttpRequestHeaderMatchInput", "header_name": ":path"}
    exact = {"/": {"action": {"name": "do", "typed_config": action}}}
    return {"matcher_tree": {"input": {"name": "path", "typed_config": header}, "exact_match_map": {"map": exact}}}


def behind_a_matcher(inner: Json) -> Json:
    skip = {"@type": f"{TYPE}envoy.extensions.filters.common.matcher.action.v3.SkipFilter"}
    other = matching(skip)
    other["matcher_tree"]["exact_match_map"]["map"]["/other"] = other["matcher_tree"]["exact_match_map"]["map"].pop("/")
    config = {"@type": f"{TYPE}envoy.extensions.common.matching.v3.ExtensionWithMatcher", "xds_matcher": other}
    return {"name": "delegate", "typed_config": {**config, "extension_config": inner}}


def one_of(inner: Json) -> Json:
    execute = {"@type": f"{HTTP}composite.v3.ExecuteFilterAction", "typed_config": inner}
    config = {
        "@type": f"{TYPE}envoy.extensions.common.matching.v3.ExtensionWithMatcher",
        "extension_config": {"name": "composite", "typed_config": {"@type": f"{HTTP}composite.v3.Composite"}},
        "xds_matcher": matching(execute),
    }
    return {"name": "composite", "typed_config": config}


GONE: Sequence[Json] = ({"remove": "traceparent"}, {"remove": "tracestate"})
ADD: Json = {"append": {"header": {"key": "traceparent", "value": PLANTED}, "append_action": "ADD_IF_ABSENT"}}
ONE: Json = {"request_headers_to_remove": ["traceparent"]}
APPEND: Json = {"append": {"header": {"key": "traceparent", "value": PLANTED}}}
SET: Json = {"append": {**APPEND["append"], "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}
REMOVE_B3: Json = {"request_headers_to_remove": ["b3", "x-b3-traceid", "x-b3-spanid"]}

ROWS: dict[str, Row] = {
    "nothing": Row(),
    "otel": Row(tracer="otel"),
    "b3, w3c": Row(tracer="b3"),
    "b3": Row(tracer="b3", sends=B3),
    "b3+w3c, w3c": Row(tracer="b3+w3c"),
    "b3+w3c, b3": Row(tracer="b3+w3c", sends=B3),
    "datadog": Row(tracer="datadog"),
    "skywalking": Row(tracer="skywalking"),
    "xray": Row(tracer="xray"),
    # Routes, at each level, without a tracer.
    "table removes": Row(REMOVED, table=REMOVE),
    "host removes": Row(REMOVED, host=REMOVE),
    "route removes": Row(REMOVED, route=REMOVE),
    "weight removes": Row(REMOVED, weight=REMOVE),
    "route removes in capitals": Row(REMOVED, route={"request_headers_to_remove": ["TraceParent"]}),
    "route removes baggage": Row(REMOVED, route={"request_headers_to_remove": ["baggage"]}),
    "route removes b3": Row(REMOVED, route=REMOVE_B3, sends=B3),
    "route removes single b3": Row(REMOVED, route=REMOVE_B3, sends=B3_SINGLE),
    "route appends": Row(DOUBLED, route=adding()),
    "route sets": Row(OVERWRITTEN, route=adding("OVERWRITE_IF_EXISTS_OR_ADD")),
    "route replaces": Row(OVERWRITTEN, route=adding("OVERWRITE_IF_EXISTS")),
    "route adds": Row(("headers.added",), route=adding("ADD_IF_ABSENT"), sends={}),
    "otel, route adds": Row(tracer="otel", route=adding("ADD_IF_ABSENT"), sends={}),
    "otel, early adds": Row(("headers.added",), tracer="otel", manager=early(ADD), sends={}),
    "route sets, old": Row(OVERWRITTEN, route=adding(append=False)),
    "route sets its own": Row(route=adding("OVERWRITE_IF_EXISTS_OR_ADD", value="%REQ(traceparent)%")),
    "route appends its own": Row(DOUBLED, route=adding(value="%REQ(traceparent)%")),
    "route sets nothing": Row(route=adding("OVERWRITE_IF_EXISTS_OR_ADD", value="")),
    "route sets emptiness": Row(
        OVERWRITTEN, route=adding("OVERWRITE_IF_EXISTS_OR_ADD", value="", keep_empty_value=True)
    ),
    "route removes and appends": Row(OVERWRITTEN, route={**ONE, **adding()}),
    "route removes, host appends": Row(OVERWRITTEN, route=ONE, host=adding()),
    "host removes, route appends": Row(REMOVED, host=REMOVE, route=adding()),
    "host removes, route appends, specific wins": Row(
        OVERWRITTEN, host=ONE, route=adding(), table={"most_specific_header_mutations_wins": True}
    ),
    "route appends baggage": Row(route=adding(header="baggage", value="a=b")),
    "route sets baggage": Row(OVERWRITTEN, route=adding("OVERWRITE_IF_EXISTS", header="baggage", value="a=b")),
    "route keeps a copy": Row(route=adding(header="x-was", value="%REQ(traceparent)%")),
    # The same where a tracer writes.
    "otel, table removes": Row(tracer="otel", table=REMOVE),
    "otel, weight removes": Row(tracer="otel", weight=REMOVE),
    "otel, route sets": Row(tracer="otel", route=adding("OVERWRITE_IF_EXISTS_OR_ADD")),
    "otel, route appends": Row(tracer="otel", route=adding()),
    "otel, route removes baggage": Row(REMOVED, tracer="otel", route={"request_headers_to_remove": ["baggage"]}),
    "b3, route removes w3c": Row(REMOVED, tracer="b3", route=REMOVE),
    "b3, route removes b3": Row(tracer="b3", route=REMOVE_B3, sends=B3),
    "b3, route removes single b3": Row(tracer="b3", route=REMOVE_B3, sends=B3_SINGLE),
    "b3+w3c, route removes traceparent": Row(tracer="b3+w3c", route={"request_headers_to_remove": ["traceparent"]}),
    "b3+w3c, route removes tracestate": Row(
        REMOVED, tracer="b3+w3c", route={"request_headers_to_remove": ["tracestate"]}
    ),
    "b3, route sets": Row(OVERWRITTEN, tracer="b3", route=adding("OVERWRITE_IF_EXISTS_OR_ADD")),
    "datadog, route removes": Row(tracer="datadog", route=REMOVE),
    "skywalking, route removes": Row(REMOVED, tracer="skywalking", route=REMOVE),
    # The header_mutation filter.
    "filter removes": Row(REMOVED, filters=[mutating(*GONE)]),
    "filter appends": Row(DOUBLED, filters=[mutating(APPEND)]),
    "filter sets": Row(OVERWRITTEN, filters=[mutating(SET)]),
    "filter removes by prefix": Row(
        REMOVED, filters=[mutating({"remove_on_match": {"key_matcher": {"prefix": "trace"}}})]
    ),
    "filter removes by contains": Row(
        REMOVED, filters=[mutating({"remove_on_match": {"key_matcher": {"contains": "RACEPAR", "ignore_case": True}}})]
    ),
    "filter removes others": Row(filters=[mutating({"remove_on_match": {"key_matcher": {"suffix": "-else"}}})]),
    "filter removes by pattern": Row(
        filters=[mutating({"remove_on_match": {"key_matcher": {"safe_regex": {"regex": "trace.*"}}}})], unjudged=True
    ),
    "otel, filter removes": Row(tracer="otel", filters=[mutating(*GONE)]),
    "b3, filter removes": Row(REMOVED, tracer="b3", filters=[mutating(*GONE)]),
    "filter off by itself": Row(filters=[{**mutating(*GONE), "disabled": True}]),
    "filter off for a route": Row(filters=[mutating(*GONE)], route=off("envoy.filters.http.header_mutation")),
    "filter off, on for a route": Row(REMOVED, filters=[{**mutating(), "disabled": True}], route=per_route(*GONE)),
    "filter removes for a route": Row(REMOVED, filters=[mutating()], route=per_route(*GONE)),
    "filter removes for a host": Row(REMOVED, filters=[mutating()], host=per_route(*GONE)),
    "filter removes for a table": Row(REMOVED, filters=[mutating()], table=per_route(*GONE)),
    "filter removes for a weight": Row(REMOVED, filters=[mutating()], weight=per_route(*GONE)),
    # Before the tracer.
    "early removes": Row(REMOVED, manager=early(*GONE)),
    "otel, early removes": Row(RESTARTED, tracer="otel", manager=early(*GONE)),
    "otel, early removes tracestate": Row(REMOVED, tracer="otel", manager=early({"remove": "tracestate"})),
    "otel, early sets": Row(OVERWRITTEN, tracer="otel", manager=early(SET)),
    "otel, early appends": Row(tracer="otel", manager=early(APPEND)),
    "b3, early removes": Row(REMOVED, tracer="b3", manager=early(*GONE)),
    "b3, early removes b3": Row(RESTARTED, tracer="b3", manager=early({"remove": "x-b3-traceid"}), sends=B3),
    "b3+w3c, early removes": Row(RESTARTED, tracer="b3+w3c", manager=early({"remove": "traceparent"})),
    "datadog, early removes": Row(RESTARTED, tracer="datadog", manager=early(*GONE)),
    # After the tracer.
    "upstream removes": Row(REMOVED, upstream=[mutating(*GONE)]),
    "otel, upstream removes": Row(REMOVED, tracer="otel", upstream=[mutating(*GONE)]),
    "otel, upstream sets": Row(OVERWRITTEN, tracer="otel", upstream=[mutating(SET)]),
    "otel, router removes": Row(
        REMOVED,
        tracer="otel",
        manager={
            "http_filters": [
                {
                    **ROUTER,
                    "typed_config": {**ROUTER["typed_config"], "upstream_http_filters": [mutating(*GONE), CODEC]},
                }
            ]
        },
    ),
    # Injection and sampling.
    "otel, no propagation": Row(("proxy.injects-nothing",), tracer="otel", tracing={"no_context_propagation": True}),
    "otel, no propagation, route removes": Row(
        ("proxy.injects-nothing", "headers.removed"),
        unseen="proxy.injects-nothing",
        tracer="otel",
        tracing={"no_context_propagation": True},
        route=REMOVE,
    ),
    "b3, no propagation": Row(
        ("proxy.injects-nothing",), tracer="b3", tracing={"no_context_propagation": True}, sends=B3
    ),
    "otel, random 0": Row(CLEARED, tracer="otel", tracing={"random_sampling": {"value": 0}}),
    "otel, overall 0": Row(CLEARED, tracer="otel", tracing={"overall_sampling": {"value": 0}}),
    "otel, client 0": Row(tracer="otel", tracing={"client_sampling": {"value": 0}}),
    "otel, route 0": Row(CLEARED, tracer="otel", route={"tracing": {"random_sampling": {"numerator": 0}}}),
    "otel, route overall 0": Row(CLEARED, tracer="otel", route={"tracing": {"overall_sampling": {"numerator": 0}}}),
    "otel, random 0, route 100": Row(
        tracer="otel", tracing={"random_sampling": {"value": 0}}, route={"tracing": {"operation": "x"}}
    ),
    "otel, random 0, no request id": Row(
        tracer="otel", tracing={"random_sampling": {"value": 0}}, manager=ids(use_request_id_for_trace_sampling=False)
    ),
    "otel, route 0, no request id": Row(
        tracer="otel",
        route={"tracing": {"random_sampling": {"numerator": 0}}},
        manager=ids(use_request_id_for_trace_sampling=False),
    ),
    "b3, random 0": Row(tracer="b3", tracing={"random_sampling": {"value": 0}}, sends=B3),
    "b3+w3c, random 0": Row(tracer="b3+w3c", tracing={"random_sampling": {"value": 0}}),
    "datadog, random 0": Row(tracer="datadog", tracing={"random_sampling": {"value": 0}}),
    "b3+w3c, overall 0": Row(tracer="b3+w3c", tracing={"overall_sampling": {"value": 0}}),
    "datadog, overall 0": Row(tracer="datadog", tracing={"overall_sampling": {"value": 0}}),
    # Others.
    "internal only, not the edge": Row(REMOVED, table={"internal_only_headers": ["traceparent"]}),
    "internal only, the edge": Row(
        REMOVED, table={"internal_only_headers": ["traceparent"]}, manager={"use_remote_address": True}
    ),
    "otel, internal only": Row(
        RESTARTED, tracer="otel", table={"internal_only_headers": ["traceparent"]}, manager={"use_remote_address": True}
    ),
    "lua": Row(filters=[lua("'trace' .. 'parent'")], unjudged=True),
    "lua that names it": Row(filters=[lua("'traceparent'")], unjudged=True),
    "lua off": Row(filters=[lua("'traceparent'")], route=LUA_OFF),
    "lua off by filter config": Row(filters=[lua("'traceparent'")], host=off("envoy.filters.http.lua")),
    "b3+w3c, internal redirect": Row(
        tracer="b3+w3c",
        path="/redirect",
        route={"route": {"internal_redirect_policy": {"max_internal_redirects": 1}}},
    ),
    "datadog, internal redirect": Row(
        tracer="datadog",
        path="/redirect",
        route={"route": {"internal_redirect_policy": {"max_internal_redirects": 1}}},
    ),
    "otel, internal redirect, no request id": Row(
        CLEARED,
        tracer="otel",
        path="/redirect",
        route={"route": {"internal_redirect_policy": {"max_internal_redirects": 1}}},
        manager=ids(use_request_id_for_trace_sampling=False),
    ),
    "otel, internal redirect, no reason": Row(
        CLEARED,
        tracer="otel",
        path="/redirect",
        route={"route": {"internal_redirect_policy": {"max_internal_redirects": 1}}},
        manager=ids(pack_trace_reason=False),
    ),
    "filter behind a matcher": Row(REMOVED, filters=[behind_a_matcher(mutating(*GONE))]),
    "filter among others": Row(REMOVED, filters=[one_of(mutating(*GONE))]),
    "filter of two names": Row(
        filters=[{**mutating(*GONE), "name": "mine"}], route=off("envoy.filters.http.header_mutation"), says=REMOVED
    ),
    "header to metadata": Row(
        ("headers.removed",),
        filters=[
            {
                "name": "metadata",
                "typed_config": {
                    "@type": f"{HTTP}header_to_metadata.v3.Config",
                    "request_rules": [
                        {
                            "header": "traceparent",
                            "on_header_present": {"metadata_namespace": "a", "key": "b"},
                            "remove": True,
                        }
                    ],
                },
            }
        ],
    ),
    "otel, internal redirect": Row(
        CLEARED,
        tracer="otel",
        path="/redirect",
        route={"route": {"internal_redirect_policy": {"max_internal_redirects": 1}}},
    ),
    "otel, internal redirect, route removes": Row(
        CLEARED,
        tracer="otel",
        path="/redirect",
        route={**REMOVE, "route": {"internal_redirect_policy": {"max_internal_redirects": 1}}},
    ),
    "otel, removes b3": Row(REMOVED, tracer="otel", route=REMOVE_B3, sends={**W3C, **B3_SINGLE}),
}


def provider(name: str, config: str, **fields: object) -> Json:
    return {"name": name, "typed_config": {"@type": f"{TYPE}envoy.config.trace.v3.{config}", **fields}}


def zipkin(**fields: object) -> Json:
    return provider(
        "envoy.tracers.zipkin", "ZipkinConfig", collector_cluster="nowhere", collector_endpoint="/api/v2/spans",
        collector_endpoint_version="HTTP_JSON", trace_id_128bit=True, shared_span_context=False, **fields,
    )  # fmt: skip


GRPC: Json = {"envoy_grpc": {"cluster_name": "nowhere"}, "timeout": "0.25s"}
TRACERS: dict[str, Json] = {
    "otel": provider("envoy.tracers.opentelemetry", "OpenTelemetryConfig", service_name="a", grpc_service=GRPC),
    "b3": zipkin(),
    "b3+w3c": zipkin(trace_context_option="USE_B3_WITH_W3C_PROPAGATION"),
    "datadog": provider("envoy.tracers.datadog", "DatadogConfig", service_name="a", collector_cluster="nowhere"),
    "skywalking": provider("envoy.tracers.skywalking", "SkyWalkingConfig", grpc_service=GRPC),
    "xray": provider(
        "envoy.tracers.xray", "XRayConfig", segment_name="a",
        daemon_endpoint={"protocol": "UDP", "address": "127.0.0.1", "port_value": 9},
    ),
}  # fmt: skip


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


def seen_behind(port: int, path: str, sends: Mapping[str, str]) -> dict[str, list[str]]:
    """The header lines that reach the upstream, by name."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers=dict(sends))
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 200, (answer.status, body)
    lines: dict[str, list[str]] = {}
    for name, value in json.loads(body):
        lines.setdefault(name, []).append(value)
    return lines


# The header in which each tracer carries a trace on.
CARRIES = {"otel": "traceparent", "datadog": "traceparent", "b3+w3c": "traceparent", "b3": "x-b3-traceid"}


def what_happened(row: Row, seen: Mapping[str, list[str]]) -> set[str]:
    """Name what became of the headers that were sent, by the codes that would say so."""
    happened = set()
    for name in dict.fromkeys(("traceparent", *row.sends)):
        sent, lines = row.sends.get(name, ""), seen.get(name, [])
        if not sent:
            happened |= {"headers.added"} if any(OTHER in line for line in lines) else set()
        elif not lines:
            happened.add("headers.removed")
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
    return {"sampling.proxy-clears-the-flag"} if sent.endswith("01") and flag == "00" else set()


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
    happened = what_happened(row, seen_behind(ports[name], row.path, row.sends))
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
        "upstream removes", "otel, upstream removes", "otel, upstream sets"
    }  # fmt: skip
    assert "unjudged.clusters" in of_all
    for path in ("?resource=static_clusters", "?resource=static_route_configs", "?mask=static_clusters"):
        listeners, of_all = said_of(tmp_path, json.dumps(answer_of(proxy, f"/config_dump{path}")))
        assert (listeners, "unjudged.listeners" in of_all) == ({}, True)
    listeners, _ = said_of(tmp_path, json.dumps(answer_of(proxy, "/config_dump?mask=bootstrap")))
    assert listeners == expected
