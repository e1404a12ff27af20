"""Celery's workers in processes of their own, by a real RabbitMQ: each pool continues the trace, and loses no span."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import kombu.pools
import pytest
from opentelemetry import baggage
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import meshmw.celery
from meshmw._context.current import Current
from meshmw.testing import OtlpReceiver, ReceivedSpan, from_sdk, start_process, stop_processes
from tests.programs import clean_environment

SECONDS = 60
POOLS = {
    "solo": ["--pool=solo", "--max-tasks-per-child=2"],
    "threads": ["--pool=threads", "--concurrency=2"],
    "prefork": ["--pool=prefork", "--concurrency=2"],
}
# A process of its own for each two tasks.
SHORT_LIVED = ["--pool=prefork", "--concurrency=1", "--max-tasks-per-child=2"]
WORKER = [
    *(sys.executable, "-m", "celery", "-A", "tests.contracts.messaging.celery_program", "worker"),
    *("--loglevel=WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat"),
]
KINDS = ("PRODUCER", "CONSUMER")


class Shop:
    """Holds a worker that runs, and the app of a service that sends it tasks."""

    def __init__(self, broker: str, folder: Path, options: list[str], method: str, receiver: OtlpReceiver) -> None:
        queue = f"tasks-{uuid.uuid4()}"
        self._done, self._log, self.receiver = folder / "done.txt", folder / "worker.log", receiver
        self._done.touch()
        (folder / "results").mkdir()
        self._worker = start_process(
            [*WORKER, *options],
            self._log,
            environment=clean_environment()
            | {
                "BROKER_URL": broker,
                "QUEUE": queue,
                "COLLECTOR": receiver.grpc_endpoint,
                "DONE": str(self._done),
                "START_METHOD": method,
                "RESULTS": str(folder / "results"),
                # Only what ends the process flushes.
                "OTEL_BSP_SCHEDULE_DELAY": "600000",
            },
        )
        self.app = celery.Celery("sender", broker=broker, backend=f"file://{folder / 'results'}", set_as_current=False)
        self.app.conf.task_default_queue = queue
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("caller")
        meshmw.celery.instrument(self.app, tracer_provider=provider, propagator=meshmw.MeshPropagator())

    def send(self, send: Callable[[], Any]) -> Any:
        """Send tasks within a span."""
        with (
            Current(baggage.set_baggage("tenant", "north", Context())),
            self.tracer.start_as_current_span("caller"),
        ):
            return send()

    def wait(self, ends: Callable[[list[str]], bool]) -> list[str]:
        """Wait for what the worker has noted of its runs, and return it."""
        deadline = time.monotonic() + SECONDS
        while not ends(done := self._done.read_text().splitlines()):
            assert self._worker.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, (done, self._log.read_text())
            time.sleep(0.02)
        return done

    def spans(self) -> list[ReceivedSpan]:
        """Return the spans of the sender, and those of the worker, which ends for that."""
        self._worker.send_signal(signal.SIGTERM)
        assert self._worker.wait(SECONDS) == 0, self._log.read_text()
        assert "Failed to detach" not in self._log.read_text()
        assert "Signal handler" not in self._log.read_text()
        return [*map(from_sdk, self.exporter.get_finished_spans()), *self.receiver.spans]

    def close(self) -> None:
        self.app.close()
        kombu.pools.reset()
        stop_processes([self._worker])


@pytest.fixture
def start(rabbitmq_broker: str, tmp_path: Path) -> Iterator[Callable[..., Shop]]:
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(OtlpReceiver())

        def start(options: list[str], method: str = "fork") -> Shop:
            return stack.enter_context(contextlib.closing(Shop(rabbitmq_broker, tmp_path, options, method, receiver)))

        yield start


def named(spans: list[ReceivedSpan], name: str) -> list[ReceivedSpan]:
    return sorted((span for span in spans if span.name == name), key=lambda span: span.start_ns)


def ends_of(done: list[str]) -> list[str]:
    """Return how all runs have ended, but for those that wait until a chord's tasks have run."""
    return sorted(line for line in done if not line.endswith("BEGUN") and "chord_unlock" not in line)


