"""What an installation of Istio says of traces: the mesh configuration, and istiod's own sampling percentage.

It stands in many files: an `IstioOperator`, the `Istio` of the Sail operator, Helm's values, the ConfigMap `istio`, a
MeshConfig itself, and istiod's Deployment.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from meshmw._notices import quoted
from meshmw._tools import JsonValue
from meshmw._tools.doctor.configuration import import_yaml
from meshmw._tools.doctor.tracers import FORMATS

Json = Mapping[str, Any]

_TRACERS: Final = ("opentelemetry", "zipkin", "datadog", "skywalking")
_OTHER_KINDS: Final = (
    "envoyExtAuthzHttp", "envoyExtAuthzGrpc", "lightstep", "stackdriver", "opencensus", "prometheus",
    "envoyFileAccessLog", "envoyHttpAls", "envoyTcpAls", "envoyOtelAls", "sds",
)  # fmt: skip
# Every mesh has these providers, whatever its configuration says.
_BUILT_IN: Final = {"prometheus": "prometheus", "stackdriver": "stackdriver", "envoy": "envoyFileAccessLog"}
# By these a document without a kind is known for a MeshConfig, or for what Helm's values hold of one.
_MESH_KEYS: Final = frozenset({
    "extensionProviders", "defaultProviders", "enableTracing", "defaultConfig", "accessLogFile", "accessLogFormat",
    "accessLogEncoding", "rootNamespace",
})  # fmt: skip
# istiod takes names with underscores too, but for these two, of which it then takes nothing: `ApplyMeshConfig` of
# pkg/config/mesh/mesh.go looks them up once more, by their other names alone.
_DROPPED: Final = ("default_config", "default_providers")
_UNDERSCORE: Final = re.compile("_([a-z0-9])")
# The ConfigMap of a mesh configuration; a revision's has its name behind it.
_OF_ISTIO: Final = re.compile(r"istio(?:-.*+)?\Z")
# A decimal number as Go reads one; Python takes spaces and underscores too.
_NUMBER: Final = re.compile(r"[+-]?+(?:[0-9]++\.?+[0-9]*+|\.[0-9]++)(?:[eE][+-]?+[0-9]++)?+")
# A value of another type in one of these, and istiod takes nothing of the whole configuration.
_TYPES: Final[Mapping[str, tuple[type, str]]] = {
    "enableTracing": (bool, "true or false"),
    "enableAutoMtls": (bool, "true or false"),
    "disableEnvoyListenerLog": (bool, "true or false"),
    "accessLogFile": (str, "a text"),
    "accessLogFormat": (str, "a text"),
    "rootNamespace": (str, "a text"),
    "extensionProviders": (list, "a list"),
    "defaultProviders": (dict, "an object"),
    "defaultConfig": (dict, "an object"),
}

# The variable of istiod that holds the percentage where nothing else says one, and what holds where it is not set.
VARIABLE: Final = "PILOT_TRACE_SAMPLING"
DEFAULT_PERCENT: Final = 1.0
# istiod's chart, and the values by which one without a name is known for it.
_CHART: Final = "istiod"
_OF_ISTIOD: Final = ("meshConfig", "pilot")
# What the profile `demo` brings, as in files/profile-demo.yaml of Istio's chart of istiod; other profiles say nothing
# of traces. A user's own list of providers takes the place of the profile's.
_DEMO: Final[Json] = {
    "traceSampling": 100,
    "extensionProviders": [
        {"name": "otel", "envoyOtelAls": {}},
        {"name": "skywalking", "skywalking": {"service": "tracing.istio-system.svc.cluster.local"}},
        *(
            {"name": name, "opentelemetry": {"service": service}}
            for name, service in (
                ("otel-tracing", "opentelemetry-collector.observability.svc.cluster.local"),
                ("jaeger", "jaeger-collector.istio-system.svc.cluster.local"),
            )
        ),
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider(JsonValue):
    """Holds one of a mesh's extension providers.

    Attributes:
        name: Its name.
        kind: Such as `opentelemetry`; empty where Istio knows none of its keys.
        collector: The host of the service that it sends to.
        formats: The formats of trace headers that a proxy reads and writes for it, such as `w3c`, `b3`.
        samples: Whether it has a sampler of its own, which then decides instead of any percentage.
        short_ids: Whether it makes trace ids of 64 bits.
    """

    name: str
    kind: str
    collector: str = ""
    formats: tuple[str, ...] = ()
    samples: bool = False
    short_ids: bool = False

    @property
    def traces(self) -> bool:
        """Whether Istio makes a tracer of it."""
        return self.kind in _TRACERS


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshConfig(JsonValue):
    """Holds what a mesh configuration says of traces.

    Attributes:
        where: The file and the object.
        fault: Why istiod does not take it; empty where it does.
        traces: Whether `enableTracing` holds.
        providers: The extension providers, with those that every mesh has.
        default_provider: The provider that traces where no Telemetry names one; empty for none.
        sampling: Percent of requests that start sampled where no Telemetry says it; None where it is not said.
        odd_sampling: Why istiod does not take what it says of that; empty where it does.
        dropped: Which of its fields istiod takes nothing of, without a word.
        has_istiod: Whether the same file is what istiod is installed by, and so says its variables too.
        is_written: Whether somebody wrote it; what a profile brings alone nobody did.
        bootstrap_tracer: The tracer of `defaultConfig.tracing`, which proxies use without any provider.
        root_namespace: The namespace whose Telemetry is for the whole mesh.
        logs_traceparent: Whether its access log prints `traceparent`; None where it configures no log.
    """

    where: str
    fault: str = ""
    traces: bool = True
    providers: tuple[Provider, ...] = ()
    default_provider: str = ""
    sampling: float | None = None
    odd_sampling: str = ""
    dropped: tuple[str, ...] = ()
    has_istiod: bool = False
    is_written: bool = True
    bootstrap_tracer: str = ""
    root_namespace: str = "istio-system"
    logs_traceparent: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSampling(JsonValue):
    """Holds one place that sets istiod's `PILOT_TRACE_SAMPLING`, or the percentage of one workload.

    Attributes:
        where: The file, the object, and the path in it.
        namespace: The namespace of the workload that it is for alone; empty where it is istiod's.
        percent: What istiod makes of it; None where that cannot be known.
        odd: Why that is another number than the file says, or is not known; empty where it is as it says.
    """

    where: str
    percent: float | None
    odd: str = ""
    namespace: str = ""


def mesh_configs(where: str, kind: str, document: Json) -> Iterator[MeshConfig]:
    """Yield the mesh configurations that a document holds."""
    for _, chart, values in _charts(kind, document):
        mesh = values.get("meshConfig")
        if _is_demo(chart, values) and isinstance(mesh or {}, Mapping):
            whole = {"extensionProviders": _DEMO["extensionProviders"]} | (mesh or {})
            yield _read_mesh(where, whole, has_istiod=True, is_written=bool(mesh))
        elif mesh is not None:
            yield _read_mesh(where, mesh, has_istiod=True)
    # Others may have something of that name.
    if kind == "ConfigMap" and _OF_ISTIO.match(str(object_in(document, "metadata").get("name", "istio"))):
        mesh = _parsed(object_in(document, "data").get("mesh"))
        if mesh is not None:
            yield _read_mesh(where, mesh)
    elif not kind and "meshConfig" not in document and _MESH_KEYS & set(map(_json_name, document)):
        yield _read_mesh(where, document)


def _is_demo(chart: str, values: Json) -> bool:
    """Return whether istiod is installed with the profile `demo`; values of other charts may have one of that name."""
    is_istiods = chart == _CHART or not values.keys().isdisjoint(_OF_ISTIOD)
    return is_istiods and "demo" in (values.get("profile"), object_in(values, "global").get("profile"))


def _charts(kind: str, document: Json) -> Iterator[tuple[str, str, Json]]:
    """Yield the values that istiod's chart gets: their path in a document, the chart's name where it is said, and them.

    `Istio` is the kind of an installation by the Sail operator, and so of OpenShift Service Mesh 3, `HelmRelease` that
    of Flux, `Application` that of Argo CD. A chart that has istiod's among others has its values one level deeper.
    """
    spec = object_in(document, "spec")
    if kind == "IstioOperator":
        # istioctl hands these two on to the chart.
        own = {name: spec[name] for name in ("profile", "meshConfig") if spec.get(name) is not None}
        yield "values", _CHART, {**object_in(spec, "values"), **own}
    elif kind == "Istio":
        # The operator puts the profile below the user's values.
        own = {"profile": spec["profile"]} if spec.get("profile") else {}
        yield "values", _CHART, {**own, **object_in(spec, "values")}
    elif kind == "HelmRelease":
        chart = object_in(object_in(spec, "chart"), "spec").get("chart")
        yield from _levels("values", str(chart), object_in(spec, "values"))
    elif kind == "Application":
        for source in (object_in(spec, "source"), *objects_in(spec, "sources")):
            helm = object_in(source, "helm")
            values = helm.get("valuesObject") or _parsed(helm.get("values"))
            yield from _levels("helm.values", str(source.get("chart")), values if isinstance(values, Mapping) else {})
    elif not kind:
        yield from _levels("", "", document)


def _levels(path: str, chart: str, values: Json) -> Iterator[tuple[str, str, Json]]:
    """Yield the values of a chart, and of each chart in it that is istiod's by what they say."""
    # A chart may stand in a folder or in a registry.
    yield path, chart.rstrip("/").rpartition("/")[2], values
    for name, inner in values.items():
        if isinstance(inner, Mapping) and not inner.keys().isdisjoint(_OF_ISTIOD):
            # Helm hands these down, and what the chart around says goes before.
            shared = {**object_in(inner, "global"), **object_in(values, "global")}
            yield f"{path} {name}".strip(), "", {**inner, "global": shared}


