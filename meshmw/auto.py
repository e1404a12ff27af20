"""Configure by import: `import meshmw.auto` as the first line of the program does what `meshmw.configure()` does.

Raises:
    SettingsError: Some variables cannot be used.
    MissingExtraError: The exporter is not installed.
"""

from __future__ import annotations

import gc

__all__ = ["telemetry"]

# Hardly anything that is imported and made here is garbage, and to look for some takes a twentieth of the time.
_collects = gc.isenabled()
gc.disable()
try:
    from meshmw._telemetry.configure import configure

    telemetry = configure()
finally:
    if _collects:
        gc.enable()


def __dir__() -> list[str]:
    return sorted(__all__)
