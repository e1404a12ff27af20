"""Lines of a file that may be long, compressed, hostile, or still growing.

Memory is bounded: a line beyond `MAX_LINE` is cut and counted.
"""

from __future__ import annotations

import gzip
import json
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

from meshmw._tools.access_log.formats import FIELDS, Line, Refusal, TextFormat

MAX_LINE: Final = 1 << 18
_CHUNK: Final = 1 << 20
_GZIP: Final = b"\x1f\x8b"
_POLL: Final = 0.1


@dataclass
class Source:
    """Is one log to read.

    Attributes:
        name: What it is called in a report.
        stream: Where its bytes come from, decompressed.
        size: Bytes on disk, for a progress display; 0 where that is not known.
        path: The file, where there is one that can be followed.
        cut: Lines that were longer than `MAX_LINE`.
        fault: Why reading ended before the end; empty if it did not.
        raw: The file itself, where there is one.
    """

    name: str
    stream: IO[bytes]
    size: int = 0
    path: Path | None = None
    cut: int = 0
    fault: str = ""
    raw: IO[bytes] | None = None

    @property
    def position(self) -> int:
        """How many bytes of the file have been read; 0 of what has no size, such as a pipe."""
        return self.raw.tell() if self.raw is not None and self.size else 0

    def close(self) -> None:
        """Close the file; standard input stays open."""
        if self.raw is not None:
            self.raw.close()

    def lines(self, more: Callable[[], bool] = lambda: False) -> Iterator[list[bytes]]:
        """Yield the lines without their newlines, many at a time.

        Args:
            more: Is asked at the end whether more may come; while it says so, an empty list is yielded now and then.
        """
        rest, overlong = b"", False
        while True:
            chunk = self._chunk()
            if not chunk:
                if self.fault or not more():
                    break
                time.sleep(_POLL)
                self._reopen_if_replaced()
                yield []
                continue
            *whole, rest = (rest + chunk).split(b"\n")
            if overlong and whole:
                whole, overlong = whole[1:], False
            if len(rest) > MAX_LINE:
                self.cut += not overlong
                rest, overlong = b"", True
            yield whole
        if rest and not overlong:
            yield [rest]

    def _chunk(self) -> bytes:
        try:
            # read1: what is there now, so that a pipe that is slow to fill shows its lines.
            read = getattr(self.stream, "read1", self.stream.read)
            found: bytes = read(_CHUNK)
        except (OSError, EOFError, zlib.error) as error:
            self.fault = f"{type(error).__name__}: {error}"
            return b""
        return found

    def _reopen_if_replaced(self) -> None:
        """Go on with the new file where a log was rotated, and from the start where it was truncated."""
        if self.path is None:
            return
        try:
            now, ours = self.path.stat(), os.fstat(self.stream.fileno())
            is_new = (now.st_ino, now.st_dev) != (ours.st_ino, ours.st_dev)
            # It may be gone again, or not be ours to read yet.
            opened = self.path.open("rb") if is_new else None
        except OSError:
            return
        if opened is not None:
            self.stream.close()
            self.stream = self.raw = opened
        elif now.st_size < self.stream.tell():
            self.stream.seek(0)


def open_source(path: Path, name: str | None = None) -> Source:
    """Open a file, compressed or not.

    Raises:
        OSError: It cannot be opened.
    """
    file = path.open("rb")
    about = os.fstat(file.fileno())
    size = about.st_size
    if file.peek(2)[:2] == _GZIP:
        unpacked: IO[bytes] = gzip.GzipFile(fileobj=file)  # type: ignore[assignment]
        return Source(name or path.name, unpacked, size, raw=file)
    return Source(name or path.name, file, size, path if stat.S_ISREG(about.st_mode) else None, raw=file)


# How a line of Envoy's access log in JSON is read.
#
# Envoy escapes every value there, so no text can pass for another field. A key that comes twice can only be a text
# format that looks like JSON, and is not believed.


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


# Envoy's and Istio's default access log formats, and what people append to them.


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
# What people append to a default: the names as they stand before the value.
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

# Which format an access log is in, found out from its first lines, or taken from a name or a format string.


Format: TypeAlias = TextFormat | JsonFormat
NAMED: Final = {"envoy": ENVOY_DEFAULT, "istio": ISTIO_DEFAULT}
# As many as make a good guess, of a log that may hold other programs' lines.
FIRST_LINES: Final = 200


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
    if wanted not in NAMED and "%" not in wanted:
        raise ValueError(f"{wanted!r} is no format: give auto, json, envoy, istio or an Envoy format string")
    return TextFormat.compile(NAMED.get(wanted, wanted))


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
        return [JsonFormat(), *_TEXT]
    return list(_TEXT)


_TEXT: Final = tuple(map(TextFormat.compile, KNOWN_FORMATS))
