"""Kafka's header helpers: what it costs to read one record's headers and to write another's."""

from __future__ import annotations

from collections.abc import Callable

from opentelemetry import propagate, trace
from opentelemetry.instrumentation.kafka.utils import _kafka_getter, _kafka_setter

from meshmw import kafka
from tests.benchmarks.measure import Batch, Case
from tests.benchmarks.traffic import SAMPLED, STATE, provider

RECORD = [(name, value.encode()) for name, value in (("content-type", "text/plain"), ("traceparent", SAMPLED), *STATE)]


def cases() -> list[Case]:
    """Return the cases of this file."""
    provider()
    context = kafka.extract(RECORD)
    context = trace.set_span_in_context(trace.get_tracer("service").start_span("send", context), context)

    def contrib_inject() -> None:
        propagate.inject([], context, _kafka_setter)

    reads = {
        "meshmw": _repeat(lambda: kafka.extract(RECORD)),
        "contrib": _repeat(lambda: propagate.extract(RECORD, getter=_kafka_getter)),
    }
    writes = {"meshmw": _repeat(lambda: kafka.inject([], context)), "contrib": _repeat(contrib_inject)}
    return [
        Case("Kafka record, headers read", reads, times=1000),
        Case("Kafka record, headers written", writes, times=1000),
    ]


def _repeat(once: Callable[[], object]) -> Batch:
    def repeat(times: int) -> None:
        for _ in range(times):
            once()

    return repeat
