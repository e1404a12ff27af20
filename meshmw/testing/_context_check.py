"""`strict_context`: a check that fails whatever leaves an OpenTelemetry context behind.

A context that is not detached where it was attached makes the next request on that thread a child of the last one.
While the check is active, the API's runtime context records who attaches; otherwise nothing is replaced.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextvars import Token
from dataclasses import dataclass
from typing import Any, Final

import opentelemetry.context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from meshmw._notices import quoted
from meshmw._otel import runtime_context, set_runtime_context

# A background exporter may be at work when the check ends: what it attached, it detaches within moments, or after a
# while on a machine under load.
_GRACE_SECONDS: Final = 10.0


@contextlib.contextmanager
def strict_context() -> Iterator[None]:
    """Fail if the block leaves an OpenTelemetry context attached, on any thread or task, or fails to detach one.

    An exception of the block itself passes through, unchecked. The context from before is restored in every case, so
    that one leak fails one test and not those after it.

    Raises:
        AssertionError: A context leaks. The message names the span that is left and shows the code that attached it.
    """
    before = otel_context.get_current()
    replaced = runtime_context()
    recorder = _Recorder(replaced)
    set_runtime_context(recorder)
    try:
        yield
        faults = recorder.faults(before)
    finally:
        set_runtime_context(replaced)
        if otel_context.get_current() != before:
            otel_context.attach(before)
    if faults:
        raise AssertionError("\n".join(faults))


class _Recorder:
    """Stands in for the API's runtime context: does what that does, and notes each token until it is detached."""

    def __init__(self, replaced: Any) -> None:
        self._replaced = replaced
        # By the token's id, because a token has no hash; the attachment keeps the token, and so the id, alive.
        self._open: dict[int, _Attachment] = {}
        self._failed: list[str] = []

    def attach(self, context: Context) -> Token[Context]:
        token: Token[Context] = self._replaced.attach(context)
        # Without this frame and the one of the API.
        stack = traceback.extract_stack(limit=12)[:-2]
        summary = traceback.StackSummary.from_list(stack)
        self._open[id(token)] = _Attachment(token, context, threading.get_ident(), summary)
        return token

    def get_current(self) -> Context:
        current: Context = self._replaced.get_current()
        return current

    def detach(self, token: Token[Context]) -> None:
        attachment = self._open.pop(id(token), None)
        try:
            self._replaced.detach(token)
        except Exception as fault:
            what = attachment or "a context that was attached before this check began"
            self._failed.append(f"Failed to detach context ({fault}): {what}")
            raise

    def faults(self, before: Context) -> list[str]:
        """Return what is wrong, once other threads had the time to detach what they have attached."""
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._open_elsewhere() and time.monotonic() < deadline:
            time.sleep(0.01)
        leaked = [f"A context is still attached: {attachment}" for attachment in self._still_open()]
        current = otel_context.get_current()
        if current != before and not leaked:
            leaked = [f"The current context is another than before: {_name(current)}, was {_name(before)}"]
        return self._failed + leaked

    def _open_elsewhere(self) -> bool:
        # A thread that has ended will detach nothing any more.
        others = sys._current_frames().keys() - {threading.get_ident()}
        return any(attachment.thread in others for attachment in self._still_open())

    def _still_open(self) -> list[_Attachment]:
        # Somebody may have reset the context variable itself with the token; only the token's text says so.
        return [each for each in list(self._open.values()) if not repr(each.token).startswith("<Token used")]


@dataclass(frozen=True, slots=True)
class _Attachment:
    token: Token[Context]
    context: Context
    thread: int
    stack: traceback.StackSummary

    def __str__(self) -> str:
        return f"{_name(self.context)}\nattached at:\n{''.join(self.stack.format())}"


def _name(context: Context) -> str:
    span = trace.get_current_span(context)
    if not span.get_span_context().is_valid:
        return f"no span, keys {sorted(context)}"
    return f"span {quoted(getattr(span, 'name', 'of a remote parent'))} ({span.get_span_context().span_id:016x})"
