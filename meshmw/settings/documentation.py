"""How a setting is shown to a reader."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SettingDoc:
    """Documents one setting, as the README and `meshmw settings` show it.

    Attributes:
        name: The argument of `Settings`.
        variable: The variable that holds it.
        standard: The standard variables that are read when `variable` is not set.
        default: The default as a text, empty where there is none.
        takes: The values that it takes.
        description: What it does, in one sentence.
    """

    name: str
    variable: str
    standard: tuple[str, ...]
    default: str
    takes: str
    description: str


def as_text(value: object) -> str:
    """Return a setting's value as one would write it into its variable."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
