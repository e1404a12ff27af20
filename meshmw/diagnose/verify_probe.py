"""The synthetic request of `meshmw verify`, and its variants.

Knows trace headers as text. Must not know how it is sent, nor what becomes of it.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from meshmw.diagnose.journey import HEADERS

Variant = Literal["w3c", "unsampled", "malformed", "b3", "both"]
VARIANTS: Final = {
    "w3c": "a sampled traceparent and a tracestate",
    "unsampled": "the same with the sampled flag cleared",
    "malformed": "a traceparent that no reader may take",
    "b3": "B3 alone, in one header",
    "both": "a traceparent, and B3 that names another trace",
}
# Ids that a reader of a log recognises at once: 31 zeros and a 1, 15 zeros and a 1.
SYNTHETIC: Final = (f"{1:032x}", f"{1:016x}")
MALFORMED: Final = "00-xyz"
AGENT: Final = "meshmw-verify/"
TRACESTATE: Final = "meshmw=verify"
_OTHER_TRACE: Final = f"{0xB3:032x}"


@dataclass(frozen=True, slots=True)
class Probe:
    """Is the request to send.

    Attributes:
        url: Where to.
        variant: Which trace headers it bears.
        trace_id: 32 lower-case hex digits.
        parent_id: 16 lower-case hex digits.
        headers: All header lines that it sends.
        request_id: Its `x-request-id`; an edge proxy replaces it.
        agent: Its user agent, by which the first proxy's log line is known.
        method: Such as `GET`.
    """

    url: str
    variant: Variant
    trace_id: str
    parent_id: str
    headers: Mapping[str, str]
    request_id: str
    agent: str
    method: str = "GET"

    @property
    def trace_headers(self) -> dict[str, str]:
        """The trace headers among its headers."""
        return {name: value for name, value in self.headers.items() if name in HEADERS}


def make_probe(
    url: str,
    variant: Variant = "w3c",
    *,
    ids: tuple[str, str] = SYNTHETIC,
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
) -> Probe:
    """Return a request of a variant, with further headers that win over its own."""
    trace_id, parent_id = ids
    request_id, agent = str(uuid.uuid4()), f"{AGENT}{secrets.token_hex(8)}"
    own = {"user-agent": agent, "x-request-id": request_id, **_trace_headers(variant, trace_id, parent_id)}
    added = {name.lower(): value for name, value in (headers or {}).items()}
    return Probe(url, variant, trace_id, parent_id, {**own, **added}, request_id, agent, method)


def random_ids() -> tuple[str, str]:
    """Return ids that nobody has used, for a backend that keeps what earlier probes left."""
    return uuid.uuid4().hex, secrets.token_hex(7).rjust(16, "1")


def _trace_headers(variant: Variant, trace_id: str, parent_id: str) -> dict[str, str]:
    sampled = {"traceparent": f"00-{trace_id}-{parent_id}-01", "tracestate": TRACESTATE}
    if variant == "w3c":
        return sampled
    if variant == "unsampled":
        return {**sampled, "traceparent": f"00-{trace_id}-{parent_id}-00"}
    if variant == "malformed":
        return {**sampled, "traceparent": MALFORMED}
    if variant == "b3":
        return {"b3": f"{trace_id}-{parent_id}-1"}
    return {**sampled, "b3": f"{_OTHER_TRACE}-{parent_id}-1"}
