"""What a request is made of: the bytecode instructions and calls of each part.

Times spread with the machine, and these do not: on one Python and one set of packages they are the same in every run.
What C code does is not among them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

from meshmw import asgi
from tests.benchmarks.floor_served import served_in_one_function
from tests.benchmarks.servers import asgi_app, sdk_alone
from tests.benchmarks.traffic import SAMPLED, UNSAMPLED, headers, loop, receive, scope_of, send

App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]

# By the beginning of `module:function`; the first that fits.
PARTS: Final = {
    "the SDK: the span, its attributes, its queue": ("opentelemetry.sdk", "opentelemetry.attributes"),
    "OpenTelemetry's API: contexts, span contexts": ("opentelemetry", "abc", "_collections_abc"),
    "meshmw: header lines out of the scope": ("meshmw.asgi:_header_lines",),
    "our own span": ("meshmw._lazy_span", "meshmw._telemetry.span"),
    "meshmw: the span's attributes": (
        "meshmw._lifecycle.http_conventions",
        "meshmw._lifecycle.operation:LazyAttributes",
        "meshmw.asgi:_AsgiRequest.attributes",
    ),
    "meshmw: who begins, the operation, its end": ("meshmw._lifecycle", "meshmw._runtime", "meshmw._context.current"),
    "meshmw: headers read and put into a context": (
        "meshmw.propagator",
        "meshmw._context",
        "meshmw.wire",
        "meshmw._notices",
        "meshmw._otel",
    ),
    "meshmw: the ASGI protocol, the response": ("meshmw.asgi", "meshmw._frameworks"),
    "all of it in one function": ("tests.benchmarks.floor_served",),
    "what stands around the SDK's span": ("tests.benchmarks.servers:sdk_alone",),
}
REST: Final = "the application"


def report() -> str:
    """Return a table for a sampled request and one for an unsampled one: how many instructions in how many calls."""
    return "\n\n".join(f"{name}\n\n{_table(line)}" for name, line in (("sampled", SAMPLED), ("unsampled", UNSAMPLED)))


def _table(traceparent: str) -> str:
    rivals = {
        "meshmw": asgi.TraceContextMiddleware(asgi_app),
        "one function": served_in_one_function(asgi_app),
        "SDK span alone": sdk_alone(asgi_app, traceparent),
    }
    counted = {name: instructions(app, headers(traceparent)) for name, app in rivals.items()}
    rows = [f"| part | {' | '.join(rivals)} |", "|---|" + "---:|" * len(rivals)]
    for part in (*PARTS, REST):
        rows.append(f"| {part} | " + " | ".join(_shown(*found[part]) for found in counted.values()) + " |")
    sums = [[sum(column) for column in zip(*found.values(), strict=True)] for found in counted.values()]
    return "\n".join([*rows, "| all | " + " | ".join(_shown(*found) for found in sums) + " |"])


def _shown(executed: int, calls: int) -> str:
    return f"{executed:,} in {calls}" if calls else ""


def instructions(app: App, lines: list[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """Return, by part, how many instructions one request executes and how many calls it makes, once all is warm."""
    executed: Counter[str] = Counter()
    calls: Counter[str] = Counter()

    def trace(frame: Any, event: str, _: object) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        part = _part(f"{frame.f_globals.get('__name__', '')}:{frame.f_code.co_qualname}")
        if event == "call":
            calls[part] += 1
        elif event == "opcode":
            executed[part] += 1
        return trace

    async def watched() -> None:
        scope, before = scope_of(lines), sys.gettrace()
        sys.settrace(trace)
        try:
            await app(scope, receive, send)
        finally:
            sys.settrace(before)

    for _ in range(3):
        loop().run_until_complete(app(scope_of(lines), receive, send))
    # Twice: Python 3.12 and later say of a function what it executes only after it was watched once.
    loop().run_until_complete(watched())
    executed.clear()
    calls.clear()
    loop().run_until_complete(watched())
    return {part: (executed[part], calls[part]) for part in (*PARTS, REST)}


def _part(function: str) -> str:
    return next((part for part, names in PARTS.items() if function.startswith(names)), REST)
