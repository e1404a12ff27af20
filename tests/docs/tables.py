"""`python -m tests.docs.tables`: writes the tables of docs/settings.md and docs/reasons.md anew, from the code."""

from __future__ import annotations

from meshmw import Settings
from meshmw._notices import REASONS as DECIDED
from meshmw.wire import REASONS
from tests.docs.blocks import ROOT


def settings_table() -> str:
    rows = ["| variable | default | takes | what it does |", "|---|---|---|---|"]
    for doc in Settings.documentation():
        standard = f" Also: {', '.join(f'`{name}`' for name in doc.standard)}." if doc.standard else ""
        default = f"`{doc.default}`" if doc.default else ""
        rows.append(f"| `{doc.variable}` | {default} | {doc.takes} | {doc.description}{standard} |")
    return "\n".join(rows)


def reasons_table() -> str:
    rows = ["| header | reason | what it says |", "|---|---|---|"]
    for header in dict.fromkeys((*REASONS, *DECIDED)):
        reasons = {**REASONS.get(header, {}), **DECIDED.get(header, {})}
        rows += [f"| `{header}` | `{reason}` | {meaning} |" for reason, meaning in reasons.items()]
    return "\n".join(rows)


# The mark around a table, which is also the name of its page.
TABLES = {"settings": settings_table, "reasons": reasons_table}


def shown(name: str) -> str:
    """Return the table that a page shows."""
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    return text.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0].strip()


def main() -> None:
    for name, make in TABLES.items():
        page = ROOT / "docs" / f"{name}.md"
        before, _, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
        after = rest.partition(f"<!-- /{name} -->")[2]
        page.write_text(f"{before}<!-- {name} -->\n\n{make()}\n\n<!-- /{name} -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
