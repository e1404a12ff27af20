"""Jars by Maven, as a pom.xml beside a recipe names them, each checked against jars.sha256 beside that."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from tests.real.install import run


def jars(recipe: str, folder: Path) -> None:
    """Leave in `folder/libs` the jars that the recipe's pom.xml asks for, with all that they need."""
    beside = Path(recipe).with_suffix("")
    if shutil.which("mvn") is None:
        raise SystemExit("Maven is not installed: apt-get install maven")
    shutil.copy(beside / "pom.xml", folder)
    run(
        "mvn",
        "--batch-mode",
        "--quiet",
        "dependency:copy-dependencies",
        f"-DoutputDirectory={folder / 'libs'}",
        "-DincludeScope=runtime",
        cwd=folder,
    )
    found = {path.name: _sha256(path) for path in (folder / "libs").iterdir()}
    listed = (line.split() for line in (beside / "jars.sha256").read_text().splitlines())
    wanted = {name: digest for digest, name in listed}
    if found != wanted:
        differ = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise SystemExit(f"not what {beside.name}/jars.sha256 lists: {', '.join(differ)}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
