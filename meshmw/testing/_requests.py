"""What a test sends into a mesh and gets back: the header matrix, the answer, the journey of one request.

The matrix holds what arrives at a mesh in practice. Each case says which trace goes on from it. W3C and B3 have ids of
their own in it, so that a test sees at once whose trace it found.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

from meshmw._notices import quoted
from meshmw._tools.access_log.rows import Line
from meshmw._tools.verify import follow
from meshmw._tools.verify.evidence import LocalBackend, Watch
from meshmw._tools.verify.journey import Journey
from meshmw._tools.verify.logs import LogTail
from meshmw._tools.verify.probe import Probe, ProbeAnswer, Variant
from meshmw.errors import InvalidHeaderError
from meshmw.testing._otlp import OtlpReceiver
from meshmw.wire import TraceParent

_TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
_SPAN: Final = "00f067aa0ba902b7"
_B3_TRACE: Final = "80f198ee56343ba864fe8b2a57d3eff7"
_B3_SPAN: Final = "e457b5a2e4d86bd1"
_W3C: Final = ("traceparent", f"00-{_TRACE}-{_SPAN}-01")
_B3: Final = ("b3", f"{_B3_TRACE}-{_B3_SPAN}-1")
_UNSAMPLED: Final = "-00"


@dataclass(frozen=True, slots=True)
class HeaderCase:
    """Holds the trace headers of one request, and what goes on from them.

    Attributes:
        name: The case's name, as `@pytest.mark.meshmw_headers` takes it.
        lines: The header lines, in order.
        trace_id: The trace that goes on where the format is read; empty where a fresh one has to begin.
        parent_id: The span that the header names; empty where a fresh trace has to begin.
        sampled: Whether the caller sampled the trace; None where it says nothing.
    """

    name: str
    lines: tuple[tuple[str, str], ...]
    trace_id: str = ""
    parent_id: str = ""
    sampled: bool | None = None

    def __str__(self) -> str:
        return self.name


HEADER_MATRIX: Final = (
    HeaderCase("none", ()),
    HeaderCase("w3c", (_W3C, ("tracestate", "vendor=1"), ("baggage", "tenant=acme")), _TRACE, _SPAN, True),
    HeaderCase("w3c-unsampled", (("traceparent", f"00-{_TRACE}-{_SPAN}-00"),), _TRACE, _SPAN, False),
    HeaderCase("b3", (_B3,), _B3_TRACE, _B3_SPAN, True),
    HeaderCase(
        "b3multi",
        (("x-b3-traceid", _B3_TRACE), ("x-b3-spanid", _B3_SPAN), ("x-b3-sampled", "1")),
        _B3_TRACE,
        _B3_SPAN,
        True,
    ),
    HeaderCase("both", (_W3C, _B3), _TRACE, _SPAN, True),
    HeaderCase("empty", (("traceparent", ""),)),
    HeaderCase("zero-trace-id", (("traceparent", f"00-{'0' * 32}-{_SPAN}-01"),)),
    HeaderCase("not-hex", (("traceparent", f"00-{'x' * 32}-{_SPAN}-01"),)),
    HeaderCase("too-long", (("traceparent", f"00-{_TRACE}-{_SPAN}-01-more"),)),
    HeaderCase("version-ff", (("traceparent", f"ff-{_TRACE}-{_SPAN}-01"),)),
    HeaderCase("twice", (_W3C, ("traceparent", f"00-{_B3_TRACE}-{_B3_SPAN}-01"))),
)

HeaderLines: TypeAlias = Iterable[tuple[str, str]] | Mapping[str, str] | HeaderCase


def header_cases(names: Iterable[str] = ()) -> list[HeaderCase]:
    """Return the cases of these names, in their order, or all.

    Raises:
        ValueError: There is no case of one of the names.
    """
    by_name = {case.name: case for case in HEADER_MATRIX}
    wanted = list(names) or list(by_name)
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        raise ValueError(f"there is no header case {quoted(unknown[0])}: choose of {', '.join(by_name)}")
    return [by_name[name] for name in wanted]


def as_case(headers: HeaderLines) -> HeaderCase:
    """Return header lines as a case: the trace of the one valid traceparent goes on, if there is one."""
    if isinstance(headers, HeaderCase):
        return headers
    lines = tuple(headers.items() if isinstance(headers, Mapping) else headers)
    values = [value for name, value in lines if name.lower() == "traceparent"]
    if len(values) == 1:
        try:
            parent = TraceParent.parse(values[0])
        except InvalidHeaderError:
            pass
        else:
            return HeaderCase("", lines, f"{parent.trace_id:032x}", f"{parent.parent_id:016x}", parent.sampled)
    return HeaderCase("", lines)


@dataclass(frozen=True, slots=True)
class Answer:
    """Holds a response, read to its end.

    Attributes:
        status: The status code.
        headers: The header lines, in order.
        body: The body's bytes.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def text(self) -> str:
        """Return the body as text."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return what the body holds.

        Raises:
            ValueError: It is no JSON.
        """
        return json.loads(self.body)


class Follower:
    """Follows one request that is about to be sent, as `meshmw verify` does; the access logs are read from here on.

    Args:
        logs: Each proxy's access log by the proxy's name, in the order of the way.
        receiver: The collector.
    """

    def __init__(self, logs: Mapping[str, Path], receiver: OtlpReceiver) -> None:
        began = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._tails = [_NewLines(name, path, began) for name, path in logs.items()]
        self._receiver = receiver

    def journey(self, probe: Probe, status: int, began_ns: int, timeout: float) -> Journey:
        """Wait until logs and collector show the request, and return its journey with the verdict.

        Args:
            probe: The request.
            status: The status code of its answer.
            began_ns: When it was sent, in nanoseconds since 1970.
            timeout: Seconds to wait at most.
        """
        backend = LocalBackend("collector", lambda: self._receiver.spans, everything=True)
        # A test's mesh has no other traffic, and writes its logs at once.
        watch = Watch(tails=self._tails, backends=[backend], timeout=timeout, settle=0.2, alone=True)
        return follow(probe, ProbeAnswer(status), watch, began_ns)


class _NewLines(LogTail):
    """Leaves out the lines of earlier requests, which a proxy may write after those were answered."""

    def __init__(self, name: str, path: Path, began: str) -> None:
        super().__init__(name, path)
        self._began = began

    @property
    def lines(self) -> list[Line]:
        return [line for line in super().lines if line.get("start_time", self._began) >= self._began]


def as_probe(method: str, url: str, lines: Sequence[tuple[str, str]], named: tuple[str, str] | None) -> Probe:
    """Return a request as a probe that can be followed.

    Args:
        method: Its method.
        url: Where it went.
        lines: Its header lines.
        named: The trace and the span that its headers name; None where the first strict reader begins a fresh trace.
    """
    headers = {name.lower(): value for name, value in reversed(lines)}
    trace_id, parent_id = named or ("", "")
    return Probe(url, _variant(headers, named), trace_id, parent_id, headers, "-", "-", method)


def _variant(headers: Mapping[str, str], named: tuple[str, str] | None) -> Variant:
    if named is None:
        return "malformed"
    if "traceparent" not in headers:
        return "b3"
    return "unsampled" if headers["traceparent"].endswith(_UNSAMPLED) else "w3c"
