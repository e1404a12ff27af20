"""`meshmw mesh-config`: the configuration with which a proxy or a platform keeps traces.

To add a target, put its template into `templates/mesh_config` and its name into `TARGETS`.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import typer

from meshmw._notices import quoted
from meshmw._policy.words import one_of
from meshmw._tools.output import OK, as_command, print_json
from meshmw.errors import MeshmwError, extra_named

TARGETS: Final = {
    "istio": "mesh config, Telemetry API v1 and an access log for Istio",
    "envoy": "a whole sidecar, as Envoy's bootstrap",
    "linkerd": "Helm values for Linkerd's control plane",
    "nginx": "a server block in front of the mesh",
    "haproxy": "a frontend in front of the mesh",
    "alb": "an Ingress for AWS's Application Load Balancer",
    "compose": "a service, its sidecar and a collector in Docker Compose",
    "k8s": "a Deployment with the downward API, and its Service",
}
# What Envoy prints for each request, by the names that `meshmw access-log` reads.
LOG_FIELDS: Final = (
    ("start_time", "%START_TIME%"),
    ("type", "%ACCESS_LOG_TYPE%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("traceparent", "%REQ(TRACEPARENT)%"),
    ("tracestate", "%REQ(TRACESTATE)%"),
    ("baggage", "%REQ(BAGGAGE)%"),
    ("b3", "%REQ(B3)%"),
    ("trace_id", "%TRACE_ID%"),
)
_TEMPLATES: Final = Path(__file__).parent / "templates" / "mesh_config"
# What lies behind each proxy where nobody says. NGINX and HAProxy stand in front of the sidecar that `envoy` prints.
_UPSTREAMS: Final = {"envoy": "127.0.0.1:8001", "compose": "inventory:8000"}
_UPSTREAM: Final = "127.0.0.1:15006"
# What `envoy` prints takes these.
_SIDECAR_PORTS: Final = {
    "the sidecar's administration": 15000,
    "the sidecar's outbound listener": 15001,
    "the sidecar's inbound listener": 15006,
}
# Ports that Istio's and Linkerd's proxies take in every pod.
_MESH_PORTS: Final = (15000, 15001, 15004, 15006, 15008, 15020, 15021, 15053, 15090, 4140, 4143, 4190, 4191)
# Templates put names and images without quotes into YAML, NGINX's and HAProxy's files, so nothing else may be in them.
_LABEL: Final = "[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*+")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_IMAGE: Final = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9._/:@]{0,253}[-A-Za-z0-9._])?")
# What YAML reads as a text without quotes: no number, no date, and none of the words that mean something else.
_PLAIN: Final = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null)\Z)[A-Za-z].*", re.IGNORECASE)
_LOOPBACK: Final = re.compile(r"(?:.*\.)?localhost|localhost\..*|ip6-(?:localhost|loopback)")
_ARN: Final = re.compile(r"arn:aws[a-z-]{0,20}:(?:acm|iam):[-A-Za-z0-9:/_.]{1,200}")


class MeshConfigError(MeshmwError):
    """Says in one line what cannot stand in a configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshNames:
    """Holds the names, addresses and numbers that a configuration is made with.

    Args:
        service: The service's name, a DNS label.
        namespace: Its Kubernetes namespace.
        collector: The collector's `host:port`, OTLP over gRPC.
        upstream: What lies behind a proxy, `host:port`; what goes with the target if empty.
        app_port: Where the application listens.
        listen_port: Where a terminator in front listens.
        image: The service's image.
        sampling: Percent of traces that proxies start sampled.
        host: The name by which clients reach a load balancer.
        certificate: The ARN of that name's certificate; AWS looks for one of this name if empty.

    Raises:
        MeshConfigError: One of them is no name, address or number of that kind.
    """

    service: str = "checkout"
    namespace: str = "shop"
    collector: str = "otel-collector.observability.svc.cluster.local:4317"
    upstream: str = ""
    app_port: int = 8000
    listen_port: int = 8080
    image: str = "registry.example/shop/checkout:1"
    sampling: float = 100.0
    host: str = "shop.example.com"
    certificate: str = ""

    def __post_init__(self) -> None:
        for name in ("service", "namespace"):
            value = getattr(self, name)
            if not _NAME.fullmatch(value) or "." in value:
                raise MeshConfigError(
                    f"{name} is {quoted(value)}: it takes 63 small letters, digits and hyphens at most"
                )
        _split_address("collector", self.collector)
        if self.upstream:
            _split_address("upstream", self.upstream)
        for name in ("app_port", "listen_port"):
            if not 0 < getattr(self, name) < 65536:
                raise MeshConfigError(f"{name} is {getattr(self, name)}: it takes a port number")
        if not _IMAGE.fullmatch(self.image):
            raise MeshConfigError(f"image is {quoted(self.image)}: it takes a container image's name")
        if not 0 <= self.sampling <= 100:
            raise MeshConfigError(f"sampling is {self.sampling:g}: it takes percent, 0 to 100")
        if not _NAME.fullmatch(self.host):
            raise MeshConfigError(f"host is {quoted(self.host)}: it takes a host name")
        if self.certificate and not _ARN.fullmatch(self.certificate):
            raise MeshConfigError(f"certificate is {quoted(self.certificate)}: it takes an ARN of AWS, arn:aws:acm:...")


