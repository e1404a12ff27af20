"""Reading and writing the headers themselves: `MeshPropagator` against OpenTelemetry's default composite."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from opentelemetry import propagate, trace
from opentelemetry.propagators.textmap import TextMapPropagator

from meshmw import MeshPropagator, asgi
from tests.benchmarks.measure import Batch, Case
from tests.benchmarks.servers import asgi_app
from tests.benchmarks.traffic import COMMON, SAMPLED, STATE, UNSAMPLED, asgi_batch, flush, headers, provider

CARRIER = {"traceparent": SAMPLED, **dict(STATE)}
TRACE_ONLY = {"traceparent": SAMPLED}
TIMES = 2000

MANY = ",".join(f"k{n:04}=v" for n in range(7_500))

# Each is refused, and costs a request its trace at most.
HOSTILE: Mapping[str, list[tuple[str, str]]] = {
    "upper case": [("traceparent", SAMPLED.upper())],
    "too long, 60 KB": [("traceparent", SAMPLED + "0" * 60_000)],
    "tracestate, 60 KB": [("traceparent", SAMPLED), ("tracestate", "a=" + "b" * 60_000)],
    "tracestate, 30,000 commas": [("traceparent", SAMPLED), ("tracestate", "a=1" + "," * 30_000)],
    "baggage, 60 KB, one member": [("traceparent", SAMPLED), ("baggage", "a=" + "b" * 60_000)],
    "baggage, 60 KB, 7,500 members": [
        ("traceparent", SAMPLED),
        ("baggage", ",".join(f"k{n:04}=v" for n in range(7_500))),
    ],
    "baggage, 60 KB of spaces": [("traceparent", SAMPLED), ("baggage", "a" + " " * 60_000 + "=1")],
}


def cases() -> list[Case]:
    """Return the cases of this file."""
    provider()
    default, mesh = propagate.get_global_textmap(), MeshPropagator()
    return [
        _extract("extract, all headers", CARRIER, default, mesh),
        _extract("extract, traceparent alone", TRACE_ONLY, default, mesh),
        _inject("inject, all headers", CARRIER, default, mesh),
        _inject("inject, traceparent alone", TRACE_ONLY, default, mesh),
        _malformed(),
    ]


def _extract(name: str, carrier: dict[str, str], default: TextMapPropagator, mesh: MeshPropagator) -> Case:
    rivals = {
        "meshmw": _repeat(lambda: mesh.extract(carrier)),
        "default": _repeat(lambda: default.extract(carrier)),
    }
    return Case(name, rivals, times=TIMES, target={"default": 1 / 4})


def _inject(name: str, carrier: dict[str, str], default: TextMapPropagator, mesh: MeshPropagator) -> Case:
    def into(propagator: TextMapPropagator) -> Batch:
        context = trace.set_span_in_context(
            trace.get_tracer("service").start_span("GET", propagator.extract(carrier)), propagator.extract(carrier)
        )
        return _repeat(lambda: propagator.inject({}, context))

    return Case(name, {"meshmw": into(mesh), "default": into(default)}, times=TIMES, target={"default": 1 / 2})


def _malformed() -> Case:
    """A hostile header costs no more than twice a valid request; the time of one is that of `meshmw`."""
    # What is said of them is said once a minute; to show it here would be the table's end.
    logging.getLogger("meshmw").addHandler(logging.NullHandler())
    logging.getLogger("meshmw").propagate = False
    app = asgi.TraceContextMiddleware(asgi_app)
    rivals = {"meshmw": asgi_batch(app, headers(SAMPLED)), "bare": asgi_batch(asgi_app, headers(UNSAMPLED))}
    rivals |= {name: asgi_batch(app, [*COMMON, *lines]) for name, lines in HOSTILE.items()}
    return Case("hostile headers", rivals, floor="bare", between=flush)


def _repeat(once: Callable[[], object]) -> Batch:
    def repeat(times: int) -> None:
        for _ in range(times):
            once()

    return repeat
