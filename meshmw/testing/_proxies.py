"""What a proxy of a test mesh is made of, as values, and Envoy's bootstrap configuration for it.

Nothing is started, opened or looked up here. `bootstrap` makes a plain dictionary, which `json.dumps` can write; the
type names in it are those of Envoy's v3 API.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from meshmw._notices import quoted
from meshmw._policy.words import one_of

TracerKind: TypeAlias = Literal["none", "otel", "otel-http", "zipkin-b3", "zipkin-b3-w3c"]
Direction: TypeAlias = Literal["inbound", "outbound", "unset"]
Config: TypeAlias = dict[str, Any]

_ACCESS_LOG_FIELDS: Final = {
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
_FLUSH_SPANS_AT_ONCE: Final = {
    "tracing.opentelemetry.flush_interval_ms": 50,
    "tracing.opentelemetry.min_flush_spans": 1,
    "tracing.zipkin.flush_interval_ms": 50,
    "tracing.zipkin.min_flush_spans": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracer:
    """Says how one listener traces and where it sends its spans.

    Args:
        kind: `none`, `otel` (OTLP over gRPC), `otel-http` (OTLP over HTTP), `zipkin-b3` (reads and writes B3 only) or
            `zipkin-b3-w3c` (B3 and `traceparent`).
        collector: The collector's `host:port`, with or without `http://`; not needed for `none`.
        service: The service name on the spans; the proxy's own name if empty. Zipkin spans always bear the proxy's.
        random_sampling: Percent of requests that start sampled. Since Envoy 1.39 it also clears the flag of a parent.
        sample_by_request_id: Let `x-request-id` carry the decision from hop to hop, as Envoy does by default. False
            leaves the decision to the parent's flag alone and the request id as it is.
        trace_id_128bit: Zipkin only: make 128-bit trace ids.
        shared_span_context: Zipkin only: let a server span reuse the span id of its client.
        spawn_upstream_span: Make a second span for each attempt upstream and inject that one.
    """

    kind: TracerKind = "otel"
    collector: str = ""
    service: str = ""
    random_sampling: float = 100.0
    sample_by_request_id: bool = True
    trace_id_128bit: bool = True
    shared_span_context: bool = False
    spawn_upstream_span: bool = False

    def __post_init__(self) -> None:
        one_of(TracerKind, self.kind, "kind")
        if self.kind != "none":
            split_address(self.collector)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Sends the requests of one authority and one path prefix to one upstream.

    Args:
        upstream: The upstream's `host:port`.
        authority: The `Host` or `:authority` to match, as Envoy's `domains` take it; `*` for any.
        prefix: The path prefix to match.
    """

    upstream: str
    authority: str = "*"
    prefix: str = "/"

    def __post_init__(self) -> None:
        split_address(self.upstream)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Describes one port of a proxy: what it accepts, how it traces, where it sends requests.

    Args:
        name: The listener's name, unique in its proxy.
        upstream: The `host:port` of every request that no route takes.
        routes: Routes that are tried first, in order.
        direction: `inbound` and `unset` make SERVER spans, `outbound` makes CLIENT spans.
        tracer: How to trace; None passes trace headers through untouched.
        port: A fixed port, or 0 for any free one.
        edge: Treat the peer as the outside world, as an ingress does: new `x-request-id`, `x-forwarded-for` set.
        remove_headers: Request headers that the route removes. A tracing listener injects its own afterwards.
        early_remove_headers: Request headers removed before the tracer looks.
        max_request_headers_kb: Envoy's limit on request headers; None for Envoy's default of 60.
        http2: Speak HTTP/2 to the upstreams, as gRPC asks, and let requests last; every listener accepts both.
    """

    name: str
    upstream: str
    routes: tuple[Route, ...] = ()
    direction: Direction = "unset"
    tracer: Tracer | None = None
    port: int = 0
    edge: bool = False
    remove_headers: tuple[str, ...] = ()
    early_remove_headers: tuple[str, ...] = ()
    max_request_headers_kb: int | None = None
    http2: bool = False

    def __post_init__(self) -> None:
        one_of(Direction, self.direction, "direction")
        split_address(self.upstream)


@dataclass(frozen=True, slots=True)
class Proxy:
    """Describes one proxy: a sidecar has an inbound and an outbound listener, an edge has one.

    Args:
        name: The proxy's name, in messages and as the default service name of its spans.
        listeners: At least one listener, each with its own name.

    Raises:
        ValueError: There is no listener, or there are two of one name.
    """

    name: str
    listeners: Sequence[Listener]

    def __post_init__(self) -> None:
        names = [listener.name for listener in self.listeners]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"proxy {quoted(self.name)} needs listeners with different names, got {names}")


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
    manager = _filter("network.http_connection_manager", _connection_manager(proxy, listener, access_log))
    config: Config = {
        "name": listener.name,
        "address": _address("127.0.0.1", listener.port),
        "filter_chains": [{"filters": [manager]}],
    }
    if listener.direction != "unset":
        config["traffic_direction"] = listener.direction.upper()
    if listener.port:
        # With port reuse a second Envoy starts on a port in use and takes half of its requests.
        config["enable_reuse_port"] = False
    return config


def _connection_manager(proxy: Proxy, listener: Listener, access_log: Path) -> Config:
    hcm_type = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    config = _typed(
        hcm_type,
        stat_prefix=listener.name,
        codec_type="AUTO",
        use_remote_address=listener.edge,
        access_log=[_access_log(listener, access_log)],
        # The line at the start of a request holds the headers that came in, the line at its end those that went out.
        access_log_options={"flush_access_log_on_new_request": True},
        route_config=_route_config(listener),
        http_filters=[_filter("http.router", _typed("envoy.extensions.filters.http.router.v3.Router"))],
    )
    if listener.early_remove_headers:
        config["early_header_mutation_extensions"] = [_early_removal(listener.early_remove_headers)]
    if listener.max_request_headers_kb is not None:
        config["max_request_headers_kb"] = listener.max_request_headers_kb
    if listener.tracer is not None and listener.tracer.kind != "none":
        config.update(_tracing(proxy, listener.tracer))
    return config


def _access_log(listener: Listener, path: Path) -> Config:
    log_format = {"json_format": {"listener": listener.name, **_ACCESS_LOG_FIELDS}}
    log_type = "envoy.extensions.access_loggers.file.v3.FileAccessLog"
    return {
        "name": "envoy.access_loggers.file",
        "typed_config": _typed(log_type, path=str(path), log_format=log_format),
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
        "typed_config": _typed(mutation_type, mutations=[{"remove": header} for header in headers]),
    }


def _clusters(proxy: Proxy) -> list[Config]:
    clusters = {}
    for listener in proxy.listeners:
        for upstream in (listener.upstream, *(route.upstream for route in listener.routes)):
            clusters[upstream] = _cluster(upstream, upstream, http2=listener.http2)
        tracer = listener.tracer
        if tracer is not None and tracer.kind != "none":
            name = _collector_cluster(tracer)
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
        http2_only = _typed(options, explicit_http_config={"http2_protocol_options": {}})
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


def _tracing(proxy: Proxy, tracer: Tracer) -> Config:
    """Build the fields of a connection manager that make it trace."""
    zipkin = tracer.kind.startswith("zipkin")
    config: Config = {
        "random_sampling": {"value": tracer.random_sampling},
        "spawn_upstream_span": tracer.spawn_upstream_span,
        "provider": {
            "name": "envoy.tracers.zipkin" if zipkin else "envoy.tracers.opentelemetry",
            "typed_config": _zipkin_config(tracer) if zipkin else _opentelemetry_config(proxy, tracer),
        },
    }
    if tracer.sample_by_request_id:
        return {"tracing": config}
    request_id_type = "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig"
    request_id = _typed(request_id_type, pack_trace_reason=False, use_request_id_for_trace_sampling=False)
    return {"tracing": config, "request_id_extension": {"typed_config": request_id}}


def _opentelemetry_config(proxy: Proxy, tracer: Tracer) -> Config:
    config = _typed("envoy.config.trace.v3.OpenTelemetryConfig", service_name=tracer.service or proxy.name)
    cluster = _collector_cluster(tracer)
    if tracer.kind == "otel":
        config["grpc_service"] = {"envoy_grpc": {"cluster_name": cluster}, "timeout": "1s"}
    else:
        host, port = split_address(tracer.collector)
        uri = {"uri": f"http://{host}:{port}/v1/traces", "cluster": cluster, "timeout": "1s"}
        config["http_service"] = {"http_uri": uri}
    return config


def _zipkin_config(tracer: Tracer) -> Config:
    return _typed(
        "envoy.config.trace.v3.ZipkinConfig",
        collector_cluster=_collector_cluster(tracer),
        collector_endpoint="/api/v2/spans",
        collector_endpoint_version="HTTP_JSON",
        trace_id_128bit=tracer.trace_id_128bit,
        shared_span_context=tracer.shared_span_context,
        trace_context_option="USE_B3" if tracer.kind == "zipkin-b3" else "USE_B3_WITH_W3C_PROPAGATION",
    )


def _collector_cluster(tracer: Tracer) -> str:
    """Name the cluster of the collector."""
    return f"{tracer.kind}:{tracer.collector}"


def _typed(type_name: str, **fields: Any) -> Config:
    """Build a message that bears its protobuf type, as Envoy's extension points want it."""
    return {"@type": f"type.googleapis.com/{type_name}", **fields}


def split_address(address: str) -> tuple[str, int]:
    """Split `host:port`, with or without `http://` before it.

    Raises:
        ValueError: The host or the port is missing, or the port is no number.
    """
    parts = urlsplit(address if "//" in address else f"//{address}")
    if not parts.hostname or not parts.port:
        raise ValueError(f"{quoted(address)} is not host:port")
    return parts.hostname, parts.port