def trace_samplings(where: str, kind: str, document: Json) -> Iterator[TraceSampling]:
    """Yield what a document says of istiod's `PILOT_TRACE_SAMPLING`, as the newest charts and istioctl pass it on."""
    if kind in ("Deployment", "ReplicaSet", "Pod"):
        yield from _of_containers(where, document)
        return
    component = object_in(object_in(object_in(object_in(document, "spec"), "components"), "pilot"), "k8s")
    if kind == "IstioOperator" and (told := _named(objects_in(component, "env"))):
        # istioctl patches the rendered Deployment with it, by its name.
        yield _sampling(f"{where} components.pilot.k8s.env", told[-1])
        return
    for path, chart, values in _charts(kind, document):
        yield from _of_chart(f"{where} {path}".strip(), values, is_demo=_is_demo(chart, values))


def _of_containers(where: str, document: Json) -> Iterator[TraceSampling]:
    spec = object_in(document, "spec")
    pod = object_in(object_in(spec, "template"), "spec") or spec
    for container in objects_in(pod, "containers"):
        told = _named(objects_in(container, "env"))
        if len({_meaning(each.get("value")) for each in told}) > 1:
            yield TraceSampling(where=f"{where} env", percent=None, odd=_TWICE)
        elif told:
            yield _sampling(f"{where} env", told[0])


