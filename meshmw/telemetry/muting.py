"""Silence for what OpenTelemetry's exporters log, in our own exporter's calls alone.

The loggers are shared by every exporter of the process, also by those that the application made itself. So the filter
looks at the thread: it acts only between `muted()` and its end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

# Says of every attribute that it cannot encode so, with a traceback, and sends the span without it.
ENCODER: Final = "opentelemetry.exporter.otlp.proto.common._internal"

_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.common.http",
    ENCODER,
    "opentelemetry.sdk._shared_internal",
    "urllib3.connectionpool",
)


class _Mute(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        passes: Callable[[logging.LogRecord], bool] | None = getattr(self.thread, "passes", None)
        return passes is None or passes(record)


_MUTE = _Mute()


@contextmanager
def muted(passes: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Ask *passes*, for each line that this thread logs through OpenTelemetry's exporters, whether to let it out."""
    before = getattr(_MUTE.thread, "passes", None)
    _MUTE.thread.passes = passes
    try:
        yield
    finally:
        _MUTE.thread.passes = before


def install_mute() -> None:
    """Put the filter on the exporters' loggers; a second call changes nothing."""
    for name in _LOGGERS:
        filters = logging.getLogger(name).filters
        # First, because the SDK's own filter hides repeated lines, by which we count failed attempts.
        if _MUTE not in filters:
            filters.insert(0, _MUTE)
