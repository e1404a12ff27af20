"""What meshmw says of what it meets: counted every time, said once per window, with text from outside escaped.

This is the only throttle and the only escape of the package. Whoever warns asks a `Throttle`; whoever shows what a
stranger wrote passes it through `escaped`, `quoted` or `shown`. Text in which a secret may stand, such as an
exception's, passes through `redacted` on its way into a span or a log.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import time
import traceback
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Final

from opentelemetry import metrics

from meshmw import _log_output
from meshmw._otel import forget_unknown_providers, liveness_of
from meshmw._regex import compiled_late

LOGGER: Final = _log_output.LOGGER

# Seconds between two warnings of the same kind.
DEFAULT_WARN_WINDOW: Final = 60.0

# What is said of so many hosts, processors or keys is enough: a crawler meets hosts without end.
_MOST_KEYS: Final = 256
# As many characters of a header as tell what is wrong with it, and too few for the secret that one may hold.
_EXCERPT_CHARACTERS: Final = 40

# Where a secret longer than that ends in an @, its beginning shows.
_LOOKED_AT: Final = 4_096

_NOT_ASCII: Final = compiled_late(r"[^\x20-\x7e]")
# Controls (C0, DEL, C1), lone surrogates, line and paragraph separators, and what reorders or hides text.
_UNSAFE: Final = compiled_late(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
# From the beginning of a word alone: from each of its characters a long word would take quadratic time.
_CREDENTIALS: Final = compiled_late(r"(?<![^/\s])[^/\s]*@")

# How much of an exception's text is kept, and so how much is searched for secrets.
_MOST_CHARACTERS: Final = 32_768
# Before anybody asks for a provider, as the next line does.
_FORGOTTEN: Final = forget_unknown_providers()

# A proxy instrument: it starts to count when the application sets a MeterProvider, and costs next to nothing before.
_EXTRACTIONS: Final = metrics.get_meter("meshmw").create_counter(
    "meshmw.context.extractions",
    unit="{header}",
    description="Trace headers that were read, by header, outcome and reason.",
)
# Asked before each header is counted.
IS_COUNTED: Final = liveness_of(_EXTRACTIONS)
# Counted for every request, so made once.
_ACCEPTED: Final = {header: {"header": header, "outcome": "accepted"} for header in ("traceparent", "baggage", "b3")}

# What is decided above the formats; the formats' own reasons are in `meshmw.wire.REASONS`.
REASONS: Final = {
    "traceparent": {
        "missing": "tracestate or baggage came without it, as if a proxy had stripped it",
        "conflict": "B3 names another parent, and decides by `prefer`",
        "flipped": "our client sent it sampled, and it arrived unsampled; it is trusted",
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


def escaped(text: str, limit: int = 60) -> str:
    """Return a text for a log line: in printable ASCII, what stands before an @ hidden, cut to *limit* characters."""
    return "".join(_cut(text, limit))


def quoted(value: object, limit: int = 60) -> str:
    """Return any value for a log line, as `escaped` does, in quotes where it is a text."""
    if not isinstance(value, str):
        return escaped(repr(value), limit)
    kept, more = _cut(value, limit)
    return f"'{kept}'{more}"


def plain(text: str, limit: int = 60) -> str:
    """Return a text for a log line as `escaped` does, but with all that it says: for what every span says too."""
    return text[:limit].encode("unicode_escape").decode("ascii")


def _cut(text: str, limit: int) -> tuple[str, str]:
    # Nothing beyond the cut is shown, so nothing far beyond it need be looked at.
    hidden = _CREDENTIALS().sub("***@", redacted(text[: limit + _LOOKED_AT]))
    more = f"... ({len(text)} characters)" if len(hidden) > limit else ""
    return hidden[:limit].encode("unicode_escape").decode("ascii"), more


def redacted(text: str) -> str:
    """Return a text for a span or a log in which what looks like a secret is replaced by `REDACTED`.

    Hidden are the user's part of URLs and DSNs, the values of headers that hold credentials and of those that a client
    refuses, what follows an authentication scheme, the values of parameters and keys that are called a password, a
    token or the like, and JSON Web Tokens. It takes time that grows with the text and no faster.
    """
    from meshmw._redaction import without_secrets  # whose patterns take as long to compile as all others together

    return without_secrets(text)


def without_credentials(text: str) -> str:
    """Return a text with the user's part of each URL replaced by `REDACTED`."""
    # To look for it costs more than to look for what no such part is without.
    if "@" not in text and "%40" not in text:
        return text
    from meshmw._redaction import without_url_credentials

    return without_url_credentials(text)


def exception_shown(error: BaseException) -> tuple[str, str]:
    """Return an exception's text and its traceback for a span or a log, redacted and bounded.

    All that exceptions say passes here: the network's quote what was sent.

    Raises:
        Exception: The application's exception raises where it is asked for its text.
    """
    return _bounded(str(error)), _bounded("".join(traceback.format_exception(error)))


def _bounded(text: str) -> str:
    # No secret becomes visible by the cut: a quoted one need not end, and of a URL a bit more than that is looked at.
    kept = redacted(text[: _MOST_CHARACTERS + 512])
    return kept if len(kept) <= _MOST_CHARACTERS else f"{kept[:_MOST_CHARACTERS]}..."


