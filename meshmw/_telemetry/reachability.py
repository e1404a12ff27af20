"""Whether a collector takes what is sent: what its exporter says is kept, and said again once and in our words.

OpenTelemetry's exporters log each attempt that fails, in the thread that exports. Here these lines are read instead,
for the reason of a failure and for what helps against it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final, TypeVar

from meshmw._notices import LOGGER, Throttle, escaped
from meshmw._otel_exporters import EXPORTER_LOGGERS, asks_to_wait, is_too_large, is_unwritable, words_of
from meshmw._telemetry.worker import ForkGate

T = TypeVar("T")


class _Mute(logging.Filter):
    """Asks the thread that logs: the loggers are shared with exporters that the application made itself."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        passes: Callable[[logging.LogRecord], bool] | None = getattr(self.thread, "passes", None)
        return passes is None or passes(record)


_MUTE: Final = _Mute()


class GaveUpError(Exception):
    """Ends an export whose reason is known, in place of the exporter's own retries."""


class TooLargeError(GaveUpError):
    """Ends an export that was refused for its size, which the exporter would send again as it is, for ten seconds."""


class Reachability:
    """Exports by a call that may fail, and says that exports fail, and that they work again, each once.

    Args:
        endpoint: The collector's address, as it shall stand in the log.
        warn_window: Seconds between two warnings, so that a collector that comes and goes does not fill the log.

    Attributes:
        failing: Whether the last export failed.
        what: What is sent.
        meanwhile: What becomes of it as long as it does not arrive.
        without: What to set where there is no collector.
        rejects: What is counted of what a collector takes in part.
    """

    what: ClassVar[str]
    meanwhile: ClassVar[str]
    without: ClassVar[str]
    rejects: ClassVar[str]

    def __init__(self, endpoint: str, warn_window: float) -> None:
        self.failing = False
        self._endpoint = endpoint
        self._throttle = Throttle(warn_window)
        self._is_said = False
        self._has_arrived = False
        self._reason = ""
        self._is_too_large = self._is_unwritable = False
        self._gate = ForkGate(lambda: self.failing)
        _install_mute()

    def _export(self, call: Callable[[], T]) -> T | None:
        """Return what the call returns, or None where it raises."""
        self._reason = _MUTE.thread.failure = ""
        _MUTE.thread.rejected, _MUTE.thread.waits = (0, ""), False
        self._is_too_large = self._is_unwritable = False
        try:
            with self._gate, muted(self._keep_reason):
                return call()
        except TooLargeError as error:
            # What failed before it in the same export is no matter any more.
            self._reason, self._is_too_large = str(error), True
            return None
        except GaveUpError:
            return None
        except Exception as error:
            self._reason, self._is_unwritable = repr(error), is_unwritable(error)
            return None

    def _end(self, call: Callable[[], object]) -> None:
        try:
            with muted(lambda record: False):
                call()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # such as a Rust library's panic, after which other processors would not end
            LOGGER.debug("the exporter to %s did not shut down", self._endpoint, exc_info=True)

    def _keep_reason(self, record: logging.LogRecord) -> bool:
        # The exporters log one line for each attempt that failed, in the thread that exports.
        message = record.getMessage()
        self._reason = self._reason or _MUTE.thread.failure or message
        self._is_unwritable = is_unwritable(message)
        if not _MUTE.thread.waits and is_too_large(message):
            raise TooLargeError(message)
        return False

    def _refused(self, what: str, consequence: str) -> None:
        """Say that the collector, which answers, refuses something for its size."""
        if self._throttle.opens(consequence) is not None:
            LOGGER.warning(
                "the collector at %s refused %s as too large, which %s; requests are unaffected (%s)",
                self._endpoint,
                what,
                consequence,
                escaped(self._reason, 200),
            )

    def _count_rejected(self) -> int:
        """Return how much of an export that arrived was rejected, and say why; its sender is not to try again."""
        count, why = _MUTE.thread.rejected
        if (count or why) and self._throttle.opens("rejected") is not None:
            line = "the collector at %s rejects %d %s of an export that it takes; requests are unaffected (%s)"
            LOGGER.warning(line, self._endpoint, count, self.rejects, escaped(why, 200))
        return int(count)

    def _failed(self, reason: str) -> None:
        if self.failing:
            return
        self.failing = True
        self._is_said = self._throttle.opens() is not None
        if self._is_said:
            from meshmw._telemetry.remedies import remedy_for  # most collectors never fail

            remedy = remedy_for(self._endpoint, reason, has_arrived=self._has_arrived)
            if not remedy and not self._has_arrived:
                remedy = f"set MESHMW_ENDPOINT to the collector's address, or {self.without}"
            LOGGER.warning(
                "%s do not reach %s and %s until it answers; requests are unaffected (%s)%s",
                self.what,
                self._endpoint,
                self.meanwhile,
                escaped(reason, 200),
                remedy and f"; {remedy}",
            )

    def _succeeded(self) -> None:
        if self.failing and self._is_said:
            LOGGER.info("%s reach %s again", self.what, self._endpoint)
        self.failing, self._has_arrived = False, True


def note_failure(error: Exception) -> None:
    """Keep why an attempt of this thread failed: of a time-out, the exporter for HTTP logs no reason."""
    # The innermost names the fault, and no address with a key in it.
    while (inner := getattr(error, "reason", None) or next(iter(error.args), None)) and isinstance(inner, Exception):
        error = inner
    _MUTE.thread.failure = f"{type(error).__name__}: {error}"


def note_error(error: Any) -> None:
    """End an export of this thread whose last call was refused for its size, also where nothing is logged.

    The same code with how long to wait is for one that is asked too often. No log line tells these two apart.

    Raises:
        TooLargeError: It was.
    """
    _MUTE.thread.waits = asks_to_wait(error)
    said = words_of(error)
    if not _MUTE.thread.waits and is_too_large(said):
        raise TooLargeError(said)


def note_answer(answer: Any) -> None:
    """Keep what the collector says that it rejects, for the thread that exports; metrics' answers have other names."""
    said = answer.partial_success
    count = getattr(said, "rejected_spans", 0) or getattr(said, "rejected_data_points", 0)
    _MUTE.thread.rejected = max(count, 0), said.error_message


@contextmanager
def muted(passes: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Ask *passes*, for each line that this thread logs through OpenTelemetry's exporters, whether to let it out."""
    before = getattr(_MUTE.thread, "passes", None)
    _MUTE.thread.passes = passes
    try:
        yield
    finally:
        _MUTE.thread.passes = before


def _install_mute() -> None:
    for name in EXPORTER_LOGGERS:
        filters = logging.getLogger(name).filters
        # First, because the SDK's own filter hides repeated lines, by which we count failed attempts.
        if _MUTE not in filters:
            filters.insert(0, _MUTE)