@pytest.mark.parametrize("pool", POOLS)
def test_whatever_sends_tasks_and_whatever_runs_them_there_is_one_trace_for_one_caller(start, pool):
    shop = start(POOLS[pool])
    again, add, total = (shop.app.signature(name) for name in ("again", "add", "total"))
    fail = shop.app.signature("fail", immutable=True)

    def send():
        (again | add.clone((1,)) | celery.group(add.clone((1,)), fail)).apply_async()
        celery.chord([add.clone((1, 2)), add.clone((3, 4))], total, app=shop.app).apply_async()
        shop.app.send_task("whole")
        shop.app.send_task("by itself")
        shop.app.send_task("tell", headers={"traceparent": "junk", "Baggage": "old=1", "x-tenant": "south"})

    shop.send(send)
    done = shop.wait(lambda done: len(ends_of(done)) == 15 and "celery.chord_unlock SUCCESS" in done)
    assert ends_of(done) == [
        *["add SUCCESS"] * 4,
        *["again RETRY", "again SUCCESS", "by itself FAILURE", "by itself RETRY", "fail FAILURE"],
        *["said SUCCESS"] * 2,
        *["tell SUCCESS"] * 2,
        *["total SUCCESS", "whole SUCCESS"],
    ]
    spans = shop.spans()
    runs = [span for span in spans if span.kind == "CONSUMER"]
    assert len(runs) == sum(line.endswith("BEGUN") for line in done)
    assert {(span.name, span.kind) for span in spans if span.kind not in ("CONSUMER", "PRODUCER")} == {
        ("caller", "INTERNAL")
    }
    assert len({span.trace_id for span in spans}) == 1
    by_id = {span.span_id: span for span in spans}

    def sender_of(span):
        sent = by_id[span.parent_id]
        assert (sent.kind, sent.name) == ("PRODUCER", span.name.replace("process", "publish"))
        for name in ("messaging.destination.name", "messaging.message.id"):
            assert sent.attributes[name] == span.attributes[name]
        return by_id[sent.parent_id]

    (caller,) = named(spans, "caller")
    (failed,), (summed,), (whole,) = (named(spans, f"process {name}") for name in ("fail", "total", "whole"))
    first, second = named(spans, "process again")
    assert (sender_of(first), sender_of(second)) == (caller, first)
    assert first.attributes["meshmw.task.state"] == "RETRY"
    assert first.attributes["meshmw.task.retry_reason"] == "LookupError"
    assert (first.status, second.attributes["meshmw.task.retries"]) == ("UNSET", 1)
    chained = sender_of(failed)
    assert (chained.name, sender_of(chained)) == ("process add", second)
    assert (failed.status, failed.attributes["error.type"]) == ("ERROR", "LookupError")
    assert [event.name for event in failed.events] == ["exception"]
    assert sorted(sender_of(span).name for span in named(spans, "process add")) == [
        *["caller"] * 2,
        *["process add", "process again"],
    ]
    assert sender_of(summed).name == "process celery.chord_unlock"
    once, twice = named(spans, "process by itself")
    assert (sender_of(once), sender_of(twice)) == (caller, once)
    assert (once.status, twice.status) == ("UNSET", "ERROR")
    assert sorted(sender_of(span).name for span in named(spans, "process tell")) == ["caller", "process whole"]
    assert sender_of(whole) == caller


def test_a_process_that_is_spawned_has_a_copy_of_the_app_and_traces_too(start):
    shop = start(POOLS["prefork"], "spawn")
    shop.send(lambda: shop.app.send_task("tell"))
    shop.wait(lambda done: "said SUCCESS" in done)
    spans = shop.spans()
    names = ["caller", "publish tell", "process tell", "publish said", "process said"]
    caller, *others = (named(spans, name)[0] for name in names)
    assert [span.parent_id for span in others] == [span.span_id for span in (caller, *others[:-1])]
    assert len(spans) == 5


def test_a_process_that_celery_ends_loses_no_span(start):
    shop = start(SHORT_LIVED)
    app = shop.app
    shop.send(lambda: app.send_task("add", (1, 2)))
    shop.send(lambda: app.send_task("wait", (600,), soft_time_limit=0.5))
    # The two tasks of this process have run.
    shop.send(lambda: app.send_task("add", (3, 4)))
    sent = shop.send(lambda: app.send_task("wait", (600,)))
    shop.wait(lambda done: done.count("wait BEGUN") == 2)
    app.control.revoke(sent.id, terminate=True)
    shop.send(lambda: app.send_task("add", (5, 6)))
    shop.wait(lambda done: done.count("add SUCCESS") == 3)
    spans = shop.spans()
    assert len(named(spans, "process add")) == 3
    limited, revoked = named(spans, "process wait")
    assert (limited.status, limited.attributes["error.type"]) == (
        "ERROR",
        "billiard.exceptions.SoftTimeLimitExceeded",
    )
    assert (revoked.status, revoked.attributes.get("meshmw.task.state")) == ("UNSET", None)
    assert {span.parent_id for span in spans if span.kind == "CONSUMER"} == {
        span.span_id for span in spans if span.kind == "PRODUCER"
    }


def test_a_task_that_never_ran_has_no_span_and_what_follows_one_that_is_killed_has(start):
    shop = start(SHORT_LIVED)
    app = shop.app
    shop.send(lambda: app.send_task("add", (1, 2), task_id="first"))
    shop.wait(lambda done: "add SUCCESS" in done)
    assert app.control.revoke("revoked", reply=True, timeout=SECONDS, limit=1)
    shop.send(lambda: app.send_task("add", (1, 2), task_id="revoked"))
    shop.send(lambda: app.send_task("wait", (600,), task_id="killed", time_limit=0.5))
    shop.send(lambda: app.send_task("add", (1, 2), task_id="last"))
    shop.wait(lambda done: done.count("add SUCCESS") == 2)
    spans = shop.spans()
    ids = {kind: {each.attributes["messaging.message.id"] for each in spans if each.kind == kind} for kind in KINDS}
    assert ids["PRODUCER"] == {"first", "revoked", "killed", "last"}
    # The process that was killed had a tenth of a second to send its spans.
    assert {"last"} <= ids["CONSUMER"] <= {"first", "killed", "last"}
