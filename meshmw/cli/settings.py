"""`meshmw settings`: every setting, its value here, and where the value comes from."""

from __future__ import annotations

from typing import Annotated

import typer

from meshmw.cli.output import OK, answers, line, print_json
from meshmw.settings import SettingDoc, Settings, as_text


@answers
def settings(json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> int:
    """Print every setting, its value here, and where the value comes from."""
    values, origins = Settings(), Settings.origins()
    if json:
        print_json([_json(doc, values, origins.get(doc.name)) for doc in Settings.documentation()])
        return OK
    entries = "\n\n".join(_entry(doc, values, origins.get(doc.name)) for doc in Settings.documentation())
    for text in entries.split("\n"):
        line(text)
    return OK


def _json(doc: SettingDoc, values: Settings, origin: str | None) -> dict[str, object]:
    return {
        "variable": doc.variable,
        "value": as_text(getattr(values, doc.name)),
        "from": origin,
        "default": doc.default,
        "takes": doc.takes,
        "description": doc.description,
        "standard": list(doc.standard),
    }


def _entry(doc: SettingDoc, values: Settings, origin: str | None) -> str:
    value = as_text(getattr(values, doc.name)) or "(none)"
    return "\n".join(
        (
            f"{doc.variable}={value}  ({f'from {origin}' if origin else 'default'})",
            f"    {doc.description}",
            f"    Takes {doc.takes}. Default: {doc.default or '(none)'}.",
            *([f"    Where it is not set: {', '.join(doc.standard)}."] if doc.standard else []),
        )
    )
