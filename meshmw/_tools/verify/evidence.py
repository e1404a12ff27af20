"""What there is to see of a probe: its spans in backends, beside its lines in access logs (`logs`).

A `Watch` names the backends and the logs, and `Evidence` holds what they have shown so far.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from meshmw._notices import shown, without_secrets
from meshmw._tools.http_client import HttpError, exchange
from meshmw._tools.verify.journey import Hop, JourneySpan, journey_spans, kind_of, maker_of
from meshmw._tools.verify.logs import LogTail
from meshmw.errors import MeshmwError

_KINDS: Final = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_STATUS: Final = ("UNSET", "OK", "ERROR")
# Seconds for one answer of a backend.
_ASKED_FOR: Final = 5.0
# Seconds for all answers that one look at a backend takes: strangers' headers decide how many traces there are.
_LOOK: Final = 15.0
# Spans of one trace; nobody reads more, and to draw them takes long.
_MAX_SPANS: Final = 10_000
_LATEST_NS: Final = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Says which logs and backends are watched, and how long.

    Attributes:
        tails: The access logs, in the order of the way, opened before the probe is sent.
        backends: Where spans are looked up.
        timeout: Seconds to wait at most for logs and spans.
        settle: Seconds without anything new after which everything has come.
        spans: Spans that must come, 0 for one.
        alone: Whether nothing else uses the mesh, so that each new line and span is the probe's.
    """

    tails: Sequence[LogTail] = ()
    backends: Sequence[Backend] = ()
    timeout: float = 15.0
    settle: float = 1.0
    spans: int = 0
    alone: bool = False


class Evidence(NamedTuple):
    """Holds what has been seen of a probe so far.

    Attributes:
        hops: The hops, the probe first.
        spans: Its spans.
        too_old: How many spans are left out, because they began long before the request.
    """

    hops: tuple[Hop, ...]
    spans: tuple[JourneySpan, ...]
    too_old: int = 0

    def hops_in(self, log: LogTail) -> int:
        """Return how many hops a log shows."""
        # Another log's name may begin like this one's.
        proxies = [hop.name for hop in self.hops if hop.kind == "proxy"]
        return sum(name == log.name or name.startswith(f"{log.name} ") for name in proxies)


class BackendError(MeshmwError):
    """Says in one line why a backend cannot be asked."""


class Backend(Protocol):
    """Looks up spans, and is asked again until they are all there."""

    name: str

    def spans(self, trace_ids: Iterable[str]) -> list[JourneySpan]:
        """Return the spans of these traces that have arrived so far; those that do not exist yield none.

        Raises:
            BackendError: It does not answer as it should.
        """


class HttpBackend:
    """Looks spans up over HTTP, under each path that the versions of Jaeger or Tempo have.

    Args:
        name: `jaeger` or `tempo`.
        base_url: Such as `http://localhost:16686`, also with a path in front.
        headers: Header lines that it asks for, such as `X-Scope-OrgID`.
        look: Seconds for all that `spans` asks at once.
    """

    def __init__(self, name: str, base_url: str, headers: Mapping[str, str] | None = None, look: float = _LOOK) -> None:
        self.name = f"{name} at {without_secrets(base_url)}"
        self._paths = _PATHS[name]
        self._base = base_url.rstrip("/")
        self._headers = {"accept": "application/json", **(headers or {})}
        self._secrets = [value for value in (headers or {}).values() if value]
        self._look = look
        # Tempo has no page of its own: Grafana shows its traces, wherever that is.
        self._has_page = name == "jaeger"
        self._found: dict[str, None] = {}
        self._partial: dict[str, str] = {}

    @property
    def partial(self) -> tuple[str, ...]:
        """Return what it says of traces that it gave in part, one text each."""
        return tuple(self._partial.values())

    @property
    def links(self) -> dict[str, str]:
        """Return where a browser shows the traces that were found, by their ids."""
        return {trace_id: jaeger_link(self._base, trace_id) for trace_id in self._found if self._has_page}

    def spans(self, trace_ids: Iterable[str]) -> list[JourneySpan]:
        """Return the spans of these traces that have arrived so far.

        Raises:
            BackendError: It cannot be reached, or answers neither with spans nor with 404.
        """
        found: list[JourneySpan] = []
        end = time.monotonic() + self._look
        for trace_id in trace_ids:
            found += self._of_trace(trace_id, end)
        return found

    def _of_trace(self, trace_id: str, end: float) -> list[JourneySpan]:
        refusals = []
        for path, read in self._paths:
            try:
                url = f"{self._base}{path.format(trace_id)}"
                left = max(0.0, min(_ASKED_FOR, end - time.monotonic()))
                response = exchange("GET", url, headers=self._headers, timeout=left)
                if response.status_code == 200:
                    document = response.json()
                    found = [span for span in read(document) if span.trace_id == trace_id]
                    self._note_partial(trace_id, document, len(found))
                    if found:
                        self._found[trace_id] = None
                        return found[:_MAX_SPANS]
                elif response.status_code != 404 or _has_no_such_path(response.body):
                    refusals.append(f"{path.format('ID')} answered {response.status_code}")
            except HttpError as error:
                raise BackendError(f"{self.name} cannot be reached: {error}") from error
            except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
                refusals.append(f"{path.format('ID')} answered something else ({type(error).__name__})")
        if len(refusals) == len(self._paths):
            raise BackendError(f"{self.name}: {'; '.join(refusals)}")
        return []

    def _note_partial(self, trace_id: str, document: Mapping[str, Any], count: int) -> None:
        said = _what_is_missing(document, self._secrets)
        if said or count > _MAX_SPANS:
            more = f"more than {_MAX_SPANS:,} spans" if count > _MAX_SPANS else said
            self._partial[trace_id] = f"{self.name} has trace {trace_id} in part: {more}"
        else:
            self._partial.pop(trace_id, None)


