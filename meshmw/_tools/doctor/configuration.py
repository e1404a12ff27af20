"""What an Envoy is configured with, as resources, in whatever shape a file or an answer has them.

A file may hold what `/config_dump` answered, whole or in part, a bootstrap, or listeners, routes and clusters alone, as
JSON or YAML, with Envoy's own names or with those of protojson. `kind_of` tells these apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, Literal

from meshmw.errors import extra_named

Json = Mapping[str, Any]
Kind = Literal["dump", "dumps", "bootstrap", "resources", "manifest", ""]

_CAMEL: Final = re.compile(r"[a-z]+\d*(?:[A-Z][a-z0-9]*)+")
_CAPITAL: Final = re.compile(r"[A-Z]")
# The one name of Envoy's that protojson does not give back: traceId128bit.
_ODD_NAMES: Final = {"trace_id128bit": "trace_id_128bit"}
_LISTS: Final = ("static_", "dynamic_", "ecds_", "inline_")
# Aliases of aliases can stand for more than anybody can walk through: five million took six seconds.
_MOST_PARTS: Final = 3_000_000
_CLUSTER: Final = {"load_assignment", "lb_policy", "eds_cluster_config", "cluster_type", "connect_timeout"}
_WHOLE: Final = {"BootstrapConfigDump", "ClustersConfigDump", "ListenersConfigDump"}
_BOOTSTRAP: Final = {"static_resources", "dynamic_resources", "layered_runtime"}


@dataclass(frozen=True, slots=True)
class Configuration:
    """Holds the resources of one Envoy.

    Attributes:
        bootstrap: What it was started with; None where that is not there.
        listeners: Its active listeners.
        routes: Route configurations by name.
        clusters: Clusters by name.
        filters: Configurations of HTTP filters that came by ECDS, by name.
        scopes: Names of the route configurations of scoped routes, by the name of the scoped routes.
        lacks_listeners: Whether it gets listeners from elsewhere that are not there.
        refused: Listeners that it was given and would not take, each with its reason.
        has_all_clusters: Whether it is sure that no cluster is left out.
    """

    bootstrap: Json | None = None
    listeners: Sequence[Json] = ()
    routes: Mapping[str, Json] = field(default_factory=dict)
    clusters: Mapping[str, Json] = field(default_factory=dict)
    filters: Mapping[str, Json] = field(default_factory=dict)
    scopes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    lacks_listeners: bool = False
    refused: Sequence[tuple[str, str]] = ()
    has_all_clusters: bool = False


def parse(data: bytes) -> Any:
    """Return what a file holds as JSON or YAML, with the names of Envoy's own.

    Raises:
        ValueError: It is neither.
        MissingExtraError: It is no JSON, and PyYAML is not installed.
    """
    try:
        document: Any = json.loads(data)
    except ValueError:
        document = _parse_yaml(data)
    return with_own_names(document)


def import_yaml() -> Any:
    """Return PyYAML's module.

    Raises:
        MissingExtraError: It is not installed.
    """
    with extra_named("yaml", "PyYAML", "cli"):
        import yaml  # type: ignore[import-untyped]
    return yaml


def _parse_yaml(data: bytes) -> Any:
    yaml = import_yaml()
    # Where PyYAML was built without libyaml, it has no fast one.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        documents = [each for each in yaml.load_all(data, Loader=loader) if each is not None]
    except yaml.YAMLError as error:
        raise ValueError("neither JSON nor YAML") from error
    refuse_too_many_parts(documents)
    return documents[0] if len(documents) == 1 else documents


def refuse_too_many_parts(documents: Any) -> None:
    """Refuse what nobody can walk through.

    Raises:
        ValueError: Its aliases stand for too much.
    """
    if _parts_of(documents, {}) > _MOST_PARTS:
        raise ValueError("its aliases stand for too much")


def _parts_of(value: Any, done: dict[int, int]) -> int:
    """Return how many values a document holds where each alias is written out; what holds itself counts once."""
    if not isinstance(value, (Mapping, list)):
        return 1
    if id(value) not in done:
        done[id(value)] = 0
        inner = value.values() if isinstance(value, Mapping) else value
        done[id(value)] = 1 + sum(_parts_of(each, done) for each in inner)
    return done[id(value)]


def with_own_names(document: Any) -> Any:
    """Return a document with each name of protojson, such as `filterChains`, as Envoy's own: `filter_chains`."""
    return _renamed(document, {})


