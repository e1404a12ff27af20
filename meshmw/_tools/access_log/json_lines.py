"""Access logs that are one JSON object a line: which key holds what, and lines of one make read in bulk.

Keys are known by what they say, however they are spelled: `x-request-id`, `XRequestId` and
`request.headers.x_request_id` are one. So the defaults of Istio, Envoy Gateway, kgateway, Consul, Contour, Gloo,
Linkerd, Traefik and ingress-nginx are read, and what people write by the names of OpenTelemetry or of nginx's
variables. A user can name any other key.

A proxy escapes every value in JSON. Where a key comes twice, the line can only be of a text format that looks like
JSON, and it is refused. A line that has none of a request's fields is not an access log's: an application's, or the
proxy's own.

A proxy writes the same keys in the same order, line after line. `_template` makes a pattern of one line, with each
value replaced by whatever may stand there. It matches only what a JSON parser reads to the same outcome, at a tenth of
the time; every other line is parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from meshmw._tools.access_log.rows import Block, Line, Refusal, Shape, captured, column_of

# The keys of each field, the best first, in small letters and with `_` between words.
KEYS: Final = {
    "start_time": ("start_time",),
    "type": ("access_log_type", "log_type", "type"),
    "listener": ("listener", "listener_name", "entry_point_name"),
    "method": ("method", "request_method", "http_method", "http_request_method", "http_request_request_method"),
    "path": (
        *(
            "path",
            "original_path",
            "x_envoy_original_path",
            "x_envoy_origin_path",
            "request_path",
            "request_uri",
            "uri",
        ),
        *(
            "url_path",
            "url_original",
            "http_path",
            "http_target",
            "http_url",
            "request_url",
            "http_request_request_url",
        ),
        "url",
    ),
    "request": ("request",),
    "authority": ("authority", "host", "request_host", "http_host", "vhost", "server_address", "net_host_name"),
    "code": (
        *("response_code", "status", "code", "status_code", "http_status", "http_status_code", "http_request_status"),
        *("http_response_status_code", "downstream_status", "response_status"),
    ),
    "details": ("response_code_details", "details"),
    "route": ("route_name", "route", "http_route", "router_name"),
    "cluster": (
        "upstream_cluster",
        "upstream_cluster_raw",
        "upstream_cluster_name",
        "cluster",
        "proxy_upstream_name",
        "backend_cluster",
    ),
    "upstream": (
        "upstream_host",
        "upstream",
        "upstream_addr",
        "upstream_address",
        "service_url",
        "service_addr",
        "backend_host",
    ),
    "user_agent": ("user_agent", "http_user_agent", "user_agent_original"),
    "request_id": ("request_id", "x_request_id", "req_id"),
    "traceparent": ("traceparent", "trace_parent", "tp"),
    "tracestate": ("tracestate", "trace_state"),
    "baggage": ("baggage",),
    "b3": ("b3",),
    "x_b3_traceid": ("x_b3_traceid", "x_b3_trace_id", "b3_trace_id"),
    "trace_id": ("trace_id", "otel_trace_id"),
}
# `Service` is what Traefik calls the upstream, and OpenTelemetry whoever writes.
_EXACTLY: Final = {"ServiceName": ("cluster", 9)}
_RANKS: Final = {key: (name, rank) for name, keys in KEYS.items() for rank, key in enumerate(keys)}
# A request's header is logged under names with all kinds of words before it; before a response's stand these.
_HEADERS: Final = {
    **{name: name for name in ("traceparent", "tracestate", "baggage", "b3", "x_b3_traceid", "user_agent")},
    "x_request_id": "request_id",
}
_OF_RESPONSES: Final = ("resp", "downstream", "origin", "upstream")
# Any of these makes a line a request's, or a connection's.
_OF_REQUESTS: Final = frozenset(KEYS) - {
    *("start_time", "type", "listener", "authority", "code", "route", "trace_id", "user_agent")
}
_DEPTH: Final = 4
_MAX_KEY: Final = 100
_MAX_KEYS: Final = 4096
# Makes of lines in one log, and how often one is looked for in vain.
_TEMPLATES: Final = 4
_ATTEMPTS: Final = 40
_ALIKE: Final = 50

_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NO_WORD: Final = re.compile(r"[^a-z0-9]+")
_REQUEST: Final = re.compile(r"([A-Z]{1,20}+) ([^ ]*+) HTTP/[0-9.]{1,9}+")
_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\],:]|[^\s{}\[\],:"]++|\s++', re.DOTALL)

_ONE: Final = r'[^"\\\x00-\x1f]'
_NUMBER: Final = r"-?(?:0|[1-9][0-9]{0,300}+)(?:\.[0-9]{1,300}+)?+(?:[eE][+-]?[0-9]{1,3}+)?+"
_SCALAR: Final = rf'(?:"{_ONE}*+"|{_NUMBER}|null|true|false)'
_CODE: Final = rf"(?:(?P<code>0)(?![0-9.eE])|{_NUMBER}|null)"
# Whether a line with null is a request's, its other keys say.
_METHOD_AND_PATH: Final = (
    rf'(?:"(?P<method>[A-Z]{{1,20}}+)\ (?P<path>{_ONE[:-1]}?\ ]{{0,300}}+){_ONE[:-1]}\ ]*+\ HTTP/[0-9.]{{1,9}}+")'
)

Path = tuple[str, ...]


class _Template(NamedTuple):
    """Reads lines with the same keys in the same order.

    Attributes:
        shape: Their pattern.
        names: The fields that they have.
    """

    shape: Shape
    names: frozenset[str]


class JsonFormat:
    """Reads lines that are one JSON object each.

    Args:
        keys: Further keys, such as `{"traceparent": "labels.tp"}`: a dot goes into a nested object.

    Raises:
        ValueError: A field is none of those that are looked at.
    """

    names: tuple[str, ...] = tuple(name for name in KEYS if name != "request")
    source = "json"
    cut = 0

    def __init__(self, keys: Mapping[str, str] | None = None) -> None:
        self.keys = dict(keys or {})
        unknown = sorted(set(self.keys) - set(self.names))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no such field; there are {', '.join(self.names)}")
        self._wanted = {path: name for name, key in self.keys.items() for path in ((key,), tuple(key.split(".")))}
        self._ranks: dict[Path, tuple[str, int] | None] = {}
        self._templates: list[_Template] = []
        self._attempts = 0

    def read(self, line: str) -> Line | Refusal:
        """Return the fields of a line, by name, or why it cannot be read; a null is left out."""
        return self._read(set(), line)

    def read_block(self, text: bytes) -> Block:
        """Return what many lines hold, as rows."""
        found, tried = Block(), 0
        rest = [] if self._templates else text.split(b"\n")
        while tried < len(self._templates) or (rest and self._learn(rest)):
            template = self._templates[tried]
            rows, rest = template.shape.find(b"\n".join(rest) if tried else text)
            found.add(template.shape, rows, template.names)
            tried += 1
            if not rest:
                return found
        found.add_alone(partial(self._read, found.names), rest)
        return found

    def _learn(self, lines: list[bytes]) -> bool:
        """Make a template of the first line, if it serves; say whether it does."""
        if len(self._templates) == _TEMPLATES or self._attempts == _ATTEMPTS:
            return False
        self._attempts += 1
        template, others = self._template(lines[0].strip()), lines[:_ALIKE]
        # A template that serves nothing else costs more than it spares.
        if template is None or 4 * len(template.shape.find(b"\n".join(others))[0]) < len(others):
            return False
        self._templates.append(template)
        return True

    def _read(self, names: set[str], line: str) -> Line | Refusal:
        found = _parse(line)
        if isinstance(found, str):
            return found
        chosen = self._choose(found)
        if not self._is_request(chosen):
            return "broken"
        names.update(chosen)
        values = {name: _held(found, path) for name, path in chosen.items()}
        # A header is logged as a list where it may come several times.
        values = {name: value[0] if isinstance(value, list) and value else value for name, value in values.items()}
        fields = {name: _text(value) for name, value in values.items() if value is not None and value != []}
        if (request := fields.pop("request", None)) is not None:
            match = _REQUEST.fullmatch(request)
            fields |= {"method": match[1], "path": match[2]} if match else {"method": "-", "path": "-"}
            names |= {"method", "path"}
        return fields

    def _is_request(self, chosen: Mapping[str, Path]) -> bool:
        # Where a user has named a key, it is for the user to say what the lines are.
        return bool(self.keys) or not _OF_REQUESTS.isdisjoint(chosen)

    def _choose(self, found: Mapping[str, Any]) -> dict[str, Path]:
        """Return where a line holds each field: at the best of its keys."""
        best: dict[str, tuple[int, Path]] = {}
        for path, value in _leaves(found):
            ranked = self._rank(path)
            if ranked is None or (ranked[0] == "request" and not isinstance(value, str)):
                continue
            name, rank = ranked
            if name not in best or rank < best[name][0]:
                best[name] = (rank, path)
        if "method" in best or "path" in best:
            best.pop("request", None)
        return {name: path for name, (_, path) in best.items()}

    def _rank(self, path: Path) -> tuple[str, int] | None:
        if path in self._ranks:
            return self._ranks[path]
        name = self._wanted.get(path)
        found = (name, -1) if name is not None else _known_key(path)
        if name is None and found is not None and found[0] in self.keys:
            found = None
        # Strangers may choose keys, where an application logs to the same place.
        if len(self._ranks) < _MAX_KEYS:
            self._ranks[path] = found
        return found

    def _template(self, line: bytes) -> _Template | None:
        """Return a pattern for lines like this one; None where it is no request's, or holds a field in a list."""
        found = _parse(line.decode("utf-8", "surrogateescape"))
        if isinstance(found, str) or not self._is_request(chosen := self._choose(found)):
            return None
        if any(isinstance(_held(found, path), (list, dict)) for path in chosen.values()):
            return None
        # Lines with a text there are read by it, and this pattern would pass over it.
        if chosen.keys().isdisjoint(("method", "path")) and self._has_request_without_text(found):
            return None
        columns = {path: "request" if name == "request" else column_of(name) for name, path in chosen.items()}
        names = frozenset(chosen) - {"request"} | ({"method", "path"} if "request" in chosen else set())
        return _Template(Shape("".join(_pieces(line, columns)).encode("utf-8", "surrogateescape")), names)

    def _has_request_without_text(self, found: Mapping[str, Any]) -> bool:
        ranks = (self._rank(path) for path, value in _leaves(found) if not isinstance(value, str))
        return any(rank is not None and rank[0] == "request" for rank in ranks)


