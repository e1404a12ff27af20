"""`meshmw mesh-config`: prints configuration of proxies and platforms that keeps a trace.

To add a target, put its template into `templates/mesh_config` and its name into `TARGETS`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from meshmw._policy.words import one_of
from meshmw._tools.output import OK, as_command, print_json
from meshmw.errors import MeshmwError, MissingExtraError

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
# Names and images stand in YAML, in NGINX's and in HAProxy's files without quotes, so nothing else may be in them.
_NAME: Final = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_IMAGE: Final = re.compile(r"[A-Za-z0-9][-A-Za-z0-9._/:@]{0,254}")


class MeshConfigError(MeshmwError):
    """Says in one line what cannot stand in a configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshNames:
    """Holds the names, addresses and numbers that a configuration is made with.

    Args:
        service: The service's name, a DNS label.
        namespace: Its Kubernetes namespace.
        collector: The collector's `host:port`, OTLP over gRPC.
        upstream: What lies behind a proxy, `host:port`.
        app_port: Where the application listens.
        listen_port: Where a terminator in front listens.
        image: The service's image.
        sampling: Percent of traces that proxies start sampled.

    Raises:
        MeshConfigError: One of them is no name, address or number of that kind.
    """

    service: str = "checkout"
    namespace: str = "shop"
    collector: str = "otel-collector.observability.svc.cluster.local:4317"
    upstream: str = "127.0.0.1:8080"
    app_port: int = 8000
    listen_port: int = 8080
    image: str = "registry.example/shop/checkout:1"
    sampling: float = 100.0

    def __post_init__(self) -> None:
        for name in ("service", "namespace"):
            value = getattr(self, name)
            if not _NAME.fullmatch(value) or "." in value:
                raise MeshConfigError(f"{name} is {value!r}: it takes small letters, digits and hyphens")
        for name in ("collector", "upstream"):
            _split_address(name, getattr(self, name))
        for name in ("app_port", "listen_port"):
            if not 0 < getattr(self, name) < 65536:
                raise MeshConfigError(f"{name} is {getattr(self, name)}: it takes a port number")
        if not _IMAGE.fullmatch(self.image):
            raise MeshConfigError(f"image is {self.image!r}: it takes a container image's name")
        if not 0 <= self.sampling <= 100:
            raise MeshConfigError(f"sampling is {self.sampling:g}: it takes percent, 0 to 100")


def _split_address(name: str, address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not _NAME.fullmatch(host) or not _PORT.fullmatch(port) or not 0 < int(port) < 65536:
        raise MeshConfigError(f"{name} is {address!r}: it takes host:port")
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
    upstream: Annotated[str, typer.Option(metavar="HOST:PORT", help="What lies behind the proxy.")] = _DEFAULT.upstream,
    app_port: Annotated[int, typer.Option(help="Where the application listens.")] = _DEFAULT.app_port,
    listen_port: Annotated[int, typer.Option(help="Where a terminator listens.")] = _DEFAULT.listen_port,
    image: Annotated[str, typer.Option(help="The service's image.")] = _DEFAULT.image,
    sampling: Annotated[float, typer.Option(help="Percent of traces that proxies start sampled.")] = _DEFAULT.sampling,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document that holds the text.")] = False,
) -> int:
    """Print a configuration with which a proxy or a platform keeps traces and logs traceparent.

    Redirect it to a file, and read it: it says in its comments what each part is for. Nothing is applied.
    """
    names = MeshNames(
        service=service, namespace=namespace, collector=collector, upstream=upstream,
        app_port=app_port, listen_port=listen_port, image=image, sampling=sampling,
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
        MeshConfigError: There is no such target.
        MissingExtraError: Jinja2 is not installed.
    """
    try:
        one_of(TARGETS, target, "target")
    except ValueError as error:
        raise MeshConfigError(str(error)) from None
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as missing:
        raise MissingExtraError("Jinja2", "cli") from missing
    # Nothing is escaped: the values are checked above, and what comes out is no HTML.
    environment = Environment(  # noqa: S701
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    (template,) = _TEMPLATES.glob(f"{target}.*.j2")
    return environment.get_template(template.name).render(_template_values(names or _DEFAULT))


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
        "sampling": f"{names.sampling:g}",
        "sampling_per_million": round(names.sampling * 10_000),
        "collector_host": collector_host,
        "collector_port": collector_port,
        "collector_name": name,
        "collector_namespace": rest.partition(".")[0] or names.namespace,
        "upstream_host": upstream_host,
        "upstream_port": upstream_port,
        "log_fields": LOG_FIELDS,
    }
