"""What an Envoy says of its own configuration, as far as it concerns traces.

The administration interface is asked with GET alone, for it can also stop a proxy. A file that holds its answer does as
well. Only the fields of `ProxyConfig` are taken: a dump may hold keys and certificates, which go nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from meshmw._notices import without_secrets
from meshmw._tools import JsonValue
from meshmw._tools.doctor.configuration import (
    Configuration,
    Json,
    configurations_of,
    parse,
    plain,
    type_of,
    typed,
    with_own_names,
)
from meshmw._tools.doctor.headers import HeaderChange, follow
from meshmw._tools.doctor.tracers import Tracing, read_tracing
from meshmw._tools.doctor.versions import OLDEST, lacking
from meshmw._tools.http_client import HttpError, exchange
from meshmw.errors import MeshmwError

_CONNECTION_MANAGER: Final = "HttpConnectionManager"
# A dump of a large mesh has tens of megabytes.
_MAX_DUMP: Final = 1 << 28
# What reading JSON of another shape raises.
_UNEXPECTED: Final = (ValueError, AttributeError, LookupError, TypeError, ArithmeticError, RecursionError)


class AdminError(MeshmwError):
    """Says in one line why a proxy's configuration cannot be read."""


def ask_proxy(url: str, *, timeout: float = 5.0) -> ProxyConfig:
    """Read a proxy's configuration from its administration interface.

    Args:
        url: Such as `http://127.0.0.1:15000`, which is Istio's; a missing `http://` is added.
        timeout: Seconds for each answer.

    Raises:
        AdminError: It does not answer, or with something else.
    """
    base = (url if "://" in url else f"http://{url}").rstrip("/")
    where = without_secrets(base)
    try:
        dump, info, clusters = (
            _answer(f"{base}{path}", timeout) for path in ("/config_dump", "/server_info", "/clusters?format=json")
        )
        return read_proxy(where, dump, info, clusters)
    except HttpError as error:
        raise AdminError(f"{where} cannot be asked: {error}") from error
    except _UNEXPECTED as error:
        raise AdminError(f"{where} is no Envoy administration interface ({type(error).__name__})") from error


def _answer(url: str, timeout: float) -> Any:
    response = exchange("GET", url, timeout=timeout, limit=_MAX_DUMP)
    if response.status_code != 200:
        oldest, lacks = ".".join(map(str, OLDEST["Linkerd"])), ", ".join(lacking("Linkerd", OLDEST["Linkerd"]))
        raise AdminError(
            f"{without_secrets(url)} answered {response.status_code} and is no Envoy administration interface; a proxy "
            f"of Linkerd has none, and Linkerd {oldest} lacks {lacks}"
        )
    return response.json()


