"""Other telemetry for Python in an environment of its own: some of it changes whatever process it is installed for."""

import sys
from pathlib import Path

from tests.real.install import run


def build(folder: Path) -> None:
    """Leave an environment whose `bin/python` runs it. meshmw is not in it: tests put theirs on the path."""
    run(sys.executable, "-m", "venv", folder)
    # The scripts beside this Python name a folder that is gone: it is renamed once it is whole.
    requirements = Path(__file__).with_suffix("") / "requirements.txt"
    run(folder / "bin" / "python", "-m", "pip", "install", "-q", "-r", requirements)
