"""What a test mesh is made of, as values: proxies, their listeners, where they route and how they trace.

Knows no JSON and starts nothing: `envoy_config` turns these values into Envoy's configuration, `envoy` runs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

TracerKind: TypeAlias = Literal["none", "otel", "otel-http", "zipkin-b3", "zipkin-b3-w3c"]
Direction: TypeAlias = Literal["inbound", "outbound", "unset"]


def split_address(address: str) -> tuple[str, int]:
    """Split `host:port`, with or without `http://` before it.

    Raises:
        ValueError: If the host or the port is missing or is no port number.
    """
    parts = urlsplit(address if "//" in address else f"//{address}")
    if not parts.hostname or not parts.port:
        raise ValueError(f"{address!r} is not host:port")
    return parts.hostname, parts.port


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracer:
    """Says how one listener traces and where it sends its spans.

    Args:
        kind: `none`, `otel` (OTLP over gRPC), `otel-http` (OTLP over HTTP), `zipkin-b3` (reads and writes B3 only) or
            `zipkin-b3-w3c` (B3 and `traceparent`).
        collector: The collector's `host:port`, with or without `http://`.
        service: The service name on the spans; the proxy's own name if empty. Zipkin spans always bear the proxy's.
        random_sampling: Percent of requests that start sampled. Since Envoy 1.39 it also clears the flag of a parent.
        sample_by_request_id: Let `x-request-id` carry the decision from hop to hop, as Envoy does by default. False
            leaves the decision to the parent's flag alone and the request id as it is.
        trace_id_128bit: Zipkin only: make 128-bit trace ids.
        shared_span_context: Zipkin only: let a server span reuse the span id of its client.
        spawn_upstream_span: Make a second span for each attempt upstream and inject that one.
    """

    kind: TracerKind = "otel"
    collector: str = ""
    service: str = ""
    random_sampling: float = 100.0
    sample_by_request_id: bool = True
    trace_id_128bit: bool = True
    shared_span_context: bool = False
    spawn_upstream_span: bool = False

    def __post_init__(self) -> None:
        if self.kind != "none":
            split_address(self.collector)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Sends the requests of one authority and one path prefix to one upstream.

    Args:
        upstream: The upstream's `host:port`.
        authority: The `Host` or `:authority` to match, as Envoy's `domains` take it; `*` for any.
        prefix: The path prefix to match.
    """

    upstream: str
    authority: str = "*"
    prefix: str = "/"

    def __post_init__(self) -> None:
        split_address(self.upstream)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Is one port of a proxy: what it accepts, how it traces, where it sends requests.

    Args:
        name: The listener's name, unique in its proxy.
        upstream: The `host:port` of every request that no route takes.
        routes: Routes that are tried first, in order.
        direction: `inbound` and `unset` make SERVER spans, `outbound` makes CLIENT spans.
        tracer: How to trace; None passes trace headers through untouched.
        port: A fixed port, or 0 for any free one.
        edge: Treat the peer as the outside world, as an ingress does: new `x-request-id`, `x-forwarded-for` set.
        remove_headers: Request headers that the route removes. A tracing listener injects its own afterwards.
        early_remove_headers: Request headers removed before the tracer looks.
        max_request_headers_kb: Envoy's limit on request headers; None for Envoy's default of 60.
        http2: Speak HTTP/2 to the upstreams, as gRPC asks, and let requests last; every listener accepts both.
    """

    name: str
    upstream: str
    routes: tuple[Route, ...] = ()
    direction: Direction = "unset"
    tracer: Tracer | None = None
    port: int = 0
    edge: bool = False
    remove_headers: tuple[str, ...] = ()
    early_remove_headers: tuple[str, ...] = ()
    max_request_headers_kb: int | None = None
    http2: bool = False

    def __post_init__(self) -> None:
        split_address(self.upstream)


@dataclass(frozen=True, slots=True)
class Proxy:
    """Is one Envoy process: a sidecar has an inbound and an outbound listener, an edge has one.

    Args:
        name: The proxy's name, in messages and as the default service name of its spans.
        listeners: At least one listener, each with its own name.

    Raises:
        ValueError: If there is no listener, or two of one name.
    """

    name: str
    listeners: tuple[Listener, ...]

    def __init__(self, name: str, listeners: Iterable[Listener]) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "listeners", tuple(listeners))
        names = [listener.name for listener in self.listeners]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"proxy {name!r} needs listeners with different names, got {names}")
