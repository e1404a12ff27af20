"""Istio's control plane from files, and the Envoys of the wheel that it configures, each pod on an address of its own.

This is istiod's configuration on a plain Envoy, not Istio's own proxy: what only that has (statistics, exchange of
metadata, the ALPN filter) is switched off. In `INTERCEPTION_MODE=NONE` a proxy has the listeners alone that a Sidecar
object names, so nothing of this machine's network is touched.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from meshmw.testing import find_envoy, start_process, stop_processes
from tests.programs import clean_environment

Object = dict[str, Any]

VERSION = "1.32.0"
# What a plain Envoy has no filters for.
PLAIN_ENVOY = {"PILOT_ENABLE_METADATA_EXCHANGE": "false", "PILOT_ENABLE_ALPN_FILTER": "false"}
# Spans and log lines are to be seen at once.
_RUNTIME = {
    f"tracing.{tracer}.{name}": value
    for tracer in ("opentelemetry", "zipkin")
    for name, value in (("flush_interval_ms", 50), ("min_flush_spans", 1))
}


@dataclass(frozen=True)
class ControlPlane:
    """A running one: where it serves xDS, where its debug interface is, and what it logs."""

    xds: str
    debug: str
    log: Path


@contextlib.contextmanager
def control_plane(
    folder: Path,
    directory: Path,
    *,
    mesh: Object,
    config: Sequence[Object] = (),
    objects: Sequence[Object] = (),
    **environment: str,
) -> Iterator[ControlPlane]:
    """Run Istio's discovery server.

    Args:
        folder: Where `python -m tests.real.install istio` put it.
        directory: Where its files and its log go.
        mesh: The MeshConfig.
        config: Istio's own objects.
        objects: Kubernetes' objects, Gateway API included.
        environment: Its feature switches.
    """
    files = {"mesh": json.dumps(mesh), "config": as_yaml(config), "objects": as_yaml(objects)}
    for name, text in files.items():
        (directory / f"{name}.yaml").write_text(text)
    command = [str(folder / "istio"), "serve", *(f"--{name}={directory / name}.yaml" for name in files)]
    log = directory / "istiod.log"
    process = start_process(command, log, environment={**clean_environment(), **PLAIN_ENVOY, **environment})
    try:
        yield _wait_until_serving(process, log)
    finally:
        stop_processes([process])


def as_yaml(objects: Sequence[Object]) -> str:
    """Objects as documents of one file."""
    # What two objects share would else become an anchor and an alias.
    return yaml.safe_dump_all(json.loads(json.dumps(objects)))


def _wait_until_serving(process: subprocess.Popen[bytes], log: Path) -> ControlPlane:
    deadline = time.monotonic() + 120
    while True:
        text = log.read_text(errors="replace")
        for line in text.splitlines():
            if line.startswith("serving "):
                _, xds, debug = line.split()
                return ControlPlane(xds, debug, log)
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"istiod did not start:\n{text[-4000:]}")
        time.sleep(0.02)


class Addresses:
    """Gives each pod an address of the loopback network, in a part of it that no other run is likely to use."""

    def __init__(self) -> None:
        self._network = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}"
        self._last = 0

    def new(self) -> str:
        """The next address."""
        self._last += 1
        return f"{self._network}.{self._last}"


@dataclass(frozen=True)
class Pod:
    """One workload, as its proxy introduces itself to the control plane."""

    name: str
    namespace: str
    address: str
    kind: str = "sidecar"
    # Without Istio's agent nobody answers for the certificates of a waypoint's clusters, and it would wait for ever.
    asks_for_clusters: bool = True
    version: str = VERSION
    bootstrap: Object = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def node(self) -> Object:
        """Envoy's `node`, from which the control plane learns who asks."""
        domain = f"{self.namespace}.svc.cluster.local"
        metadata = {
            "NAMESPACE": self.namespace,
            "INSTANCE_IPS": self.address,
            # The second one keeps the gateways apart, which choose their proxies in every namespace.
            "LABELS": {"app": self.name, "shop": self.namespace, **self.labels},
            "WORKLOAD_NAME": self.name,
            "CLUSTER_ID": "Kubernetes",
            "INTERCEPTION_MODE": "NONE",
            "ISTIO_VERSION": self.version,
        }
        node_id = f"{self.kind}~{self.address}~{self.name}.{self.namespace}~{domain}"
        return {"id": node_id, "cluster": f"{self.name}.{self.namespace}", "metadata": metadata}


