"""What Istio's objects in YAML files say of traces, and what is wrong with them before anybody applies them.

`istioctl analyze` and `validate` check each object by itself. What is found here lies between them: a provider that is
named and not there, or a mesh configuration that istiod does not take and replaces by its defaults. The rules are those
of Istio 1.29 to 1.31; `tests/real` holds them against its control plane.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from meshmw._tools import JsonValue
from meshmw._tools.doctor.configuration import import_yaml, kind_of, refuse_too_many_parts, with_own_names
from meshmw._tools.doctor.filters import named_in, texts_in
from meshmw._tools.doctor.installation import (
    Json,
    MeshConfig,
    TraceSampling,
    boolean_in,
    list_in,
    mesh_configs,
    number,
    object_in,
    objects_in,
    trace_samplings,
    workload_samplings,
)
from meshmw.errors import MeshmwError

SUFFIXES: Final = (".yaml", ".yml")
_KINDS: Final = {
    "Telemetry", "VirtualService", "HTTPRoute", "GRPCRoute", "EnvoyFilter", "Sidecar", "IstioOperator", "Istio",
}  # fmt: skip
# The API groups of other control planes whose proxies trace.
_OTHER_GROUPS: Final = (
    "appmesh.k8s.aws", "cilium.io", "consul.hashicorp.com", "envoyproxy.io", "getambassador.io", "kgateway.dev",
    "konghq.com", "kuma.io", "linkerd.io", "maistra.io", "nginx.org", "projectcontour.io", "solo.io",
    "traefik.containo.us", "traefik.io",
)  # fmt: skip
_ABOUT_TRACES: Final = re.compile(r"trac(?:e|ing)|telemetry|zipkin|jaeger|datadog", re.IGNORECASE)


class ManifestError(MeshmwError):
    """Says in one line why a file of manifests cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry(JsonValue):
    """Holds which workloads a Telemetry object is for.

    Attributes:
        where: The file and the object.
        name: The object's name.
        namespace: The object's namespace.
        selects: Whether it is for some workloads of the namespace only.
        created: When it was made, in UTC, as Kubernetes says; empty where it does not.
    """

    where: str
    name: str
    namespace: str
    selects: bool = False
    created: str = ""


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
class OtherObject(JsonValue):
    """Holds an object that concerns traces and that nobody judges here.

    Attributes:
        where: The file and the object.
        what: What it is.
        headers: The trace headers that it names.
        is_envoys: Whether it is the configuration of an Envoy itself.
    """

    where: str
    what: str
    headers: tuple[str, ...] = ()
    is_envoys: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifests(JsonValue):
    """Holds what a set of files says of traces.

    Attributes:
        meshes: The mesh configurations; one of them is usual.
        sampling: What sets istiod's `PILOT_TRACE_SAMPLING`; one place is usual.
        workloads: What workloads' own annotations say of sampling.
        telemetry: The Telemetry objects.
        tracing: Their tracing rules.
        logging: Where an access-log provider is named, and its name.
        changed: What routes do to request headers.
        patches: Where an EnvoyFilter patches proxies, and the trace headers that it names.
        egress: Where a Sidecar limits what its proxies know, its namespace, and the namespaces that are left.
        others: What concerns traces and is not judged here.
        unreadable: The files that hold no YAML, and why.
        known: How many objects are of kinds that are read here.
        unknown: How many are not.
    """

    meshes: tuple[MeshConfig, ...] = ()
    sampling: tuple[TraceSampling, ...] = ()
    workloads: tuple[TraceSampling, ...] = ()
    telemetry: tuple[Telemetry, ...] = ()
    tracing: tuple[TracingRule, ...] = ()
    logging: tuple[tuple[str, str], ...] = ()
    changed: tuple[RouteChange, ...] = ()
    patches: tuple[tuple[str, tuple[str, ...]], ...] = ()
    egress: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    others: tuple[OtherObject, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()
    known: int = 0
    unknown: int = 0

    @property
    def usable(self) -> MeshConfig | None:
        """Return the first mesh configuration that istiod takes; one that somebody wrote goes before a profile's."""
        taken = [mesh for mesh in self.meshes if not mesh.fault]
        return next((mesh for mesh in taken if mesh.is_written), taken[0] if taken else None)


def read_manifests(paths: Sequence[Path]) -> Manifests:
    """Read files, and every `*.yaml` and `*.yml` below folders.

    Raises:
        ManifestError: A path is not there, or a folder holds no such file.
        MissingExtraError: PyYAML is not installed.
    """
    found: dict[str, list[Any]] = {name: [] for name in Manifests.__dataclass_fields__}
    for path in (file for each in paths for file in _files(each)):
        try:
            for document in _documents(path):
                _read_object(str(path), document, found)
        except (ValueError, RecursionError) as fault:
            found["unreadable"].append((str(path), str(fault)))
    known, unknown = len(found.pop("known")), len(found.pop("unknown"))
    return Manifests(**{name: tuple(values) for name, values in found.items()}, known=known, unknown=unknown)


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    files = sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES)
    if not files:
        raise ManifestError(f"{path} holds no {' or '.join(SUFFIXES)} file")
    yield from files


