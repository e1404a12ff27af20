"""Parts of an Envoy's configuration, as `doctor_rows` puts them together: what changes headers, and tracers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
OTHER = "11111111111111111111111111111111"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
PLANTED = f"00-{OTHER}-2222222222222222-01"
W3C = {"traceparent": TRACEPARENT, "tracestate": "a=1", "baggage": "user=alice"}
ALONE = {"traceparent": TRACEPARENT}
UNSAMPLED = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-00"}
B3 = {"x-b3-traceid": TRACE_ID, "x-b3-spanid": SPAN_ID, "x-b3-sampled": "1", "baggage": "user=alice"}
B3_SINGLE = {"b3": f"{TRACE_ID}-{SPAN_ID}-1"}
TYPE = "type.googleapis.com/"
HTTP = f"{TYPE}envoy.extensions.filters.http."
MANAGER = f"{TYPE}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{HTTP}router.v3.Router"}}

REMOVE: Json = {"request_headers_to_remove": ["traceparent", "tracestate"]}


def adding(action: str = "", header: str = "traceparent", value: str = PLANTED, **more: object) -> Json:
    option = {"header": {"key": header, "value": value}, **({"append_action": action} if action else {}), **more}
    return {"request_headers_to_add": [option]}


def setting(value: str, header: str = "traceparent") -> Json:
    return adding("OVERWRITE_IF_EXISTS_OR_ADD", header, value)


def both(one: Json, other: Json) -> Json:
    return {"request_headers_to_add": [*one["request_headers_to_add"], *other["request_headers_to_add"]]}


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


def transforming(*mutations: Json) -> Json:
    """The filter that changes headers and bodies."""
    config = {
        "@type": f"{HTTP}transform.v3.TransformConfig", "request_transformation": {"headers_mutations": [*mutations]},
    }  # fmt: skip
    return {"name": "envoy.filters.http.transform", "typed_config": config}


def asking(mode: str, **fields: object) -> Json:
    """The filter that asks another service what to do with a request; nobody answers here."""
    config = {
        "@type": f"{HTTP}ext_proc.v3.ExternalProcessor", "grpc_service": GRPC, "failure_mode_allow": True,
        "processing_mode": {"request_header_mode": mode, "response_header_mode": "SKIP"}, **fields,
    }  # fmt: skip
    return {"name": "envoy.filters.http.ext_proc", "typed_config": config}


def limiting() -> Json:
    """The filter that asks a service for rate limits, whose answer may hold headers."""
    service = {"grpc_service": GRPC, "transport_api_version": "V3"}
    config = {"@type": f"{HTTP}ratelimit.v3.RateLimit", "domain": "a", "rate_limit_service": service}
    return {"name": "envoy.filters.http.ratelimit", "typed_config": config}


REMOVER = "function(handle) handle:headers():remove('traceparent') end"


def lua(removed: str) -> Json:
    return lua_of(f"function envoy_on_request(handle)\n  handle:headers():remove({removed})\nend\n")


def lua_of(code: str) -> Json:
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


def router_with(*upstream: Json) -> Json:
    """Fields of a connection manager whose router has filters of its own."""
    return {
        "http_filters": [
            {**ROUTER, "typed_config": {**ROUTER["typed_config"], "upstream_http_filters": [*upstream, CODEC]}}
        ]
    }


def copying(*headers: str) -> Json:
    policy = {"max_internal_redirects": 1, "response_headers_to_copy": [*headers]}
    return {"route": {"internal_redirect_policy": policy}}


def to_metadata(header: str, **rule: object) -> Json:
    """The filter that keeps a header as metadata, and can take it away."""
    rules = [{"header": header, "on_header_present": {"metadata_namespace": "a", "key": "b"}, **rule}]
    config = {"@type": f"{HTTP}header_to_metadata.v3.Config", "request_rules": rules}
    return {"name": "envoy.filters.http.header_to_metadata", "typed_config": config}


def overriding(each: Json) -> Json:
    return {"typed_per_filter_config": {each["name"]: each["typed_config"]}}


def specific_wins(each: Json) -> Json:
    return {**each, "typed_config": {**each["typed_config"], "most_specific_header_mutations_wins": True}}


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
    "fluentd": {
        "name": "envoy.tracers.fluentd",
        "typed_config": {
            "@type": f"{TYPE}envoy.extensions.tracers.fluentd.v3.FluentdConfig", "cluster": "nowhere", "tag": "a",
            "stat_prefix": "a",
        },
    },
    "xray": provider(
        "envoy.tracers.xray", "XRayConfig", segment_name="a",
        daemon_endpoint={"protocol": "UDP", "address": "127.0.0.1", "port_value": 9},
    ),
}  # fmt: skip

SAMPLER = f"{TYPE}envoy.extensions.tracers.opentelemetry.samplers.v3."


def sampled_by(name: str, config: str, **fields: object) -> Json:
    sampler = {"name": f"envoy.tracers.opentelemetry.samplers.{name}", "typed_config": {"@type": SAMPLER + config}}
    sampler["typed_config"] |= fields
    return provider(
        "envoy.tracers.opentelemetry", "OpenTelemetryConfig", service_name="a", grpc_service=GRPC, sampler=sampler
    )


def sampler_of(tracer: str) -> Json:
    sampler: Json = TRACERS[tracer]["typed_config"]["sampler"]
    return sampler


RATIO = "TraceIdRatioBasedSamplerConfig"
TRACERS |= {
    "otel always_on": sampled_by("always_on", "AlwaysOnSamplerConfig"),
    "otel trace_id_ratio_based": sampled_by("trace_id_ratio_based", RATIO, sampling_percentage={"numerator": 0}),
    "otel all told": sampled_by("trace_id_ratio_based", RATIO, sampling_percentage={"numerator": 100}),
    "otel none told": sampled_by("trace_id_ratio_based", RATIO),
    "otel dynatrace": sampled_by("dynatrace", "DynatraceSamplerConfig", tenant="a", cluster_id=1),
}
TRACERS["otel parent_based"] = sampled_by(
    "parent_based", "ParentBasedSamplerConfig", wrapped_sampler=sampler_of("otel trace_id_ratio_based")
)
