"""Programs that tests run in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NoReturn

import pytest

SECONDS = 60
# For a program that may not have imported what coverage imports, such as multiprocessing.
UNTRACED = {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""}


def clean_environment() -> dict[str, str]:
    """This environment without the telemetry settings of the machine, and with no log line that nobody asked for."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "MESHMW_"))}
    return kept | {"MESHMW_SHOW_LOG": "false"}


def run_parts(*parts: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program, given in parts, which must end well and leave every context where it was attached."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(map(textwrap.dedent, parts))],
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Failed to detach" not in done.stderr
    return done


def not_installed(config: pytest.Config, reason: str) -> NoReturn:
    """Skip the test on a user's machine, which need not have every server, and fail it where everything has to be."""
    if config.getoption("--meshmw-require-envoy") or os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def envoy_or_skip(request: pytest.FixtureRequest) -> Path:
    """Envoy's program; where it is not installed the test is skipped, or fails where it must run."""
    from meshmw.errors import EnvoyError
    from meshmw.testing import find_envoy

    try:
        return find_envoy()
    except EnvoyError as missing:
        not_installed(request.config, str(missing))
