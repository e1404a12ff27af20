"""The formats of access logs: which one a log is in, JSON, and the text formats that are known.

`format_of` takes what a user names, `detect` finds a format out from a log's first lines. Text formats are read by
`TextFormat`. Envoy escapes every value in JSON, so no text there can pass for another field. A key that comes twice can
only be a text format that looks like JSON, and such a line is not believed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from meshmw._policy.words import one_of
from meshmw._tools.access_log.text_format import FIELDS, Line, Refusal, TextFormat

ENVOY_DEFAULT: Final = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% '
    '%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" '
    '"%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%"'
)
ISTIO_DEFAULT: Final = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% '
    '%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% '
    '%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" '
    '"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% '
    "%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%"
)
# What people append to a default format.
_TAILS: Final = (
    "",
    " traceparent=%REQ(TRACEPARENT)%",
    " traceparent=%REQ(TRACEPARENT)% tracestate=%REQ(TRACESTATE)%",
    " trace_id=%TRACE_ID% traceparent=%REQ(TRACEPARENT)%",
    " traceparent=%REQ(TRACEPARENT)% trace_id=%TRACE_ID%",
    " traceparent=%REQ(TRACEPARENT)% tracestate=%REQ(TRACESTATE)% trace_id=%TRACE_ID%",
    ' "%REQ(TRACEPARENT)%"',
    ' "%REQ(TRACEPARENT)%" "%REQ(TRACESTATE)%"',
    " %TRACE_ID%",
)
_SHORT: Final = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%" %RESPONSE_CODE% '
    "traceparent=%REQ(TRACEPARENT)% tracestate=%REQ(TRACESTATE)%"
)
KNOWN_FORMATS: Final = (*(base + tail for tail in _TAILS for base in (ISTIO_DEFAULT, ENVOY_DEFAULT)), _SHORT)
_NAMED: Final = {"envoy": ENVOY_DEFAULT, "istio": ISTIO_DEFAULT}
_WORDS: Final = ("auto", "json", *_NAMED)
# As many as make a good guess, of a log that may hold other programs' lines.
FIRST_LINES: Final = 200

# The fields by the keys that JSON logs have: Istio's own, those of Envoy's documentation, and what people write.
ALIASES: Final = {
    **{name: name for name in FIELDS.values()},
    "access_log_type": "type",
    "listener": "listener",
    "listener_name": "listener",
    "log_type": "type",
    ":authority": "authority",
    "host": "authority",
    ":method": "method",
    ":path": "path",
    "original_path": "path",
    "user-agent": "user_agent",
    "x-request-id": "request_id",
    "x_request_id": "request_id",
    "trace_parent": "traceparent",
    "tp": "traceparent",
    "trace_state": "tracestate",
    "ts": "tracestate",
    "response_code": "code",
    "status": "code",
    "response_code_details": "details",
    "route_name": "route",
    "start_time": "start_time",
    "upstream_cluster": "cluster",
    "upstream_host": "upstream",
    "x-b3-traceid": "x_b3_traceid",
}


def format_of(wanted: str, keys: Mapping[str, str] | None = None) -> Format | None:
    """Return the format that a user names; None for `auto`, which is found out from the lines.

    Args:
        wanted: `auto`, `json`, `envoy`, `istio`, or an Envoy format string.
        keys: Where JSON holds a field, such as `{"traceparent": "labels.tp"}`.

    Raises:
        ValueError: It is none of these.
    """
    if wanted == "auto" and not keys:
        return None
    if wanted == "json" or (wanted == "auto" and keys):
        return JsonFormat(keys)
    if wanted not in _NAMED and "%" not in wanted:
        one_of(_WORDS, wanted, "format", "an Envoy format string")
    return TextFormat.compile(_NAMED.get(wanted, wanted))


def detect(lines: Iterable[str]) -> Format | None:
    """Return the format that reads the most of some lines, the longest one where several do; None if none does."""
    sample = [line for line in lines if line.strip()][:FIRST_LINES]
    best: tuple[int, int, Format] | None = None
    for candidate in _candidates(sample):
        count = sum(not isinstance(candidate.read(line), str) for line in sample)
        rank = (count, len(candidate.source))
        if count and (best is None or rank > best[:2]):
            best = (*rank, candidate)
    return None if best is None else best[2]


def _candidates(sample: Sequence[str]) -> list[Format]:
    if any(line.startswith("{") for line in sample):
        return [JsonFormat(), *_TEXT_FORMATS]
    return list(_TEXT_FORMATS)


class JsonFormat:
    """Reads lines that are one JSON object each.

    Args:
        keys: Further keys, such as `{"traceparent": "labels.tp"}`: a dot goes into a nested object.

    Raises:
        ValueError: A field is none of those that are looked at.
    """

    names: tuple[str, ...] = tuple(dict.fromkeys(ALIASES.values()))
    source = "json"

    def __init__(self, keys: Mapping[str, str] | None = None) -> None:
        wanted = dict(keys or {})
        unknown = sorted(set(wanted) - set(self.names))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no such field; there are {', '.join(self.names)}")
        self._names = {key: name for key, name in ALIASES.items() if name not in wanted}
        self._names |= {key: name for name, key in wanted.items() if "." not in key}
        self._paths = {name: key.split(".") for name, key in wanted.items() if "." in key}

    def read(self, line: str) -> Line | Refusal:
        """Return the fields of a line, by name, or why it cannot be read; a null is left out."""
        try:
            found = _DECODER.decode(line)
        except _RepeatedKeyError:
            return "ambiguous"
        except (ValueError, RecursionError):
            return "broken"
        if not isinstance(found, dict):
            return "broken"
        names = self._names
        fields = {names[key]: value for key, value in found.items() if key in names and value is not None}
        for name, path in self._paths.items():
            if (value := _nested(found, path)) is not None:
                fields[name] = value
        return {name: value if isinstance(value, str) else str(value) for name, value in fields.items()}


class _RepeatedKeyError(ValueError):
    pass


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _RepeatedKeyError
    return found


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_without_repeated_keys)


def _nested(found: Any, path: list[str]) -> Any:
    for key in path:
        if not isinstance(found, dict):
            return None
        found = found.get(key)
    return found


Format: TypeAlias = TextFormat | JsonFormat
_TEXT_FORMATS: Final = tuple(map(TextFormat.compile, KNOWN_FORMATS))
