"""What a proxy's configuration says, part by part, where no real Envoy is needed to see it."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from meshmw.__main__ import main
from meshmw._tools.doctor.configuration import Configuration, kind_of, own_name, parse, with_own_names
from meshmw._tools.doctor.headers import follow
from meshmw._tools.doctor.judge_proxy import judge_proxy
from meshmw._tools.doctor.proxy import AdminError, ProxyConfig, ProxyListener, read_dump, read_proxy
from meshmw._tools.doctor.tracers import Tracing, share_a_format
from meshmw._tools.doctor.versions import is_too_old, lacking

HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
HTTP = "type.googleapis.com/envoy.extensions.filters.http."
ROUTE = {"match": {"prefix": "/"}, "route": {"cluster": "c"}}
TABLE = {"name": "t", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [ROUTE]}]}
REMOVES = {**ROUTE, "request_headers_to_remove": ["traceparent"]}


def listener(manager: dict[str, Any], name: str = "in") -> dict[str, Any]:
    filters = [{"name": "x", "typed_config": {"@type": HCM, "route_config": TABLE, **manager}}]
    return {"name": name, "filter_chains": [{"filters": filters}]}


def bootstrap(manager: dict[str, Any], **more: object) -> dict[str, Any]:
    return {"static_resources": {"listeners": [listener(manager)], "clusters": [{"name": "c", "lb_policy": 0}]}, **more}


def read(manager: dict[str, Any], **more: object) -> ProxyListener:
    return read_proxy("x", bootstrap(manager, **more)).listeners[0]


def with_filter(name: str, config: dict[str, Any], **manager: object) -> ProxyListener:
    return read({"http_filters": [{"name": name, "typed_config": config}], **manager})


def codes(proxy: ProxyConfig) -> list[str]:
    return [finding.code for finding in judge_proxy(proxy)]


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ({"configs": []}, "dump"),
        ({"@type": "x.ListenersConfigDump", "dynamic_listeners": []}, "dump"),
        ({"xds": {"a/b": {"configs": [{}]}}}, "dumps"),
        ({"a": {"b": {"configs": [{}]}}}, "dumps"),
        ({"bootstrap": {}}, "bootstrap"),
        ({"static_resources": {}}, "bootstrap"),
        ({"resources": []}, "resources"),
        ([{"filter_chains": []}, 1], "resources"),
        ({"name": "r", "virtual_hosts": []}, "resources"),
        ({"api_version": "v1", "kind": "Service"}, "manifest"),
        ([{"api_version": "v1", "kind": "Service"}], "manifest"),
        ({"services": {}}, ""),
        ([], ""),
        ("text", ""),
    ],
)
def test_the_kind_of_a_document(document, kind):
    assert kind_of(document) == kind


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("filterChains", "filter_chains"),
        ("traceId128bit", "trace_id_128bit"),
        ("http2ProtocolOptions", "http2_protocol_options"),
        ("@type", "@type"),
        ("ISTIO_VERSION", "ISTIO_VERSION"),
        ("envoy.filters.http.headerMutation", "envoy.filters.http.headerMutation"),
    ],
)
def test_names_of_protojson(name, own):
    assert own_name(name) == own


def test_what_stands_within_itself_is_renamed_once():
    circle: dict[str, Any] = {"filterChains": []}
    circle["filterChains"].append(circle)
    renamed = with_own_names(circle)
    assert renamed["filter_chains"][0] is renamed


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "file"
    for text, said in (
        ("apiVersion: v1\nkind: Service\n---\napiVersion: v1\nkind: Pod\n", "it is a manifest of Kubernetes"),
        ("services: {}\n", "it is no configuration of Envoy"),
        ("a: [\n", "neither JSON nor YAML"),
        ('{"configs": [{"bootstrap": {"dynamic_resources": 1}}]}', "AttributeError"),
    ):
        path.write_text(text)
        with pytest.raises(AdminError, match=said):
            read_dump(path)


def test_aliases_that_stand_for_too_much(tmp_path):
    path = tmp_path / "file.yaml"
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 8))]
    path.write_text("\n".join([*lines, "static_resources: {listeners: []}"]))
    with pytest.raises(AdminError, match="aliases stand for too much"):
        read_dump(path)


def test_several_dumps_in_one_file(tmp_path):
    path = tmp_path / "file"
    path.write_text(
        json.dumps({"xds": {"a/one": {"configs": [{"bootstrap": bootstrap({})}]}, "a/two": {"configs": []}}})
    )
    one, two = read_dump(path)
    assert (one.where, one.missing) == (f"{path} a/one", ())
    assert (two.where, two.missing) == (f"{path} a/two", ("listeners",))


def test_entries_of_a_dump_that_were_asked_for_alone():
    entries = [
        {"@type": "x.ListenersConfigDump.DynamicListener", "active_state": {"listener": listener({"rds": {}})}},
        {"@type": "x.v3.RouteConfiguration", **TABLE},
        {"error_state": {"details": "refused"}},
    ]
    proxy = read_proxy("x", {"configs": entries})
    assert (len(proxy.listeners), proxy.missing) == (1, ("clusters",))


def test_listeners_that_come_from_elsewhere():
    lacking_lds = {"dynamic_resources": {"lds_config": {"ads": {}}}}
    assert codes(read_proxy("x", bootstrap({}, **lacking_lds)))[0] == "unjudged.listeners"
    tcp = {"name": "tcp", "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy"}]}]}
    proxy = read_proxy("x", {"static_resources": {"listeners": [tcp]}})
    assert (codes(proxy), proxy.other_listeners) == (["proxy.no-http"], 1)
    assert codes(read_proxy("x", {"bootstrap": {"node": {}}})) == ["unjudged.listeners"]


def test_a_listener_that_the_proxy_refused():
    """As Envoy dumps what Istio's control plane gave it, where the Sidecar's egress leaves out the collector."""
    details = "envoy.tracers.zipkin: unknown cluster 'outbound|9411||zipkin.istio-system.svc.cluster.local'"
    error = {
        "failed_configuration": listener({}),
        "last_update_attempt": "2026-11-30T04:56:32.759Z",
        "details": details,
    }
    refused = {"name": "in", "error_state": error}
    # Envoy lists it once more, without its name.
    again = {"error_state": error}
    taken = {"name": "out", "active_state": {"listener": listener({"tracing": {}}, "out")}}
    dynamic = {"bootstrap": {"dynamic_resources": {"lds_config": {"ads": {}}}}}

    def dump(*listeners):
        return read_proxy("x", {"configs": [dynamic, {"dynamic_listeners": [*listeners]}]})

    alone, both = dump(refused, again), dump(refused, taken)
    assert (alone.refused, alone.missing) == ((("in", details),), ())
    assert codes(alone) == ["proxy.refused-listener"]
    assert codes(both)[0] == "proxy.refused-listener"
    assert [each.name for each in both.listeners] == ["out"]


@pytest.mark.parametrize(
    ("clusters", "found"),
    [
        ({"static_clusters": [], "dynamic_active_clusters": [{"cluster": {"name": "c", "lb_policy": 0}}]}, True),
        ({"static_clusters": [{"cluster": {"name": "otel", "lb_policy": 0}}], "dynamic_active_clusters": []}, False),
        # What was asked for in part says nothing of the rest.
        ({"dynamic_active_clusters": [{"cluster": {"name": "c", "lb_policy": 0}}]}, False),
    ],
)
def test_a_collector_whose_cluster_the_proxy_does_not_have(clusters, found):
    """As Istio's control plane gives it to a sidecar whose egress leaves out the collector: Envoy takes that."""
    tracer = {"@type": "x.OpenTelemetryConfig", "grpc_service": {"envoy_grpc": {"cluster_name": "otel"}}}
    provider = {"name": "envoy.tracers.opentelemetry", "typed_config": tracer}
    held = listener({"tracing": {"provider": provider}})
    proxy = read_proxy("x", {"configs": [{"dynamic_listeners": [{"active_state": {"listener": held}}]}, clusters]})
    assert ("exporter.proxy-no-cluster" in codes(proxy)) == found
    assert proxy.unknown == (("otel",) if found else ())


