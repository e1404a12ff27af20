"""What the README says of settings and reasons is what the code does."""

from __future__ import annotations

from pathlib import Path

from meshmw import Settings
from meshmw._notices import REASONS as DECIDED
from meshmw.wire import REASONS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def settings_table() -> str:
    rows = ["| variable | default | takes | what it does |", "|---|---|---|---|"]
    for doc in Settings.documentation():
        standard = f" Also: {', '.join(f'`{name}`' for name in doc.standard)}." if doc.standard else ""
        default = f"`{doc.default}`" if doc.default else ""
        rows.append(f"| `{doc.variable}` | {default} | {doc.takes} | {doc.description}{standard} |")
    return "\n".join(rows)


def test_the_settings_table_is_the_settings_own() -> None:
    shown = README.partition("<!-- settings -->")[2].partition("<!-- /settings -->")[0].strip()
    assert shown == settings_table(), f"the README's table should be:\n{settings_table()}"


def reasons_table() -> str:
    rows = ["| header | reason | what it says |", "|---|---|---|"]
    for header in dict.fromkeys((*REASONS, *DECIDED)):
        reasons = {**REASONS.get(header, {}), **DECIDED.get(header, {})}
        rows += [f"| `{header}` | `{reason}` | {meaning} |" for reason, meaning in reasons.items()]
    return "\n".join(rows)


def test_the_table_of_reasons_is_the_codes_own() -> None:
    shown = README.partition("<!-- reasons -->")[2].partition("<!-- /reasons -->")[0].strip()
    assert shown == reasons_table(), f"the README's table should be:\n{reasons_table()}"


def test_the_two_set_up_commands_are_one_line_each() -> None:
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert [command.rpartition(" && ")[2] for command in commands] == [
        ".venv/bin/python -m sample_apps",
        ".venv/bin/pytest -n 2 --dist loadfile",
    ]
