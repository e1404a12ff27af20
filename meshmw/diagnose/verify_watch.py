"""What `verify` watches, and what it has seen there.

Knows logs, backends, hops and spans. Must not know how they are judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from meshmw.diagnose.journey import Hop, JourneySpan
from meshmw.diagnose.verify_backends import Backend
from meshmw.diagnose.verify_logs import LogTail


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Says what is watched and how long.

    Attributes:
        tails: The access logs, in the order of the way, opened before the probe is sent.
        backends: Where spans are looked up.
        timeout: Seconds to wait at most for logs and spans.
        settle: Seconds in which nothing new must come before what came is all.
        spans: Spans that must come, 0 for one.
        alone: Whether nothing else uses the mesh.
    """

    tails: Sequence[LogTail] = ()
    backends: Sequence[Backend] = ()
    timeout: float = 15.0
    settle: float = 1.0
    spans: int = 0
    alone: bool = False


class Seen(NamedTuple):
    """Is what has been seen so far."""

    hops: tuple[Hop, ...]
    spans: tuple[JourneySpan, ...]


def logged_in(tail: LogTail, seen: Seen) -> int:
    """Return how many hops a log shows; another log's name may begin like this one's."""
    proxies = [hop.name for hop in seen.hops if hop.kind == "proxy"]
    return sum(name == tail.name or name.startswith(f"{tail.name} ") for name in proxies)
