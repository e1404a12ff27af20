"""The journey of one request through a test mesh, as `meshmw verify` finds it for a real one.

Knows the mesh's access logs and its collector. Must not know how a journey is judged or shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from meshmw.diagnose.access_log_format import Line
from meshmw.diagnose.journey import Journey
from meshmw.diagnose.verify import follow
from meshmw.diagnose.verify_answer import Answer as Seen
from meshmw.diagnose.verify_backends import LocalBackend
from meshmw.diagnose.verify_logs import LogTail
from meshmw.diagnose.verify_probe import TRACESTATE, Probe, Variant
from meshmw.diagnose.verify_watch import Watch
from meshmw.testing.otlp import OtlpReceiver

_UNSAMPLED: Final = "-00"


class _NewLines(LogTail):
    """Is a log without the lines of earlier requests, which a proxy may write after those were answered."""

    def __init__(self, name: str, path: Path, began: str) -> None:
        super().__init__(name, path)
        self._began = began

    @property
    def lines(self) -> list[Line]:
        return [line for line in super().lines if line.get("start_time", self._began) >= self._began]


class Follower:
    """Follows one request that is about to be sent: the access logs are read from here on.

    Args:
        logs: Each proxy's access log by the proxy's name, in the order of the way.
        receiver: The collector.
    """

    def __init__(self, logs: Mapping[str, Path], receiver: OtlpReceiver) -> None:
        began = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._tails = [_NewLines(name, path, began) for name, path in logs.items()]
        self._receiver = receiver

    def journey(self, probe: Probe, status: int, began_ns: int, timeout: float) -> Journey:
        """Wait until logs and collector show the request, and return its journey with the verdict."""
        backend = LocalBackend("collector", lambda: self._receiver.spans, everything=True)
        # A mesh of one test has no other traffic, and writes its logs at once.
        watch = Watch(tails=self._tails, backends=[backend], timeout=timeout, settle=0.2, alone=True)
        return follow(probe, Seen(status), watch, began_ns)


def as_probe(method: str, url: str, lines: Sequence[tuple[str, str]], named: tuple[str, str] | None) -> Probe:
    """Return a request as something that can be followed.

    Args:
        method: Its method.
        url: Where it went.
        lines: Its header lines.
        named: The trace and the span that its headers name; None where the first strict reader begins a fresh trace.
    """
    headers = {name.lower(): value for name, value in reversed(lines)}
    # The judge knows one tracestate, its own: another one is not looked for.
    if TRACESTATE not in headers.get("tracestate", TRACESTATE):
        headers.pop("tracestate")
    trace_id, parent_id = named or ("", "")
    return Probe(url, _variant(headers, named), trace_id, parent_id, headers, "-", "-", method)


def _variant(headers: Mapping[str, str], named: tuple[str, str] | None) -> Variant:
    if named is None:
        return "malformed"
    if "traceparent" not in headers:
        return "b3"
    return "unsampled" if headers["traceparent"].endswith(_UNSAMPLED) else "w3c"