def workload_samplings(where: str, namespace: str, document: Json) -> Iterator[TraceSampling]:
    """Yield what the annotation `proxy.istio.io/config` of a workload's pods puts over `defaultConfig`."""
    template = object_in(object_in(document, "spec"), "template") or document
    own = _parsed(object_in(object_in(template, "metadata"), "annotations").get("proxy.istio.io/config"))
    tracing = object_in(own if isinstance(own, Mapping) else {}, "tracing")
    percent, odd = _percent_of(tracing.get("sampling"))
    if percent is not None:
        yield TraceSampling(where=f"{where} proxy.istio.io/config", percent=percent, odd=odd, namespace=namespace)


_TWICE: Final = f"{VARIABLE} is there twice; which one istiod gets depends on how the Deployment is applied"


def _of_chart(where: str, values: Json, *, is_demo: bool) -> Iterator[TraceSampling]:
    # What stands below `pilot` has the same meaning, and the last word: zzy_descope_legacy.yaml of the chart.
    pilot = {**values, **object_in(values, "pilot")}
    told: list[Json] = [*_named(objects_in(pilot, "envVarFrom"))]
    told += [{"value": value} for name, value in object_in(pilot, "env").items() if name == VARIABLE]
    # It is 1 where nobody sets it. An empty one is set: Helm's merge keeps it, and the chart then writes none.
    own = pilot.get("traceSampling", _DEMO["traceSampling"] if is_demo else DEFAULT_PERCENT)
    if told and own and _meaning(told[0].get("value")) != _meaning(own):
        # deployment.yaml of the chart writes both.
        odd = f"the chart sets {VARIABLE} twice, by env and by traceSampling; write it in traceSampling alone"
        yield TraceSampling(where=f"{where} env", percent=None, odd=odd)
    elif told:
        yield _sampling(f"{where} env", told[0])
    elif own and (is_demo or "traceSampling" in pilot):
        yield _sampling(f"{where} traceSampling", {"value": own})
    elif not own and own is not None:
        odd = f"the chart takes {own} for no value, and sets no {VARIABLE}: istiod takes {DEFAULT_PERCENT:g}"
        yield TraceSampling(where=f"{where} traceSampling", percent=DEFAULT_PERCENT, odd=odd)


