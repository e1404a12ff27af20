"""Finished spans of any collector, put in order for a `Journey`.

Knows what tells a proxy's span from an application's, and an orphan from a root. Must not know where spans were found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, Literal, Protocol

from meshmw.diagnose.journey import JourneySpan

PROXY_SCOPES: Final = frozenset({"envoy"})


class FinishedSpan(Protocol):
    """Is a span of any collector: `meshmw.testing.ReceivedSpan` has these, for one."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    status: str
    scope: str


def journey_spans(spans: Iterable[Any], probe_id: str = "") -> tuple[JourneySpan, ...]:
    """Return spans of a collector in the order in which they started, with proxies told from applications.

    Args:
        spans: Objects with the attributes of `FinishedSpan`.
        probe_id: The id of the probe's own span, which is no missing parent.
    """
    found = [
        JourneySpan(
            trace_id=span.trace_id,
            span_id=span.span_id,
            parent_id=span.parent_id,
            service=span.service,
            name=span.name,
            kind=span.kind,
            maker=maker_of(span.scope, span.attributes),
            start_ns=span.start_ns,
            end_ns=span.end_ns,
            status=span.status,
        )
        for span in spans
    ]
    return with_orphans(found, probe_id)


def with_orphans(spans: Iterable[JourneySpan], probe_id: str = "") -> tuple[JourneySpan, ...]:
    """Return spans in the order in which they started, those without their parent marked."""
    ordered = sorted(spans, key=lambda span: (span.start_ns, span.span_id))
    present = {(span.trace_id, span.span_id) for span in ordered}
    return tuple(
        replace(span, orphan=span.parent_id not in ("", probe_id) and (span.trace_id, span.parent_id) not in present)
        for span in ordered
    )


def maker_of(scope: str, attributes: Mapping[str, Any]) -> Literal["proxy", "app"]:
    """Tell a proxy's span by its scope, or by the attributes that Envoy's tracers and Linkerd's write."""
    if scope in PROXY_SCOPES or "guid:x-request-id" in attributes or "upstream_cluster" in attributes:
        return "proxy"
    linkerd = str(attributes.get("component", attributes.get("linkerd.io/proxy", "")))
    return "proxy" if linkerd in ("proxy", "linkerd") else "app"
