"""A short run of `python -m tests.grpc.soak`, in a process of its own as its long runs are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_streams_that_end_in_every_way_leave_nothing_behind() -> None:
    size = ["--streams", "16", "--messages", "60", "--rounds", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.grpc.soak", *size, "--json"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["ok"] for each in lines] == [True, True], done.stdout + done.stderr[-2000:]
    assert "Failed to detach" not in done.stderr
    assert all(each["messages"] > 500 for each in lines)
    assert done.returncode == 0
