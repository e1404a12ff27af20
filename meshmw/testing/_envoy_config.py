"""Envoy's bootstrap configuration for a proxy, as a plain dictionary that `json.dumps` can write.

Pure functions: nothing is started, opened or looked up. The protobuf type names are Envoy's v3 API.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from meshmw.testing._proxies import Listener, Proxy, Route, Tracer, split_address

# The part of Envoy's configuration that says how a listener traces.


Config: TypeAlias = dict[str, Any]


def typed(type_name: str, **fields: Any) -> Config:
    """Build a message that bears its protobuf type, as Envoy's extension points want it."""
    return {"@type": f"type.googleapis.com/{type_name}", **fields}


def tracing(proxy: Proxy, tracer: Tracer) -> Config:
    """Build the fields of a connection manager that make it trace."""
    zipkin = tracer.kind.startswith("zipkin")
    config: Config = {
        "random_sampling": {"value": tracer.random_sampling},
        "spawn_upstream_span": tracer.spawn_upstream_span,
        "provider": {
            "name": "envoy.tracers.zipkin" if zipkin else "envoy.tracers.opentelemetry",
            "typed_config": _zipkin(tracer) if zipkin else _opentelemetry(proxy, tracer),
        },
    }
    if tracer.sample_by_request_id:
        return {"tracing": config}
    request_id_type = "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig"
    request_id = typed(request_id_type, pack_trace_reason=False, use_request_id_for_trace_sampling=False)
    return {"tracing": config, "request_id_extension": {"typed_config": request_id}}


def _opentelemetry(proxy: Proxy, tracer: Tracer) -> Config:
    config = typed("envoy.config.trace.v3.OpenTelemetryConfig", service_name=tracer.service or proxy.name)
    cluster = collector_cluster(tracer)
    if tracer.kind == "otel":
        config["grpc_service"] = {"envoy_grpc": {"cluster_name": cluster}, "timeout": "1s"}
    else:
        host, port = split_address(tracer.collector)
        uri = {"uri": f"http://{host}:{port}/v1/traces", "cluster": cluster, "timeout": "1s"}
        config["http_service"] = {"http_uri": uri}
    return config


def _zipkin(tracer: Tracer) -> Config:
    return typed(
        "envoy.config.trace.v3.ZipkinConfig",
        collector_cluster=collector_cluster(tracer),
        collector_endpoint="/api/v2/spans",
        collector_endpoint_version="HTTP_JSON",
        trace_id_128bit=tracer.trace_id_128bit,
        shared_span_context=tracer.shared_span_context,
        trace_context_option="USE_B3" if tracer.kind == "zipkin-b3" else "USE_B3_WITH_W3C_PROPAGATION",
    )


def collector_cluster(tracer: Tracer) -> str:
    """Name the cluster of the collector."""
    return f"{tracer.kind}:{tracer.collector}"


_ACCESS_LOG_FIELDS = {
    "type": "%ACCESS_LOG_TYPE%",
    "start_time": "%START_TIME%",
    "path": "%REQ(:PATH)%",
    "code": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "traceparent": "%REQ(TRACEPARENT)%",
    "tracestate": "%REQ(TRACESTATE)%",
    "baggage": "%REQ(BAGGAGE)%",
    "b3": "%REQ(B3)%",
    "x_b3_traceid": "%REQ(X-B3-TRACEID)%",
    "trace_id": "%TRACE_ID%",
    "span_id": "%SPAN_ID%",
    "request_id": "%REQ(X-REQUEST-ID)%",
}

# Envoy's own defaults are five spans or five seconds, and a stopped Envoy loses what it has not sent yet.
_FLUSH_SPANS_AT_ONCE = {
    "tracing.opentelemetry.flush_interval_ms": 50,
    "tracing.opentelemetry.min_flush_spans": 1,
    "tracing.zipkin.flush_interval_ms": 50,
    "tracing.zipkin.min_flush_spans": 1,
}


def bootstrap(proxy: Proxy, access_log: Path) -> Config:
    """Build the configuration of one Envoy process.

    Args:
        proxy: What to run.
        access_log: The file that gets one JSON object for each request's start and one for its end.
    """
    return {
        "node": {"id": proxy.name, "cluster": proxy.name},
        "admin": {"address": _address("127.0.0.1", 0)},
        "layered_runtime": {"layers": [{"name": "testing", "static_layer": _FLUSH_SPANS_AT_ONCE}]},
        "static_resources": {
            "listeners": [_listener(proxy, listener, access_log) for listener in proxy.listeners],
            "clusters": _clusters(proxy),
        },
    }


