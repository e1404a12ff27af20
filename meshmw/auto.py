"""Configure by import: `import meshmw.auto` as the first line of the program does what `meshmw.configure()` does.

Raises:
    SettingsError: Some variables cannot be used.
    MissingExtraError: The exporter is not installed.
"""

from __future__ import annotations

from meshmw._telemetry.configure import configure

__all__ = ["telemetry"]

telemetry = configure()


def __dir__() -> list[str]:
    return sorted(__all__)
