"""How a line of Envoy's access log in JSON is read.

Envoy escapes every value there, so no text can pass for another field. A key that comes twice can only be a text format
that looks like JSON, and is not believed. Knows the names that people give to fields. Must not know what is done with
them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from meshmw.diagnose.access_log_format import Line, Refusal
from meshmw.diagnose.access_log_pattern import FIELDS

# By the key in the log: Istio's own names, Envoy's documentation, and what people write.
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
DEEP: Final = "."


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
        self._names |= {key: name for name, key in wanted.items() if DEEP not in key}
        self._paths = {name: key.split(DEEP) for name, key in wanted.items() if DEEP in key}

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
            value = _at(found, path)
            if value is not None:
                fields[name] = value
        for name, value in fields.items():
            if not isinstance(value, str):
                fields[name] = str(value)
        return fields


class _RepeatedKeyError(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _RepeatedKeyError
    return found


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object)


def _at(found: Any, path: list[str]) -> Any:
    for key in path:
        if not isinstance(found, dict):
            return None
        found = found.get(key)
    return found