def _has_no_such_path(body: bytes) -> bool:
    """Say whether a 404 comes from a server that has no such path, and not from one that has no such trace."""
    return body.lstrip()[:1] == b"<" or body.strip() == b"404 page not found"


def _what_is_missing(document: Mapping[str, Any], secrets: Iterable[str]) -> str:
    """Return what a backend says where it answers with a part of a trace: Tempo by a status, Jaeger by errors."""
    errors = document.get("errors")
    told = [str(each["msg"]) for each in errors if "msg" in each] if isinstance(errors, list) else []
    # An enumeration of protobuf, by its name or its number.
    if document.get("status") in ("PARTIAL", 1):
        told.append(str(document.get("message") or "it says PARTIAL"))
    text = "; ".join(filter(None, told))
    for secret in secrets:
        # It may say with what it was asked.
        text = text.replace(secret, "...")
    return shown(text)


def jaeger_link(base_url: str, trace_id: str) -> str:
    """Return the page on which Jaeger's query service shows a trace."""
    return f"{without_secrets(base_url).rstrip('/')}/trace/{trace_id}"


class LocalBackend:
    """Looks spans up in a collector in this process, such as `meshmw.testing.OtlpReceiver`.

    Args:
        name: Where it listens.
        received: Returns what it has received so far, objects with the attributes of `meshmw.testing.ReceivedSpan`.
        everything: Whether spans of other traces are the probe's as well.
    """

    def __init__(self, name: str, received: Callable[[], Sequence[Any]], *, everything: bool = False) -> None:
        self.name = name
        self._received = received
        self.everything = everything

    def spans(self, trace_ids: Iterable[str]) -> list[JourneySpan]:
        """Return the spans of these traces, or all, that have arrived so far."""
        wanted = set(trace_ids)
        return [span for span in journey_spans(self._received()) if self.everything or span.trace_id in wanted]