class PodProxy:
    """An Envoy that has its configuration from a control plane."""

    def __init__(self, pod: Pod, plane: ControlPlane, directory: Path) -> None:
        self.pod = pod
        self._run = directory / f"{pod.name}-{pod.namespace}-{pod.version}"
        self._run.mkdir()
        config = self._run / "envoy.json"
        config.write_text(json.dumps(_bootstrap(pod, plane.xds)))
        flags = [
            "--disable-hot-restart --concurrency 1 --log-level warning --file-flush-interval-msec 50",
            f"--config-path {config} --admin-address-path {self._run}/admin --log-path {self._run}/envoy.log",
        ]
        # Standard output is the access log's alone.
        command = [str(find_envoy()), *" ".join(flags).split()]
        self.process = start_process(command, self.access_log)

    @property
    def access_log(self) -> Path:
        """What `accessLogFile: /dev/stdout` writes to."""
        return self._run / "access.log"

    @property
    def admin_url(self) -> str:
        """The base of its administration interface."""
        return f"http://{(self._run / 'admin').read_text().strip()}"

    def words(self) -> str:
        """What it has logged of itself."""
        return (self._run / "envoy.log").read_text(errors="replace")

    def stop(self) -> None:
        """End it."""
        stop_processes([self.process])

    def is_ready(self) -> bool:
        """Whether it has taken the control plane's configuration."""
        if self.process.poll() is not None:
            raise AssertionError(f"{self.pod.name} ended:\n{self.words()}")
        with contextlib.suppress(OSError, httpx.HTTPError):
            return httpx.get(f"{self.admin_url}/ready", trust_env=False, timeout=5).text == "LIVE\n"
        return False

    def dump(self) -> Object:
        """Its whole configuration, as it says itself."""
        found: Object = httpx.get(f"{self.admin_url}/config_dump", trust_env=False, timeout=30).json()
        return found

    def managers(self) -> dict[str, Object]:
        """Its HTTP connection managers, by the traffic direction of their listeners."""
        listeners = [each["active_state"]["listener"] for each in self._dumped("ListenersConfigDump")]
        return {
            listener.get("traffic_direction", ""): one["typed_config"]
            for listener in listeners
            for chain in (*listener.get("filter_chains", ()), listener.get("default_filter_chain") or {})
            for one in chain.get("filters", ())
            if one["typed_config"]["@type"].endswith("HttpConnectionManager")
        }

    def _dumped(self, kind: str) -> list[Object]:
        for section in self.dump()["configs"]:
            if section["@type"].endswith(kind):
                found: list[Object] = section.get("dynamic_listeners", [])
                refused = [each["error_state"]["details"] for each in found if "error_state" in each]
                assert not refused, refused
                return found
        return []


def _bootstrap(pod: Pod, xds: str) -> Object:
    source = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
    return {
        "node": pod.node(),
        "admin": {"address": _address("127.0.0.1:0")},
        "layered_runtime": {"layers": [{"name": "test", "static_layer": _RUNTIME}]},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
            },
            **({"cds_config": source} if pod.asks_for_clusters else {}),
            "lds_config": source,
        },
        "static_resources": {"clusters": [_cluster("xds-grpc", xds, http2=True), *pod.bootstrap.get("clusters", ())]},
        **{key: value for key, value in pod.bootstrap.items() if key != "clusters"},
    }


def zipkin_bootstrap(address: str) -> Object:
    """What Istio's agent adds to a bootstrap for `defaultConfig.tracing.zipkin`; the control plane never sends it."""
    tracer = {
        "@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig",
        "collector_cluster": "zipkin",
        "collector_endpoint": "/api/v2/spans",
        "collector_endpoint_version": "HTTP_JSON",
        "trace_id_128bit": True,
        "shared_span_context": False,
    }
    return {
        "clusters": [_cluster("zipkin", address)],
        "tracing": {"http": {"name": "envoy.tracers.zipkin", "typed_config": tracer}},
    }


def _cluster(name: str, address: str, *, http2: bool = False) -> Object:
    endpoint = {"endpoint": {"address": _address(address)}}
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    explicit = {"@type": f"type.googleapis.com/{options}", "explicit_http_config": {"http2_protocol_options": {}}}
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        **({"typed_extension_protocol_options": {options: explicit}} if http2 else {}),
    }


def _address(address: str) -> Object:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


@contextlib.contextmanager
def pod_proxies(pods: Sequence[Pod], plane: ControlPlane, directory: Path) -> Iterator[dict[str, PodProxy]]:
    """Run the proxies of some pods, until all have taken their configuration, and stop them whatever happens."""
    proxies: list[PodProxy] = []
    try:
        for pod in pods:
            proxies.append(PodProxy(pod, plane, directory))
        deadline = time.monotonic() + 60
        while waiting := [proxy for proxy in proxies if not proxy.is_ready()]:
            if time.monotonic() > deadline:
                words = "\n".join(proxy.words() for proxy in waiting)
                raise AssertionError(f"{[each.pod.name for each in waiting]} wait\n{words}")
            time.sleep(0.02)
        yield {proxy.pod.name: proxy for proxy in proxies}
    finally:
        stop_processes(proxy.process for proxy in proxies)


@dataclass(frozen=True)
class Ports:
    """The ports of every shop: its gateway's, its services', its sidecars' inbound listeners', its applications'."""

    gateway: int
    service: int
    inbound: int
    checkout: int
    inventory: int