def _listener(proxy: Proxy, listener: Listener, access_log: Path) -> Config:
    config: Config = {
        "name": listener.name,
        "address": _address("127.0.0.1", listener.port),
        "filter_chains": [{"filters": [_filter("network.http_connection_manager", _hcm(proxy, listener, access_log))]}],
    }
    if listener.direction != "unset":
        config["traffic_direction"] = listener.direction.upper()
    if listener.port:
        # With port reuse a second Envoy starts on a port in use and takes half of its requests.
        config["enable_reuse_port"] = False
    return config


def _hcm(proxy: Proxy, listener: Listener, access_log: Path) -> Config:
    hcm_type = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    config = typed(
        hcm_type,
        stat_prefix=listener.name,
        codec_type="AUTO",
        use_remote_address=listener.edge,
        access_log=[_access_log(listener, access_log)],
        # The line at the start of a request holds the headers that came in, the line at its end those that went out.
        access_log_options={"flush_access_log_on_new_request": True},
        route_config=_route_config(listener),
        http_filters=[_filter("http.router", typed("envoy.extensions.filters.http.router.v3.Router"))],
    )
    if listener.early_remove_headers:
        config["early_header_mutation_extensions"] = [_early_removal(listener.early_remove_headers)]
    if listener.max_request_headers_kb is not None:
        config["max_request_headers_kb"] = listener.max_request_headers_kb
    if listener.tracer is not None and listener.tracer.kind != "none":
        config.update(tracing(proxy, listener.tracer))
    return config


def _access_log(listener: Listener, path: Path) -> Config:
    log_format = {"json_format": {"listener": listener.name, **_ACCESS_LOG_FIELDS}}
    log_type = "envoy.extensions.access_loggers.file.v3.FileAccessLog"
    return {
        "name": "envoy.access_loggers.file",
        "typed_config": typed(log_type, path=str(path), log_format=log_format),
    }


def _route_config(listener: Listener) -> Config:
    by_authority: dict[str, list[Route]] = {"*": []}
    for route in listener.routes:
        by_authority.setdefault(route.authority, []).append(route)
    catch_all = Route(upstream=listener.upstream)
    hosts = [
        {
            "name": authority,
            "domains": [authority],
            "routes": [_route(route, listener) for route in (*routes, catch_all)],
        }
        for authority, routes in by_authority.items()
    ]
    return {
        "name": listener.name,
        "virtual_hosts": hosts,
        "request_headers_to_remove": list(listener.remove_headers),
    }


def _route(route: Route, listener: Listener) -> Config:
    timeout = "0s" if listener.http2 else "10s"
    return {"match": {"prefix": route.prefix}, "route": {"cluster": route.upstream, "timeout": timeout}}


def _early_removal(headers: Iterable[str]) -> Config:
    mutation_type = "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation"
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": typed(mutation_type, mutations=[{"remove": header} for header in headers]),
    }


def _clusters(proxy: Proxy) -> list[Config]:
    clusters = {}
    for listener in proxy.listeners:
        for upstream in (listener.upstream, *(route.upstream for route in listener.routes)):
            clusters[upstream] = _cluster(upstream, upstream, http2=listener.http2)
        tracer = listener.tracer
        if tracer is not None and tracer.kind != "none":
            name = collector_cluster(tracer)
            clusters[name] = _cluster(name, tracer.collector, http2=tracer.kind == "otel")
    return list(clusters.values())


def _cluster(name: str, address: str, *, http2: bool = False) -> Config:
    host, port = split_address(address)
    endpoint = {"endpoint": {"address": _address(host, port)}}
    config: Config = {
        "name": name,
        "type": "STATIC" if _is_ip(host) else "STRICT_DNS",
        "dns_lookup_family": "V4_PREFERRED",
        "connect_timeout": "2s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if http2:
        options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        http2_only = typed(options, explicit_http_config={"http2_protocol_options": {}})
        config["typed_extension_protocol_options"] = {options: http2_only}
    return config


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _address(host: str, port: int) -> Config:
    return {"socket_address": {"address": host, "port_value": port}}


def _filter(name: str, config: Config) -> Config:
    return {"name": f"envoy.filters.{name}", "typed_config": config}
