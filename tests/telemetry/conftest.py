"""Programs that call `configure()`, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.programs import clean_environment

PRELUDE = """
import logging; logging.basicConfig(level=logging.INFO, format='%(levelname)s %(name)s %(message)s')
from opentelemetry import metrics, propagate, trace
from meshmw._telemetry.configure import configure
from meshmw.settings import Settings
"""


@pytest.fixture(scope="session")
def run_program():
    """Return a function that runs a program with no telemetry variables but those given, and returns it ended."""

    def run(code, *, prelude=PRELUDE, command=(), strict=True, **variables):
        kept = clean_environment()
        return subprocess.run(
            [*command, sys.executable, *(("-W", "error") if strict else ()), "-c", prelude + textwrap.dedent(code)],
            env={**kept, **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run
