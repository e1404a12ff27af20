"""What each tracer of Envoy reads, writes and samples, as measured on Envoy 1.40."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from meshmw._tools import JsonValue
from meshmw._tools.doctor.configuration import Json, plain, type_of, typed
from meshmw.wire.headers import B3_HEADERS, TRACE_HEADERS

_TRACERS: Final = (
    "opentelemetry",
    "zipkin",
    "datadog",
    "skywalking",
    "xray",
    "lightstep",
    "opencensus",
    "dynamic_ot",
    "fluentd",
)
# The formats of each tracer that has no choice.
FORMATS: Final[dict[str, tuple[str, ...]]] = {
    "opentelemetry": ("w3c",),
    "datadog": ("w3c", "datadog"),
    "fluentd": ("w3c",),
    "skywalking": ("sw8",),
    "xray": ("xray",),
}
# What OpenCensus' and LightStep's tracers can be told to speak, by the words of their configurations.
_TOLD: Final = {"TRACE_CONTEXT": "w3c", "B3": "b3", "GRPC_TRACE_BIN": "grpc-trace-bin", "CLOUD_TRACE_CONTEXT": "cloud"}
_HEADERS: Final[Mapping[str, frozenset[str]]] = {
    "w3c": TRACE_HEADERS,
    "b3": B3_HEADERS,
    "datadog": frozenset({"x-datadog-trace-id", "x-datadog-parent-id", "x-datadog-sampling-priority"}),
    "sw8": frozenset({"sw8"}),
    "xray": frozenset({"x-amzn-trace-id"}),
    "cloud": frozenset({"x-cloud-trace-context"}),
    "grpc-trace-bin": frozenset({"grpc-trace-bin"}),
}

# What an OpenTelemetry tracer has beside those that it exports to: a collector by gRPC, by HTTP, or an extension.
_BESIDE_EXPORT: Final = {"@type", "service_name", "sampler", "resource_detectors", "max_cache_size"}
# Fields of `tracing`, and the keys of the runtime below `tracing` that take their place.
_RUNTIME_KEYS: Final = {"random_sampling": "random_sampling", "overall_sampling": "global_enabled"}
_NUMBER: Final = re.compile(r"\d+(\.\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing(JsonValue):
    """Holds what one connection manager's tracer does.

    Attributes:
        tracer: Such as `opentelemetry`, `zipkin`; empty where it passes trace headers through.
        formats: The formats that it reads and writes, such as `w3c`, `b3`.
        random_sampling: Percent of requests that start sampled.
        sampler: The last part of the OpenTelemetry sampler's name; empty for none.
        sampler_rate: Percent of traces that this sampler keeps by their ids, whatever the caller decided.
        writes_nothing: Whether it injects no headers.
        shared_spans: Whether a Zipkin server span has the span id of its client.
        short_ids: Whether Zipkin makes trace ids of 64 bits.
        collector: The cluster that spans go to; empty where there is none.
        exports_nothing: Whether an OpenTelemetry tracer has nobody to send spans to.
        missing: Whether the bootstrap names the tracer, and is not there.
    """

    tracer: str = ""
    formats: tuple[str, ...] = ()
    random_sampling: float = 100.0
    sampler: str = ""
    sampler_rate: float = 100.0
    writes_nothing: bool = False
    shared_spans: bool = False
    short_ids: bool = False
    collector: str = ""
    exports_nothing: bool = False
    missing: bool = False

    @property
    def reads(self) -> frozenset[str]:
        """The headers that the tracer takes a trace from."""
        headers = frozenset[str]().union(*(_HEADERS.get(name, ()) for name in self.formats))
        # Zipkin's tracer leaves tracestate to itself.
        return headers - {"tracestate"} if self.tracer == "zipkin" else headers

    @property
    def writes(self) -> frozenset[str]:
        """The headers that the tracer writes, whatever has become of them before."""
        return frozenset() if self.writes_nothing else self.reads


def read_tracing(tracing: Json | None, bootstrap: Json | None) -> Tracing:
    """Read `tracing` of a connection manager; without a provider of its own, the bootstrap's tracer is meant."""
    if tracing is None:
        return Tracing()
    provider = tracing.get("provider")
    if provider is None:
        if bootstrap is None:
            return Tracing(missing=True)
        provider = bootstrap.get("tracing", {}).get("http")
        if provider is None:
            return Tracing()
    # The second API of Envoy had `config`.
    config = typed(provider.get("typed_config") or provider.get("config"))
    kind = str(provider.get("name", "")).lower() + type_of(config).lower()
    tracer = next((name for name in _TRACERS if name in kind), "unknown")
    zipkin = tracer == "zipkin"
    sampler = config.get("sampler", {})
    by_ids = type_of(sampler.get("typed_config", {})).startswith("TraceIdRatioBased")
    return Tracing(
        tracer=tracer,
        formats=_formats_of(tracer, config),
        random_sampling=_started_sampled(tracing, bootstrap, _percent),
        sampler=str(sampler.get("name", "")).rpartition(".")[2],
        sampler_rate=_fraction(sampler["typed_config"].get("sampling_percentage", {})) if by_ids else 100.0,
        writes_nothing=bool(plain(tracing.get("no_context_propagation"), False)),
        shared_spans=zipkin and plain(config.get("shared_span_context"), True),
        short_ids=zipkin and not config.get("trace_id_128bit", False),
        collector=_collector_of(config),
        exports_nothing=tracer == "opentelemetry" and config.keys() <= _BESIDE_EXPORT,
    )


