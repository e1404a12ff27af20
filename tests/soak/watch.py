"""What a soaked server tells of itself: contexts left, detach errors, what is still alive."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import Span

import meshmw
from meshmw._lifecycle.operation import Operation
from tests.soak.spans import Recorder

MAKE_SPAN = trace.get_tracer("soak")


class _Errors(logging.Handler):
    """Counts what OpenTelemetry and asyncio complain of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.detach = 0
        self.asyncio = 0
        self.first = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        self.detach += "Failed to detach" in text
        self.asyncio += record.name == "asyncio"
        self.first = self.first or text


class Watch:
    """Counts contexts that a request left behind, and errors in the log."""

    def __init__(self) -> None:
        self._errors = _Errors()
        for name in "opentelemetry", "asyncio":
            logging.getLogger(name).addHandler(self._errors)
        meshmw.configure(meshmw.Settings(exporter="none", service_name="soak", warn_window=3600))
        self._recorder = Recorder(Path(os.environ["SOAK_SPANS"]))
        trace.get_tracer_provider().add_span_processor(self._recorder)  # type: ignore[attr-defined]
        self._lock = threading.Lock()
        self.left = 0
        self.inherited = 0
        self.open = 0

    def begin(self, *, may_inherit: bool = False) -> Any:
        """Note what is current before a request; a server's own leak is told from one of the request."""
        before = otel_context.get_current()
        with self._lock:
            self.open += 1
            if before:
                self.inherited += may_inherit
                self.left += not may_inherit
        return before

    def end(self, before: Any) -> None:
        """Compare with what is current after it."""
        after = otel_context.get_current()
        with self._lock:
            self.open -= 1
            self.left += after is not before and after != before

    def report(self, *, thorough: bool) -> dict[str, Any]:
        """Return the counts; a thorough look collects garbage and counts what is alive."""
        self._recorder.flush()
        told = {
            "open": self.open,
            "left": self.left,
            "inherited": self.inherited,
            "detach": self._errors.detach,
            "asyncio": self._errors.asyncio,
            "first": self._errors.first[:2000],
        }
        if thorough:
            gc.collect()
            alive = gc.get_objects()
            told["operations"] = sum(isinstance(each, Operation) for each in alive)
            told["spans"] = sum(isinstance(each, Span) for each in alive)
            told["objects"] = len(alive)
            told["blocks"] = sys.getallocatedblocks()
        return told


def span(request: int, name: str = "work", **attributes: Any) -> Any:
    """Return a block that is a span of a request, which names the request by the caller's own variable."""
    return MAKE_SPAN.start_as_current_span(name, attributes={"soak.request": request, **attributes})
