"""The answer to a probe, and what applications tell in it of the headers that arrived.

Knows HTTP and the shapes in which applications echo headers. Must not know logs or backends.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from meshmw.diagnose.escaping import without_secrets
from meshmw.diagnose.journey import HEADERS
from meshmw.diagnose.verify_probe import Probe
from meshmw.errors import MeshmwError

_MAX_BODY: Final = 1 << 20
_MAX_DEPTH: Final = 20
_MAX_ECHOES: Final = 50
_HEADERS_KEYS: Final = frozenset({"host", "user-agent", "accept", "x-request-id"})
_TRACE_KEYS: Final = ("trace_id", "traceid", "trace-id")


class ProbeError(MeshmwError):
    """Says in one line why no answer came."""


@dataclass(frozen=True, slots=True)
class Echo:
    """Is what an application said of a request that it got.

    Attributes:
        where: The place in the answer, such as `answer.downstream`.
        headers: The trace headers that arrived, as `Hop.received` has them.
        trace_id: The trace that it was in, where it said so; else empty.
    """

    where: str
    headers: Mapping[str, str | None] = field(default_factory=dict)
    trace_id: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """Is what came back.

    Attributes:
        status_code: The HTTP status.
        echoes: What applications said of what they got, the first one first.
        trace_id: The trace that the answer's headers name; else empty.
    """

    status_code: int
    echoes: tuple[Echo, ...] = ()
    trace_id: str = ""


def send(probe: Probe, *, timeout: float = 10.0, verify_tls: bool = True) -> Answer:
    """Send the request, past any proxy of the environment, and read what the answer tells.

    An answer that goes on for longer than *timeout* seconds, or for more than 1 MiB, is read no further.

    Raises:
        ProbeError: No answer came.
    """
    deadline = time.monotonic() + timeout
    try:
        with (
            httpx.Client(timeout=timeout, verify=verify_tls, trust_env=False) as client,
            client.stream(probe.method, probe.url, headers=dict(probe.headers)) as response,
        ):
            body = b""
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > _MAX_BODY or time.monotonic() > deadline:
                    break
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ProbeError(
            f"{without_secrets(probe.url)} did not answer: {str(error) or type(error).__name__}"
        ) from error
    return Answer(response.status_code, echoes_of(body), _trace_of_answer(response.headers))


def echoes_of(body: bytes) -> tuple[Echo, ...]:
    """Return what the applications on the way said of the headers that they got, if the answer is JSON and tells."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ()
    found = []
    for echo in _walk(document, "answer", 0):
        found.append(echo)
        if len(found) == _MAX_ECHOES:
            break
    return tuple(found)


def _walk(value: Any, where: str, depth: int) -> Iterator[Echo]:
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, list):
        for index, each in enumerate(value):
            yield from _walk(each, f"{where}[{index}]", depth + 1)
    if not isinstance(value, dict):
        return
    # An application's headers lie in its own object or in one of their own below it.
    below = {key: each for key, each in value.items() if isinstance(each, dict) and _headers(each) is not None}
    headers = _headers(value)
    for each in below.values():
        headers = headers or _headers(each)
    trace_id = next(
        (str(value[key]) for key in value if key.lower() in _TRACE_KEYS and isinstance(value[key], str)), ""
    )
    if headers is not None or trace_id:
        yield Echo(where, headers or {}, trace_id if _is_trace_id(trace_id) else "")
    for key, each in value.items():
        if key not in below:
            yield from _walk(each, f"{where}.{key}", depth + 1)


def _headers(value: Mapping[str, Any]) -> dict[str, str | None] | None:
    """Return the trace headers of an object that is a request's headers; None where it is something else."""
    names = {str(key).lower(): each for key, each in value.items()}
    if "traceparent" not in names and not (names.keys() & _HEADERS_KEYS and len(names.keys() & _HEADERS_KEYS) > 1):
        return None
    return {name: _text(names.get(name)) for name in HEADERS}


def _text(value: Any) -> str | None:
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) else None


def _is_trace_id(text: str) -> bool:
    return len(text) == 32 and not set(text) - set("0123456789abcdef")


def _trace_of_answer(headers: httpx.Headers) -> str:
    """Read what some middleware answers with: `traceresponse` (Level 2 draft), `server-timing`, `x-trace-id`."""
    timing = headers.get("server-timing", "").partition('traceparent;desc="')[2]
    for text in (headers.get("traceresponse", ""), timing, f"00-{headers.get('x-trace-id', '')}-"):
        candidate = text[3:35]
        if _is_trace_id(candidate):
            return candidate
    return ""