def _documents(path: Path) -> list[Any]:
    yaml = import_yaml()
    try:
        documents = list(yaml.safe_load_all(path.read_bytes()))
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    refuse_too_many_parts(documents)
    return documents


def _read_object(file: str, document: Any, found: Mapping[str, list[Any]]) -> None:
    if not isinstance(document, Mapping):
        return
    kind, metadata = str(document.get("kind") or ""), object_in(document, "metadata")
    if kind == "List":
        for item in list_in(document, "items"):
            _read_object(file, item, found)
        return
    spec, namespace = object_in(document, "spec"), str(metadata.get("namespace") or "default")
    where = " ".join(filter(None, (file, kind, str(metadata.get("name", "")))))
    before = [*found["meshes"], *found["sampling"]]
    if kind == "Telemetry":
        selects = bool(object_in(spec, "selector") or spec.get("targetRefs") or spec.get("targetRef"))
        telemetry = Telemetry(
            where=where,
            name=str(metadata.get("name", "")),
            namespace=namespace,
            selects=selects,
            created=_time_of(metadata.get("creationTimestamp")),
        )
        found["telemetry"].append(telemetry)
        found["tracing"] += _read_tracing(telemetry, spec)
        found["logging"] += [(where, name) for rule in objects_in(spec, "accessLogging") for name in _names(rule)]
    elif kind in ("VirtualService", "HTTPRoute", "GRPCRoute"):
        found["changed"] += dict.fromkeys(_changes(where, namespace, spec))
    elif kind == "EnvoyFilter":
        found["patches"].append((where, tuple(named_in(spec))))
    elif kind == "Sidecar":
        hosts = [str(host) for rule in objects_in(spec, "egress") for host in list_in(rule, "hosts")]
        found["egress"] += [(where, namespace, tuple(_namespaces(hosts, namespace)))] if hosts else []
    else:
        found["meshes"] += mesh_configs(f"{where} meshConfig", kind, document)
        found["sampling"] += trace_samplings(where, kind, document)
        found["workloads"] += workload_samplings(where, namespace, document)
        if other := _other_object(where, kind, document):
            found["others"].append(other)
    is_known = kind in _KINDS or before != [*found["meshes"], *found["sampling"]]
    found["known" if is_known else "unknown"].append(where)


def _time_of(said: Any) -> str:
    """Return a time in one form, by which two can be compared: YAML reads one without quotes as another type."""
    try:
        time = datetime.fromisoformat(str(said))
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        return ""


def _other_object(where: str, kind: str, document: Json) -> OtherObject | None:
    """Return what concerns traces and is not Istio's: another control plane's object, or Envoy's own configuration."""
    group = str(document.get("apiVersion") or "")
    if not kind and kind_of(with_own_names(document)) in ("dump", "dumps", "bootstrap"):
        return OtherObject(where=where, what="a configuration of Envoy", is_envoys=True)
    if not group.partition("/")[0].endswith(_OTHER_GROUPS):
        return None
    headers = tuple(named_in(document))
    if not headers and not any(_ABOUT_TRACES.search(text) for text in texts_in(document)):
        return None
    return OtherObject(where=where, what=f"{kind} of {group}", headers=headers)


def _read_tracing(telemetry: Telemetry, spec: Json) -> Iterator[TracingRule]:
    for rule in objects_in(spec, "tracing"):
        silent, mode = boolean_in(rule, "disableSpanReporting"), object_in(rule, "match").get("mode")
        yield TracingRule(
            where=telemetry.where,
            namespace=telemetry.namespace,
            selects=telemetry.selects,
            mode=mode if mode in ("CLIENT", "SERVER") else "",
            provider=next(_names(rule), ""),
            sampling=number(rule.get("randomSamplingPercentage")),
            by_request_id=boolean_in(rule, "useRequestIdForTraceSampling"),
            writes_nothing=boolean_in(rule, "disableContextPropagation"),
            reports=None if silent is None else not silent,
        )


def _changes(where: str, namespace: str, spec: Json) -> Iterator[RouteChange]:
    for request in _header_operations(spec):
        for how in ("remove", "set", "add"):
            listed = request.get(how)
            # Istio has an object of values, the Gateway API a list of objects with a name.
            pairs = listed.items() if isinstance(listed, Mapping) else map(_pair, list_in(request, how))
            for name, value in pairs:
                yield RouteChange(
                    where=where, namespace=namespace, how=how, header=str(name).lower(), value=str(value or "")
                )


def _pair(one: Any) -> tuple[Any, Any]:
    return (one.get("name"), one.get("value")) if isinstance(one, Mapping) else (one, "")


def _header_operations(spec: Json) -> Iterator[Json]:
    for route in objects_in(spec, "http"):
        for level in (route, *objects_in(route, "route")):
            yield object_in(object_in(level, "headers"), "request")
    for rule in objects_in(spec, "rules"):
        for level in (rule, *objects_in(rule, "backendRefs")):
            yield from (object_in(each, "requestHeaderModifier") for each in objects_in(level, "filters"))


def _namespaces(hosts: Iterable[str], own: str) -> Iterator[str]:
    for host in hosts:
        namespace, slash, _ = host.partition("/")
        yield own if namespace == "." or not slash else namespace


def _names(rule: Json) -> Iterator[str]:
    yield from (str(each.get("name", "")) for each in objects_in(rule, "providers"))
