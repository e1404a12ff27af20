"""Processes whose work belongs to the trace of whoever asked for it. Nothing of the context is pickled but strings."""

from __future__ import annotations

import concurrent.futures
import contextvars
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.util import Finalize
from typing import Any, Final, ParamSpec, TypeVar

from opentelemetry.context import Context

from meshmw import bootstrap, runtime
from meshmw.boundary.operation import Current
from meshmw.concurrency.carried import Carried
from meshmw.settings import Settings
from meshmw.steps import StepVariables
from meshmw.streams import GeneratorSteps

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("meshmw")

# After the finalizers of the application, which may make spans: the lowest number is the last.
_LAST: Final = -1000


class ProcessPoolExecutor(concurrent.futures.ProcessPoolExecutor):
    """Is the standard library's executor, with the span and the baggage of the caller current in each task.

    It takes the same arguments. Each worker is configured as this process is, before *initializer* runs, and exports
    its spans before it ends. Where `configure()` found a tracer provider of the application's own, *initializer* has
    to set one in the worker too, or its spans go nowhere.

    Args:
        max_workers: As for the standard executor.
        mp_context: As for the standard executor; every start method will do.
        initializer: Is called when a worker starts, in an empty context.
        initargs: Arguments of *initializer*.
        options: As for the standard executor, such as `max_tasks_per_child`.

    Raises:
        TypeError: *initializer* cannot be called.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        **options: Any,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        worker = (_OwnSettings(), initializer, initargs)
        super().__init__(max_workers, mp_context, _begin_worker, worker, **options)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[T]:
        """Schedule a call in the caller's span and baggage, as the standard executor does without."""
        return super().submit(Carried(fn), *args, **kwargs)

    def map(self, fn: Callable[..., T], *iterables: Iterable[Any], **options: Any) -> Iterator[T]:
        """Call *fn* for each item, in the caller's span and baggage also where items are asked for later."""
        run = StepVariables(contextvars.copy_context()).run
        return GeneratorSteps(super().map(fn, *iterables, **options), run)  # type: ignore[arg-type]


class _OwnSettings:
    """Turns, on its way to a new process, into the text of the settings that are in force at that time.

    An executor may be made before `configure()` is called. A forked process has the settings in its memory.
    """

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        telemetry = bootstrap._configured
        if telemetry is None:
            return str, ("",)
        return str, (json.dumps({"owned": telemetry._owned, "settings": telemetry.settings.model_dump(mode="json")}),)


def _begin_worker(own: object, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
    parent = json.loads(own) if isinstance(own, str) and own else None
    if parent and parent["owned"]:
        _configure(parent["settings"])
    Finalize(None, runtime.flush, exitpriority=_LAST)
    if initializer is not None:
        # A forked worker begins in the context of the request that happened to start it.
        with Current(Context()):
            initializer(*initargs)
    if parent and not parent["owned"]:
        _configure({**parent["settings"], "exporter": "none"})


def _configure(settings: dict[str, Any]) -> None:
    try:
        bootstrap.configure(Settings(**settings))
    except Exception:
        log.warning("a worker process exports no spans: it cannot be configured as its parent was", exc_info=True)
