"""The `meshmw` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from meshmw import __version__
from meshmw.errors import SettingsError
from meshmw.settings import SettingDoc, Settings, as_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code: 0, or 2 where the settings cannot be used."""
    parser = argparse.ArgumentParser(prog="meshmw", description="Keeps one trace one trace through sidecar proxies.")
    parser.add_argument("--version", action="version", version=f"meshmw {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("settings", help="print every setting, its value here, and where the value comes from")
    parser.parse_args(arguments)
    return _print_settings()


def _print_settings() -> int:
    try:
        settings = Settings()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    origins = Settings.origins()
    print("\n\n".join(_entry(doc, settings, origins.get(doc.name)) for doc in Settings.documentation()))
    return 0


def _entry(doc: SettingDoc, settings: Settings, origin: str | None) -> str:
    value = as_text(getattr(settings, doc.name)) or "(none)"
    return "\n".join(
        (
            f"{doc.variable}={value}  ({f'from {origin}' if origin else 'default'})",
            f"    {doc.description}",
            f"    Takes {doc.takes}. Default: {doc.default or '(none)'}.",
            *([f"    Where it is not set: {', '.join(doc.standard)}."] if doc.standard else []),
        )
    )