def read_dump(path: Path) -> list[ProxyConfig]:
    """Read a file with Envoy's configuration: what `/config_dump` answered, a bootstrap, or resources alone.

    JSON is read as well as YAML, with Envoy's own names as well as those of protojson, as `istioctl proxy-config POD -o
    json` and Envoy Gateway write them.

    Returns:
        The proxies that it is the configuration of: one, but for files that hold several dumps.

    Raises:
        AdminError: It cannot be read, or holds something else.
    """
    try:
        named = list(configurations_of(parse(path.read_bytes())))
        return [_read(f"{path} {name}".strip(), configuration) for name, configuration in named]
    except OSError as error:
        raise AdminError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise AdminError(f"{path} holds no config_dump, bootstrap or list of resources: {error}") from error
    except _UNEXPECTED as error:
        kind = type(error).__name__
        raise AdminError(f"{path} holds no config_dump, bootstrap or list of resources ({kind})") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyListener(Tracing):
    """Holds what one HTTP listener of a proxy does with traces: its tracer, and the rest of its way.

    Attributes:
        name: Its name.
        direction: `INBOUND`, `OUTBOUND` or empty.
        uses_request_id: Whether `x-request-id` carries the sampling decision.
        makes_request_id: Whether it makes one where it is missing.
        edge: Whether it treats the peer as the outside world, and so replaces `x-request-id`.
        changes: What becomes of trace headers on their way through.
        unjudged: What may change them, and does not say so in a configuration.
        missing_routes: Route configurations that it uses, and that are not there.
        rates: Percent of requests that start sampled, with the route that says so; empty for the listener's own.
        redirects: Routes that follow redirects themselves.
        max_kb: The limit on request headers, in KiB.
        max_count: The limit on their number.
        logs_traceparent: Whether an access log prints it; None where there is no access log.
    """

    name: str
    direction: str = ""
    uses_request_id: bool = True
    makes_request_id: bool = True
    edge: bool = False
    changes: tuple[HeaderChange, ...] = ()
    unjudged: tuple[str, ...] = ()
    missing_routes: tuple[str, ...] = ()
    rates: tuple[tuple[str, float], ...] = ()
    redirects: tuple[str, ...] = ()
    max_kb: int = 60
    max_count: int = 100
    logs_traceparent: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig(JsonValue):
    """Holds what one proxy says of itself.

    Attributes:
        where: The address that was asked, or the file.
        node: Its node id.
        version: Such as `(1, 40, 0)`; empty where it is not known.
        istio: The version of Istio that it is a proxy of; empty where it is not known.
        listeners: Its HTTP listeners.
        other_listeners: How many listeners it has beside those.
        failing: Clusters to which connections have failed and none has been made.
        unknown: Clusters of collectors that it does not have.
        missing: What of its configuration is not there: `listeners`, `clusters`.
        refused: Listeners that it was given and would not take, each with its reason.
    """

    where: str
    node: str = ""
    version: tuple[int, ...] = ()
    istio: tuple[int, ...] = ()
    listeners: tuple[ProxyListener, ...] = ()
    other_listeners: int = 0
    failing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()

    def where_of(self, listener: ProxyListener) -> str:
        """Return what findings call one of its listeners."""
        return f"{self.node or self.where} {listener.name or listener.direction}".strip()

    def to_json(self) -> dict[str, Any]:
        """Return the proxy as plain JSON values, with versions as texts."""
        texts = {name: ".".join(map(str, getattr(self, name))) for name in ("version", "istio")}
        return {**JsonValue.to_json(self), **texts}


def read_proxy(where: str, dump: Json, server_info: Json | None = None, clusters: Json | None = None) -> ProxyConfig:
    """Read what the administration interface answered.

    Args:
        where: The address that was asked, for messages.
        dump: `/config_dump`.
        server_info: `/server_info`, for the version.
        clusters: `/clusters?format=json`, for collectors that cannot be reached.

    Raises:
        ValueError: It is no configuration dump.
    """
    (_, configuration), *_others = configurations_of(with_own_names(dump))
    return _read(where, configuration, server_info, clusters)


def _read(
    where: str, configuration: Configuration, server_info: Json | None = None, clusters: Json | None = None
) -> ProxyConfig:
    node: Json = (configuration.bootstrap or {}).get("node", {})
    listeners = tuple(
        _read_listener(listener, manager, configuration)
        for listener in configuration.listeners
        for manager in _connection_managers(listener)
        if not _is_tunnel(manager)
    )
    known = configuration.listeners or configuration.refused
    missing = [] if known and not configuration.lacks_listeners else ["listeners"]
    if listeners and not configuration.clusters and not configuration.has_all_clusters:
        missing.append("clusters")
    collectors = {listener.collector for listener in listeners if listener.collector}
    http = {listener.name for listener in listeners}
    return ProxyConfig(
        where=where,
        node=str(node.get("id", "")),
        version=_version_of((server_info or {}).get("version")) or _version_of_node(node),
        istio=_numbers((node.get("metadata") or {}).get("ISTIO_VERSION")),
        listeners=listeners,
        other_listeners=sum(each.get("name", "") not in http for each in configuration.listeners),
        failing=tuple(_failing_clusters(clusters or {})),
        unknown=tuple(sorted(collectors - configuration.clusters.keys())) if configuration.has_all_clusters else (),
        missing=tuple(missing),
        refused=tuple(configuration.refused),
    )


def _connection_managers(listener: Json) -> Iterator[Json]:
    chains = [*listener.get("filter_chains", ()), listener.get("default_filter_chain") or {}]
    for chain in chains:
        for each in chain.get("filters", ()):
            # The second API of Envoy had `config`, which has no type.
            config = typed(each.get("typed_config") or each.get("config"))
            if type_of(config) == _CONNECTION_MANAGER or (
                str(each.get("name", "")).endswith("http_connection_manager") and "@type" not in config
            ):
                yield config
    api = typed(listener.get("api_listener", {}).get("api_listener"))
    if type_of(api) == _CONNECTION_MANAGER:
        yield api