def _renamed(value: Any, done: dict[int, Any]) -> Any:
    # YAML's aliases make one object stand in many places, and even in itself.
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, Mapping):
        names: dict[str, Any] = {}
        done[id(value)] = names
        names.update((own_name(str(key)), _renamed(each, done)) for key, each in value.items())
        return names
    if isinstance(value, list):
        items: list[Any] = []
        done[id(value)] = items
        items.extend(_renamed(each, done) for each in value)
        return items
    return value


@lru_cache(4096)
def own_name(name: str) -> str:
    """Return Envoy's own name of a field; any other text as it is."""
    if not _CAMEL.fullmatch(name):
        return name
    own = _CAPITAL.sub(lambda found: f"_{found[0].lower()}", name)
    return _ODD_NAMES.get(own, own)


def kind_of(document: Any) -> Kind:
    """Return what a document with Envoy's own names holds; empty where it is nothing that is known here."""
    if isinstance(document, list):
        kinds = {kind_of(each) for each in document}
        return "manifest" if "manifest" in kinds else "resources" if "resources" in kinds else ""
    if not isinstance(document, Mapping):
        return ""
    if "api_version" in document and "kind" in document:
        return "manifest"
    if _sections_of(document) is not None:
        return "dump"
    if any(_dumps_within(document)):
        return "dumps"
    if isinstance(document.get("bootstrap"), Mapping) or _BOOTSTRAP & document.keys():
        return "bootstrap"
    return "resources" if "resources" in document or _sort_of(document) else ""


def configurations_of(document: Any) -> Iterator[tuple[str, Configuration]]:
    """Yield each configuration that a document holds, with a name where it holds several.

    Raises:
        ValueError: It holds none.
    """
    kind = kind_of(document)
    if kind == "dumps":
        for name, sections in _dumps_within(document):
            yield name, _of_dump(sections)
    elif kind == "dump":
        yield "", _of_dump(_sections_of(document) or ())
    elif kind == "bootstrap":
        yield "", _of_dump([document if "bootstrap" in document else {"bootstrap": document}])
    elif kind == "resources":
        listed = document if isinstance(document, list) else document.get("resources", [document])
        yield "", _collected(None, [_unwrapped(each) for each in listed])
    elif kind == "manifest":
        raise ValueError("it is a manifest of Kubernetes")
    else:
        raise ValueError("it is no configuration of Envoy")


def _sections_of(document: Json) -> Sequence[Json] | None:
    """Return the sections of a dump, of which one may stand alone; None where it is no dump."""
    sections = document.get("configs")
    if isinstance(sections, list):
        return sections
    return [document] if type_of(document).endswith("ConfigDump") else None


def _dumps_within(document: Json) -> Iterator[tuple[str, Sequence[Json]]]:
    """Yield dumps by the names of their proxies, as `egctl config` and `egctl x translate` write them."""
    for name, each in document.items():
        for inner_name, inner in ((name, each), *(each.items() if isinstance(each, Mapping) else ())):
            sections = _sections_of(inner) if isinstance(inner, Mapping) else None
            if sections is not None:
                yield inner_name, sections


def _of_dump(configs: Sequence[Json]) -> Configuration:
    bootstrap = next((each["bootstrap"] for each in configs if each.get("bootstrap")), None)
    found = [resource for each in configs for resource in _resources(each)]
    static = (bootstrap or {}).get("static_resources", {})
    # A whole dump has the static ones twice: as they were given, and as they are.
    sorts = {_sort_of(each) for each in found}
    for sort, plural in (("listener", "listeners"), ("cluster", "clusters")):
        if sort not in sorts:
            found += static.get(plural, ())
    sources = {"lds_config", "ads_config"} & (bootstrap or {}).get("dynamic_resources", {}).keys()
    # An entry may be there twice, once by its name and once as a part of the whole update.
    refused = tuple(dict.fromkeys(_refused(configs)))
    kinds = {type_of(each) for each in configs}
    return replace(
        _collected(bootstrap, found),
        lacks_listeners="listener" not in sorts and bool(sources) and not refused,
        refused=refused,
        has_all_clusters=any({"static_clusters", "dynamic_active_clusters"} <= each.keys() for each in configs)
        # A part that was asked for has no bootstrap beside it. Where all were refused, the section is there and empty.
        or (bootstrap is not None and kinds >= _WHOLE),
    )