def _pieces(line: bytes, columns: Mapping[Path, str | None]) -> Iterator[str]:
    """Yield the parts of a template: what stands between values as it is, and what may stand for each value."""
    path: list[str] = []
    lists, at_key = 0, False
    for token in _TOKEN.findall(line):
        text = token.decode("utf-8", "surrogateescape")
        if text in "{[":
            path.append("")
            lists += text == "["
        elif text in "}]":
            path.pop()
            lists -= text == "]"
        if text in "{},[]:":
            at_key = text in "{" or (text == "," and not lists)
            yield re.escape(text)
        elif text.isspace():
            yield re.escape(text)
        elif at_key:
            path[-1] = json.loads(text)
            yield re.escape(text)
        else:
            yield _SCALAR if lists else _value(columns.get(tuple(path)), is_number=text[0] in "-0123456789")


def _value(column: str | None, *, is_number: bool) -> str:
    if column is None:
        return _SCALAR
    if column == "request":
        return _METHOD_AND_PATH
    if is_number and column == "code":
        return _CODE
    held = captured(column, _ONE, f"{_ONE}*+", after='"', more="+")
    return f'(?:"{held}"|null)'


def _known_key(path: Path) -> tuple[str, int] | None:
    """Return the field that a key holds, and how good a key it is; None where it holds none."""
    if any(len(key) > _MAX_KEY for key in path):
        return None
    if path[-1] in _EXACTLY:
        return _EXACTLY[path[-1]]
    words = _NO_WORD.sub("_", _HUMP.sub("_", "_".join(path)).lower()).strip("_").removeprefix("json_payload_")
    if words in _RANKS:
        return _RANKS[words]
    if words.startswith(_OF_RESPONSES):
        return None
    return next(((name, 20) for header, name in _HEADERS.items() if words.endswith(f"_{header}")), None)


def _leaves(found: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    for key, value in found.items():
        if isinstance(value, dict) and len(path) < _DEPTH - 1:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _held(found: Any, path: Path) -> Any:
    for key in path:
        found = found[key]
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


class _RepeatedKeyError(ValueError):
    pass


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _RepeatedKeyError
    return found


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_without_repeated_keys)


def _parse(line: str) -> dict[str, Any] | Refusal:
    try:
        found = _DECODER.decode(line)
    except _RepeatedKeyError:
        return "ambiguous"
    except (ValueError, RecursionError):
        return "broken"
    return found if isinstance(found, dict) else "broken"
