"""Where spans are looked up: Jaeger, Tempo, or a collector in this process.

Knows the two programs' HTTP interfaces and the JSON that they answer with. Must not know what spans should be there.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import httpx

from meshmw.diagnose.escaping import without_secrets
from meshmw.diagnose.journey import JourneySpan
from meshmw.diagnose.journey_spans import journey_spans, maker_of
from meshmw.errors import MeshmwError

_KINDS: Final = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_LATEST: Final = 2**63 - 1
_STATUS: Final = ("UNSET", "OK", "ERROR")


class BackendError(MeshmwError):
    """Says in one line why a backend cannot be asked."""


class Backend(Protocol):
    """Is asked for spans until they are all there."""

    name: str

    def spans(self, trace_ids: Iterable[str]) -> list[JourneySpan]:
        """Return the spans of these traces that have arrived so far; those that do not exist yield none.

        Raises:
            BackendError: It does not answer as it should.
        """


class HttpBackend:
    """Asks a program over HTTP, by all the paths that its versions have.

    Args:
        name: `jaeger` or `tempo`.
        base_url: Such as `http://localhost:16686`, also with a path in front.
        headers: What it asks for, such as `X-Scope-OrgID`.
    """

    def __init__(self, name: str, base_url: str, headers: Mapping[str, str] | None = None) -> None:
        self.name = f"{name} at {without_secrets(base_url)}"
        self._asked = _ASKED[name]
        self._base = base_url.rstrip("/")
        self._headers = {"accept": "application/json", **(headers or {})}

    def spans(self, trace_ids: Iterable[str]) -> list[JourneySpan]:
        """Return the spans of these traces that have arrived so far.

        Raises:
            BackendError: It cannot be reached, or answers neither with spans nor with 404.
        """
        found: list[JourneySpan] = []
        with httpx.Client(timeout=5.0, trust_env=False, headers=self._headers) as client:
            for trace_id in trace_ids:
                found += self._of_trace(client, trace_id)
        return found

    def _of_trace(self, client: httpx.Client, trace_id: str) -> list[JourneySpan]:
        refusals = []
        for path, read in self._asked:
            try:
                response = client.get(f"{self._base}{path.format(trace_id)}")
                if response.status_code == 200:
                    found = [span for span in read(response.json()) if span.trace_id == trace_id]
                    if found:
                        return found
                elif response.status_code != 404:
                    refusals.append(f"{path.format('ID')} answered {response.status_code}")
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise BackendError(f"{self.name} cannot be reached: {str(error) or type(error).__name__}") from error
            except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
                refusals.append(f"{path.format('ID')} answered something else ({type(error).__name__})")
        if len(refusals) == len(self._asked):
            raise BackendError(f"{self.name}: {'; '.join(refusals)}")
        return []


class LocalBackend:
    """Takes spans from a collector in this process, such as `meshmw.testing.OtlpReceiver`.

    Args:
        name: Where it listens.
        received: Returns what it has received so far: objects with the attributes of `FinishedSpan`.
        everything: Whether spans of other traces are the probe's as well.
    """

    def __init__(self, name: str, received: Callable[[], Sequence[Any]], *, everything: bool = False) -> None:
        self.name = name
        self._received = received
        self._everything = everything

    def spans(self, trace_ids: Iterable[str]) -> list[JourneySpan]:
        """Return the spans of these traces, or all, that have arrived so far."""
        wanted = set(trace_ids)
        return [span for span in journey_spans(self._received()) if self._everything or span.trace_id in wanted]


def _from_jaeger(document: Any) -> Iterator[JourneySpan]:
    for trace in document["data"]:
        processes = trace.get("processes") or {}
        for span in trace["spans"]:
            tags = {tag["key"]: tag.get("value") for tag in span.get("tags") or ()}
            parents = [each for each in span.get("references") or () if each.get("refType") == "CHILD_OF"]
            start = _nanoseconds(span["startTime"], 1000)
            status = str(tags.get("otel.status_code", "ERROR" if tags.get("error") in (True, "true") else "UNSET"))
            yield JourneySpan(
                trace_id=str(span["traceID"]).rjust(32, "0"),
                span_id=str(span["spanID"]).rjust(16, "0"),
                parent_id=str(parents[0]["spanID"]).rjust(16, "0") if parents else "",
                service=str((processes.get(span.get("processID")) or {}).get("serviceName", "")),
                name=str(span.get("operationName", "")),
                kind=str(tags.get("span.kind", "internal")).upper(),
                maker=maker_of(str(tags.get("otel.scope.name", tags.get("otel.library.name", ""))), tags),
                start_ns=start,
                end_ns=start + _nanoseconds(span.get("duration", 0), 1000),
                status=status,
            )


def _from_otlp(document: Any) -> Iterator[JourneySpan]:
    """Read OTLP as JSON, in each of the envelopes and spellings that backends give it."""
    for wrapper in ("result", "trace"):
        document = document.get(wrapper) or document
    for batch in document.get("resourceSpans") or document.get("batches") or ():
        resource = _attributes(batch.get("resource") or {})
        for scope_spans in batch.get("scopeSpans") or batch.get("instrumentationLibrarySpans") or ():
            scope = (scope_spans.get("scope") or scope_spans.get("instrumentationLibrary") or {}).get("name", "")
            for span in scope_spans.get("spans") or ():
                yield _otlp_span(span, str(resource.get("service.name", "")), str(scope))


def _otlp_span(span: Mapping[str, Any], service: str, scope: str) -> JourneySpan:
    return JourneySpan(
        trace_id=_hex(span["traceId"], 16),
        span_id=_hex(span["spanId"], 8),
        parent_id=_hex(span.get("parentSpanId") or "", 8),
        service=service,
        name=str(span.get("name", "")),
        kind=_enum(span.get("kind", 0), _KINDS, "SPAN_KIND_"),
        maker=maker_of(scope, _attributes(span)),
        start_ns=_nanoseconds(span.get("startTimeUnixNano", 0)),
        end_ns=_nanoseconds(span.get("endTimeUnixNano", 0)),
        status=_enum((span.get("status") or {}).get("code", 0), _STATUS, "STATUS_CODE_"),
    )


def _nanoseconds(value: Any, each: int = 1) -> int:
    """Return a time within the 64 bits that a time has: what is beyond could not be drawn."""
    return min(max(int(value) * each, 0), _LATEST)


def _attributes(holder: Mapping[str, Any]) -> dict[str, Any]:
    return {each["key"]: next(iter((each.get("value") or {}).values()), "") for each in holder.get("attributes") or ()}


def _enum(value: Any, names: Sequence[str], prefix: str) -> str:
    return names[value] if isinstance(value, int) else str(value).removeprefix(prefix)


def _hex(text: str, size: int) -> str:
    """Return an id in hexadecimal digits: OTLP writes it so, and JSON made from protobuf writes base64."""
    if not text or len(text) == 2 * size:
        return text.lower()
    try:
        decoded = base64.b64decode(text, validate=True)
    except binascii.Error:
        return text.lower().rjust(2 * size, "0")
    return decoded.hex() if len(decoded) == size else text.lower().rjust(2 * size, "0")


_ASKED: Final[dict[str, tuple[tuple[str, Callable[[Any], Iterator[JourneySpan]]], ...]]] = {
    "jaeger": (("/api/v3/traces/{}", _from_otlp), ("/api/traces/{}", _from_jaeger)),
    "tempo": (("/api/v2/traces/{}", _from_otlp), ("/api/traces/{}", _from_otlp)),
}
