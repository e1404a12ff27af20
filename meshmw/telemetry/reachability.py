"""What the log says of a collector: once that it does not take what is sent, and once that it does again.

Knows when something was said. Must not know what is sent, nor how.
"""

from __future__ import annotations

import logging
import time
from typing import ClassVar

from meshmw.settings.faults import escaped

log = logging.getLogger("meshmw")


class Reachability:
    """Says that exports fail, and that they work again, each once.

    Args:
        endpoint: The collector's address, as it shall stand in the log.
        warn_window: Seconds between two warnings, so that a collector that comes and goes does not fill the log.

    Attributes:
        failing: Whether the last export failed.
        what: What is sent.
        meanwhile: What becomes of it as long as it does not arrive.
    """

    what: ClassVar[str]
    meanwhile: ClassVar[str]

    def __init__(self, endpoint: str, warn_window: float) -> None:
        self.failing = False
        self._endpoint = endpoint
        self._warn_window = warn_window
        self._warned_at: float | None = None
        self._said = False

    def _failed(self, reason: str) -> None:
        if self.failing:
            return
        self.failing = True
        now = time.monotonic()
        self._said = self._warned_at is None or now - self._warned_at >= self._warn_window
        if self._said:
            self._warned_at = now
            log.warning(
                "%s do not reach %s and %s until it answers; requests are unaffected (%s)",
                self.what,
                self._endpoint,
                self.meanwhile,
                escaped(reason, 200),
            )

    def _succeeded(self) -> None:
        if self.failing and self._said:
            log.info("%s reach %s again", self.what, self._endpoint)
        self.failing = False