def _meaning(value: Any) -> float | str:
    """Return what two values are compared by: YAML's texts and numbers are one to istiod."""
    percent = number(value)
    return str(value) if percent is None else percent


def _named(variables: Iterable[Json]) -> list[Json]:
    return [each for each in variables if each.get("name") == VARIABLE]


def _sampling(where: str, variable: Json) -> TraceSampling:
    """Return what istiod makes of one variable: pilot/pkg/features/telemetry.go."""
    if "value" not in variable:
        return TraceSampling(where=where, percent=None, odd=f"{VARIABLE} comes from another object")
    percent = number(variable["value"])
    if percent is not None and 0 <= percent <= 100:
        return TraceSampling(where=where, percent=percent)
    odd = f"{quoted(str(variable['value']))} is no percentage: istiod takes {DEFAULT_PERCENT:g}"
    return TraceSampling(where=where, percent=DEFAULT_PERCENT, odd=odd)


def _parsed(text: Any) -> Any:
    yaml = import_yaml()
    try:
        return yaml.safe_load(text) if isinstance(text, str) else text
    except (yaml.YAMLError, RecursionError) as error:
        return " ".join(str(error).split())


def _read_mesh(where: str, mesh: Any, *, has_istiod: bool = False, is_written: bool = True) -> MeshConfig:
    dropped: tuple[str, ...] = ()
    if isinstance(mesh, Mapping):
        dropped = tuple(name for name in _DROPPED if name in mesh)
        mesh = _with_json_names({name: value for name, value in mesh.items() if name not in dropped})
    fault = _mesh_fault(mesh)
    if fault:
        return MeshConfig(where=where, fault=fault)
    tracing = object_in(object_in(mesh, "defaultConfig"), "tracing")
    percent, odd = _percent_of(tracing.get("sampling"))
    own = [_read_provider(each) for each in objects_in(mesh, "extensionProviders")]
    named = {provider.name for provider in own}
    defaults = [Provider(name=name, kind=kind) for name, kind in _BUILT_IN.items() if name not in named]
    logs = "traceparent" in str(mesh.get("accessLogFormat", "")).lower() if mesh.get("accessLogFile") else None
    return MeshConfig(
        where=where,
        traces=mesh.get("enableTracing") is not False,
        providers=(*own, *defaults),
        default_provider=next(iter(map(str, list_in(object_in(mesh, "defaultProviders"), "tracing"))), ""),
        sampling=percent,
        odd_sampling=odd,
        dropped=dropped,
        has_istiod=has_istiod,
        is_written=is_written,
        bootstrap_tracer=next((name for name in ("zipkin", "datadog", "lightstep") if name in tracing), ""),
        root_namespace=mesh.get("rootNamespace") or "istio-system",
        logs_traceparent=logs,
    )


