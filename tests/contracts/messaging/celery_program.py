"""A Celery app as a service has it, for workers in processes of their own and for what sends them tasks.

    celery -A tests.contracts.messaging.celery_program worker --pool=solo

`BROKER_URL` says where the broker is, `COLLECTOR` where the spans go, `RESULTS` which folder has the results, and
`DONE` which file gets a line for each run that has begun, and one for each that has ended.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import celery
import celery.signals
import celery.worker.request

import meshmw
import meshmw.celery
from meshmw import baggage

app = celery.Celery("shop", broker=os.environ["BROKER_URL"], backend=f"file://{os.environ['RESULTS']}")
app.conf.broker_connection_retry_on_startup = False
app.conf.worker_hijack_root_logger = False
app.conf.worker_prefetch_multiplier = 1
app.conf.task_default_queue = os.environ["QUEUE"]
app.conf.result_chord_retry_interval = 0.1
app.conf.worker_pool_start_method = os.environ["START_METHOD"]
meshmw.celery.instrument(app)
meshmw.celery.instrument(app)  # as where two modules do

meshmw.configure(
    meshmw.Settings(exporter="otlp", endpoint=os.environ["COLLECTOR"], service_name="worker", metrics="none")
)


def note(line: str) -> None:
    with Path(os.environ["DONE"]).open("a") as file:
        file.write(f"{line}\n")


@celery.signals.task_prerun.connect(weak=False)
def note_begin(task: Any, **_: Any) -> None:
    note(f"{task.name} BEGUN")


@celery.signals.task_postrun.connect(weak=False)
def note_end(task: Any, state: str | None, **_: Any) -> None:
    note(f"{task.name} {state}")


@app.task(name="add")
def add(left: int, right: int) -> int:
    return left + right


@app.task(name="fail")
def fail(*_: Any) -> None:
    raise LookupError("no teapot")


@app.task(name="again", bind=True, max_retries=1)
def again(self: Any) -> int:
    if not self.request.retries:
        raise self.retry(exc=LookupError("not yet"), countdown=0)
    return int(self.request.retries)


@app.task(name="by itself", autoretry_for=(LookupError,), max_retries=1, default_retry_delay=0, acks_late=True)
def by_itself() -> None:
    raise LookupError("never")


class Whole(app.Task):  # type: ignore[misc,name-defined]
    """A task that is a class, with a call and a request of its own."""

    name = "whole"
    Request = "tests.contracts.messaging.celery_program:OwnRequest"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)

    def run(self) -> int:
        return 7

    def on_success(self, *_: Any) -> None:
        tell.delay()


class OwnRequest(celery.worker.request.Request):  # type: ignore[misc,name-defined]
    """What an application puts in the place of Celery's own."""


app.register_task(Whole())


@app.task(name="total")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(name="tell", bind=True, ignore_result=True)
def tell(self: Any) -> None:
    """Send on what is current in a task, and what is left of its headers."""
    headers = {str(key): str(value) for key, value in (self.request.headers or {}).items()}
    said.delay(headers, {key: str(value) for key, value in baggage.get_all().items()})


@app.task(name="said", ignore_result=True)
def said(headers: dict[str, str], members: dict[str, str]) -> None:
    """Stand for a service that is told."""


@app.task(name="wait", ignore_result=True)
def wait(seconds: float) -> None:
    time.sleep(seconds)
