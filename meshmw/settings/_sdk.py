"""The `OTEL_*` variables that OpenTelemetry's SDK reads by itself, in a form that it can read.

The specification asks that an empty variable count as unset, and that a value which cannot be used be warned of and
ignored. The SDK raises at some such values, logs a traceback at others, and takes an empty limit for no limit. So
whoever makes one of the SDK's parts does so within `readable`, which takes such values out of the environment.

Where an SDK reads one more variable, add it to `_KINDS` and to the tuple of the part that reads it.
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Final, NamedTuple

from meshmw._notices import quoted
from meshmw._policy.words import listed
from meshmw.settings._standard import ATTRIBUTES, MOST_AS_SECONDS, Standard, doubts_of_interval, say
from meshmw.settings._values import whole_number

# The largest whole number, and the longest time in milliseconds, that the specification asks an SDK to take.
LARGEST: Final = 2**31 - 1
# A process cannot afford that an export takes longer.
MOST_SECONDS: Final = 60.0

# A shorter value may stand in any text.
_SHORTEST_QUOTED: Final = 2

_SAMPLER: Final = "OTEL_TRACES_SAMPLER"
_SAMPLER_ARGUMENT: Final = "OTEL_TRACES_SAMPLER_ARG"
_DETECTORS: Final = "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS"
_OWN_METRICS: Final = "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"

# The SDK reads this whenever a tracer is made, and would warn as often: what it cannot read stays out.
_READ_LATER: Final = {_OWN_METRICS}

# The import of the SDK reads these already.
IMPORT_VARIABLES: Final = ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",)
LIMIT_VARIABLES: Final = (
    *IMPORT_VARIABLES,
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
)
SAMPLER_VARIABLES: Final = (_SAMPLER, _SAMPLER_ARGUMENT)
RESOURCE_VARIABLES: Final = (_DETECTORS, ATTRIBUTES)
# Both providers read these.
SHARED_VARIABLES: Final = (*RESOURCE_VARIABLES, _OWN_METRICS)
PROCESSOR_VARIABLES: Final = ("OTEL_BSP_EXPORT_TIMEOUT", _OWN_METRICS)
EXEMPLAR_VARIABLES: Final = ("OTEL_METRICS_EXEMPLAR_FILTER", _OWN_METRICS)
METRIC_VARIABLES: Final = (
    *EXEMPLAR_VARIABLES,
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
    "OTEL_METRIC_EXPORT_INTERVAL",
    "OTEL_METRIC_EXPORT_TIMEOUT",
)


class _Kind(NamedTuple):
    """Says what a variable takes.

    Attributes:
        takes: What it takes, as a sentence names it.
        instead: What counts where it holds something else.
        read: Returns the text that the SDK reads, or None where the value is of no use.
        doubts: Returns what to say of a value that is of use, and may be of another unit than it was meant in.
    """

    takes: str
    instead: str
    read: Callable[[str], str | None]
    doubts: Callable[[str, int], list[str]] | None = None


def _number(instead: str, least: int = 0, doubts: Callable[[str, int], list[str]] | None = None) -> _Kind:
    def read(text: str) -> str | None:
        number = whole_number(text, least, LARGEST)
        return None if number is None else str(number)

    return _Kind(f"a number from {least} to {LARGEST}", instead, read, doubts)


def _timeout(instead: str) -> _Kind:
    def read(text: str) -> str | None:
        number = whole_number(text, 0, LARGEST)
        # Zero is no limit, for which the specification lets a very long time stand.
        return None if number is None else str((number * 1_000 if number <= MOST_AS_SECONDS else number) or LARGEST)

    def doubts(variable: str, number: int) -> list[str]:
        if not 0 < number <= MOST_AS_SECONDS:
            return []
        return [f"{variable} holds {number}: {number} seconds; it takes milliseconds, so write {number * 1_000}"]

    return _Kind(f"milliseconds from 0 to {LARGEST}", instead, read, doubts)


def _word(*words: str, instead: str) -> _Kind:
    return _Kind(listed(words), instead, lambda text: text.lower() if text.lower() in words else None)


def _share(text: str) -> str | None:
    try:
        return str(float(text)) if 0 <= float(text) <= 1 else None
    except ValueError:
        return None


_RATIOS: Final = ("traceidratio", "parentbased_traceidratio")
_KINDS: Final[Mapping[str, _Kind]] = {
    **dict.fromkeys(LIMIT_VARIABLES, _number("its default")),
    **dict.fromkeys([name for name in LIMIT_VARIABLES if name.endswith("COUNT_LIMIT")], _number("128")),
    "OTEL_BSP_EXPORT_TIMEOUT": _timeout("30000"),
    "OTEL_METRIC_EXPORT_INTERVAL": _number("60000", 1, doubts_of_interval),
    "OTEL_METRIC_EXPORT_TIMEOUT": _timeout("30000"),
    "OTEL_METRICS_EXEMPLAR_FILTER": _word("always_on", "always_off", "trace_based", instead="trace_based"),
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": _word(
        "cumulative", "delta", "lowmemory", instead="cumulative"
    ),
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": _word(
        "explicit_bucket_histogram", "base2_exponential_bucket_histogram", instead="explicit_bucket_histogram"
    ),
    _SAMPLER: _word(
        "always_on",
        "always_off",
        "parentbased_always_on",
        "parentbased_always_off",
        *_RATIOS,
        instead="parentbased_always_on",
    ),
    _SAMPLER_ARGUMENT: _Kind("a share from 0 to 1", "1.0", _share),
    _OWN_METRICS: _word("true", "false", instead="false"),
}


@contextmanager
def readable(*variables: str, warn: bool = True) -> Iterator[None]:
    """Have the environment hold only what the SDK can read of these variables, and put all back on leaving.

    Args:
        variables: The variables that the SDK reads meanwhile.
        warn: Whether to warn of each value that is ignored.
    """
    environ = os.environ  # noqa: TID251
    before = {name: environ[name] for name in variables if name in environ}
    values, warnings = readable_values(before)
    for warning in warnings if warn else ():
        say(warning)
    for name in _READ_LATER & before.keys() - values.keys():
        del environ[name], before[name]
    with replaced({name: values.get(name) for name in before.keys() | values.keys()}):
        yield


def hidden(*variables: str) -> AbstractContextManager[None]:
    """Take variables out of the environment, and put them back on leaving.

    OpenTelemetry reads some variables by itself while it is imported, and refuses what the settings take.
    """
    return replaced(dict.fromkeys(variables))


@contextmanager
def replaced(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables, take those out that are None, and put all back on leaving."""
    environ = os.environ  # noqa: TID251
    before = {name: environ.get(name) for name in values}
    try:
        _set(values)
        yield
    finally:
        _set(before)