def _split_address(name: str, address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    # A dot at the end says that the name is whole.
    if not _NAME.fullmatch(host.removesuffix(".")) or not _PORT.fullmatch(port) or not 0 < int(port) < 65536:
        raise MeshConfigError(f"{name} is {quoted(address)}: it takes host:port")
    return host, int(port)


_DEFAULT: Final = MeshNames()


@as_command
def mesh_config(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="; ".join(f"{name}: {meaning}" for name, meaning in TARGETS.items())),
    ],
    service: Annotated[str, typer.Option(help="The service's name.")] = _DEFAULT.service,
    namespace: Annotated[str, typer.Option(help="Its namespace.")] = _DEFAULT.namespace,
    collector: Annotated[str, typer.Option(metavar="HOST:PORT", help="OTLP over gRPC.")] = _DEFAULT.collector,
    upstream: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help=f"What lies behind the proxy; {_UPSTREAM} if not given, "
            f"{' and '.join(f'{where} for {target}' for target, where in _UPSTREAMS.items())}.",
        ),
    ] = _DEFAULT.upstream,
    app_port: Annotated[int, typer.Option(help="Where the application listens.")] = _DEFAULT.app_port,
    listen_port: Annotated[int, typer.Option(help="Where a terminator listens.")] = _DEFAULT.listen_port,
    image: Annotated[str, typer.Option(help="The service's image.")] = _DEFAULT.image,
    sampling: Annotated[float, typer.Option(help="Percent of traces that proxies start sampled.")] = _DEFAULT.sampling,
    host: Annotated[str, typer.Option(help="The name by which clients reach the load balancer.")] = _DEFAULT.host,
    certificate: Annotated[
        str, typer.Option(metavar="ARN", help="That name's certificate; AWS finds it by the name if not given.")
    ] = _DEFAULT.certificate,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document that holds the text.")] = False,
) -> int:
    """Print a configuration with which a proxy or a platform keeps traces and logs traceparent.

    Redirect it to a file, and read it: it says in its comments what each part is for. Nothing is applied.
    """
    names = MeshNames(
        service=service, namespace=namespace, collector=collector, upstream=upstream,
        app_port=app_port, listen_port=listen_port, image=image, sampling=sampling,
        host=host, certificate=certificate,
    )  # fmt: skip
    text = render_config(target, names)
    if json:
        print_json({"target": target, "text": text})
    else:
        print(text, end="")
    return OK


