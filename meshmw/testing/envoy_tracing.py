"""The part of Envoy's configuration that says how a listener traces."""

from __future__ import annotations

from typing import Any, TypeAlias

from meshmw.testing.proxies import Proxy, Tracer, split_address

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
