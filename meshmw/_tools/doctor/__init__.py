"""`examine`: a process and its proxies, judged each by itself and together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from meshmw._tools import Finding, by_severity
from meshmw._tools.doctor.config_dump import ProxyConfig
from meshmw._tools.doctor.process import AppFacts, judge_process
from meshmw._tools.doctor.proxy import judge_both, judge_proxy


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Is what a process and its proxies have, and what is wrong with it."""

    process: AppFacts
    proxies: tuple[ProxyConfig, ...]
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the diagnosis as plain JSON values."""
        return {
            "process": self.process.to_json(),
            "proxies": [proxy.to_json() for proxy in self.proxies],
            "findings": [finding.to_json() for finding in self.findings],
        }


def examine(process: AppFacts, proxies: Sequence[ProxyConfig] = (), *, process_too: bool = True) -> Diagnosis:
    """Judge a process and its proxies, the worst findings first.

    Args:
        process: What the process has; of one that is not the application's own, only its settings count.
        proxies: What the proxies say of themselves.
        process_too: Whether the process is the application's own.
    """
    findings = [*judge_process(process)] if process_too else []
    for proxy in proxies:
        findings += [*judge_proxy(proxy), *judge_both(process, proxy)]
    return Diagnosis(process, tuple(proxies), by_severity(findings))
