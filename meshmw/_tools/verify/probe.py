"""The synthetic request of `meshmw verify`: its variants, how it is sent, and what its answer shows.

An application may answer with the headers that it got, as JSON; such an echo is what is known of the application.
"""

from __future__ import annotations

import json
import secrets
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Literal

import httpx

from meshmw._notices import shown, without_secrets
from meshmw._tools.http_client import HttpError, exchange
from meshmw._tools.verify.journey import HEADERS
from meshmw.errors import InvalidHeaderError, MeshmwError
from meshmw.wire import TraceParent, examine_b3

Variant = Literal["w3c", "unsampled", "malformed", "b3", "both"]
VARIANTS: Final = {
    "w3c": "a sampled traceparent and a tracestate",
    "unsampled": "the same with the sampled flag cleared",
    "malformed": "a traceparent that no reader may take",
    "b3": "B3 alone, in one header",
    "both": "a traceparent, and B3 that names another trace",
}
# Whoever reads a log recognises these ids at once: 31 zeros and a 1, 15 zeros and a 1.
SYNTHETIC: Final = (f"{1:032x}", f"{1:016x}")
_MALFORMED: Final = "00-xyz"
AGENT: Final = "meshmw-verify/"
TRACESTATE: Final = "meshmw=verify"
_OTHER_TRACE: Final = f"{0xB3:032x}"
# The variant, the trace's id, the parent's, and whether it is sampled.
_Borne = tuple[Variant, str, str, bool | None]

_MAX_BODY: Final = 1 << 20
_MAX_DEPTH: Final = 20
_MAX_ECHOES: Final = 50
# Characters of a key in the name of a place.
_MAX_KEY: Final = 40
_HEADERS_KEYS: Final = frozenset({"host", "user-agent", "accept", "x-request-id"})
_TRACE_KEYS: Final = ("trace_id", "traceid", "trace-id")


class ProbeError(MeshmwError):
    """Says in one line why no answer came."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Describes the request to send.

    Attributes:
        url: Where to.
        variant: Which trace headers it bears.
        trace_id: 32 lower-case hex digits.
        parent_id: 16 lower-case hex digits.
        headers: All header lines that it sends.
        request_id: Its `x-request-id`; an edge proxy replaces it.
        agent: Its user agent, by which the first proxy's log line is known.
        method: Such as `GET`.
        sampled: Whether it is sampled; None where it leaves that to its callee.
        is_fresh: Whether nobody has used its ids before.
    """

    url: str
    variant: Variant
    trace_id: str
    parent_id: str
    headers: Mapping[str, str]
    request_id: str
    agent: str
    method: str = "GET"
    sampled: bool | None = True
    is_fresh: bool = False

    @property
    def trace_headers(self) -> dict[str, str]:
        """Return the trace headers among its headers."""
        return {name: value for name, value in self.headers.items() if name in HEADERS}


def make_probe(
    url: str,
    variant: Variant = "w3c",
    *,
    ids: tuple[str, str] = SYNTHETIC,
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
) -> Probe:
    """Return a request of a variant, with further headers that win over its own: what they name is followed."""
    added = {name.lower(): value for name, value in (headers or {}).items()}
    own = {"user-agent": f"{AGENT}{secrets.token_hex(8)}", "x-request-id": str(uuid.uuid4())}
    borne: _Borne = variant, *ids, {"unsampled": False, "malformed": None}.get(variant, True)
    named = _named_by(added, variant)
    # B3 of the probe's own would name another trace than what replaces it.
    if named is None or variant != "b3":
        own |= _trace_headers(variant, *ids)
    sent = {**own, **added}
    is_fresh = named is None and ids != SYNTHETIC
    variant, trace_id, parent_id, sampled = named or borne
    return Probe(
        url, variant, trace_id, parent_id, sent, sent["x-request-id"], sent["user-agent"], method, sampled, is_fresh
    )


