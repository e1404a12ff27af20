"""How the lines of a log come: from a file that may be long, compressed, hostile or growing, and in what wrappers.

A `Source` yields lines as they stand in the file. What collects logs wraps them: `/var/log/pods` has the form of CRI,
Docker has JSON, and `stern` and `kubectl logs --prefix` put words before each line. An `Envelope` takes that off.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import stat
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

MAX_LINE: Final = 1 << 18
# As much as costs little memory, also where each line is a character long.
_CHUNK: Final = 1 << 17
_GZIP: Final = b"\x1f\x8b"
_POLL: Final = 0.1

# Kubernetes, "CRI log format": time, stream, F for a whole line or its last part, P for any other part.
_CRI: Final = re.compile(rb"[0-9][0-9T:.+Z-]{19,39} (stdout|stderr) ([FP])(?::[^ ]{0,99}+)? (.*+)", re.DOTALL)
_COLOUR: Final = re.compile(rb"\x1b\[[0-9;]{0,20}m")
# What comes before an access log's line: a few words, and before a line of nginx its client's address.
_BEGINS: Final = rb"[\[{]|[0-9a-f.:]{3,45} [^ ]{1,64} [^ ]{1,64} \[[0-9]{1,2}/"
_WORDS: Final = re.compile(
    rb"(?:\[pod/[^\] ]{1,512}\] )?(?:[^ {\[][^ ]{0,252} {1,40}+(?:\| )?){0,6}?(?=" + _BEGINS + rb")"
)
_MESSAGES: Final = ("log", "message", "textPayload")


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


@dataclass
class Source:
    """Reads the lines of one log, which may be long, compressed, hostile, or still growing.

    A line of much more than `MAX_LINE` bytes is left out and counted, so that memory is bounded.

    Attributes:
        name: What it is called in a report.
        stream: Where its bytes come from, decompressed.
        size: Bytes on disk, for a progress display; 0 where that is not known.
        path: The file, where there is one that can be followed.
        cut: Lines that were left out because they were too long.
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
        """Return how many bytes of the file have been read; 0 of what has no size, such as a pipe."""
        return self.raw.tell() if self.raw is not None and self.size else 0

    def close(self) -> None:
        """Close the file; standard input stays open."""
        if self.raw is not None:
            self.raw.close()

    def lines(self, more: Callable[[], bool] = lambda: False) -> Iterator[list[bytes]]:
        """Yield the lines without their newlines, many at a time; *more* is that of `blocks`."""
        for block in self.blocks(more):
            yield block.split(b"\n") if block else []

    def blocks(self, more: Callable[[], bool] = lambda: False) -> Iterator[bytes]:
        """Yield many whole lines at a time, with newlines between them.

        Args:
            more: Says, when it is asked at the end, whether more may come; while it does, nothing is yielded now and
                then, as an empty block.
        """
        rest, overlong = b"", False
        while True:
            chunk = self._chunk()
            if not chunk:
                if self.fault or not more():
                    break
                time.sleep(_POLL)
                self._reopen_if_replaced()
                yield b""
                continue
            block, newline, rest = (rest + chunk).rpartition(b"\n")
            if overlong and newline:
                block, overlong = block.partition(b"\n")[2], False
            if len(rest) > MAX_LINE:
                self.cut += not overlong
                rest, overlong = b"", True
            if block:
                yield block
        if rest and not overlong:
            yield rest

    def _chunk(self) -> bytes:
        try:
            # `read1` returns what is there now, so that a pipe that is slow to fill shows its lines.
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
            # The new file may be gone again, or not readable yet.
            opened = self.path.open("rb") if is_new else None
        except OSError:
            return
        if opened is not None:
            self.stream.close()
            self.stream = self.raw = opened
        elif now.st_size < self.stream.tell():
            self.stream.seek(0)


class Envelope:
    """Leaves lines as they are; other kinds take something off them.

    Attributes:
        cut: Lines that were left out because their parts were too long together.
    """

    def __init__(self) -> None:
        self.cut = 0

    def unwrap(self, lines: Iterable[bytes]) -> list[bytes]:
        """Return the lines without what is around them, those that are whole; what is not wrapped stays as it is."""
        return list(lines)

    def unwrapped(self, text: bytes) -> bytes:
        """Return a block of lines as `unwrap` leaves them."""
        return text if type(self) is Envelope else b"\n".join(self.unwrap(text.split(b"\n")))

    def rest(self) -> list[bytes]:
        """Return the beginnings of lines whose end has not come."""
        return []


class _InParts(Envelope, ABC):
    """Puts lines together that a container runtime has cut into parts, each stream for itself."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: dict[str, bytes | None] = {}

    def unwrap(self, lines: Iterable[bytes]) -> list[bytes]:
        found = []
        for line in lines:
            part = self._part(line)
            if part is None:
                found.append(line)
            elif (whole := self._put(*part)) is not None:
                found.append(whole)
        return found

    def rest(self) -> list[bytes]:
        return [part for part in self._parts.values() if part]

    @abstractmethod
    def _part(self, line: bytes) -> tuple[str, bytes, bool] | None:
        """Return a part's stream, its text, and whether it is the last; None where the line is not wrapped."""

    def _put(self, stream: str, text: bytes, is_last: bool) -> bytes | None:
        before = self._parts.get(stream, b"")
        too_long = before is None or len(before) + len(text) > MAX_LINE
        if is_last:
            self._parts.pop(stream, None)
            self.cut += too_long
            return None if before is None or too_long else before + text
        self._parts[stream] = None if before is None or too_long else before + text
        return None


class Cri(_InParts):
    """Takes off what containerd and CRI-O write before each line."""

    def _part(self, line: bytes) -> tuple[str, bytes, bool] | None:
        match = _CRI.fullmatch(line)
        return None if match is None else (match[1].decode(), match[3], match[2] == b"F")


class InJson(_InParts):
    """Takes lines out of Docker's JSON, or out of the JSON that a log shipper makes of them."""

    def _part(self, line: bytes) -> tuple[str, bytes, bool] | None:
        try:
            found: Any = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if not isinstance(found, dict):
            return None
        text = next((found[key] for key in _MESSAGES if isinstance(found.get(key), str)), None)
        if text is None:
            return None
        stream = found.get("stream")
        # Docker ends each whole line as the container did; others give whole lines alone.
        is_last = text.endswith("\n") or stream not in ("stdout", "stderr")
        return str(stream), text.rstrip("\n").replace("\n", " ").encode("utf-8", "backslashreplace"), is_last


class Prefixed(Envelope):
    """Takes off the words that stern, `kubectl logs --prefix`, `docker compose logs` or a journal put before lines."""

    def unwrap(self, lines: Iterable[bytes]) -> list[bytes]:
        plain = (_COLOUR.sub(b"", line) for line in lines)
        return [line[match.end() :] if (match := _WORDS.match(line)) else line for line in plain]


ENVELOPES: Final = (Envelope, Cri, InJson, Prefixed)