def _with_json_names(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_json_name(name): _with_json_names(each) for name, each in value.items()}
    return [_with_json_names(each) for each in value] if isinstance(value, list) else value


def _json_name(name: Any) -> str:
    return _UNDERSCORE.sub(lambda found: found[1].upper(), str(name))


def _percent_of(said: Any) -> tuple[float | None, str]:
    """Return what istiod makes of `defaultConfig.tracing.sampling`: pilot/pkg/networking/core/tracing.go."""
    percent = number(said)
    if percent == 0:
        return None, f"istiod takes 0 there for no value, and goes on with {VARIABLE}"
    if percent is not None and percent < 0:
        return None, f"{percent:g} is no percentage, and no proxy takes it"
    if percent is not None and percent > 100:
        return DEFAULT_PERCENT, f"{percent:g} is no percentage: istiod takes {DEFAULT_PERCENT:g}"
    return percent, ""


def _mesh_fault(mesh: Any) -> str:
    """Return what makes istiod refuse a whole mesh configuration."""
    if not isinstance(mesh, Mapping):
        return f"it is no object but {quoted(str(mesh))}"
    for name, (wanted, called) in _TYPES.items():
        if mesh.get(name) is not None and not isinstance(mesh[name], wanted):
            return f"{name} is {quoted(str(mesh[name]))}, not {called}"
    for provider in mesh.get("extensionProviders") or ():
        if not isinstance(provider, Mapping) or not isinstance(provider.get("name", ""), str):
            return f"extensionProviders holds {quoted(str(provider))}, which is no provider"
    return ""


def _read_provider(provider: Json) -> Provider:
    kind = next((name for name in (*_TRACERS, *_OTHER_KINDS) if name in provider), "")
    config = object_in(provider, kind)
    both = config.get("traceContextOption") == "USE_B3_WITH_W3C_PROPAGATION"
    formats = FORMATS | {"zipkin": ("b3", "w3c") if both else ("b3",)}
    return Provider(
        name=str(provider.get("name", "")),
        kind=kind,
        collector=str(config.get("service", "")),
        formats=formats.get(kind, ()),
        samples=kind == "opentelemetry" and "dynatraceSampler" in config,
        short_ids=kind == "zipkin" and config.get("enable64bitTraceId") is True,
    )


def object_in(holder: Json, name: str) -> Json:
    """Return the object below a name; an empty one where there is none."""
    value = holder.get(name)
    return value if isinstance(value, Mapping) else {}


def list_in(holder: Json, name: str) -> list[Any]:
    """Return the list below a name; an empty one where there is none."""
    value = holder.get(name)
    return value if isinstance(value, list) else []


def objects_in(holder: Json, name: str) -> Iterator[Json]:
    """Yield the objects of the list below a name."""
    yield from (each for each in list_in(holder, name) if isinstance(each, Mapping))


def boolean_in(holder: Json, name: str) -> bool | None:
    """Return the truth value below a name; None where there is none."""
    value = holder.get(name)
    return value if isinstance(value, bool) else None


def number(value: Any) -> float | None:
    """Return a number, also of a text; None where it is none, or more than a float holds."""
    if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
