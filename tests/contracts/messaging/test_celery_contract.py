"""Celery on the messaging contract, as far as that fits: it hands no message out, and has no `inject` and no `extract`.

What stands in the other files of this folder for pika and the like runs here as it is. A destination is a queue, and
the name of the one task in it. `tests/test_celery.py` has what the contract says of `inject`, `extract` and batches.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import celery
import kombu
import kombu.pools
import pytest
from celery import signals
from celery.app.task import Context
from celery.worker.request import Request
from opentelemetry import trace
from opentelemetry.trace import Span

import meshmw.celery
from tests.contracts.messaging.client import Headers, TracedClient
from tests.contracts.messaging.test_one_trace import (
    test_the_setting_makes_a_new_trace_that_links_to_the_message,  # noqa: F401
)
from tests.contracts.messaging.test_unhappy import (
    received,
    test_a_message_that_is_forwarded_has_one_parent_the_new_one,  # noqa: F401
    test_nothing_malformed_of_any_format_is_on_a_message_that_is_processed,  # noqa: F401
    test_the_request_id_goes_along,  # noqa: F401
    test_what_is_good_stays_on_a_message_as_it_came_also_where_its_sender_is_not_trusted,  # noqa: F401
)

SECONDS = 60
# Celery calls a task's id so, among the headers.
OURS, THEIRS = {"id": "x-id"}, {"x-id": "id"}


def work() -> None:
    """What a task does."""


class Delivered:
    """A message, and the request that a worker makes of it."""

    def __init__(self, message: kombu.Message, app: celery.Celery) -> None:
        self.task = app.tasks[message.headers["task"]]
        self.request = Context(Request(message, app=app).request_dict, called_directly=False)


class CeleryClient(TracedClient):
    system = "celery"
    ours = meshmw.celery
    send_operation = "publish"
    null_bodies = False

    async def open(self) -> None:
        self.app = celery.Celery("contract", broker=self.broker, set_as_current=False)
        meshmw.celery.instrument(self.app, **self.options)
        self.connection = self.app.connection_for_write()

    async def close(self) -> None:
        self.connection.release()
        self.app.close()
        kombu.pools.reset()

    def queue(self, destination: str) -> kombu.Queue:
        if destination not in self.app.tasks:
            self.app.task(work, name=destination, shared=False)
        queue = kombu.Queue(destination, durable=False)(self.connection.default_channel)
        queue.declare()
        return queue

    async def send_plain(self, destination: str, body: bytes | None = b"body", headers: Headers = ()) -> None:
        self.queue(destination)
        own = {"task": destination, "id": "id-1"} | {OURS.get(name, name): value for name, value in headers}
        kombu.Producer(self.connection.default_channel).publish(((), {}, {}), routing_key=destination, headers=own)

    async def send(self, destination: str, body: bytes | None = b"body", headers: Any = None) -> None:
        self.app.send_task(destination, queue=self.queue(destination), headers=headers)

    send_instrumented = send

    async def receive(self, destination: str, count: int = 1) -> list[Any]:
        return [self.next(destination) for _ in range(count)]

    def next(self, destination: str) -> Delivered:
        deadline = time.monotonic() + SECONDS
        while (message := self.queue(destination).get(no_ack=True, accept=["json"])) is None:
            assert time.monotonic() < deadline, "no message came"
        return Delivered(message, self.app)

    def inject(self, headers: Any = None, **_: Any) -> Any:
        """Return the headers of a task that is sent."""
        destination = str(uuid.uuid4())
        self.app.send_task(destination, queue=self.queue(destination), headers=headers)
        return self.headers_of(self.next(destination))

    def headers_of(self, message: Any) -> Any:
        return dict(message.request.headers or {})

    def pairs_of(self, headers: Any) -> list[tuple[str, bytes | None]]:
        return [(THEIRS.get(name, name), str(value).encode()) for name, value in headers.items()]

    @contextmanager
    def consumer_span(self, message: Delivered) -> Iterator[Span]:
        """Do with a request what Celery's `trace_task` does around a task's run."""
        # The options may have changed since then.
        meshmw.celery.instrument(self.app, **self.options)
        task, about = message.task, {"task": message.task, "task_id": "id-1", "args": (), "kwargs": {}}
        task.request_stack.push(message.request)
        state, retval = "SUCCESS", None
        try:
            signals.task_prerun.send(sender=task, **about)
            try:
                yield trace.get_current_span()
            except Exception as error:
                state, retval = "FAILURE", error
                raise
            finally:
                signals.task_postrun.send(sender=task, state=state, retval=retval, **about)
        finally:
            task.request_stack.pop()

    def batch_span(self, messages: Sequence[Delivered]) -> AbstractContextManager[Span]:
        """Process one: that is all that Celery does at once."""
        (message,) = messages
        return self.consumer_span(message)


@pytest.fixture
def make(rabbitmq_broker: str) -> Callable[..., CeleryClient]:
    """Makes the client, in the place of those that the other files have."""
    return lambda **options: CeleryClient(rabbitmq_broker, **options)


def test_an_exception_of_a_task_is_recorded_and_goes_on(run, destination):
    async def use(client):
        message = await received(client, destination)
        with pytest.raises(KeyError), client.consumer_span(message):
            raise KeyError("teapot")
        span = client.span(f"process {destination}")
        assert (span.attributes["error.type"], span.status.is_ok) == ("KeyError", False)
        assert [event.name for event in span.events] == ["exception"]

    run(use)