def _is_tunnel(manager: Json) -> bool:
    """Says whether it ends tunnels alone, as a waypoint's first listener does: what they carry goes to another one."""
    hosts = manager.get("route_config", {}).get("virtual_hosts", ())
    routes = [route for host in hosts for route in host.get("routes", ())]
    return bool(routes) and all("connect_matcher" in route.get("match", {}) for route in routes)


def _read_listener(listener: Json, manager: Json, configuration: Configuration) -> ProxyListener:
    request_id = typed(manager.get("request_id_extension", {}).get("typed_config"))
    limits = manager.get("common_http_protocol_options", {})
    tracing = read_tracing(manager.get("tracing"), configuration.bootstrap)
    tables, missing = _tables_of(manager, configuration)
    way = follow(manager, tables, configuration, tracing)
    return ProxyListener(
        name=str(listener.get("name", "")),
        direction=str(listener.get("traffic_direction", "")),
        uses_request_id=plain(request_id.get("use_request_id_for_trace_sampling"), True),
        makes_request_id=plain(manager.get("generate_request_id"), True),
        edge=plain(manager.get("use_remote_address"), False),
        changes=way.changes,
        unjudged=way.unjudged,
        missing_routes=tuple(missing),
        rates=way.rates,
        redirects=way.redirects,
        max_kb=int(plain(manager.get("max_request_headers_kb"), 60)),
        max_count=int(plain(limits.get("max_headers_count"), 100)),
        logs_traceparent=_logs_traceparent(manager),
        **asdict(tracing),
    )


def _tables_of(manager: Json, configuration: Configuration) -> tuple[list[Json], list[str]]:
    """Return the route configurations of a connection manager, and the names of those that are not there."""
    scoped = manager.get("scoped_routes", {})
    if "route_config" in manager:
        names, tables = [], [manager["route_config"]]
    elif "rds" in manager:
        names, tables = [str(manager["rds"].get("route_config_name", ""))], []
    else:
        inline = scoped.get("scoped_route_configurations_list", {}).get("scoped_route_configurations", ())
        tables = [each["route_configuration"] for each in inline if "route_configuration" in each]
        names = [str(each.get("route_configuration_name", "")) for each in inline if each not in tables]
        names = [name for name in names if name] or [*configuration.scopes.get(str(scoped.get("name")), ())]
    tables += [configuration.routes[name] for name in names if name in configuration.routes]
    missing = [name for name in names if name not in configuration.routes]
    if not tables and not missing:
        missing = [str(scoped.get("name", "without a name"))]
    return tables, missing + [f"what {table.get('name', '')} gets by VHDS" for table in tables if "vhds" in table]


def _logs_traceparent(manager: Json) -> bool | None:
    logs = manager.get("access_log", ())
    return any("traceparent" in str(log.get("typed_config", {})).lower() for log in logs) if logs else None


def _version_of(text: Any) -> tuple[int, ...]:
    # commit/1.40.0/Clean/RELEASE/BoringSSL
    parts = str(text or "").split("/")
    return _numbers(parts[1]) if len(parts) > 1 else ()


def _version_of_node(node: Json) -> tuple[int, ...]:
    built = node.get("user_agent_build_version", {}).get("version", {})
    if built:
        return tuple(int(built.get(name, 0)) for name in ("major_number", "minor_number", "patch"))
    return _version_of(node.get("build_version")) or _numbers(node.get("user_agent_version"))


def _numbers(text: Any) -> tuple[int, ...]:
    return tuple(int(number) for number in str(text or "").partition("-")[0].split(".") if number.isdigit())


def _failing_clusters(clusters: Json) -> Iterator[str]:
    for cluster in clusters.get("cluster_statuses", ()):
        totals = {"cx_connect_fail": 0, "cx_total": 0}
        for host in cluster.get("host_statuses", ()):
            for stat in host.get("stats", ()):
                if stat.get("name") in totals:
                    totals[stat["name"]] += int(stat.get("value", 0))
        if totals["cx_connect_fail"] and totals["cx_connect_fail"] >= totals["cx_total"]:
            yield str(cluster.get("name", ""))
