"""What access logs said: each log by itself, and what became of traces between them.

Knows counts and crossings as values, with `to_json()`. Must not know how logs are read, nor a terminal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from meshmw.diagnose.access_log_counts import Place, Places
from meshmw.diagnose.access_log_hops import Crossing


@dataclass
class HopLog:
    """Is what one log said.

    Attributes:
        name: The hop.
        lines: Lines that were read.
        broken: Lines that are not in the format.
        ambiguous: Lines that can be read in several ways, because some text in them holds quotes or spaces.
        places: Requests by route and upstream.
        logs_traceparent: Whether the format prints it at all.
        format: The format's source.
        fault: Why reading ended early; empty if it did not.
    """

    name: str
    lines: int = 0
    broken: int = 0
    ambiguous: int = 0
    places: Places = field(default_factory=Places)
    logs_traceparent: bool = True
    format: str = ""
    fault: str = ""


@dataclass(frozen=True, slots=True)
class AccessLogReport:
    """Is what all logs said together."""

    hops: tuple[HopLog, ...]
    crossings: tuple[Crossing, ...] = ()
    joined_one_in: int = 1

    @property
    def first_loss(self) -> Crossing | None:
        """The first place where traces are lost, on the way from the first log to the last."""
        return next((crossing for crossing in self.crossings if crossing.loses), None)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "hops": [_hop_json(hop) for hop in self.hops],
            "crossings": [crossing.to_json() for crossing in self.crossings],
            "first_loss": None if self.first_loss is None else self.first_loss.to_json(),
            "joined_one_in": self.joined_one_in,
        }


def _hop_json(hop: HopLog) -> dict[str, Any]:
    return {
        "name": hop.name,
        "lines": hop.lines,
        "broken": hop.broken,
        "ambiguous": hop.ambiguous,
        "fault": hop.fault,
        "logs_traceparent": hop.logs_traceparent,
        "total": hop.places.total.to_json(),
        "reasons": dict(hop.places.reasons),
        "examples": dict(hop.places.examples),
        "routes": [
            {"route": route, "upstream": upstream, **place.to_json()}
            for (route, upstream), place in sorted_places(hop.places)
        ],
    }


def sorted_places(places: Places) -> list[tuple[tuple[str, str], Place]]:
    """Return routes and upstreams, those with the most requests that are not valid first."""
    return sorted(
        places.places.items(), key=lambda item: (item[1].kinds["valid"] - item[1].total, -item[1].total, item[0])
    )