def _refused(configs: Sequence[Json]) -> Iterator[tuple[str, str]]:
    for each in (entry for config in configs for entry in config.get("dynamic_listeners") or ()):
        if error := each.get("error_state"):
            name = each.get("name") or error.get("failed_configuration", {}).get("name", "")
            yield str(name), str(error.get("details", ""))


def _resources(config: Json) -> Iterator[Json]:
    """Yield the resources of one section of a dump, or of one entry that was asked for by `?resource=`."""
    if _sort_of(config):
        yield config
        return
    yield from _held_by(config)
    for name, entries in config.items():
        # What is still warming, or drains, serves no new request.
        serves = name.startswith(_LISTS) and not name.startswith(("dynamic_warming", "dynamic_draining"))
        for each in entries if serves and isinstance(entries, list) else ():
            yield from _held_by(each)


def _held_by(entry: Json) -> Iterator[Json]:
    # A dynamic listener lies one level deeper, and may be there without being active yet.
    for holder in (entry, entry.get("active_state") or {}):
        for name in ("listener", "route_config", "cluster", "ecds_filter"):
            if isinstance(holder.get(name), Mapping):
                yield holder[name]
        scopes = holder.get("scoped_route_configs")
        if isinstance(scopes, list):
            yield {"scoped_routes": str(holder.get("name", "")), "scoped_route_configs": scopes}


def _unwrapped(resource: Json) -> Json:
    # In an answer of xDS a resource may have a wrapper with its name and version.
    return resource["resource"] if isinstance(resource.get("resource"), Mapping) else resource


def _sort_of(resource: Json) -> str:
    """Return which sort of resource this is, by its type or by a field that no other has."""
    kind = str(resource.get("@type", "")).rpartition(".")[2]
    if "scoped_routes" in resource:
        return "scopes"
    if kind == "Listener" or {"filter_chains", "api_listener", "default_filter_chain"} & resource.keys():
        return "listener"
    if kind == "RouteConfiguration" or {"virtual_hosts", "vhds"} & resource.keys():
        return "routes"
    if kind == "TypedExtensionConfig" or ("typed_config" in resource and "name" in resource):
        return "filter"
    if kind == "Cluster" or _CLUSTER & resource.keys():
        return "cluster"
    return ""


def _collected(bootstrap: Json | None, resources: Sequence[Json]) -> Configuration:
    sorts: dict[str, list[Json]] = {}
    for each in resources:
        sorts.setdefault(_sort_of(each), []).append(each)
    scopes = {
        each["scoped_routes"]: [
            scope.get("route_configuration_name") or scope.get("route_configuration", {}).get("name", "")
            for scope in each["scoped_route_configs"]
        ]
        for each in sorts.get("scopes", ())
    }
    inline = [
        scope["route_configuration"]
        for each in sorts.get("scopes", ())
        for scope in each["scoped_route_configs"]
        if "route_configuration" in scope
    ]
    return Configuration(
        bootstrap,
        tuple(sorts.get("listener", ())),
        _by_name([*sorts.get("routes", ()), *inline]),
        _by_name(sorts.get("cluster", ())),
        _by_name(sorts.get("filter", ())),
        scopes,
    )


def _by_name(resources: Sequence[Json]) -> dict[str, Json]:
    return {str(each["name"]): each for each in resources if "name" in each}


def plain(value: Any, default: Any) -> Any:
    """Return the value of a wrapper message, such as BoolValue, which a dump may show as an object."""
    if isinstance(value, Mapping):
        return value.get("value", default)
    return default if value is None else value


def typed(config: Any) -> Json:
    """Return the configuration of an extension, out of the wrapper of a type that Envoy's source does not know."""
    found: Json = config if isinstance(config, Mapping) else {}
    if str(found.get("@type", "")).endswith("TypedStruct"):
        return {**found.get("value", {}), "@type": found.get("type_url", "")}
    return found


def type_of(config: Json) -> str:
    """Return the last part of a configuration's type, such as `HttpConnectionManager`."""
    return str(config.get("@type", "")).rpartition(".")[2]
