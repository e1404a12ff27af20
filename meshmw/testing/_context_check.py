"""A check that fails whatever leaves an OpenTelemetry context behind.

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
from typing import TYPE_CHECKING

import opentelemetry.context as otel_context
from opentelemetry import trace
from opentelemetry.context.context import _RuntimeContext

if TYPE_CHECKING:
    from opentelemetry.context import Context

# A background exporter may be at work when the check ends: what it attached, it detaches within moments, or after a
# while on a machine under load.
_GRACE_SECONDS = 10.0


@contextlib.contextmanager
def strict_context() -> Iterator[None]:
    """Fail if the block leaves an OpenTelemetry context attached, on any thread or task, or fails to detach one.

    An exception of the block itself passes through, unchecked. The context from before is restored in every case, so
    that one leak fails one test and not those after it.

    Raises:
        AssertionError: If a context leaks; names the span that is left and shows the code that attached it.
    """
    recorder = _Recorder(otel_context._RUNTIME_CONTEXT)
    before = otel_context.get_current()
    otel_context._RUNTIME_CONTEXT = recorder
    try:
        yield
        faults = recorder.faults(before)
    finally:
        otel_context._RUNTIME_CONTEXT = recorder.inner
        if otel_context.get_current() != before:
            otel_context.attach(before)
    if faults:
        raise AssertionError("\n".join(faults))


@dataclass(frozen=True, slots=True)
class _Attachment:
    token: Token[Context]
    context: Context
    thread: int
    stack: traceback.StackSummary

    def __str__(self) -> str:
        return f"{_name(self.context)}\nattached at:\n{''.join(self.stack.format())}"


class _Recorder(_RuntimeContext):
    """Stands in for the API's runtime context: does what it does, and notes each token until it is detached."""

    def __init__(self, inner: _RuntimeContext) -> None:
        self.inner = inner
        # By the token's id, because a token has no hash; the attachment keeps the token, and so the id, alive.
        self._open: dict[int, _Attachment] = {}
        self._failed: list[str] = []

    def attach(self, context: Context) -> Token[Context]:
        token = self.inner.attach(context)
        stack = traceback.extract_stack(limit=12)[:-2]
        summary = traceback.StackSummary.from_list(stack)
        self._open[id(token)] = _Attachment(token, context, threading.get_ident(), summary)
        return token

    def get_current(self) -> Context:
        return self.inner.get_current()

    def detach(self, token: Token[Context]) -> None:
        attachment = self._open.pop(id(token), None)
        try:
            self.inner.detach(token)
        except Exception as fault:
            what = attachment or "a context that was attached before this check began"
            self._failed.append(f"Failed to detach context ({fault}): {what}")
            raise

    def faults(self, before: Context) -> list[str]:
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._open_elsewhere() and time.monotonic() < deadline:
            time.sleep(0.01)
        leaked = [f"A context is still attached: {attachment}" for attachment in self._still_open()]
        current = self.get_current()
        if current != before and not leaked:
            leaked = [f"The current context is another than before: {_name(current)}, was {_name(before)}"]
        return self._failed + leaked

    def _open_elsewhere(self) -> bool:
        # A thread that has ended will detach nothing any more.
        others = sys._current_frames().keys() - {threading.get_ident()}
        return any(attachment.thread in others for attachment in self._still_open())

    def _still_open(self) -> list[_Attachment]:
        # The variable itself may have been reset with a token; only its text tells.
        return [each for each in list(self._open.values()) if not repr(each.token).startswith("<Token used")]


def _name(context: Context) -> str:
    span = trace.get_current_span(context)
    if not span.get_span_context().is_valid:
        return f"no span, keys {sorted(context)}"
    return f"span {getattr(span, 'name', 'of a remote parent')!r} ({span.get_span_context().span_id:016x})"
