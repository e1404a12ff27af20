"""HTML reports of what tests sent into their meshes, a file for each mesh of each test."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from meshmw.diagnose.report import write_report
from meshmw.testing.mesh import EnvoyMesh

_UNFIT_FOR_A_FILE_NAME = re.compile(r"[^A-Za-z0-9.]+")
# Most file systems take 255 bytes.
_LENGTH = 150


def write_reports(meshes: Sequence[EnvoyMesh], folder: Path, test: str) -> Iterator[Path]:
    """Write a report of the last request of each mesh that had one; yield where.

    Args:
        meshes: The meshes of one test, still running.
        folder: Where the reports go; made if it is not there.
        test: The test's name.
    """
    name = _UNFIT_FOR_A_FILE_NAME.sub("-", test).strip("-")[-_LENGTH:]
    for number, mesh in enumerate((mesh for mesh in meshes if mesh.was_asked), 1):
        path = folder / (f"{name}.html" if number == 1 else f"{name}-{number}.html")
        write_report(mesh.journey(timeout=3.0), path)
        yield path
