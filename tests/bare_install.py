"""Proves, in an environment with no extra installed, that meshmw imports and names the extras that it misses.

Run by the gates with a Python of its own; pytest does not collect it.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys

BARE = [
    "meshmw",
    "meshmw.asgi",
    "meshmw.wsgi",
    "meshmw.django",
    "meshmw.httpx",
    "meshmw.kafka",
    "meshmw.logs",
    "meshmw.propagator",
    "meshmw.rabbitmq",
    "meshmw.server",
    "meshmw.__main__",
    "meshmw.testing",
]
EXTRAS = {"meshmw.flask": ("flask", "meshmw[flask]"), "meshmw.httpx2": ("httpx2", "meshmw[httpx2]")}
EXTRAS |= {"meshmw.requests": ("requests", "meshmw[requests]"), "meshmw.aiohttp": ("aiohttp", "meshmw[aiohttp]")}
EXTRAS["meshmw.celery"] = ("celery", "meshmw[celery]")
EXTRAS["meshmw.grpc"] = ("grpc", "meshmw[grpc]")


def main() -> None:
    for name in BARE:
        importlib.import_module(name)
    for name, (dependency, hint) in EXTRAS.items():
        assert importlib.util.find_spec(dependency) is None, f"{dependency} is installed: this is no bare install"
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as missing:
            if hint not in str(missing):
                raise
        else:
            raise AssertionError(f"{name} imported without {dependency}")
    auto = subprocess.run([sys.executable, "-Ic", "import meshmw.auto"], capture_output=True, text=True, check=False)
    assert auto.returncode == 1, auto
    assert "meshmw[otlp]" in auto.stderr.splitlines()[-1], auto.stderr
    print("a bare install imports, and names the extras that it misses")


if __name__ == "__main__":
    main()
