"""A Celery app as a service has it, for workers in processes of their own and for what sends them tasks.

    celery -A tests.contracts.messaging.celery_program worker --pool=solo

`BROKER_URL` says where the broker is, `COLLECTOR` where the spans go, and `DONE` which file gets a line for each run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import celery
import celery.signals

import meshmw
import meshmw.celery
from meshmw import baggage

app = celery.Celery("shop", broker=os.environ["BROKER_URL"])
app.conf.broker_connection_retry_on_startup = False
app.conf.worker_hijack_root_logger = False
app.conf.worker_prefetch_multiplier = 1
app.conf.task_default_queue = os.environ.get("QUEUE", "celery")
meshmw.celery.instrument(app)

meshmw.configure(
    meshmw.Settings(exporter="otlp", endpoint=os.environ["COLLECTOR"], service_name="worker", metrics="none")
)


@celery.signals.task_postrun.connect(weak=False)
def note(task: Any, state: str, **_: Any) -> None:
    with Path(os.environ["DONE"]).open("a") as file:
        file.write(f"{task.name} {state}\n")


@app.task(name="add")
def add(left: int, right: int) -> int:
    return left + right


@app.task(name="fail")
def fail() -> None:
    raise LookupError("no teapot")


@app.task(name="again", bind=True, max_retries=1)
def again(self: Any) -> int:
    if not self.request.retries:
        raise self.retry(exc=LookupError("not yet"), countdown=0)
    return self.request.retries


@app.task(name="tell", bind=True)
def tell(self: Any) -> None:
    """Send on what is current in a task, and what is left of its headers."""
    headers = {str(key): str(value) for key, value in (self.request.headers or {}).items()}
    said.delay(headers, {key: str(value) for key, value in baggage.get_all().items()})


@app.task(name="said")
def said(headers: dict[str, str], members: dict[str, str]) -> None:
    """Stand for a service that is told."""
