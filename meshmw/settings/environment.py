"""Single variables of the environment, for what is asked outside of the settings: on, off, a count, held back.

Knows the environment. Must not know what a variable decides.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from meshmw.settings.faults import log
from meshmw.settings.standard import Standard


@contextmanager
def hidden(*variables: str) -> Iterator[None]:
    """Take variables out of the environment, and put them back on leaving.

    OpenTelemetry reads some variables by itself while it is imported or built. Where a setting has decided otherwise,
    the variable must not decide once more.
    """
    kept = {name: os.environ.pop(name) for name in variables if name in os.environ}  # noqa: TID251
    try:
        yield
    finally:
        os.environ.update(kept)  # noqa: TID251


def first_of(*variables: str) -> str:
    """Return what the first of these variables that holds anything holds, or an empty text."""
    values = (os.environ.get(variable, "").strip() for variable in variables)  # noqa: TID251
    return next(filter(None, values), "")


def is_set(variable: str) -> bool:
    """Say whether a variable holds anything."""
    return bool(first_of(variable))


def is_true(variable: str) -> bool:
    """Say whether a variable switches something on."""
    return first_of(variable).lower() in ("1", "on", "true", "yes")


def count_in(variable: str) -> int | None:
    """Return the whole number above zero in a variable; warn of anything else, which is ignored."""
    standard = Standard(os.environ)  # noqa: TID251
    found = standard.count(variable)
    for warning in standard.warnings:
        log.warning("%s", warning)
    return found and found[0]


def resource_attributes() -> dict[str, str]:
    """Return the attributes that OTEL_RESOURCE_ATTRIBUTES gives the service."""
    return Standard(os.environ).attributes()  # noqa: TID251
