"""Which format an access log is in, found out from its first lines, or taken from a name or a format string.

Knows the formats. Must not know files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from meshmw.diagnose.access_log_defaults import ENVOY_DEFAULT, ISTIO_DEFAULT, KNOWN_FORMATS
from meshmw.diagnose.access_log_format import TextFormat
from meshmw.diagnose.access_log_json import JsonFormat

Format: TypeAlias = TextFormat | JsonFormat
NAMED: Final = {"envoy": ENVOY_DEFAULT, "istio": ISTIO_DEFAULT}
# As many as make a good guess, of a log that may hold other programs' lines.
FIRST_LINES: Final = 200


def format_of(wanted: str, keys: Mapping[str, str] | None = None) -> Format | None:
    """Return the format that a user names; None for `auto`, which is found out from the lines.

    Args:
        wanted: `auto`, `json`, `envoy`, `istio`, or an Envoy format string.
        keys: Where JSON holds a field, such as `{"traceparent": "labels.tp"}`.

    Raises:
        ValueError: It is none of these.
    """
    if wanted == "auto" and not keys:
        return None
    if wanted == "json" or (wanted == "auto" and keys):
        return JsonFormat(keys)
    if wanted not in NAMED and "%" not in wanted:
        raise ValueError(f"{wanted!r} is no format: give auto, json, envoy, istio or an Envoy format string")
    return TextFormat.compile(NAMED.get(wanted, wanted))


def detect(lines: Iterable[str]) -> Format | None:
    """Return the format that reads the most of some lines, the longest one where several do; None if none does."""
    sample = [line for line in lines if line.strip()][:FIRST_LINES]
    best: tuple[int, int, Format] | None = None
    for candidate in _candidates(sample):
        count = sum(not isinstance(candidate.read(line), str) for line in sample)
        rank = (count, len(candidate.source))
        if count and (best is None or rank > best[:2]):
            best = (*rank, candidate)
    return None if best is None else best[2]


def _candidates(sample: Sequence[str]) -> list[Format]:
    if any(line.startswith("{") for line in sample):
        return [JsonFormat(), *_TEXT]
    return list(_TEXT)


_TEXT: Final = tuple(map(TextFormat.compile, KNOWN_FORMATS))