@pytest.mark.parametrize(
    "chooses", [{"cluster_header": "x-to"}, {"inline_cluster_specifier_plugin": {}}, {"cluster": "d"}]
)
def test_a_cluster_that_is_chosen_for_each_request_may_be_any(chooses):
    removing = {
        "@type": f"{HTTP}header_mutation.v3.HeaderMutation",
        "mutations": {"request_mutations": [{"remove": "traceparent"}]},
    }
    options = {"a": {"@type": "x.HttpProtocolOptions", "http_filters": [{"name": "m", "typed_config": removing}]}}
    clusters = [
        {"name": "c", "lb_policy": 0, "typed_extension_protocol_options": options},
        {"name": "d", "lb_policy": 0},
    ]
    hosts = [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": chooses}]}]
    held = listener({"route_config": {"name": "t", "virtual_hosts": hosts}})
    found = read_proxy("x", {"bootstrap": {"static_resources": {"listeners": [held], "clusters": clusters}}})
    assert ("headers.removed" in codes(found)) == ("cluster" not in chooses)


def test_clusters_whose_filters_are_alike_are_followed_once():
    class Counted(dict):
        get = Mock(side_effect=lambda name, default: default)

    clusters = Counted({name: {"typed_extension_protocol_options": {"a": {"http_filters": ["m"]}}} for name in "abc"})
    routes = [{"match": {}, "route": {"cluster_header": "x-to"}}] * 4
    follow({}, [{"virtual_hosts": [{"routes": routes}]}], Configuration(clusters=clusters), Tracing())
    assert clusters.get.call_count == 2 * len(routes)


def test_a_proxy_that_refused_all_its_clusters_has_none():
    """As a real one was seen to say it: the section of the clusters is there, and empty."""
    tracer = {"@type": "x.OpenTelemetryConfig", "grpc_service": {"envoy_grpc": {"cluster_name": "otel"}}}
    provider = {"name": "envoy.tracers.opentelemetry", "typed_config": tracer}
    listeners = {"@type": "x.ListenersConfigDump", "dynamic_listeners": []}
    listeners["dynamic_listeners"] = [{"active_state": {"listener": listener({"tracing": {"provider": provider}})}}]
    bootstrap = {"@type": "x.BootstrapConfigDump", "bootstrap": {"dynamic_resources": {"cds_config": {}}}}
    whole = read_proxy("x", {"configs": [bootstrap, {"@type": "x.ClustersConfigDump"}, listeners]})
    assert (whole.unknown, whole.missing) == (("otel",), ())
    part = read_proxy("x", {"configs": [bootstrap, listeners]})
    assert (part.unknown, part.missing) == ((), ("clusters",))


def test_the_tunnel_of_a_waypoint_is_no_hop():
    """As Istio's control plane configures `connect_terminate`; requests are traced in `main_internal`."""
    connect = {"upgrade_type": "CONNECT", "connect_config": {}}
    route = {"match": {"connect_matcher": {}}, "route": {"cluster": "main_internal", "upgrade_configs": [connect]}}
    tunnel = listener({"route_config": {"virtual_hosts": [{"domains": ["*"], "routes": [route]}]}}, "connect_terminate")
    proxy = read_proxy("x", {"resources": [tunnel, listener({}, "main_internal")]})
    assert ([each.name for each in proxy.listeners], proxy.other_listeners) == (["main_internal"], 1)


def test_the_second_api_and_api_listeners():
    old = {"name": "envoy.http_connection_manager", "config": {"route_config": TABLE, "http_filters": []}}
    api = {"name": "api", "api_listener": {"api_listener": {"@type": HCM, "route_config": TABLE}}}
    listeners = [{"name": "old", "filter_chains": [{"filters": [old]}]}, api]
    assert [each.name for each in read_proxy("x", {"resources": listeners}).listeners] == ["old", "api"]


def test_routes_by_name_and_scope():
    scope = {"name": "one", "route_configuration_name": "t"}
    inline = {"name": "two", "route_configuration": {"name": "u", "virtual_hosts": []}}
    both = {"name": "scopes", "scoped_route_configs": [scope, inline]}
    scopes = {"@type": "x.ScopedRoutesConfigDump", "dynamic_scoped_route_configs": [both]}
    manager = {"@type": HCM, "scoped_routes": {"name": "scopes"}}
    held = {"name": "in", "filter_chains": [{"filters": [{"typed_config": manager}]}]}
    dump = {
        "configs": [
            scopes,
            {"static_listeners": [{"listener": held}]},
            {"static_route_configs": [{"route_config": TABLE}]},
        ]
    }
    assert read_proxy("x", dump).listeners[0].missing_routes == ()
    assert read_proxy("x", {"configs": dump["configs"][1:]}).listeners[0].missing_routes == ("scopes",)
    listed = {"scoped_route_configurations": [scope, {"name": "two", "route_configuration": TABLE}]}
    manager["scoped_routes"] = {"scoped_route_configurations_list": listed}
    assert read_proxy("x", dump).listeners[0].missing_routes == ()
    assert read({"route_config": {"name": "t", "vhds": {}}}).missing_routes == ("what t gets by VHDS",)


def test_routes_in_a_matcher():
    action = {"name": "route", "typed_config": {"@type": "x.Route", **REMOVES}}
    tree = {"matcher_list": {"matchers": [{"on_match": {"action": action}}]}}
    found = read({"route_config": {"virtual_hosts": [{"name": "all", "matcher": tree}]}})
    assert [change.effect for change in found.changes] == ["removed"]
    answers = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200},
        "request_headers_to_remove": ["traceparent"],
    }
    assert read({"route_config": {"virtual_hosts": [{"routes": [answers]}]}}).changes == ()