def merged(answers: Iterable[Sequence[JourneySpan]]) -> list[JourneySpan]:
    """Return the spans that several backends gave, each once.

    Two spans of one answer may have one id, by design (Zipkin) or by mistake. Of two answers, spans with one id and one
    kind are the same: a backend may call a service by another name, and correct its clock.
    """
    found: dict[object, list[JourneySpan]] = {}
    for spans in answers:
        own: dict[object, dict[object, JourneySpan]] = defaultdict(dict)
        for span in spans:
            alike = own[span.trace_id, span.span_id, span.kind]
            alike.setdefault((span.service, span.start_ns // 1000), span)
        for key, each in own.items():
            if len(each) > len(found.get(key, ())):
                found[key] = list(each.values())
    return [span for alike in found.values() for span in alike]


def _from_jaeger(document: Any) -> Iterator[JourneySpan]:
    for trace in document["data"]:
        processes = trace.get("processes") or {}
        for span in trace["spans"]:
            process = processes.get(span.get("processID")) or {}
            yield _jaeger_span(span, str(process.get("serviceName", "")))


def _jaeger_span(span: Mapping[str, Any], service: str) -> JourneySpan:
    tags = {tag["key"]: tag.get("value") for tag in span.get("tags") or ()}
    trace_id = _filled_up(span["traceID"], 32)
    # A link to another trace is a reference too.
    parents = [
        each
        for each in span.get("references") or ()
        if each.get("refType") == "CHILD_OF" and _filled_up(each.get("traceID", span["traceID"]), 32) == trace_id
    ]
    start = _nanoseconds(span["startTime"], 1000)
    return JourneySpan(
        trace_id=trace_id,
        span_id=_filled_up(span["spanID"], 16),
        parent_id=_filled_up(parents[0]["spanID"], 16) if parents else "",
        service=service,
        name=str(span.get("operationName", "")),
        kind=str(tags.get("span.kind", "internal")).upper(),
        maker=maker_of(str(tags.get("otel.scope.name", tags.get("otel.library.name", ""))), tags),
        start_ns=start,
        end_ns=start + _nanoseconds(span.get("duration", 0), 1000),
        status=str(tags.get("otel.status_code", "ERROR" if tags.get("error") in (True, "true") else "UNSET")),
    )


def _filled_up(value: Any, digits: int) -> str:
    return str(value).rjust(digits, "0")


def _from_otlp(document: Any) -> Iterator[JourneySpan]:
    """Read OTLP as JSON, in each of the envelopes and spellings that backends give it."""
    for wrapper in ("result", "trace"):
        document = document.get(wrapper) or document
    for batch in document.get("resourceSpans") or document.get("batches") or ():
        resource = _otlp_attributes(batch.get("resource") or {})
        for scope_spans in batch.get("scopeSpans") or batch.get("instrumentationLibrarySpans") or ():
            scope = (scope_spans.get("scope") or scope_spans.get("instrumentationLibrary") or {}).get("name", "")
            for span in scope_spans.get("spans") or ():
                yield _otlp_span(span, str(resource.get("service.name", "")), str(scope))


def _otlp_span(span: Mapping[str, Any], service: str, scope: str) -> JourneySpan:
    return JourneySpan(
        trace_id=_hex_id(span["traceId"], 16),
        span_id=_hex_id(span["spanId"], 8),
        parent_id=_hex_id(span.get("parentSpanId") or "", 8),
        service=service,
        name=str(span.get("name", "")),
        kind=kind_of(_enum_name(span.get("kind", 0), _KINDS, "SPAN_KIND_")),
        maker=maker_of(scope, _otlp_attributes(span)),
        start_ns=_nanoseconds(span.get("startTimeUnixNano", 0)),
        end_ns=_nanoseconds(span.get("endTimeUnixNano", 0)),
        status=_enum_name((span.get("status") or {}).get("code", 0), _STATUS, "STATUS_CODE_"),
    )


def _nanoseconds(value: Any, each: int = 1) -> int:
    # A time beyond the 64 bits that OTLP has for it could not be drawn.
    return min(max(int(value) * each, 0), _LATEST_NS)


def _otlp_attributes(holder: Mapping[str, Any]) -> dict[str, Any]:
    return {each["key"]: next(iter((each.get("value") or {}).values()), "") for each in holder.get("attributes") or ()}


def _enum_name(value: Any, names: Sequence[str], prefix: str) -> str:
    return names[value] if isinstance(value, int) else str(value).removeprefix(prefix)


def _hex_id(text: str, size: int) -> str:
    """Return an id of so many bytes in hexadecimal digits; what makes JSON from protobuf writes base64 instead."""
    if not text or len(text) == 2 * size:
        return text.lower()
    try:
        decoded = base64.b64decode(text, validate=True)
    except binascii.Error:
        return text.lower().rjust(2 * size, "0")
    return decoded.hex() if len(decoded) == size else text.lower().rjust(2 * size, "0")


_PATHS: Final[dict[str, tuple[tuple[str, Callable[[Any], Iterator[JourneySpan]]], ...]]] = {
    "jaeger": (("/api/v3/traces/{}", _from_otlp), ("/api/traces/{}", _from_jaeger)),
    "tempo": (("/api/v2/traces/{}", _from_otlp), ("/api/traces/{}", _from_otlp)),
}