def _formats_of(tracer: str, config: Json) -> tuple[str, ...]:
    if tracer == "zipkin":
        return ("b3", "w3c") if config.get("trace_context_option") in ("USE_B3_WITH_W3C_PROPAGATION", 1) else ("b3",)
    told = [*config.get("outgoing_trace_context", ()), *config.get("propagation_modes", ())]
    return FORMATS.get(tracer) or tuple(_TOLD[word] for word in told if word in _TOLD)


def _collector_of(config: Json) -> str:
    for service in (config, config.get("collector_service", {}), config.get("http_service", {})):
        cluster = service.get("http_uri", {}).get("cluster") or service.get("collector_cluster")
        if cluster:
            return str(cluster)
    return str(config.get("grpc_service", {}).get("envoy_grpc", {}).get("cluster_name", ""))


def _started_sampled(tracing: Json, bootstrap: Json | None, read: Callable[[Any], float]) -> float:
    # Envoy samples no more than the smaller of the two. What the runtime says takes their place.
    told = _runtime(bootstrap or {})
    return min(told[key] if key in told else read(tracing.get(name)) for name, key in _RUNTIME_KEYS.items())


def _runtime(bootstrap: Json) -> dict[str, float]:
    """Return what layers of the runtime say of sampling; a later one wins."""
    told: dict[str, float] = {}
    for layer in bootstrap.get("layered_runtime", {}).get("layers", ()):
        values = layer.get("static_layer", {})
        for name in _RUNTIME_KEYS.values():
            percent = _percent_of_runtime(values.get(f"tracing.{name}", (values.get("tracing") or {}).get(name)))
            told |= {} if percent is None else {name: percent}
    return told


def _percent_of_runtime(value: Any) -> float | None:
    """Return what Envoy makes of a value: a number, also as a text, or a fraction; None for all others."""
    if isinstance(value, Mapping):
        return _fraction(value)
    # `False` is no number here, and what is negative counts for nothing.
    return min(float(str(value)), 100.0) if _NUMBER.fullmatch(str(value)) else None


def _percent(value: Any) -> float:
    # An empty message is a percentage of zero.
    return 100.0 if value is None else float(value.get("value", 0.0))


_DENOMINATORS: Final = {"HUNDRED": 100, "TEN_THOUSAND": 10_000, "MILLION": 1_000_000}


def route_sampling(tracing: Json, bootstrap: Json | None) -> float:
    """Return the percentage of `tracing` of a route, whose own defaults take the place of the connection manager's."""
    return _started_sampled(tracing, bootstrap, _fraction)


def _fraction(value: Json | None) -> float:
    if value is None:
        return 100.0
    return 100 * float(value.get("numerator", 0)) / _DENOMINATORS.get(str(value.get("denominator", "HUNDRED")), 100)


def share_a_format(formats: Sequence[Sequence[str]]) -> bool:
    """Says whether one format is among those of all."""
    return not formats or bool(set(formats[0]).intersection(*formats))
