"""Celery's workers in processes of their own, by a real RabbitMQ: each pool continues the trace, and loses no span."""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import celery
import kombu.pools
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import meshmw.celery
from meshmw.testing import OtlpReceiver, ReceivedSpan, from_sdk, start_process, stop_processes
from tests.programs import clean_environment

SECONDS = 60
POOLS = {
    "solo": ["--pool=solo"],
    "threads": ["--pool=threads", "--concurrency=2"],
    "prefork": ["--pool=prefork", "--concurrency=2"],
}
WORKER = [
    *(sys.executable, "-m", "celery", "-A", "tests.contracts.messaging.celery_program", "worker"),
    *("--loglevel=WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat"),
]
_numbers = itertools.count()


class Shop:
    """Holds a worker that runs, and the app of a service that sends it tasks."""

    def __init__(self, broker: str, folder: Path, pool: str, receiver: OtlpReceiver) -> None:
        queue = f"tasks-{next(_numbers)}"
        self._done, self._log, self._receiver = folder / "done.txt", folder / "worker.log", receiver
        self._done.touch()
        self._worker = start_process(
            [*WORKER, *POOLS[pool]],
            self._log,
            environment=clean_environment()
            | {
                "BROKER_URL": broker,
                "QUEUE": queue,
                "COLLECTOR": receiver.grpc_endpoint,
                "DONE": str(self._done),
                # Only what ends the process flushes.
                "OTEL_BSP_SCHEDULE_DELAY": "600000",
            },
        )
        self.app = celery.Celery("sender", broker=broker)
        self.app.conf.task_default_queue = queue
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("caller")
        meshmw.celery.instrument(self.app, tracer_provider=provider, propagator=meshmw.MeshPropagator())

    def run(self, send: Callable[[], object], runs: int) -> list[str]:
        """Send tasks within a span, and wait until so many have run; return what ran, and how it ended."""
        with self.tracer.start_as_current_span("caller"):
            send()
        deadline = time.monotonic() + SECONDS
        while len(done := self._done.read_text().splitlines()) < runs:
            assert self._worker.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, (done, self._log.read_text())
            time.sleep(0.02)
        return done

    def spans(self) -> list[ReceivedSpan]:
        """Return the spans of the sender, and those of the worker, which ends for that."""
        self._worker.send_signal(signal.SIGTERM)
        assert self._worker.wait(SECONDS) == 0, self._log.read_text()
        assert "Failed to detach" not in self._log.read_text()
        return [*map(from_sdk, self.exporter.get_finished_spans()), *self._receiver.spans]

    def close(self) -> None:
        self.app.close()
        kombu.pools.reset()
        stop_processes([self._worker])


@pytest.fixture(params=POOLS)
def shop(request: pytest.FixtureRequest, rabbitmq_broker: str, tmp_path: Path) -> Iterator[Shop]:
    with (
        OtlpReceiver() as receiver,
        contextlib.closing(Shop(rabbitmq_broker, tmp_path, request.param, receiver)) as made,
    ):
        yield made


def named(spans: list[ReceivedSpan], name: str) -> list[ReceivedSpan]:
    return sorted((span for span in spans if span.name == name), key=lambda span: span.start_ns)


def test_a_task_goes_on_in_the_trace_of_what_sent_it(shop):
    assert shop.run(lambda: shop.app.send_task("add", (1, 2)), 1) == ["add SUCCESS"]
    spans = shop.spans()
    (caller,), (sent,), (ran,) = (named(spans, name) for name in ("caller", "publish add", "process add"))
    assert (sent.kind, ran.kind) == ("PRODUCER", "CONSUMER")
    assert (sent.parent_id, ran.parent_id) == (caller.span_id, sent.span_id)
    assert len({span.trace_id for span in spans}) == 1
    assert ran.attributes["messaging.destination.name"] == sent.attributes["messaging.destination.name"]
    assert ran.attributes["messaging.message.id"] == sent.attributes["messaging.message.id"]


def test_a_retry_a_chain_a_group_and_a_failure_stay_in_the_trace(shop):
    def send():
        again, add = (shop.app.signature(name) for name in ("again", "add"))
        fail = shop.app.signature("fail", immutable=True)
        (again | add.clone((1,)) | celery.group(add.clone((1,)), fail)).apply_async()

    assert sorted(shop.run(send, 5)) == [
        "add SUCCESS",
        "add SUCCESS",
        "again RETRY",
        "again SUCCESS",
        "fail FAILURE",
    ]
    spans = shop.spans()
    assert len({span.trace_id for span in spans}) == 1
    by_id = {span.span_id: span for span in spans}

    def sender_of(span):
        return by_id[by_id[span.parent_id].parent_id]

    first, second = named(spans, "process again")
    chained, grouped = named(spans, "process add")
    (failed,) = named(spans, "process fail")
    assert [sender_of(span) for span in (second, chained, grouped, failed)] == [first, second, chained, chained]
    assert first.attributes["meshmw.task.state"] == "RETRY"
    assert first.attributes["meshmw.task.retry_reason"] == "LookupError"
    assert (first.status, second.attributes["meshmw.task.retries"]) == ("UNSET", 1)
    assert (failed.status, failed.attributes["error.type"]) == ("ERROR", "LookupError")
