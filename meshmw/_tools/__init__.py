"""The commands of `meshmw`: each looks at headers, logs, proxies or traces, and says what breaks them and what to do.

A command is a folder (`doctor`, `verify`, `access_log`), the file `inspect`, or a part of `commands`, which puts all of
them together. In each, some functions look, others judge what was seen, and the command itself only prints. A judge is
a pure function that returns a `Finding` for each fault. `output` is how all commands print.

The tools may use all of meshmw, and `meshmw.testing` uses the tools. Only the commands and `output` know Typer and
rich, so that what tests use needs neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")


class JsonValue:
    """Gives a dataclass `to_json`."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values: lists and objects, down to the last one."""
        names: Iterable[str] = self.__dataclass_fields__  # type: ignore[attr-defined]  # a dataclass has it
        return {name: _as_json(getattr(self, name)) for name in names}


def _as_json(value: Any) -> Any:
    if isinstance(value, JsonValue):
        return value.to_json()
    if isinstance(value, tuple):
        return [_as_json(each) for each in value]
    return dict(value) if isinstance(value, Mapping) else value


@dataclass(frozen=True, slots=True)
class Finding(JsonValue):
    """Says what breaks traces, where, why, and what to do about it.

    Attributes:
        severity: `error` breaks traces, `warning` breaks some of them or soon will, `note` is worth knowing.
        code: A stable name for CI, such as `sampling.proxy-clears-the-flag`.
        where: What it was found in: a module, a listener, a file.
        what: What is the case, in one sentence.
        why: Why that breaks traces.
        fix: What to do, as a setting or a line of configuration where there is one.
    """

    severity: Severity
    code: str
    where: str
    what: str
    why: str
    fix: str

    @property
    def is_fault(self) -> bool:
        """Says whether a command that found this ends with 1."""
        return self.severity != "note"


def by_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return each finding once, errors first and notes last, otherwise in the order given."""
    return tuple(sorted(dict.fromkeys(findings), key=lambda finding: SEVERITIES.index(finding.severity)))
