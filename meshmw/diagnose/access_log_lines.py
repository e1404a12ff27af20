"""Lines of a file that may be long, compressed, hostile, or still growing.

Knows files and bytes. Must not know what a line means. Memory is bounded: a line beyond `MAX_LINE` is cut and counted.
"""

from __future__ import annotations

import gzip
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

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
