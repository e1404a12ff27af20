"""The README's own example of a test, run as it stands there."""

from __future__ import annotations

from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
EXAMPLE = next(block for block in README.split("```python\n") if "def test_" in block).partition("```")[0]


@pytest.fixture(autouse=True)
def _where_the_services_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent / "services")


exec(compile(EXAMPLE, "README.md", "exec"))
