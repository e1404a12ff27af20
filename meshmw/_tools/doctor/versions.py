"""The oldest proxies that meshmw's pages are about, and what each version lacks that a newer one has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

Product = Literal["Envoy", "Istio", "Linkerd"]

OLDEST: Final[Mapping[Product, tuple[int, int]]] = {"Envoy": (1, 22), "Istio": (1, 14), "Linkerd": (2, 11)}
# What came with which version, in the order of versions. docs/compatibility.md has the same table.
CAME_WITH: Final[Mapping[Product, Sequence[tuple[tuple[int, int], str]]]] = {
    "Envoy": (
        ((1, 23), "the OpenTelemetry tracer"),
        ((1, 29), "its OTLP over HTTP and its samplers"),
        ((1, 36), "W3C headers of the Zipkin tracer (USE_B3_WITH_W3C_PROPAGATION)"),
        ((1, 38), "no_context_propagation"),
    ),
    "Istio": (
        ((1, 16), "the OpenTelemetry tracer"),
        ((1, 21), "its OTLP over HTTP and its samplers"),
        ((1, 22), "telemetry.istio.io/v1"),
        ((1, 28), "W3C headers of the Zipkin tracer (traceContextOption)"),
        ((1, 30), "disableContextPropagation"),
    ),
    "Linkerd": (
        ((2, 13), "W3C headers: before, its proxies know B3 alone"),
        ((2, 17), "export by OTLP"),
    ),
}


def lacking(product: Product, version: Sequence[int]) -> list[str]:
    """Return what a version lacks, each with the version that it came with."""
    return [
        f"{thing} ({'.'.join(map(str, since))})" for since, thing in CAME_WITH[product] if tuple(version[:2]) < since
    ]


def is_too_old(product: Product, version: Sequence[int]) -> bool:
    """Says whether a version is older than what meshmw's pages are about."""
    return tuple(version[:2]) < OLDEST[product]