class _RedactTracebacks(logging.Filter):
    """Has each record of our logger show its exception's traceback redacted: an exporter's may quote its headers."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the record through."""
        if isinstance(record.exc_info, tuple) and record.exc_info[1] is not None:
            with contextlib.suppress(Exception):
                # Formatters show this where it is set, and else make it themselves.
                record.exc_text = exception_shown(record.exc_info[1])[1].rstrip("\n")
        return True


LOGGER.addFilter(_RedactTracebacks())


def shown(text: str | bytes, limit: int | None = 200) -> str:
    """Return a text for a terminal or a page: letters of every language stay, what moves a cursor is escaped.

    Args:
        text: Bytes are read as UTF-8, and those that are not are shown as `\\xNN`.
        limit: Characters to show, or None for all of them.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    cut = text if limit is None or len(text) <= limit else f"{text[:limit]}..."
    return _UNSAFE().sub(_escape, cut)


def header_shown(value: str | None) -> str:
    """Return a header's value for a terminal: `absent` where there is none."""
    return "absent" if value is None else shown(value, 120) or "(empty)"


def without_secrets(url: str) -> str:
    """Return a URL as you may print it: without credentials and without a query, in which a token may stand."""
    scheme, slashes, rest = without_credentials(url).partition("://")
    authority, slash, path = rest.partition("/")
    path, question, _ = path.partition("?")
    return f"{scheme}{slashes}{authority.rpartition('@')[2].partition('?')[0]}{slash}{path}{question and '?...'}"


def character_shown(char: str) -> str:
    """Return one character in printable ASCII, escaped where it is not."""
    return _NOT_ASCII().sub(_escape, char)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class Throttle:
    """Lets one notice of each key through in a window of time, and counts those that it holds back.

    It remembers 256 keys at most. Of further ones nothing is let through, until others' windows are over and they are
    forgotten, along with how often they were held back.

    Args:
        window: Seconds between two notices with the same key; infinity lets each through once.
        clock: A monotonic clock in seconds.
    """

    __slots__ = ("_clock", "_full_until", "_said", "_window")

    def __init__(self, window: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self._window = window
        self._clock = clock
        # Of each key when it was last let through, and how often it was held back since: one pair in a list.
        self._said: dict[Hashable, list[tuple[float, int]]] = {}
        self._full_until = -math.inf

    def opens(self, key: Hashable = None) -> int | None:
        """Return how many notices were held back since the last one, or None where this one is to be held back too."""
        now = self._clock()
        said = self._said.get(key)
        if said is None:
            if len(self._said) >= _MOST_KEYS and not self._forgets(now):
                return None
            # Of threads that meet here, one puts its list in.
            said = self._said.setdefault(key, first := [(now, 0)])
            if said is first:
                return 0
        # No lock, because span processors warn in requests: a process that forks while another thread holds a lock
        # would never get it, and a signal handler would wait for the code that it interrupts. Whoever has taken the
        # pair out has it for himself, and of whoever meets him nothing is let through.
        try:
            last, held_back = said.pop()
        except IndexError:
            return None
        if now - last < self._window:
            said.append((last, held_back + 1))
            return None
        said.append((now, 0))
        return held_back

    def _forgets(self, now: float) -> bool:
        """Forget the keys whose window is over, and say whether there are any; once per window, for it looks at all."""
        if now < self._full_until:
            return False
        self._full_until = now + self._window
        # Copies, because other threads go on meanwhile: the pair that one of them has taken out is not over.
        over = [key for key, said in self._said.copy().items() for last, _ in said.copy() if now - last >= self._window]
        for key in over:
            self._said.pop(key, None)
        return bool(over)


class Rejections:
    """Counts refused headers by reason, and warns of each reason once per window.

    Args:
        window: Seconds between two warnings of the same header and reason.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, window: float = DEFAULT_WARN_WINDOW, clock: Callable[[], float] = time.monotonic) -> None:
        self._throttle = Throttle(window, clock)
        self._counts: Counter[tuple[str, str]] = Counter()

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """Return how often each (header, reason) was refused since the process started."""
        return dict(self._counts)

    def accepted(self, headers: tuple[str, ...]) -> None:
        """Count headers that were read and trusted."""
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
            outcome: `refused`, or `noted` where it is trusted all the same.
        """
        if IS_COUNTED():
            _EXTRACTIONS.add(1, {"header": header, "outcome": outcome, "reason": reason})
        self._counts[header, reason] += 1
        held_back = self._throttle.opens((header, reason))
        if held_back is None:
            return
        excerpt = "" if text is None else f" {quoted(text, _EXCERPT_CHARACTERS)}"
        more = f" ({held_back} more since the last such line)" if held_back else ""
        LOGGER.warning("%s %s (%s):%s %s%s", header, outcome, reason, excerpt, consequence, more)


class SilentRejections(Rejections):
    """Counts nothing and says nothing, for a look at headers that are not a request's."""

    def accepted(self, headers: tuple[str, ...]) -> None:
        """Do nothing."""

    def record(
        self, header: str, reason: str, consequence: str, text: str | None = None, *, outcome: str = "refused"
    ) -> None:
        """Do nothing."""


for _variable, _name in _FORGOTTEN.items():
    # An empty variable counts as unset, so nothing is said of it.
    if _name.strip():
        LOGGER.warning(
            "%s holds %s, which is ignored: no such provider is installed; unset it, or install its package",
            _variable,
            quoted(_name),
        )
