"""The header matrix: what arrives at a mesh in practice, and whether a trace goes on from it.

Each case has ids of its own, so that a test sees at once whose trace it found.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
_SPAN: Final = "00f067aa0ba902b7"
_B3_TRACE: Final = "80f198ee56343ba864fe8b2a57d3eff7"
_B3_SPAN: Final = "e457b5a2e4d86bd1"


@dataclass(frozen=True, slots=True)
class HeaderCase:
    """Is what one request brings.

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


_W3C: Final = ("traceparent", f"00-{_TRACE}-{_SPAN}-01")
_B3: Final = ("b3", f"{_B3_TRACE}-{_B3_SPAN}-1")

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


def header_cases(names: Iterable[str] = ()) -> list[HeaderCase]:
    """Return the cases of these names, in their order, or all.

    Raises:
        ValueError: There is no case of one of the names.
    """
    by_name = {case.name: case for case in HEADER_MATRIX}
    wanted = list(names) or list(by_name)
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        raise ValueError(f"there is no header case {unknown[0]!r}: choose of {', '.join(by_name)}")
    return [by_name[name] for name in wanted]
