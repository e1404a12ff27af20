"""What the README says of settings and reasons is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from meshmw import Settings
from meshmw.wire import REASONS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
# What is decided above the formats.
DECIDED_LATER = {
    "traceparent": {"missing", "conflict", "flipped"},
    "tracestate": set(),
    "baggage": {"header_budget"},
    "b3": {"conflict"},
}


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


@pytest.mark.parametrize("header", REASONS)
def test_every_reason_code_is_listed(header: str) -> None:
    row = re.search(rf"^\| `{header}` \| (.*) \|$", README, re.MULTILINE)
    assert row is not None
    assert set(re.findall(r"`(\w+)`", row[1])) == set(REASONS[header]) | DECIDED_LATER[header]


def test_the_two_set_up_commands_are_one_line_each() -> None:
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert [command.rpartition(" && ")[2] for command in commands] == [
        ".venv/bin/python -m sample_apps",
        ".venv/bin/pytest",
    ]
