"""What is wrong, and where: pure functions that read headers, access logs, proxies and traces, and judge them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

# `Finding`: one thing that breaks traces, why it does, and what to do about it.


Severity = Literal["error", "warning", "note"]
SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """Says what was found.

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

    def to_json(self) -> dict[str, Any]:
        """Return the finding as plain JSON values."""
        return {
            "severity": self.severity,
            "code": self.code,
            "where": self.where,
            "what": self.what,
            "why": self.why,
            "fix": self.fix,
        }


def by_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings with the worst ones first, otherwise in their order, each once."""
    return tuple(sorted(dict.fromkeys(findings), key=lambda finding: SEVERITIES.index(finding.severity)))
