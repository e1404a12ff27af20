"""What was refused at the boundary: counted every time, said once per reason and window."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from opentelemetry import metrics

LOGGER: Final = logging.getLogger("meshmw")
EXCERPT_CHARACTERS: Final = 40

# A proxy instrument: it starts to count when the application sets a MeterProvider, and costs next to nothing before.
_EXTRACTIONS: Final = metrics.get_meter("meshmw").create_counter(
    "meshmw.context.extractions",
    unit="{header}",
    description="Trace headers that were read, by header, outcome and reason.",
)
# Counted for every request, so made once.
_ACCEPTED: Final = {header: {"header": header, "outcome": "accepted"} for header in ("traceparent", "baggage", "b3")}


def excerpt(text: str) -> str:
    """Return at most 40 characters of a hostile text, escaped to printable ASCII, for a log line."""
    shown = ascii(text[:EXCERPT_CHARACTERS])
    return shown if len(text) <= EXCERPT_CHARACTERS else f"{shown}... ({len(text)} characters)"


# What is decided above the formats; the formats' own reasons are in `meshmw.wire.REASONS`.
REASONS: Final = {
    "traceparent": {
        "missing": "tracestate or baggage came without it, as if a proxy had stripped it",
        "conflict": "B3 names another parent, and decides by `prefer`",
        "flipped": "our client sent it sampled, and it arrived unsampled; it is believed",
    },
    "tracestate": {"header_budget": "it was left out of an outbound gRPC call, whose other metadata are too big"},
    "baggage": {"header_budget": "members were left out of an outbound request, which proxies would have refused"},
    "b3": {"conflict": "traceparent names another parent, and decides"},
    "context": {
        "leaked_span": "a span of something else was current when the request began; it is no parent",
        "host_trust": "a host outside the middleware has trusted the caller otherwise",
        "trust_raised": "the trust callable raised; the request starts a new trace",
        "trust_answer": "the trust callable returned none of its words; the request starts a new trace",
        "metadata": "a header to pass on cannot travel as gRPC metadata, and is left out",
    },
    "kafka": {"no_headers": "`extract` was given what has no headers, no record then; the message starts a trace"},
}


class Rejections:
    """Counts refused headers by reason, and warns of each reason once per window.

    Args:
        window: Seconds between two warnings of the same header and reason.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, window: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._window = window
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._said: dict[tuple[str, str], tuple[float, int]] = {}

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """Return how often each (header, reason) was refused since the process started."""
        with self._lock:
            return dict(self._counts)

    def accepted(self, headers: tuple[str, ...]) -> None:
        """Count headers that were read and believed."""
        # The stand-in for an instrument of a provider that comes later does nothing, but for each header again.
        if getattr(_EXTRACTIONS, "_real_instrument", _EXTRACTIONS) is not None:
            for header in headers:
                _EXTRACTIONS.add(1, _ACCEPTED[header])

    def record(
        self, header: str, reason: str, consequence: str, text: str | None = None, *, outcome: str = "refused"
    ) -> None:
        """Count one refusal, and log it unless the same one was logged within the window.

        Args:
            header: The header's name, or `context` for what was found in the process itself.
            reason: The reason code.
            consequence: What happens now, for the engineer who reads the line.
            text: What the header held, where it may be shown. Only an escaped excerpt is logged.
            outcome: `refused`, or `noted` where it is believed all the same.
        """
        _EXTRACTIONS.add(1, {"header": header, "outcome": outcome, "reason": reason})
        suppressed = self._count(header, reason)
        if suppressed is None:
            return
        shown = "" if text is None else f" {excerpt(text)}"
        more = f" ({suppressed} more since the last such line)" if suppressed else ""
        LOGGER.warning("%s %s (%s):%s %s%s", header, outcome, reason, shown, consequence, more)

    def _count(self, header: str, reason: str) -> int | None:
        """Return how many were not said since the last warning, or None while the window is open."""
        key, now = (header, reason), self._clock()
        with self._lock:
            self._counts[key] += 1
            said_at, said_count = self._said.get(key, (None, 0))
            if said_at is not None and now - said_at < self._window:
                return None
            self._said[key] = (now, self._counts[key])
            return self._counts[key] - said_count - 1


class SilentRejections(Rejections):
    """Takes what a reader has to say and keeps it to itself, for a look at headers that are not a request's."""

    def accepted(self, headers: tuple[str, ...]) -> None:
        """Do nothing."""

    def record(
        self, header: str, reason: str, consequence: str, text: str | None = None, *, outcome: str = "refused"
    ) -> None:
        """Do nothing."""


# What a user reads when a setting cannot be used: the variable, what it holds, what it takes.


_CREDENTIALS = re.compile(r"[^/\s]*@")


def escaped(text: str, longest: int = 60) -> str:
    """Return a short text in printable ASCII, in which whatever stands before an @ is hidden."""
    text = _CREDENTIALS.sub("***@", text)
    more = f"... ({len(text)} characters)" if len(text) > longest else ""
    return text[:longest].encode("unicode_escape").decode("ascii") + more


def quoted(value: object) -> str:
    """Return a short, escaped text of any value, in quotes where it is a text."""
    return f"'{escaped(value)}'" if isinstance(value, str) else escaped(repr(value))
