"""What Istio's objects in YAML files say of traces, and what is wrong with them before anybody applies them.

`istioctl analyze` and `validate` check each object by itself. What is found here lies between them: a provider that is
named and not there, or a mesh configuration that istiod does not take and replaces by its defaults. The rules are those
of Istio 1.29 to 1.31; `tests/real` holds them against its control plane.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from meshmw._notices import quoted
from meshmw._tools import JsonValue
from meshmw._tools.doctor.configuration import import_yaml
from meshmw._tools.doctor.filters import named_in
from meshmw._tools.doctor.tracers import FORMATS
from meshmw.errors import MeshmwError

SUFFIXES: Final = (".yaml", ".yml")
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

Json = Mapping[str, Any]


class ManifestError(MeshmwError):
    """Says in one line why a file of manifests cannot be read."""


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
    bootstrap_tracer: str = ""
    root_namespace: str = "istio-system"
    logs_traceparent: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingRule(JsonValue):
    """Holds one entry of `tracing` in a Telemetry object; None stands for what it leaves to others.

    Attributes:
        where: The file and the object.
        namespace: The object's namespace.
        selects: Whether it is for some workloads of the namespace only.
        mode: `CLIENT` or `SERVER` where it is for what goes out or comes in alone; empty for both.
        provider: The first provider that it names, the only one that counts; empty for none.
        sampling: `randomSamplingPercentage`.
        by_request_id: `useRequestIdForTraceSampling`.
        writes_nothing: `disableContextPropagation`.
        reports: The opposite of `disableSpanReporting`: without spans istiod configures no tracing at all.
    """

    where: str
    namespace: str
    selects: bool = False
    mode: str = ""
    provider: str = ""
    sampling: float | None = None
    by_request_id: bool | None = None
    writes_nothing: bool | None = None
    reports: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteChange(JsonValue):
    """Holds what a route does to one request header, of all requests or of those for one destination.

    Attributes:
        where: The file and the object.
        namespace: The object's namespace.
        how: `remove`, `set` or `add`.
        header: The header, in small letters.
        value: What is written; Envoy fills in `%...%`.
    """

    where: str
    namespace: str
    how: str
    header: str
    value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifests(JsonValue):
    """Holds what a set of files says of traces.

    Attributes:
        meshes: The mesh configurations; one of them is usual.
        tracing: The tracing rules of all Telemetry objects.
        logging: Where an access-log provider is named, and its name.
        changed: What routes do to request headers.
        patches: Where an EnvoyFilter patches proxies, and the trace headers that it names.
        egress: Where a Sidecar limits what its proxies know, its namespace, and the namespaces that are left.
        unreadable: The files that hold no YAML, and why.
    """

    meshes: tuple[MeshConfig, ...] = ()
    tracing: tuple[TracingRule, ...] = ()
    logging: tuple[tuple[str, str], ...] = ()
    changed: tuple[RouteChange, ...] = ()
    patches: tuple[tuple[str, tuple[str, ...]], ...] = ()
    egress: tuple[tuple[str, tuple[str, ...]], ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()

    @property
    def usable(self) -> MeshConfig | None:
        """Return the first mesh configuration that istiod takes."""
        return next((mesh for mesh in self.meshes if not mesh.fault), None)


def read_manifests(paths: Sequence[Path]) -> Manifests:
    """Read files, and every `*.yaml` and `*.yml` below folders.

    Raises:
        ManifestError: A path is not there, or a folder holds no such file.
        MissingExtraError: PyYAML is not installed.
    """
    found: dict[str, list[Any]] = {name: [] for name in Manifests.__dataclass_fields__}
    for path in (file for each in paths for file in _files(each)):
        try:
            documents = list(_documents(path))
        except ValueError as fault:
            found["unreadable"].append((str(path), str(fault)))
            continue
        for document in documents:
            _read_object(str(path), document, found)
    return Manifests(**{name: tuple(values) for name, values in found.items()})


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    files = sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES)
    if not files:
        raise ManifestError(f"{path} holds no {' or '.join(SUFFIXES)} file")
    yield from files


def _documents(path: Path) -> Iterator[Any]:
    yaml = import_yaml()
    try:
        yield from yaml.safe_load_all(path.read_bytes())
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _read_object(file: str, document: Any, found: Mapping[str, list[Any]]) -> None:
    if not isinstance(document, Mapping):
        return
    kind, metadata = str(document.get("kind") or ""), _object(document, "metadata")
    if kind == "List":
        for item in _list(document, "items"):
            _read_object(file, item, found)
        return
    spec, namespace = _object(document, "spec"), str(metadata.get("namespace") or "default")
    where = " ".join(filter(None, (file, kind, str(metadata.get("name", "")))))
    if kind == "Telemetry":
        found["tracing"] += _read_tracing(where, namespace, spec)
        found["logging"] += [(where, name) for rule in _objects(spec, "accessLogging") for name in _names(rule)]
    elif kind in ("VirtualService", "HTTPRoute", "GRPCRoute"):
        found["changed"] += dict.fromkeys(_changes(where, namespace, spec))
    elif kind == "EnvoyFilter":
        found["patches"].append((where, tuple(named_in(spec))))
    elif kind == "Sidecar":
        hosts = [str(host) for rule in _objects(spec, "egress") for host in _list(rule, "hosts")]
        found["egress"] += [(where, tuple(_namespaces(hosts, namespace)))] if hosts else []
    else:
        found["meshes"] += [_read_mesh(f"{where} meshConfig", mesh) for mesh in _mesh_configs(kind, document)]


def _mesh_configs(kind: str, document: Json) -> Iterator[Any]:
    """Yield the mesh configurations of an installation, a ConfigMap, Helm's values, or a file that is one itself.

    `Istio` is the kind of an installation by the Sail operator, and so of OpenShift Service Mesh 3.
    """
    if kind in ("IstioOperator", "Istio"):
        spec = _object(document, "spec")
        yield from (each["meshConfig"] for each in (spec, _object(spec, "values")) if "meshConfig" in each)
    elif kind == "ConfigMap":
        if "mesh" in _object(document, "data"):
            yield _parsed(document["data"]["mesh"])
    elif not kind:
        if "meshConfig" in document:
            yield document["meshConfig"]
        elif _MESH_KEYS & document.keys():
            yield document


def _parsed(text: Any) -> Any:
    yaml = import_yaml()
    try:
        return yaml.safe_load(text) if isinstance(text, str) else text
    except (yaml.YAMLError, RecursionError) as error:
        return " ".join(str(error).split())


def _read_mesh(where: str, mesh: Any) -> MeshConfig:
    fault = _mesh_fault(mesh)
    if fault:
        return MeshConfig(where=where, fault=fault)
    tracing = _object(_object(mesh, "defaultConfig"), "tracing")
    own = [_read_provider(each) for each in _objects(mesh, "extensionProviders")]
    named = {provider.name for provider in own}
    defaults = [Provider(name=name, kind=kind) for name, kind in _BUILT_IN.items() if name not in named]
    logs = "traceparent" in str(mesh.get("accessLogFormat", "")).lower() if mesh.get("accessLogFile") else None
    return MeshConfig(
        where=where,
        traces=mesh.get("enableTracing", True),
        providers=(*own, *defaults),
        default_provider=next(iter(map(str, _list(_object(mesh, "defaultProviders"), "tracing"))), ""),
        sampling=_number(tracing.get("sampling")) or None,
        bootstrap_tracer=next((name for name in ("zipkin", "datadog", "lightstep") if name in tracing), ""),
        root_namespace=mesh.get("rootNamespace") or "istio-system",
        logs_traceparent=logs,
    )


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
    config = _object(provider, kind)
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


def _read_tracing(where: str, namespace: str, spec: Json) -> Iterator[TracingRule]:
    selects = bool(_object(spec, "selector") or spec.get("targetRefs") or spec.get("targetRef"))
    for rule in _objects(spec, "tracing"):
        silent, mode = _boolean(rule, "disableSpanReporting"), _object(rule, "match").get("mode")
        yield TracingRule(
            where=where,
            namespace=namespace,
            selects=selects,
            mode=mode if mode in ("CLIENT", "SERVER") else "",
            provider=next(_names(rule), ""),
            sampling=_number(rule.get("randomSamplingPercentage")),
            by_request_id=_boolean(rule, "useRequestIdForTraceSampling"),
            writes_nothing=_boolean(rule, "disableContextPropagation"),
            reports=None if silent is None else not silent,
        )


def _changes(where: str, namespace: str, spec: Json) -> Iterator[RouteChange]:
    for request in _header_operations(spec):
        for how in ("remove", "set", "add"):
            listed = request.get(how)
            # Istio has an object of values, the Gateway API a list of objects with a name.
            pairs = listed.items() if isinstance(listed, Mapping) else map(_pair, _list(request, how))
            for name, value in pairs:
                yield RouteChange(
                    where=where, namespace=namespace, how=how, header=str(name).lower(), value=str(value or "")
                )


def _pair(one: Any) -> tuple[Any, Any]:
    return (one.get("name"), one.get("value")) if isinstance(one, Mapping) else (one, "")


def _header_operations(spec: Json) -> Iterator[Json]:
    for route in _objects(spec, "http"):
        for level in (route, *_objects(route, "route")):
            yield _object(_object(level, "headers"), "request")
    for rule in _objects(spec, "rules"):
        for level in (rule, *_objects(rule, "backendRefs")):
            yield from (_object(each, "requestHeaderModifier") for each in _objects(level, "filters"))


def _namespaces(hosts: Iterable[str], own: str) -> Iterator[str]:
    for host in hosts:
        namespace, slash, _ = host.partition("/")
        yield own if namespace == "." or not slash else namespace


def _names(rule: Json) -> Iterator[str]:
    yield from (str(each.get("name", "")) for each in _objects(rule, "providers"))


def _object(holder: Json, name: str) -> Json:
    value = holder.get(name)
    return value if isinstance(value, Mapping) else {}


def _list(holder: Json, name: str) -> list[Any]:
    value = holder.get(name)
    return value if isinstance(value, list) else []


def _objects(holder: Json, name: str) -> Iterator[Json]:
    yield from (each for each in _list(holder, name) if isinstance(each, Mapping))


def _boolean(holder: Json, name: str) -> bool | None:
    value = holder.get(name)
    return value if isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
