"""Handing work to a thread: what it costs that the context goes along."""

from __future__ import annotations

from concurrent import futures

from opentelemetry.instrumentation.threading import ThreadingInstrumentor

from meshmw.concurrency import ThreadPoolExecutor
from tests.benchmarks.measure import Batch, Case, nothing

WORKERS = 1


def cases() -> list[Case]:
    """Return the cases of this file."""
    plain, ours = futures.ThreadPoolExecutor(WORKERS), ThreadPoolExecutor(WORKERS)
    contrib = futures.ThreadPoolExecutor(WORKERS)
    rivals = {
        "bare": _submit(plain),
        "meshmw": _submit(ours),
        "contrib": _instrumented(_submit(contrib)),
    }
    return [Case("executor.submit", rivals, floor="bare", times=500, target={"contrib": 1.0})]


def _submit(pool: futures.Executor) -> Batch:
    def submit(times: int) -> None:
        for future in [pool.submit(nothing) for _ in range(times)]:
            future.result()

    return submit


def _instrumented(batch: Batch) -> Batch:
    """Instrument for the length of a batch alone: contrib patches the class that the others stand on."""
    instrumentor: ThreadingInstrumentor = ThreadingInstrumentor()

    def run(times: int) -> None:
        instrumentor.instrument()
        try:
            batch(times)
        finally:
            instrumentor.uninstrument()

    return run
