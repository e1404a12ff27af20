"""Celery: a trace goes on from what sends a task to the worker that runs it, whatever the broker and the pool.

    app = celery.Celery("shop", broker="amqp://rabbitmq/")
    meshmw.celery.instrument(app)  # returns the same app

Call it where the app is made, so that producers, workers and beat all run it. What sends a task has a PRODUCER span,
and each run of a task a CONSUMER span, both named after the task. A retry, the next task of a chain and the tasks of a
group are sent within the span of the task that sends them, and so stay in its trace.

No function of Celery's is replaced: the app sends by a subclass of its own `AMQP` class, and workers tell of runs by
signals.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, TypeVar, Unpack
from weakref import WeakKeyDictionary, WeakSet

from meshmw import _runtime
from meshmw._context.extraction import Extraction
from meshmw._lifecycle.decide import OperationType
from meshmw._lifecycle.messaging import OWNED_HEADERS, Messaging, Options, header_lines, message_attributes, name_of
from meshmw._lifecycle.operation import AttributeValue, Operation, OperationScope, error_type
from meshmw.errors import extra_named

with extra_named("celery", "celery", "celery"):
    from celery import Celery, signals  # type: ignore[import-untyped]
    from celery.exceptions import TaskPredicate  # type: ignore[import-untyped]

__all__ = ["Options", "instrument"]

A = TypeVar("A")

_CELERY: Final = Messaging("celery")
_CONTRIB: Final = "opentelemetry.instrumentation.celery"
# Any sender can write these headers.
_LONGEST: Final = 255
_MOST: Final = 1_000_000

_apps: Final[WeakKeyDictionary[Any, Messaging]] = WeakKeyDictionary()
# Of these, copies of others: a process that Celery spawns, and does not fork, runs tasks of a pickled app.
_copies: Final[WeakSet[Any]] = WeakSet()
# What Celery calls with an app that it has made of a pickle.
_FIXUP: Final = "meshmw.celery:_restore"
# What runs now, by the task's request, with the exception that was handled around it when it began.
_running: Final[WeakKeyDictionary[Any, tuple[OperationScope, BaseException | None]]] = WeakKeyDictionary()


def instrument(app: A, **options: Unpack[Options]) -> A:
    """Have a Celery app trace the tasks that it sends and those that its workers run, and return it.

    It reads no configuration, so that you may still change that. A second call replaces the options of the first.

    Args:
        app: The `Celery` object.
        **options: `parent`, `propagator` and `tracer_provider`: see `Options`.

    Raises:
        ValueError: `parent` is none of its words.
        TypeError: *app* is no Celery app; or an option is not known, or holds no propagator or tracer provider.
    """
    if not isinstance(app, Celery):
        raise TypeError(f"instrument() takes a Celery app, not {type(app).__module__}.{type(app).__qualname__}")
    messaging = _CELERY.with_options(options)
    # Not `app`, which may be a proxy such as `celery.current_app`.
    own = app.amqp.app
    for each in (own, *(copied for copied in _copies if copied.main == own.main)):
        _trace(each, messaging)
    return app


def _restore(copied: Any) -> None:
    """Have the copy of an app trace as the app does that this process has instrumented, or else is about to."""
    messaging = next((options for app, options in _apps.items() if app.main == copied.main), _CELERY)
    _copies.add(copied)
    _trace(copied, messaging)


def _trace(app: Any, messaging: Messaging) -> None:
    if app not in _apps:
        app.amqp.__class__ = _tracing(type(app.amqp))
        app.fixups = list(dict.fromkeys([*app.fixups, _FIXUP]))
    _apps[app] = messaging
    signals.task_prerun.connect(_begin_run, weak=False, dispatch_uid="meshmw")
    signals.task_postrun.connect(_end_run, weak=False, dispatch_uid="meshmw")
    # A process of the prefork pool ends without its exit handlers.
    signals.worker_process_shutdown.connect(_flush, weak=False, dispatch_uid="meshmw")


def _tracing(amqp_class: Any) -> Any:
    """Return a subclass of an app's `AMQP` class that sends tasks in a span."""

    class TracingAMQP(amqp_class):  # type: ignore[misc]
        @property
        def send_task_message(self) -> Callable[..., Any]:
            return partial(_send, self, super().send_task_message)

        @send_task_message.setter
        def send_task_message(self, value: Callable[..., Any]) -> None:
            # Where Celery's own property looks. Somebody wraps it, takes a double, or puts back what was read.
            ours = value if isinstance(value, partial) and value.func is _send else None
            self.__dict__["send_task_message"] = value if ours is None else ours.args[1]

        @send_task_message.deleter
        def send_task_message(self) -> None:
            del self.__dict__["send_task_message"]

    return TracingAMQP