@dataclass(frozen=True)
class Shop:
    """A gateway and two services with their sidecars in a namespace of their own."""

    namespace: str
    gateway: str
    checkout: str
    inventory: str
    ports: Ports
    egress: Sequence[str] = ("./*", "istio-system/*")

    def pods(self, **options: Any) -> list[Pod]:
        """Its three workloads."""
        return [
            Pod("gateway", self.namespace, self.gateway, "router", **options),
            Pod("checkout", self.namespace, self.checkout, **options),
            Pod("inventory", self.namespace, self.inventory, **options),
        ]

    def host(self, service: str) -> str:
        """A service's name in the mesh."""
        return f"{service}.{self.namespace}.svc.cluster.local"

    def get(self, headers: Sequence[tuple[str, str]]) -> Object:
        """Send one request with exactly these header lines through the gateway, and return what the services saw."""
        inventory = f"http://{self.checkout}:{self.ports.service}/stock"
        connection = http.client.HTTPConnection(self.gateway, self.ports.gateway, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest("GET", f"/checkout?inventory={inventory}&host={self.host('inventory')}")
            for name, value in headers:
                connection.putheader(name, value)
            connection.endheaders()
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200, body
            found: Object = json.loads(body)
            return found

    def objects(self, tracing: Sequence[Object] | None, rules: Sequence[Object] | None = None) -> list[Object]:
        """Istio's objects of this namespace.

        Args:
            tracing: The rules of its Telemetry object; None for no such object.
            rules: What a VirtualService of the inventory does; None for no such object.
        """
        found = [
            *(self._service(name, address) for name, address in self._services()),
            *(self._sidecar(name, address) for name, address in self._services()),
            self._gateway(),
            self._virtual_service("checkout", [self.route("checkout")], gateways=["gateway"], hosts=["*"]),
        ]
        if tracing is not None:
            found.append(made("telemetry.istio.io", "Telemetry", self.namespace, "tracing", tracing=list(tracing)))
        if rules is not None:
            found.append(self._virtual_service("inventory", list(rules), hosts=[self.host("inventory")]))
        return found

    def route(self, service: str, **more: Any) -> Object:
        """A rule that sends everything to one service."""
        return {"route": [self.destination(service, **more)]}

    def destination(self, service: str, **more: Any) -> Object:
        """One destination of a rule."""
        return {"destination": {"host": self.host(service), "port": {"number": self.ports.service}}, **more}

    def _services(self) -> list[tuple[str, str]]:
        return [("checkout", self.checkout), ("inventory", self.inventory)]

    def _service(self, name: str, address: str) -> Object:
        port = {"number": self.ports.service, "name": "http", "protocol": "HTTP", "targetPort": self.ports.inbound}
        endpoints = [{"address": address, "labels": {"app": name}}]
        return service_entry(self.namespace, name, port, endpoints)

    def _sidecar(self, name: str, address: str) -> Object:
        inbound = {
            "port": {"number": self.ports.inbound, "protocol": "HTTP", "name": "http"},
            "bind": address,
            "defaultEndpoint": f"127.0.0.1:{getattr(self.ports, name)}",
        }
        outbound = {"bind": address, "hosts": [*self.egress]}
        selector = {"labels": {"app": name}}
        return _networking(
            "Sidecar", self.namespace, name, workloadSelector=selector, ingress=[inbound], egress=[outbound]
        )

    def _gateway(self) -> Object:
        port = {"number": self.ports.gateway, "name": "http", "protocol": "HTTP"}
        server = {"port": port, "hosts": [f"{self.namespace}/*"], "bind": self.gateway}
        selector = {"app": "gateway", "shop": self.namespace}
        return _networking("Gateway", self.namespace, "gateway", selector=selector, servers=[server])

    def _virtual_service(self, name: str, rules: Sequence[Object], **spec: Any) -> Object:
        return _networking("VirtualService", self.namespace, name, http=list(rules), **spec)


def service_entry(namespace: str, name: str, port: Object, endpoints: Sequence[Object]) -> Object:
    """A service of the mesh whose endpoints are written down."""
    return _networking(
        "ServiceEntry",
        namespace,
        name,
        hosts=[f"{name}.{namespace}.svc.cluster.local"],
        location="MESH_INTERNAL",
        resolution="STATIC",
        ports=[port],
        endpoints=list(endpoints),
    )


def _networking(kind: str, namespace: str, name: str, **spec: Any) -> Object:
    return made("networking.istio.io", kind, namespace, name, **spec)


def made(
    group: str, kind: str, namespace: str, name: str, *, labels: Mapping[str, str] | None = None, **spec: Any
) -> Object:
    """One object."""
    metadata = {"name": name, "namespace": namespace, "labels": dict(labels or {})}
    return {"apiVersion": f"{group}/v1".lstrip("/"), "kind": kind, "metadata": metadata, "spec": spec}
