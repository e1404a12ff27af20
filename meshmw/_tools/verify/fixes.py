"""What to do about a fault, in the words of the reader's own mesh."""

from __future__ import annotations

from typing import Final

from meshmw._tools.verify.journey import Hop

SEND_ON: Final = (
    "let the application take its headers in (meshmw.asgi or meshmw.wsgi TraceContextMiddleware) and "
    "send them on (meshmw.httpx.Client), and check it with `meshmw doctor MODULE:APP`"
)
READ_W3C: Final = (
    "let the tracer of this proxy read W3C trace context: the OpenTelemetry tracer, or Zipkin's with "
    "trace_context_option: USE_B3_WITH_W3C_PROPAGATION"
)
BETWEEN: Final = (
    "look at what lies between the two: a TLS terminator, a gateway or a load balancer that passes only the "
    "headers that it knows; `meshmw mesh-config nginx` and the others print what it needs"
)
FOLLOW_PARENT: Final = (
    "let the application's sampler follow its parent: OTEL_TRACES_SAMPLER=parentbased_always_on, or another of "
    "parentbased_*; with meshmw MESHMW_SAMPLING_OWNER=parent, the default"
)
FOLLOW_PARENT_IN_PROXY: Final = "let its tracer follow its parent: parent_based as the sampler of Envoy's tracer"
_LOOK_AT: Final = {
    "istio": "look at what EnvoyFilter, VirtualService (headers.request.remove) and Telemetry do there: "
    "`istioctl proxy-config all POD -o json > dump.json`, then `meshmw doctor --config-dump dump.json`",
    "envoy-gateway": "look at the filters of the HTTPRoute (RequestHeaderModifier) and at ClientTrafficPolicy "
    "(headers.earlyRequestHeaders), and at the proxy: `meshmw doctor --envoy-admin URL`",
    "consul": "look at RequestHeaders of service-router and service-resolver, and at the proxy: "
    "`meshmw doctor --envoy-admin URL`",
    "nginx": 'look for `proxy_set_header traceparent ""` and for a module that traces: nginx passes the header on '
    "unless it is told otherwise; `meshmw mesh-config nginx` prints what it needs",
    "": "look at what this proxy removes and which formats its tracer reads: `meshmw doctor --envoy-admin URL`",
}
_SAMPLE_ALL: Final = {
    "istio": "set randomSamplingPercentage: 100 or useRequestIdForTraceSampling: false in Istio's Telemetry",
    "envoy-gateway": "set telemetry.tracing.samplingRate: 100 in the EnvoyProxy resource",
    "consul": "set random_sampling in envoy_listener_tracing_json of proxy-defaults to 100",
    "envoy": "set random_sampling to 100, or use_request_id_for_trace_sampling: false in the request id extension",
    "nginx": "let it follow the parent: `otel_trace $otel_parent_sampled` with `otel_trace_context propagate`",
}


def look_at(proxy: Hop) -> str:
    """Return where to look for what a proxy does to headers."""
    return _LOOK_AT.get(proxy.product, _LOOK_AT[""])


def sample_all(product: str = "") -> str:
    """Return how a proxy is kept from clearing the flag; in the words of two meshes where it is not known which."""
    return _SAMPLE_ALL.get(product) or f"in Istio: {_SAMPLE_ALL['istio']}; in Envoy: {_SAMPLE_ALL['envoy']}"
