"""What an Envoy says of its own configuration, as far as it concerns traces.

The administration interface is asked with GET alone, for it can also stop a proxy. A file that holds its answer does as
well. Only the fields of `ProxyConfig` are taken: a dump may hold keys and certificates, which go nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from meshmw._notices import without_secrets
from meshmw._tools import JsonValue
from meshmw._tools.http_client import HttpError, exchange
from meshmw.errors import MeshmwError

TRACE_HEADERS: Final = frozenset({"traceparent", "tracestate", "baggage", "b3", "x-request-id"})
_TRACERS: Final = ("opentelemetry", "zipkin", "datadog", "skywalking", "xray", "lightstep", "opencensus", "dynamic_ot")
_CONNECTION_MANAGER: Final = "HttpConnectionManager"
# What reading JSON of another shape raises.
# A dump of a large mesh has tens of megabytes.
_MAX_DUMP: Final = 1 << 28
_UNEXPECTED: Final = (ValueError, AttributeError, LookupError, TypeError, ArithmeticError, RecursionError)

Json = Mapping[str, Any]


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
        raise HttpError(f"it answered {response.status_code}")
    return response.json()


def read_dump(path: Path) -> ProxyConfig:
    """Read a file that holds what `/config_dump` answered, as curl or `istioctl proxy-config all POD -o json` write it.

    Raises:
        AdminError: It cannot be read, or holds something else.
    """
    try:
        document: Any = json.loads(path.read_bytes())
        return read_proxy(str(path), document)
    except OSError as error:
        raise AdminError(f"{path}: {error.strerror or error}") from error
    except _UNEXPECTED as error:
        raise AdminError(f"{path} holds no config_dump ({type(error).__name__})") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyListener(JsonValue):
    """Holds what one HTTP listener of a proxy does with traces.

    Attributes:
        name: Its name.
        direction: `INBOUND`, `OUTBOUND` or empty.
        tracer: Such as `opentelemetry`, `zipkin`; empty where it passes trace headers through.
        formats: The formats that its tracer reads and writes: `w3c`, `b3`.
        random_sampling: Percent of requests that start sampled.
        sampler: The last part of the OpenTelemetry sampler's name; empty for none.
        uses_request_id: Whether `x-request-id` carries the sampling decision.
        makes_request_id: Whether it makes one where it is missing.
        edge: Whether it treats the peer as the outside world, and so replaces `x-request-id`.
        removes: Trace headers that its routes remove.
        removes_early: Trace headers that are removed before the tracer looks.
        writes_nothing: Whether the tracer injects no headers.
        shared_spans: Whether a Zipkin server span has the span id of its client.
        short_ids: Whether Zipkin makes trace ids of 64 bits.
        max_kb: The limit on request headers, in KiB.
        max_count: The limit on their number.
        logs_traceparent: Whether an access log prints it; None where there is no access log.
        collector: The cluster that spans go to; empty where there is none.
    """

    name: str
    direction: str = ""
    tracer: str = ""
    formats: tuple[str, ...] = ()
    random_sampling: float = 100.0
    sampler: str = ""
    uses_request_id: bool = True
    makes_request_id: bool = True
    edge: bool = False
    removes: tuple[str, ...] = ()
    removes_early: tuple[str, ...] = ()
    writes_nothing: bool = False
    shared_spans: bool = False
    short_ids: bool = False
    max_kb: int = 60
    max_count: int = 100
    logs_traceparent: bool | None = None
    collector: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig(JsonValue):
    """Holds what one proxy says of itself.

    Attributes:
        where: The address that was asked.
        node: Its node id.
        version: Such as `(1, 40, 0)`; empty where it is not known.
        listeners: Its HTTP listeners.
        failing: Clusters to which connections have failed and none has been made.
    """

    where: str
    node: str = ""
    version: tuple[int, ...] = ()
    listeners: tuple[ProxyListener, ...] = ()
    failing: tuple[str, ...] = ()

    def where_of(self, listener: ProxyListener) -> str:
        """Return what findings call one of its listeners."""
        return f"{self.node or self.where} {listener.name or listener.direction}".strip()

    def to_json(self) -> dict[str, Any]:
        """Return the proxy as plain JSON values, with the version as a text."""
        return {**JsonValue.to_json(self), "version": ".".join(map(str, self.version))}


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
    configs = dump.get("configs")
    if not isinstance(configs, list):
        raise ValueError(f"{where} did not answer with a config_dump")
    routes = {route["name"]: route for route in _resources(configs, "route_configs", "route_config") if "name" in route}
    listeners = [
        _read_listener(listener, manager, routes)
        for listener in _resources(configs, "listeners", "listener")
        for manager in _connection_managers(listener)
    ]
    node: Json = next((each["bootstrap"].get("node", {}) for each in configs if "bootstrap" in each), {})
    return ProxyConfig(
        where=where,
        node=str(node.get("id", "")),
        version=_read_version(server_info or {}),
        listeners=tuple(listeners),
        failing=tuple(_failing_clusters(clusters or {})),
    )


def _resources(configs: Sequence[Json], plural: str, single: str) -> Iterator[Json]:
    """Yield static and dynamic resources of one kind, such as `listeners`, each of which lies in a `listener`."""
    for config in configs:
        for each in (*config.get(f"static_{plural}", ()), *config.get(f"dynamic_{plural}", ())):
            # A dynamic listener lies one level deeper, and may be there without being active yet.
            found = each.get(single) or each.get("active_state", {}).get(single)
            if found:
                yield found


def _connection_managers(listener: Json) -> Iterator[Json]:
    chains = [*listener.get("filter_chains", ()), *filter(None, [listener.get("default_filter_chain")])]
    for chain in chains:
        for each in chain.get("filters", ()):
            config = each.get("typed_config", {})
            if str(config.get("@type", "")).endswith(_CONNECTION_MANAGER):
                yield config


def _read_listener(listener: Json, manager: Json, routes: Mapping[str, Json]) -> ProxyListener:
    route_config = manager.get("route_config") or routes.get(manager.get("rds", {}).get("route_config_name", ""), {})
    request_id = manager.get("request_id_extension", {}).get("typed_config", {})
    limits = manager.get("common_http_protocol_options", {})
    return ProxyListener(
        name=str(listener.get("name", "")),
        direction=str(listener.get("traffic_direction", "")),
        uses_request_id=_unwrapped(request_id.get("use_request_id_for_trace_sampling"), True),
        makes_request_id=_unwrapped(manager.get("generate_request_id"), True),
        edge=_unwrapped(manager.get("use_remote_address"), False),
        removes=tuple(sorted(set(_removed_by_routes(route_config)) & TRACE_HEADERS)),
        removes_early=tuple(sorted(set(_removed_early(manager)) & TRACE_HEADERS)),
        max_kb=int(_unwrapped(manager.get("max_request_headers_kb"), 60)),
        max_count=int(_unwrapped(limits.get("max_headers_count"), 100)),
        logs_traceparent=_logs_traceparent(manager),
        **_read_tracing(manager.get("tracing")),
    )


def _unwrapped(value: Any, default: Any) -> Any:
    # A dump may show a wrapper message, such as BoolValue, as its value or as an object with that.
    if isinstance(value, Mapping):
        return value.get("value", default)
    return default if value is None else value


def _removed_by_routes(route_config: Json) -> Iterator[str]:
    hosts = route_config.get("virtual_hosts", ())
    for level in (route_config, *hosts, *(route for host in hosts for route in host.get("routes", ()))):
        yield from (str(name).lower() for name in level.get("request_headers_to_remove", ()))


def _removed_early(manager: Json) -> Iterator[str]:
    for extension in manager.get("early_header_mutation_extensions", ()):
        for mutation in extension.get("typed_config", {}).get("mutations", ()):
            yield str(mutation.get("remove", "")).lower()


def _logs_traceparent(manager: Json) -> bool | None:
    logs = manager.get("access_log", ())
    return any("traceparent" in str(log.get("typed_config", {})).lower() for log in logs) if logs else None


def _read_tracing(tracing: Json | None) -> dict[str, Any]:
    if tracing is None or "provider" not in tracing:
        return {}
    config = tracing["provider"].get("typed_config", {})
    kind = str(tracing["provider"].get("name", "")).lower() + str(config.get("@type", "")).lower()
    tracer = next((name for name in _TRACERS if name in kind), "unknown")
    found: dict[str, Any] = {
        "tracer": tracer,
        "formats": _read_formats(tracer, config),
        "random_sampling": _started_sampled(tracing),
        "collector": _read_collector(config),
    }
    if tracer == "zipkin":
        found["shared_spans"] = _unwrapped(config.get("shared_span_context"), True)
        found["short_ids"] = not config.get("trace_id_128bit", False)
    if tracer == "opentelemetry":
        found["sampler"] = str(config.get("sampler", {}).get("name", "")).rpartition(".")[2]
        found["writes_nothing"] = bool(tracing.get("no_context_propagation", False))
    return found


def _started_sampled(tracing: Json) -> float:
    # Envoy samples no more than the smaller of the two.
    random = float(_percent_value(tracing.get("random_sampling"), 100.0))
    return min(random, float(_percent_value(tracing.get("overall_sampling"), 100.0)))


def _percent_value(value: Any, default: float) -> float:
    # An empty message is a percentage of zero.
    return default if value is None else float(value.get("value", 0.0))


def _read_formats(tracer: str, config: Json) -> tuple[str, ...]:
    if tracer == "opentelemetry":
        return ("w3c",)
    if tracer == "zipkin":
        both = config.get("trace_context_option") == "USE_B3_WITH_W3C_PROPAGATION"
        return ("b3", "w3c") if both else ("b3",)
    return ()


def _read_collector(config: Json) -> str:
    grpc = config.get("grpc_service", {}).get("envoy_grpc", {}).get("cluster_name", "")
    http = config.get("http_service", {}).get("http_uri", {}).get("cluster", "")
    return str(grpc or http or config.get("collector_cluster", ""))


def _read_version(server_info: Json) -> tuple[int, ...]:
    # commit/1.40.0/Clean/RELEASE/BoringSSL
    parts = str(server_info.get("version", "")).split("/")
    numbers = parts[1].partition("-")[0].split(".") if len(parts) > 1 else []
    return tuple(int(number) for number in numbers if number.isdigit())


def _failing_clusters(clusters: Json) -> Iterator[str]:
    for cluster in clusters.get("cluster_statuses", ()):
        totals = {"cx_connect_fail": 0, "cx_total": 0}
        for host in cluster.get("host_statuses", ()):
            for stat in host.get("stats", ()):
                if stat.get("name") in totals:
                    totals[stat["name"]] += int(stat.get("value", 0))
        if totals["cx_connect_fail"] and totals["cx_connect_fail"] >= totals["cx_total"]:
            yield str(cluster.get("name", ""))