def test_without_routes_the_rest_of_the_way_is_still_judged():
    removes = {"@type": f"{HTTP}header_mutation.v3.HeaderMutation"}
    removes["mutations"] = {"request_mutations": [{"remove": "traceparent"}]}
    held = listener({"rds": {"route_config_name": "gone"}, "http_filters": [{"name": "m", "typed_config": removes}]})
    del held["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]
    (found,) = read_proxy("x", {"resources": [held]}).listeners
    assert [change.effect for change in found.changes] == ["removed"]
    assert found.missing_routes == ("gone",)


@pytest.mark.parametrize(
    ("fields", "judged"),
    [
        ({}, False),
        ({"inline_code": "-- function envoy_on_request"}, True),
        ({"inline_code": "--[[ function\nenvoy_on_request ]] function envoy_on_response(h) end"}, True),
        ({"default_source_code": {"inline_string": "x = 1 -- of ours\nfunction envoy_on_request(h) end"}}, False),
        ({"default_source_code": {"filename": "a.lua"}}, False),
        # What stands in a text is no comment.
        ({"inline_code": 'local mark = "--" function envoy_on_request(h) end'}, False),
        ({"inline_code": "local mark = '\\'--' function envoy_on_request(h) end"}, False),
        ({"inline_code": "local a = '--[[' function envoy_on_request(h) end local b = ']]'"}, False),
        ({"inline_code": "local a = [=[ --]=] function envoy_on_request(h) end"}, False),
        ({"inline_code": 'local a = "b\\z\n c" local d = "--" function envoy_on_request(h) end'}, False),
        ({"inline_code": 'local a = "b" -- " function envoy_on_request'}, True),
        # A comment parts two words.
        ({"inline_code": "function--[[c]]envoy_on_request(h) end"}, False),
        ({"inline_code": 'local a = "not closed\n-- function envoy_on_request'}, True),
        ({"inline_code": "--[==[ ]]\n function envoy_on_request(h) end ]==] x = 1"}, True),
        ({"inline_code": "x = 1 -- of ours\rfunction envoy_on_request(h) end"}, False),
        ({"inline_code": "x = 1", "source_codes": {"a": {"inline_string": "load('x')()"}}}, False),
        ({"inline_code": "x = 1", "source_codes": {"a": {"inline_string": "y = 1"}}}, True),
        ({"source_code": {"inline_string": "x = 1"}}, True),
    ],
)
def test_lua_that_sees_no_request(fields, judged):
    assert (with_filter("lua", {"@type": f"{HTTP}lua.v3.Lua", **fields}).unjudged == ()) == judged


def test_clusters_are_known_by_many_fields():
    tracing = {"provider": {"name": "envoy.tracers.zipkin", "typed_config": {"collector_cluster": "z"}}}
    held = listener({"tracing": tracing})
    for field in ({"connect_timeout": "1s"}, {"cluster_type": {"name": "a"}}):
        clusters = [{"cluster": {"name": "z", **field}}]
        sections = [
            {"@type": "x.ClustersConfigDump", "static_clusters": [], "dynamic_active_clusters": clusters},
            {"@type": "x.ListenersConfigDump", "dynamic_listeners": [{"active_state": {"listener": held}}]},
        ]
        assert read_proxy("x", {"configs": sections}).unknown == ()


def test_filters_that_nobody_can_judge():
    lua = {"@type": f"{HTTP}lua.v3.Lua", "inline_code": "function envoy_on_request(h) end"}
    assert with_filter("lua", lua).unjudged == ("filter lua",)
    named = with_filter("lua", {**lua, "inline_code": "function envoy_on_request(h) h:remove('traceparent') -- b3"})
    assert named.unjudged == ("filter lua, which names b3, traceparent",)
    other = f"{lua['inline_code']} -- 9b3f x-b3-of-ours"
    assert with_filter("lua", {**lua, "inline_code": other}).unjudged == ("filter lua",)
    keyed = {"@type": "type.googleapis.com/acme.Filter", "headers": {"traceparent": {"text": ""}}}
    assert with_filter("x", keyed).unjudged == ("filter x, which names traceparent",)
    assert with_filter("x", {"@type": "type.googleapis.com/acme.Filter"}).unjudged == ("filter x",)
    wrapped = {"@type": "x/udpa.type.v1.TypedStruct", "type_url": "type.googleapis.com/acme.Filter", "value": {"a": 1}}
    assert with_filter("x", wrapped).unjudged == ("filter x",)
    assert with_filter("envoy.lua", {}).unjudged == ("filter envoy.lua",)
    early = {"name": "modules", "typed_config": {"@type": "x.DynamicModules"}}
    assert read({"early_header_mutation_extensions": [early]}).unjudged == (
        "early_header_mutation_extensions: modules",
    )
    upgrade = [
        {"upgrade_type": "websocket", "filters": [{"name": "lua", "typed_config": lua}]},
        {"upgrade_type": "CONNECT"},
    ]
    assert read({"upgrade_configs": upgrade}).unjudged == ("filter lua",)


def test_filters_that_ask_others():
    authz = f"{HTTP}ext_authz.v3.ExtAuthz"
    assert with_filter("a", {"@type": authz, "grpc_service": {}}).unjudged == ("filter a",)
    assert with_filter("a", {"@type": authz, "http_service": {}}).unjudged == ()
    answers = {"authorization_response": {"allowed_upstream_headers": {"patterns": [{"prefix": "x-"}]}}}
    assert with_filter("a", {"@type": authz, "http_service": answers}).unjudged == ("filter a",)
    proc = {"@type": f"{HTTP}ext_proc.v3.ExternalProcessor"}
    assert with_filter("p", proc).unjudged == ("filter p",)
    assert with_filter("p", {**proc, "processing_mode": {"request_header_mode": "SKIP"}}).unjudged == ()
    for_route = {
        "typed_per_filter_config": {"a": {"@type": f"{HTTP}ext_authz.v3.ExtAuthzPerRoute", "check_settings": {}}}
    }
    table = {**TABLE, **for_route}
    assert with_filter("a", {"@type": authz, "http_service": {}}, route_config=table).unjudged == ()


def test_filters_of_istio_and_such_as_only_write_their_own():
    for name, kind in (
        ("istio.stats", "type.googleapis.com/stats.PluginConfig"),
        ("istio.metadata_exchange", "type.googleapis.com/io.istio.http.peer_metadata.Config"),
        ("istio_authn", "type.googleapis.com/google.protobuf.Struct"),
        ("cors", f"{HTTP}cors.v3.Cors"),
        ("envoy.cors", ""),
    ):
        assert with_filter(name, {"@type": kind}).unjudged == ()
    wasm = {"@type": f"{HTTP}wasm.v3.Wasm", "config": {"vm_config": {"runtime": "envoy.wasm.runtime.null"}}}
    assert with_filter("w", wasm).unjudged == ()
    jwt = {
        "@type": f"{HTTP}jwt_authn.v3.JwtAuthentication",
        "providers": {"p": {"claim_to_headers": [{"header_name": "b3"}]}},
    }
    assert with_filter("j", jwt).unjudged == ("filter j, which writes b3",)
    assert with_filter("j", {**jwt, "providers": {}}).unjudged == ()
    rules = {"request_rules": [{"header": "traceparent"}]}
    found = with_filter("h", {"@type": f"{HTTP}header_to_metadata.v3.Config", **rules})
    assert (found.unjudged, found.changes) == ((), ())
    changes = {"request_transformation": {"headers_mutations": [{"remove": "baggage"}]}}
    found = with_filter("t", {"@type": f"{HTTP}transform.v3.TransformConfig", **changes})
    assert [(change.header, change.effect) for change in found.changes] == [("baggage", "removed")]


def test_filters_that_come_by_ecds():
    discovered = [{"name": "mine", "config_discovery": {"type_urls": []}}]
    assert read({"http_filters": discovered}).unjudged == ("filter mine, whose configuration comes by ECDS",)
    default = [{"name": "mine", "config_discovery": {"default_config": {"@type": f"{HTTP}cors.v3.Cors"}}}]
    assert read({"http_filters": default}).unjudged == ()
    sent = {"ecds_filters": [{"ecds_filter": {"name": "mine", "typed_config": {"@type": f"{HTTP}lua.v3.Lua"}}}]}
    dump = {"configs": [sent, {"static_listeners": [{"listener": listener({"http_filters": discovered})}]}]}
    assert read_proxy("x", dump).listeners[0].unjudged == ("filter mine",)


def test_patterns_of_removals():
    def unjudged(matcher: dict[str, Any]) -> tuple[tuple[str, ...], list[str]]:
        mutation = {"remove_on_match": {"key_matcher": matcher}}
        found = with_filter(
            "m", {"@type": f"{HTTP}header_mutation.v3.HeaderMutation", "mutations": {"request_mutations": [mutation]}}
        )
        return found.unjudged, [change.header for change in found.changes]

    assert unjudged({"exact": "traceparent"}) == ((), ["traceparent"])
    assert unjudged({"suffix": "state"}) == ((), ["tracestate"])
    assert unjudged({"custom": {}}) == (("filter m, which removes headers by a pattern",), [])


def test_tracers_that_are_told_their_formats():
    def of(name: str, **config: object) -> tuple[str, ...]:
        return read({"tracing": {"provider": {"name": name, "typed_config": config}}}).formats

    assert of("envoy.tracers.opencensus", outgoing_trace_context=["TRACE_CONTEXT", "NONE"]) == ("w3c",)
    assert of("envoy.tracers.lightstep", propagation_modes=["B3", "ENVOY"]) == ("b3",)
    assert of("envoy.tracers.datadog") == ("w3c", "datadog")
    zipkin = {"name": "envoy.tracers.zipkin", "typed_config": {"collector_service": {"http_uri": {"cluster": "z"}}}}
    assert read({"tracing": {"provider": zipkin}}).collector == "z"
    assert share_a_format([])


def test_the_tracer_of_a_bootstrap():
    zipkin = {"http": {"name": "envoy.zipkin", "config": {"collector_cluster": "z"}}}
    found = read({"tracing": {}}, tracing=zipkin)
    assert (found.tracer, found.collector) == ("zipkin", "z")
    assert read({"tracing": {}}).tracer == ""
    alone = read_proxy("x", [listener({"tracing": {}, "route_config": {**TABLE, "request_headers_to_remove": ["b3"]}})])
    assert [(each.code, each.severity) for each in judge_proxy(alone)][:3] == [
        ("unjudged.clusters", "note"),
        ("unjudged.tracer", "warning"),
        ("headers.removed", "note"),
    ]


def test_sampling_that_the_runtime_and_routes_decide():
    tracing = {"tracing": {"provider": {"name": "opentelemetry"}}}
    layers = [{"static_layer": {"tracing": {"random_sampling": 5}}}, {"static_layer": {"tracing.global_enabled": 50}}]
    assert read(tracing, layered_runtime={"layers": [*layers, {"admin_layer": {}}]}).random_sampling == 5
    fraction = {"random_sampling": {"numerator": 5, "denominator": "TEN_THOUSAND"}}
    table = {"virtual_hosts": [{"name": "a", "routes": [ROUTE, {**ROUTE, "name": "low", "tracing": fraction}]}]}
    assert read({**tracing, "route_config": table}).rates == (("", 100.0), ("route low of virtual host a", 0.05))


def test_versions():
    node = {"user_agent_build_version": {"version": {"major_number": 1, "minor_number": 21, "patch": 3}}}
    proxy = read_proxy("x", bootstrap({}, node=node))
    assert (proxy.version, codes(proxy)[0]) == ((1, 21, 3), "proxy.too-old")
    assert read_proxy("x", bootstrap({}, node={"build_version": "c/1.12.0/Clean"})).version == (1, 12, 0)
    istio = read_proxy(
        "x", bootstrap({}, node={"metadata": {"ISTIO_VERSION": "1.20.1-rc.0"}, "user_agent_version": "1.28.0"})
    )
    assert (istio.version, istio.istio, codes(istio)[0]) == ((1, 28, 0), (1, 20, 1), "proxy.lacks")
    assert lacking("Linkerd", (2, 11, 1))
    assert not lacking("Linkerd", (2, 19))
    assert is_too_old("Linkerd", (2, 10))


def test_the_last_line_never_says_well_of_what_cannot_be_judged(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "envoy.json"
    chain = {"filters": [{"typed_config": {"@type": HCM, "route_config": TABLE}}]}
    path.write_text(json.dumps({"static_resources": {"listeners": [{"name": "in", "filter_chains": [chain, chain]}]}}))
    assert main(["doctor", f"--config-dump={path}"]) == 0
    out = capsys.readouterr().out
    assert "in, 2 times" in out
    assert "Nothing to mend in what can be judged; 1 that cannot." in out
    path.write_text(json.dumps(bootstrap({"route_config": {**TABLE, "request_headers_to_remove": ["traceparent"]}})))
    assert main(["doctor", f"--config-dump={path}"]) == 1
    out = capsys.readouterr().out
    assert "traceparent removed: request_headers_to_remove of route configuration t" in out
    assert "untouched" not in out
    assert out.endswith("1 to mend\n")
    path.write_text(json.dumps([listener({"rds": {"route_config_name": "gone"}, "route_config": TABLE})]))
    assert main(["doctor", f"--config-dump={path}"]) == 0
    held = listener({"rds": {"route_config_name": "gone"}})
    del held["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]
    path.write_text(json.dumps([held]))
    assert main(["doctor", f"--config-dump={path}"]) == 1
    assert "Nothing to mend in what can be judged; 2 that cannot." in capsys.readouterr().out


def test_yaml_is_read_where_pyyaml_has_no_libyaml(monkeypatch):
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert parse(b"a: [1, 2]") == {"a": [1, 2]}
