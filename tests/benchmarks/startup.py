"""What a start takes: processor time of fresh interpreters that import and configure tracing, and end.

Each program is run in turn, many times over, with bytecode that an earlier run has written.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from typing import Final

from tests.benchmarks.measure import Spread

ROUNDS: Final = 25
PROGRAMS: Final = {
    "python alone": "",
    "import meshmw": "import meshmw",
    "import meshmw.asgi": "import meshmw.asgi",
    "OTLP exporter over gRPC and SDK": """
import opentelemetry.exporter.otlp.proto.grpc.trace_exporter
import opentelemetry.sdk.trace.export
""",
    "meshmw": "import meshmw.auto, meshmw.asgi",
    # What OpenTelemetry's documentation shows.
    "contrib": """
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
provider = TracerProvider(resource=Resource.create({"service.name": "items"}))
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(insecure=True)))
trace.set_tracer_provider(provider)
""",
}


def report(rounds: int = ROUNDS, *, anew: bool = True) -> str:
    """Return a table of the milliseconds that each start takes, and how many times ours.

    Args:
        rounds: How often each program is run.
        anew: Whether bytecode is written first, ours and that of what others installed alike.
    """
    with tempfile.TemporaryDirectory() as bytecode:
        environ = {**os.environ, "MESHMW_SERVICE_NAME": "items", "MESHMW_SHOW_LOG": "false"}
        if anew:
            environ |= {"PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
            for program in PROGRAMS.values():
                _milliseconds(program, environ)
        taken: dict[str, list[float]] = {name: [] for name in PROGRAMS}
        for _ in range(rounds):
            for name, program in PROGRAMS.items():
                taken[name].append(_milliseconds(program, environ))
    rows = ["| start | ms of processor time | times meshmw's |", "|---|---:|---:|"]
    for name, found in taken.items():
        times = statistics.median(each / ours for each, ours in zip(found, taken["meshmw"], strict=True))
        low, median, high = Spread.of(found)
        rows.append(f"| {name} | {median:.0f} ({low:.0f}-{high:.0f}) | {times:.2f} |")
    return "\n".join(rows)


def _milliseconds(program: str, environ: dict[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # What ends a process is no part of its start.
    subprocess.run([sys.executable, "-c", f"{program}\nimport os\nos._exit(0)"], env=environ, check=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1_000
