"""What one proxy says of itself, as far as it concerns traces.

Knows listeners and limits as values, with `to_json()`. Must not know where they were found, nor what is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyListener:
    """Is one HTTP listener of a proxy.

    Attributes:
        name: Its name, with the route configuration's where it has one of its own.
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

    def to_json(self) -> dict[str, Any]:
        """Return the listener as plain JSON values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """Is what one proxy says of itself.

    Attributes:
        where: The address that was asked.
        node: Its node id.
        version: Such as `(1, 40, 0)`; empty where it does not tell.
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
        """Return the proxy as plain JSON values."""
        return {
            "where": self.where,
            "node": self.node,
            "version": ".".join(map(str, self.version)),
            "listeners": [listener.to_json() for listener in self.listeners],
            "failing": list(self.failing),
        }