def named_in(text: str) -> str | None:
    """Return the OTEL_* variable that a text names, or whose value it quotes; None where it speaks of none."""
    for name, value in os.environ.items():  # noqa: TID251
        quotes = (f"'{value}'", f'"{value}"') if len(value) > _SHORTEST_QUOTED else ()
        if name.startswith("OTEL_") and any(each.lower() in text.lower() for each in (name, *quotes)):
            return name
    return None


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)  # noqa: TID251
        else:
            os.environ[name] = value  # noqa: TID251


def readable_values(variables: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return what the SDK can read of these variables, and a warning for each value that it cannot."""
    values: dict[str, str] = {}
    warnings: list[str] = []
    for name, text in variables.items():
        value = text.strip()
        known: str | None = None
        if name == _DETECTORS:
            known = _known_detectors(value, warnings)
        elif name == ATTRIBUTES:
            known = _whole_attributes(value, warnings)
        # Other samplers take no argument.
        elif value and (name != _SAMPLER_ARGUMENT or values.get(_SAMPLER) in _RATIOS):
            known = _read(name, value, warnings)
        if known is not None:
            values[name] = known
    if values.get(_SAMPLER) in _RATIOS:
        # Without it the SDK takes the same share, and warns all the same.
        values.setdefault(_SAMPLER_ARGUMENT, "1.0")
    return values, warnings


def _read(name: str, value: str, warnings: list[str]) -> str | None:
    kind = _KINDS[name]
    known = kind.read(value)
    if known is None:
        warnings.append(
            f"{name} holds {quoted(value)}, which is ignored; it takes {kind.takes}; so it is {kind.instead}"
        )
    elif kind.doubts is not None:
        warnings += kind.doubts(name, int(value))
    return known


def _whole_attributes(value: str, warnings: list[str]) -> str | None:
    standard = Standard({ATTRIBUTES: value})
    standard.attributes()
    warnings += standard.warnings
    return None if standard.warnings else value


def _installed_detectors() -> set[str]:
    from importlib.metadata import entry_points  # takes 20 ms, for the few who name a detector

    return {each.name for each in entry_points(group="opentelemetry_resource_detector")}


def _known_detectors(value: str, warnings: list[str]) -> str:
    names = list(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    installed = _installed_detectors() if names else set()
    known = [name for name in names if name == "*" or name in installed]
    for name in (each for each in names if each not in known):
        warnings.append(f"{_DETECTORS} holds {quoted(name)}, which is ignored; no such resource detector is installed")
    return ",".join(known)