def _send(
    amqp: Any, own: Callable[..., Any], producer: Any, name: str, message: Any, *args: Any, **options: Any
) -> Any:
    """Send a task as Celery does, in a PRODUCER span and with its context among the headers."""
    messaging, present = _apps[amqp.app], {**message[0], **(options.pop("headers", None) or {})}

    def describe() -> dict[str, AttributeValue]:
        queue = options.get("queue") or options.get("exchange") or amqp.app.conf.task_default_queue
        # Protocol 1 has nothing but the properties to name the task by.
        about = {"id": message[1].get("correlation_id"), **present}
        return _task_attributes(name, about, str(getattr(queue, "name", queue)))

    def begin() -> Operation:
        if _is_traced_by_contrib():
            return messaging.begin_nothing()
        return messaging.begin_send(name, describe, operation="publish")

    with OperationScope(begin):
        new = messaging.write(None, header_lines(present, messaging.propagator.names_read))
        carrying = {key: value for key, value in present.items() if name_of(key) not in OWNED_HEADERS} | new
        return own(producer, name, (carrying, *message[1:]), *args, **options)


def _begin_run(task: Any, **_: Any) -> None:
    """Begin the span of a task that is about to run, and make its context current."""
    messaging = _apps.get(task.app)
    if messaging is None:
        return
    request = task.request
    if _is_traced_by_contrib():
        # It reads the headers by the global propagator, which counts and warns. Nothing is attached beside it: its own
        # functions run in the order of ours both times, so that the two would be detached crosswise.
        _take(messaging, request, "receive")
        return
    scope = OperationScope(partial(_begin, messaging, task.name, request))
    scope.__enter__()
    # Celery calls both functions in one frame of its own, with the task's run in between, whatever that raises.
    _running[request] = scope, sys.exception()


def _begin(messaging: Messaging, name: str, request: Any) -> Operation:
    extraction, describe = _take(messaging, request), partial(_run_attributes, name, request)
    if request.is_eager:
        return messaging.begin_inline(name, describe)
    return messaging.begin_process(extraction, name, describe)


def _end_run(task: Any, state: str | None = None, retval: Any = None, **_: Any) -> None:
    """End the span of a task that has run, with its state and with what it has raised."""
    scope, around = _running.pop(task.request, (None, None))
    if scope is None or scope.operation is None:
        return
    # What Celery does not catch, such as an eager task's error or one of the result's store, is on its way.
    leaving = sys.exception()
    error = retval if state == "FAILURE" else leaving if leaving is not around else None
    span = scope.operation.span
    if state is not None:
        span.set_attribute("meshmw.task.state", state)
    if state == "RETRY" and isinstance(reason := getattr(retval, "exc", None), Exception):
        span.set_attribute("meshmw.task.retry_reason", error_type(reason))
    # What a task declares in `throws` is expected of it, and by the others it says what is to become of it.
    expected = isinstance(error, (TaskPredicate, task.throws))
    scope.__exit__(None, None if expected else error, None)


def _flush(**_: Any) -> None:
    _runtime.flush()


def _take(messaging: Messaging, request: Any, operation_type: OperationType = "process") -> Extraction:
    """Return what a task's headers say, and take away from its request what is malformed of them (law 2)."""
    found = {key: value for headers in _headers_of(request) for key, value in headers.items()}
    extraction = messaging.read(header_lines(found, messaging.propagator.names_checked), operation_type)
    for headers in _headers_of(request) if extraction.rewrites else ():
        for key in [key for key in headers if name_of(key) in extraction.rewrites]:
            del headers[key]
        headers.update({name: text for name, text in extraction.rewrites.items() if text is not None})
    return extraction


def _headers_of(request: Any) -> Iterator[dict[Any, Any]]:
    """Yield where Celery holds a task's headers: `headers`, and in protocol 2 the request's attributes too."""
    if isinstance(request.headers, dict):
        yield request.headers
    yield vars(request)


def _run_attributes(name: str, request: Any) -> dict[str, AttributeValue]:
    delivery = request.delivery_info if isinstance(request.delivery_info, dict) else {}
    parts = [part for part in (delivery.get("exchange"), delivery.get("routing_key")) if isinstance(part, str) and part]
    found = _task_attributes(name, vars(request), ":".join(parts))
    return found | {"meshmw.message.redelivered": True} if delivery.get("redelivered") is True else found


def _task_attributes(name: str, headers: Mapping[Any, Any], destination: str) -> dict[str, AttributeValue]:
    """Return what a span says of a task, beside what it says of every message.

    Args:
        name: The task's name.
        headers: What Celery's protocol says of it.
        destination: Its queue; what is sent by a topic has an exchange and a routing key; nothing for an eager task.
    """
    found: dict[str, AttributeValue] = {"meshmw.task.name": name}
    found |= message_attributes(message_id=_text(headers.get("id")), conversation_id=_text(headers.get("root_id")))
    retries = headers.get("retries")
    if isinstance(retries, int) and retries > 0:
        found["meshmw.task.retries"] = min(int(retries), _MOST)
    # The task's name names the span, because one queue serves all of them.
    return found | {"messaging.destination.name": destination[:_LONGEST]} if destination else found


def _text(value: object) -> str | None:
    return value[:_LONGEST] if isinstance(value, str) and value else None


def _is_traced_by_contrib() -> bool:
    """Say whether contrib's instrumentation makes the spans; it asks nobody whether it is suppressed."""
    instrumentor: Any = getattr(sys.modules.get(_CONTRIB), "CeleryInstrumentor", None)
    return instrumentor is not None and instrumentor().is_instrumented_by_opentelemetry is True


def __dir__() -> list[str]:
    return sorted(__all__)