def render_config(target: str, names: MeshNames | None = None) -> str:
    """Return the configuration for one target.

    Args:
        target: One of `TARGETS`.
        names: What it is made with; the defaults if None.

    Raises:
        MeshConfigError: There is no such target, or two things would need one port of one machine.
        MissingExtraError: Jinja2 is not installed.
    """
    try:
        one_of(TARGETS, target, "target")
    except ValueError as error:
        raise MeshConfigError(str(error)) from None
    with extra_named("jinja2", "Jinja2", "cli"):
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    # Nothing is escaped: the values are checked above, and what comes out is no HTML.
    environment = Environment(  # noqa: S701
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters["text"] = lambda text: text if _PLAIN.fullmatch(text) else f'"{text}"'
    names = names or _DEFAULT
    if not names.upstream:
        names = replace(names, upstream=_UPSTREAMS.get(target, _UPSTREAM))
    if target == "compose":
        _check_services(names)
    if target in ("istio", "linkerd") and _is_address(names.collector):
        raise MeshConfigError(f"collector is {quoted(names.collector)}: {target} finds it by the name of its Service")
    for ports in _ports_of_machines(target, names):
        _check_apart(ports)
    (template,) = _TEMPLATES.glob(f"{target}.*.j2")
    return environment.get_template(template.name).render(_template_values(names))


def _check_services(names: MeshNames) -> None:
    """Check that a composition's services have names of their own, and that what lies behind them is another."""
    if names.service == "collector":
        raise MeshConfigError("service is 'collector': the composition has a collector of its own; give another name")
    host = _split_address("upstream", names.upstream)[0].removesuffix(".")
    if host in (names.service, f"{names.service}-sidecar", "collector"):
        raise MeshConfigError(f"upstream is {quoted(names.upstream)}: the composition has that service; give another")


def _ports_of_machines(target: str, names: MeshNames) -> Iterator[dict[str, int]]:
    """Yield the ports of each machine or network that a configuration is for, by what has them."""
    if target in ("nginx", "haproxy"):
        here = _on_loopback(names, "", "upstream")
        yield {"listen_port": names.listen_port, **here}
        if here:
            # The sidecar is on this machine, and so is the application.
            yield {"listen_port": names.listen_port, **_SIDECAR_PORTS, "app_port": names.app_port}
    if target in ("envoy", "compose"):
        # In a composition the collector is another container.
        behind = ("upstream", "collector") if target == "envoy" else ("upstream",)
        yield {**_SIDECAR_PORTS, "app_port": names.app_port, **_on_loopback(names, names.service, *behind)}
    if target == "compose":
        yield {"listen_port": names.listen_port, "Jaeger's page": 16686}
    if target == "k8s" and names.app_port in _MESH_PORTS:
        yield {"app_port": names.app_port, "the proxy of a mesh": names.app_port}


def _on_loopback(names: MeshNames, own: str, *addresses: str) -> dict[str, int]:
    found = {name: _split_address(name, getattr(names, name)) for name in addresses}
    return {name: port for name, (host, port) in found.items() if _is_here(host, own)}


def _is_here(host: str, own: str) -> bool:
    """Say whether a host is the machine or the network itself, by whichever name."""
    host = host.removesuffix(".")
    if host == own or _LOOPBACK.fullmatch(host):
        return True
    address = _address_of(host)
    return address is not None and (address.is_loopback or address.is_unspecified)


def _is_address(address: str) -> bool:
    """Say whether an address names a machine, and no service of a cluster."""
    host = _split_address("collector", address)[0].removesuffix(".")
    return _address_of(host) is not None or _LOOPBACK.fullmatch(host) is not None


def _address_of(host: str) -> ipaddress.IPv4Address | None:
    """Return an address as resolvers read it: `127.1`, `0x7f000001` and `2130706433` are one; None for a name."""
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def _check_apart(ports: Mapping[str, int]) -> None:
    """Check that no two share a port: a proxy that leads to its own port sends each request to itself for ever."""
    by_port: dict[int, str] = {}
    for name, port in ports.items():
        if port in by_port:
            raise MeshConfigError(f"{by_port[port]} and {name} would both have port {port}: give one of them another")
        by_port[port] = name


def _template_values(names: MeshNames) -> dict[str, object]:
    collector_host, collector_port = _split_address("collector", names.collector)
    upstream_host, upstream_port = _split_address("upstream", names.upstream)
    name, _, rest = collector_host.partition(".")
    return {
        "service": names.service,
        "namespace": names.namespace,
        "image": names.image,
        "app_port": names.app_port,
        "listen_port": names.listen_port,
        # An exponent would be a text in YAML.
        "sampling": f"{names.sampling:.10f}".rstrip("0").removesuffix("."),
        "sampling_per_million": round(names.sampling * 10_000),
        "collector_host": collector_host,
        "collector_port": collector_port,
        "collector_name": name,
        "collector_namespace": rest.partition(".")[0] or names.namespace,
        "upstream_host": upstream_host,
        "upstream_port": upstream_port,
        "host": names.host,
        "certificate": names.certificate,
        "log_fields": LOG_FIELDS,
    }