def _named_by(added: Mapping[str, str], variant: Variant) -> _Borne | None:
    """Return which request one with these headers is; None where they name no trace that wins over its own."""
    if "traceparent" in added:
        try:
            parent = TraceParent.parse(added["traceparent"])
        except InvalidHeaderError:
            return "malformed", "", "", None
        kind: Variant = "w3c" if parent.sampled else "unsampled"
        return kind, f"{parent.trace_id:032x}", f"{parent.parent_id:016x}", parent.sampled
    if variant != "b3" or not any(name == "b3" or name.startswith("x-b3-") for name in added):
        return None
    found, _ = examine_b3(added)
    if found is None or found.trace_id is None:
        return "b3", "", "", found and found.sampled
    return "b3", f"{found.trace_id:032x}", f"{found.span_id:016x}", found.sampled


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
        return {**sampled, "traceparent": _MALFORMED}
    if variant == "b3":
        return {"b3": f"{trace_id}-{parent_id}-1"}
    return {**sampled, "b3": f"{_OTHER_TRACE}-{parent_id}-1"}


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """Holds what came back.

    Attributes:
        status_code: The HTTP status.
        echoes: What applications said of what they got, the first one first.
        trace_id: The trace that the answer's headers name; else empty.
    """

    status_code: int
    echoes: tuple[Echo, ...] = ()
    trace_id: str = ""


@dataclass(frozen=True, slots=True)
class Echo:
    """Holds what an application said of a request that it got.

    Attributes:
        where: The place in the answer, such as `answer.downstream`.
        headers: The trace headers that arrived, as `Hop.received` has them.
        trace_id: The trace that it was in, where it said so; else empty.
    """

    where: str
    headers: Mapping[str, str | None] = field(default_factory=dict)
    trace_id: str = ""


def send(probe: Probe, *, timeout: float = 10.0, verify_tls: bool = True) -> ProbeAnswer:
    """Send the request, past any proxy of the environment, and read what the answer shows.

    An answer that goes on for longer than *timeout* seconds, or for more than 1 MiB, is read no further.

    Raises:
        ProbeError: No answer came.
    """
    try:
        response = exchange(
            probe.method,
            probe.url,
            headers=probe.headers,
            timeout=timeout,
            limit=_MAX_BODY,
            verify_tls=verify_tls,
            cut=True,
        )
    except HttpError as error:
        raise ProbeError(f"{without_secrets(probe.url)} did not answer: {error}") from error
    return ProbeAnswer(response.status_code, echoes_of(response.body), _trace_of_answer(response.headers))


def echoes_of(body: bytes) -> tuple[Echo, ...]:
    """Return what applications said of the headers that they got, the first one first; nothing where it is no JSON."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ()
    return tuple(islice(_find_echoes(document, "answer", 0), _MAX_ECHOES))


def _find_echoes(value: Any, where: str, depth: int) -> Iterator[Echo]:
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, list):
        for index, each in enumerate(value):
            yield from _find_echoes(each, f"{where}[{index}]", depth + 1)
    if not isinstance(value, dict):
        return
    # An application's headers lie in its own object, or in one of the objects right below that.
    below = {key: found for key, each in value.items() if isinstance(each, dict) and (found := _headers(each))}
    headers = _headers(value) or next(iter(below.values()), None)
    trace_id = next((each for key, each in value.items() if key.lower() in _TRACE_KEYS and isinstance(each, str)), "")
    if headers is not None or trace_id:
        yield Echo(where, headers or {}, trace_id if is_trace_id(trace_id) else "")
    for key, each in value.items():
        if key not in below:
            yield from _find_echoes(each, f"{where}.{shown(key, _MAX_KEY)}", depth + 1)


def _headers(value: Mapping[str, Any]) -> dict[str, str | None] | None:
    """Return the trace headers of an object that is a request's headers; None where it is something else."""
    names = {key.lower(): each for key, each in value.items()}
    if "traceparent" not in names and len(names.keys() & _HEADERS_KEYS) < 2:
        return None
    return {name: _text(names.get(name)) for name in HEADERS}


def _text(value: Any) -> str | None:
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        # Several lines of a header are one list, of which traceparent may have none.
        value = ",".join(value)
    return value if isinstance(value, str) else None


def is_trace_id(text: str) -> bool:
    """Say whether a text is 32 lower-case hex digits."""
    return len(text) == 32 and not set(text) - set("0123456789abcdef")


def _trace_of_answer(headers: httpx.Headers) -> str:
    """Read what some middleware answers with: `traceresponse` (Level 2 draft), `server-timing`, `x-trace-id`."""
    timing = headers.get("server-timing", "").partition('traceparent;desc="')[2]
    for text in (headers.get("traceresponse", ""), timing, f"00-{headers.get('x-trace-id', '')}-"):
        candidate = text[3:35]
        if is_trace_id(candidate):
            return candidate
    return ""
