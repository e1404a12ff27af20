"""Every block of the README and of docs/ does what the page says."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, pages, read
from tests.docs.running import Run
from tests.docs.world import world


@pytest.fixture(scope="module")
def everybody():
    with world() as environment:
        yield environment


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_blocks_of(path: Path, tmp_path: Path, request: pytest.FixtureRequest, everybody: dict[str, str]) -> None:
    page = read(path)
    run = Run(page, tmp_path, request.getfixturevalue, everybody)
    faults = []
    try:
        for block in page.blocks:
            try:
                run.block(block)
            except Exception as error:
                why = str(error) if isinstance(error, AssertionError) else traceback.format_exc()
                faults.append(f"{page.name}:{block.line} ({block.language}): {why}")
    finally:
        run.close()
    assert not faults, "\n\n".join(faults)
